package lab_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/lab"
)

// garbage is a flood on the heartbeat port of the node without the address,
// from the client's machine: if that one believes the other dead, it takes over.
type garbage struct {
	name   string
	from   string // the source address that the packets claim
	packet func(recorded [][]byte) [][]byte
	port   uint16 // 0 is the heartbeat port
	live   bool   // packet is called again and again, with the newest recordings
}

const (
	stranger = "10.1.0.10"
	thePeer  = "the peer's" // no filter by address can tell
)

func forged(recorded [][]byte) (list [][]byte) {
	for _, p := range recorded {
		bad := bytes.Clone(p)
		bad[len(bad)-3] ^= 1
		list = append(list, bad)
	}
	return list
}

func unchanged(recorded [][]byte) [][]byte { return recorded }

var sequence = regexp.MustCompile(`(\d+):\(0\)seq=([0-9a-f]+),`)

// foretold are forgeries with the numbers that the peer is about to use: what
// somebody can make who listens all the time, but has no key.
func foretold(recorded [][]byte) (list [][]byte) {
	latest := recorded[len(recorded)-1]
	for ahead := range uint64(50) {
		list = append(list, sequence.ReplaceAllFunc(latest, func(field []byte) []byte {
			now, _ := strconv.ParseUint(string(sequence.FindSubmatch(field)[2]), 16, 32)
			text := fmt.Sprintf("(0)seq=%x", now+1+ahead)
			return fmt.Appendf(nil, "%d:%s,", len(text), text)
		}))
	}
	return list
}

var garbages = []garbage{
	{name: "nothing"},
	{name: "to another port", from: thePeer, packet: unchanged, port: 9}, // what the flood itself costs
	{name: "random bytes", from: stranger, packet: func([][]byte) [][]byte {
		b := make([]byte, 300)
		for i := range b {
			b[i] = byte(rand.Uint32())
		}
		return [][]byte{b}
	}},
	{name: "forged messages", from: stranger, packet: forged},
	{name: "forged, with the peer's address", from: thePeer, packet: forged},
	{name: "forged, with its next numbers, too", from: thePeer, packet: foretold, live: true},
	{name: "recorded messages", from: stranger, packet: unchanged},
	{name: "recorded, with the peer's address", from: thePeer, packet: unchanged},
	{name: "of 60,000 bytes, in fragments", from: thePeer, packet: func([][]byte) [][]byte {
		field := bytes.Repeat([]byte("x"), 59_000)
		return [][]byte{fmt.Appendf(nil, "###\n%d:(0)t=%s,%%%%%%\n34:1 7a77a445dccacb8249fb3a6a4ee86b21,", len(field)+5, field)}
	}},
	{name: "fragments without an end", from: thePeer},
}

// TestBenchGarbage floods a node of a running pair and prints what it costs.
// Only what must never happen fails: somebody takes over.
func TestBenchGarbage(t *testing.T) {
	if os.Getenv("BATUTA_BENCH") != "garbage" {
		t.Skip("make bench-garbage runs it")
	}
	rate := environment(t, "RATE", 200_000)
	period := time.Duration(environment(t, "SECONDS", 8)) * time.Second
	only := regexp.MustCompile(os.Getenv("ONLY"))
	for _, pace := range [][2]string{{"10ms", "100ms"}, {"50ms", "250ms"}} {
		files := haFiles(pace[0], pace[1], "5", "log_badpack true\n")
		if method := os.Getenv("METHOD"); method != "" {
			files["/etc/ha.d/authkeys"] = lab.File{Data: []byte("auth 1\n1 " + method + " a#longer#secret\n"), Mode: 0o600}
		}
		p := newPairing(t, system{name: "batuta", files: files,
			service: []string{"batuta", "run", "--ha.d", "/etc/ha.d"}})
		active, _ := p.settle()
		victim := otherDirector(active)
		address := map[string]string{"d1": "10.1.0.1", "d2": "10.1.0.2"}
		ear := newEar(t, p)
		time.Sleep(time.Second) // some beats to record
		fmt.Printf("\nkeepalive %s, deadtime %s\n\n| flood | packets/s | own beats late, p50 / p99 / max, ms | the peer's | CPU | memory before / during, MB | dropped by the filter or not authentic | for want of room | notes | deaths, takeovers |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n", pace[0], pace[1])
		for _, g := range garbages {
			if !only.MatchString(g.name) {
				continue
			}
			recorded := func() [][]byte { return ear.recorded(address[active]) }
			memory, _ := p.spent(victim)
			before := p.facts(victim)
			ear.restart()
			stop, done := make(chan struct{}), make(chan struct{})
			var sent atomic.Int64
			go func() {
				defer close(done)
				if g.from == "" {
					return
				}
				if err := flood(p.client, g, address[active], address[victim], recorded, rate, stop, &sent); err != nil {
					t.Error(err)
				}
			}()
			_, cpu0 := p.spent(victim)
			begin, during := time.Now(), 0.0
			for time.Since(begin) < period {
				time.Sleep(period / 8)
				now, _ := p.spent(victim)
				during = max(during, now)
			}
			_, cpu1 := p.spent(victim)
			took := time.Since(begin).Seconds()
			late, peers := ear.late(address[victim], pace[0]), ear.late(address[active], pace[0])
			close(stop)
			<-done
			after := p.facts(victim)
			lost := after.noRoom - before.noRoom
			fmt.Printf("| %s | %d | %.1f / %.1f / %.1f | %.1f / %.1f / %.1f | %.0f %% | %.0f / %.0f | %d | %d | %d | %d, %d |\n", g.name, int(float64(sent.Load())/took),
				late[0], late[1], late[2], peers[0], peers[1], peers[2], 100*(cpu1-cpu0)/took, memory, during,
				after.dropped-before.dropped-lost, lost, after.notes-before.notes, after.deaths-before.deaths, after.takeovers-before.takeovers)
			if after.takeovers > before.takeovers {
				t.Errorf("%s: somebody took over", g.name)
			}
			time.Sleep(time.Second)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func environment(t *testing.T, name string, otherwise int) int {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// facts are counts since the start of the pair.
type facts struct{ dropped, noRoom, notes, deaths, takeovers int }

func (p *pairing) facts(victim string) (f facts) {
	var st struct {
		BadPackets int `json:"bad_packets"`
	}
	if err := json.Unmarshal([]byte(p.on(victim, "batuta", "status", "--json")), &st); err != nil {
		p.Fatal(err)
	}
	f.dropped = st.BadPackets
	for line := range strings.SplitSeq(p.on(victim, "cat", "/proc/net/udp"), "\n") {
		if w := strings.Fields(line); len(w) > 12 && strings.HasSuffix(w[1], ":02B6") {
			n, _ := strconv.Atoi(w[12])
			f.dropped += n // by the socket's filter, or for want of room
		}
	}
	// Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors; the names come first
	for line := range strings.SplitSeq(p.on(victim, "cat", "/proc/net/snmp"), "\n") {
		if w := strings.Fields(line); len(w) > 5 && w[0] == "Udp:" {
			f.noRoom, _ = strconv.Atoi(w[5])
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for node, lines := range p.log {
		for _, l := range lines {
			if node == victim {
				f.notes++
			}
			if strings.Contains(l, ": is dead") {
				f.deaths++
			}
			if strings.Contains(l, "Acquiring resource group") {
				f.takeovers++
			}
		}
	}
	return f
}

// spent is the resident memory of a node's processes, in MB, and the seconds of
// CPU that they have used.
func (p *pairing) spent(node string) (memory, cpu float64) {
	for _, pid := range p.processes(node) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		w := strings.Fields(rest)
		user, _ := strconv.ParseFloat(w[11], 64)
		system, _ := strconv.ParseFloat(w[12], 64)
		pages, _ := strconv.ParseFloat(w[21], 64)
		cpu += (user + system) / 100 // USER_HZ
		memory += pages * 4096 / 1e6
	}
	return memory, cpu
}

// within runs something on a thread in the network namespace of a process.
func within(pid int, do func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			_ = ns.Close()
		}
		if err == nil {
			err = do()
		}
		result <- err
	}()
	return <-result
}

// flood sends until stop, at that rate if the machine can.
func flood(pid int, g garbage, peer, victim string, recorded func() [][]byte, rate int, stop <-chan struct{}, sent *atomic.Int64) error {
	return within(pid, func() error {
		// The packets of another machine come whatever else runs here; but they
		// would not take the beats' CPU, as a real-time thread would.
		err := unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), -20)
		realtime := os.Getenv("REALTIME") != ""
		if realtime { // unless that is what is wanted
			err = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 50}, 0)
		}
		if err != nil {
			fmt.Printf("the flood has no priority (%v): there will be less of it\n", err)
		}
		if g.from == thePeer {
			g.from = peer
		}
		if g.port == 0 {
			g.port = 694
		}
		from, to := netip.MustParseAddr(g.from), netip.MustParseAddr(victim)
		trains, c, err := openTrains(from)
		if err != nil {
			return err
		}
		defer trains.Close()
		raw, err := openRaw()
		if err != nil {
			return err
		}
		defer raw.Close()
		var send func([]ipv4.Message, int) (int, error)
		var bursts []burst
		made := time.Now()
		build := func() {
			bursts, made = bursts[:0], time.Now()
			if send = raw.WriteBatch; g.packet == nil {
				for id := range 1000 {
					bursts = append(bursts, burst{data: packet(from, to, uint16(id), 0, true, make([]byte, 1400)), n: 1})
				}
				return
			}
			payloads := g.packet(recorded())
			if longest := slices.MaxFunc(payloads, func(a, b []byte) int { return cmp.Compare(len(a), len(b)) }); len(longest) <= mostWhole {
				send, bursts = c.WriteBatch, couple(payloads)
				return
			}
			for i, payload := range payloads {
				for _, p := range datagram(from, to, g.port, uint16(i), payload) {
					bursts = append(bursts, burst{data: p, n: 1})
				}
			}
		}
		build()
		target := net.Addr(&net.UDPAddr{IP: to.AsSlice(), Port: int(g.port)})
		if len(bursts) > 0 && bursts[0].oob == nil {
			target = &net.IPAddr{IP: to.AsSlice()}
		}
		var batch []ipv4.Message
		next, missed := 0, int64(0)
		for range 8 {
			batch = append(batch, ipv4.Message{Addr: target, Buffers: make([][]byte, 1)})
		}
		rested := time.Now()
		for begin := time.Now(); ; {
			select {
			case <-stop:
				return nil
			default:
			}
			// The kernel takes a processor from all real-time threads, beats
			// included, for 50 ms a second where these leave nothing to others.
			if realtime && time.Since(rested) > 10*time.Millisecond {
				time.Sleep(time.Millisecond)
				rested = time.Now()
			}
			ahead := float64(sent.Load()-missed)/float64(rate) - time.Since(begin).Seconds()
			switch {
			case ahead > 0:
				time.Sleep(time.Duration(ahead * 1e9))
				continue
			case ahead < -0.01: // what could not be sent in time is not made up for
				missed += int64(ahead * float64(rate))
			}
			if g.live && time.Since(made) > 20*time.Millisecond {
				build()
			}
			from := next
			for i := range batch {
				b := bursts[next%len(bursts)]
				batch[i].Buffers[0], batch[i].OOB = b.data, b.oob
				next++
			}
			n, err := send(batch, 0)
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return err
			}
			for i := range n {
				sent.Add(int64(bursts[(from+i)%len(bursts)].n))
			}
			next = from + max(n, 1)
		}
	})
}

// burst is what one message of a system call sends: a packet, or a train.
type burst struct {
	data, oob []byte
	n         int // packets
}

// A train is up to so many datagrams of one length, which the kernel carries as
// one packet up to the receiver's socket and takes apart there, before its
// filter (UDP_SEGMENT, udp(7)): so one processor can send several times as many.
const (
	trainLength = 32
	mostWhole   = 1400 // bytes of a datagram that needs no fragments
)

func couple(payloads [][]byte) (bursts []burst) {
	sorted := slices.Clone(payloads)
	slices.SortStableFunc(sorted, func(a, b []byte) int { return cmp.Compare(len(a), len(b)) })
	for len(sorted) < trainLength { // one that is said again and again
		sorted = append(sorted, sorted...)
	}
	for i := 0; i < len(sorted); {
		b := burst{oob: make([]byte, unix.CmsgSpace(2))}
		head := (*unix.Cmsghdr)(unsafe.Pointer(&b.oob[0]))
		head.Level, head.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		head.SetLen(unix.CmsgLen(2))
		size := len(sorted[i])
		binary.NativeEndian.PutUint16(b.oob[unix.CmsgLen(0):], uint16(size))
		for ; i < len(sorted) && b.n < trainLength && len(sorted[i]) == size && len(b.data)+size < 60_000; i++ {
			b.data, b.n = append(b.data, sorted[i]...), b.n+1
		}
		bursts = append(bursts, b)
	}
	rand.Shuffle(len(bursts), func(i, j int) { bursts[i], bursts[j] = bursts[j], bursts[i] })
	return bursts
}

// openTrains opens a socket that sends whole datagrams from an address that
// may be another machine's.
func openTrains(from netip.Addr) (io.Closer, *ipv4.PacketConn, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		bad := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1) })
		return errors.Join(bad, err)
	}}
	c, err := config.ListenPacket(context.Background(), "udp4", netip.AddrPortFrom(from, 1).String())
	if err != nil {
		return nil, nil, err
	}
	return c, ipv4.NewPacketConn(c), nil
}

// openRaw opens a socket that sends packets as they are.
func openRaw() (*ipv4.RawConn, error) {
	c, err := net.ListenIP("ip4:udp", nil)
	if err != nil {
		return nil, err
	}
	_ = c.SetReadBuffer(1)
	return ipv4.NewRawConn(c)
}

// datagram is a UDP datagram, in as many packets as it takes.
func datagram(from, to netip.Addr, port, id uint16, payload []byte) (packets [][]byte) {
	udp := binary.BigEndian.AppendUint16(nil, 1)
	udp = binary.BigEndian.AppendUint16(udp, port)
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(binary.BigEndian.AppendUint16(udp, 0), payload...) // no checksum
	const most = 1480
	for at := 0; at < len(udp); at += most {
		end := min(at+most, len(udp))
		packets = append(packets, packet(from, to, id, at, end < len(udp), udp[at:end]))
	}
	return packets
}

// packet is one IPv4 packet (RFC 791), a fragment if at is not 0 or more follow.
func packet(from, to netip.Addr, id uint16, at int, more bool, payload []byte) []byte {
	h := ipv4.Header{Version: 4, Len: ipv4.HeaderLen, TotalLen: ipv4.HeaderLen + len(payload), ID: int(id), TTL: 64, Protocol: unix.IPPROTO_UDP,
		FragOff: at / 8, Src: from.AsSlice(), Dst: to.AsSlice()}
	if more {
		h.Flags = ipv4.MoreFragments
	}
	b, _ := h.Marshal()
	return append(b, payload...)
}

// ear hears the beats that the pair broadcasts.
type ear struct {
	mu    sync.Mutex
	beats map[string][]time.Time // by sender
	past  map[string][][]byte    // all that it said, the newest last
}

// mostRecorded is a minute of what a node says at a keepalive of 10 ms.
const mostRecorded = 6000

func newEar(t *testing.T, p *pairing) *ear {
	t.Helper()
	e := &ear{beats: map[string][]time.Time{}, past: map[string][][]byte{}}
	var conn *net.UDPConn
	if err := within(p.client, func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{Port: 694})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetReadBuffer(1 << 20)
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1) }); err != nil {
		t.Fatal(err)
	}
	go func() {
		buf, oob := make([]byte, 64<<10), make([]byte, 128)
		for {
			n, on, _, from, err := conn.ReadMsgUDP(buf, oob)
			if err != nil {
				return
			}
			at := time.Now()
			if head, data, _, err := unix.ParseOneSocketControlMessage(oob[:on]); err == nil && head.Type == unix.SO_TIMESTAMPNS {
				at = time.Unix(int64(binary.NativeEndian.Uint64(data)), int64(binary.NativeEndian.Uint64(data[8:])))
			}
			e.hear(from.IP.String(), at, bytes.Clone(buf[:n]))
		}
	}()
	return e
}

func (e *ear) hear(from string, at time.Time, data []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if bytes.Contains(data, []byte("t=status")) || bytes.Contains(data, []byte("sealed")) { // of encrypted messages nearly all are
		e.beats[from] = append(e.beats[from], at)
	}
	if len(e.past[from]) == mostRecorded {
		e.past[from] = slices.Delete(e.past[from], 0, mostRecorded/2)
	}
	e.past[from] = append(e.past[from], data)
}

func (e *ear) restart() {
	e.mu.Lock()
	defer e.mu.Unlock()
	clear(e.beats)
}

func (e *ear) recorded(from string) [][]byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.past[from])
}

// late is by how much beats came later than a keepalive after the one before.
func (e *ear) late(from, keepalive string) (p [3]float64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	pace, _ := time.ParseDuration(keepalive)
	var late []float64
	for i := 1; i < len(e.beats[from]); i++ {
		d := e.beats[from][i].Sub(e.beats[from][i-1]) - pace
		late = append(late, max(0, float64(d.Microseconds())/1000))
	}
	if len(late) == 0 {
		return p
	}
	slices.Sort(late)
	return [3]float64{late[len(late)/2], late[len(late)*99/100], late[len(late)-1]}
}
