package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/batuta-ha/batuta/internal/balance"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/node"
	"github.com/batuta-ha/batuta/internal/plane/ipvs"
	"github.com/batuta-ha/batuta/internal/plane/planetest"
)

// The texts of `batuta table` and of the ipvsadm shim against those of
// ipvsadm(8) itself, for the same state of the same kernel. Needs both, so
// internal/lab runs it in a kernel of its own, with this variable set.
func requireIPVS(t *testing.T) {
	t.Helper()
	if os.Getenv("BATUTA_IPVS_KERNEL") == "" {
		t.Skip("needs a kernel with IPVS, and ipvsadm: go test ./internal/lab -run TestIPVS runs this there")
	}
}

// listings are all that ipvsadm can be asked for.
var listings = []string{"-L -n", "-L -n --sort", "-L -n --stats", "-L -n --stats --exact", "-L -n --rate", "-L -n --rate --exact",
	"-L -n --thresholds", "-L -n --persistent-conn", "-L -n --tun-info", "-L -n -c", "-L -n -c --persistent-conn",
	"-L -n --timeout", "-L -n --daemon", "-S -n", "-ln", "-lnc", ""}

// ipvsadm is the real one.
func ipvsadm(args ...string) (string, error) {
	out, err := exec.Command("ipvsadm", args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("ipvsadm %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// shim is what ours prints for the same arguments.
func shim(ctx context.Context, kernel tables, args ...string) (string, error) {
	w, err := parseWish(args, newMachineNames(ctx))
	if err != nil {
		return "", err
	}
	var out strings.Builder
	err = w.print(ctx, kernel, &out)
	return out.String(), err
}

// compare asks both for each listing until the kernel's state has not changed
// between ours before and ours after; then theirs must be the same.
func compare(ctx context.Context, kernel tables, wanted ...string) error {
	for _, l := range wanted {
		args := strings.Fields(l)
		for try := 1; ; try++ {
			before, err := shim(ctx, kernel, args...)
			if err != nil {
				return err
			}
			theirs, err := ipvsadm(args...)
			if err != nil {
				return err
			}
			if theirs == before {
				break
			}
			after, err := shim(ctx, kernel, args...)
			if err != nil {
				return err
			}
			if before == after || try == 100 {
				return fmt.Errorf("ipvsadm %s, try %d (-ipvsadm +batuta):\n%s", l, try, cmp.Diff(theirs, after))
			}
		}
	}
	return nil
}

func TestTextsAreThoseOfIpvsadm(t *testing.T) {
	requireIPVS(t)
	p, err := ipvs.Open(ipvs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := node.OpenKernel()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(p.Close(), kernel.Close()); err != nil {
			t.Error(err)
		}
	}()
	if flag.Lookup("rapid.seed").Value.String() == "0" {
		if err := flag.Set("rapid.seed", fmt.Sprint(rand.Uint64())); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("-rapid.seed=%s", flag.Lookup("rapid.seed").Value)

	tables, services, reals, printed := 0, 0, 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		want := drawTable(rt)
		have, err := p.Read(t.Context())
		if err != nil {
			rt.Fatal(err)
		}
		if err := p.Apply(t.Context(), balance.Diff(have, want)); err != nil {
			rt.Fatalf("apply: %v", err)
		}
		got, err := p.Read(t.Context())
		if err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(want.String(), got.String()); diff != "" {
			rt.Fatalf("read back (-want +got):\n%s", diff)
		}
		some := []string{"-S -n", rapid.SampledFrom(listings).Draw(rt, "listing")}
		if n := len(got.Services); n > 0 {
			one := listing{}.serviceOption(got.Services[rapid.IntRange(0, n-1).Draw(rt, "one")].Key)
			some = append(some, rapid.SampledFrom([]string{"-L -n ", "-L -n --stats ", "-L -n --tun-info "}).Draw(rt, "listing of one")+one)
		}
		if err := compare(t.Context(), kernel, some...); err != nil {
			rt.Fatal(err)
		}
		printed += len(some)
		services += len(got.Services)
		for _, s := range got.Services {
			reals += len(s.Reals)
		}
		// What one saves the other restores: all but thresholds, which the
		// text does not have.
		saved, err := shim(t.Context(), kernel, "-S", "-n")
		if err != nil {
			rt.Fatal(err)
		}
		changes, err := readSave(strings.NewReader(saved), newMachineNames(t.Context()))
		if err != nil {
			rt.Fatal(err)
		}
		var restored model.Table
		for _, c := range changes {
			if err := restored.Perform(c); err != nil {
				rt.Fatal(err)
			}
		}
		for i := range want.Services {
			for j := range want.Services[i].Reals {
				r := &want.Services[i].Reals[j]
				r.Upper, r.Lower = 0, 0
			}
		}
		if diff := cmp.Diff(want.String(), restored.String()); diff != "" {
			rt.Fatalf("restored by us (-want +got):\n%s", diff)
		}
		if tables++; tables%8 != 1 { // it takes its time
			return
		}
		if _, err := ipvsadm("-C"); err != nil {
			rt.Fatal(err)
		}
		restore := exec.Command("ipvsadm", "-R")
		restore.Stdin = strings.NewReader(saved)
		if out, err := restore.CombinedOutput(); err != nil {
			rt.Fatalf("ipvsadm -R: %v\n%s\n%s", err, out, saved)
		}
		if got, err := p.Read(t.Context()); err != nil || got.String() != want.String() {
			rt.Fatalf("restored by ipvsadm: %v (-want +got):\n%s", err, cmp.Diff(want.String(), got.String()))
		}
	})
	t.Logf("%d tables with %d services and %d real servers, %d listings of %d kinds, saved and restored: 0 differences",
		tables, services, reals, printed, len(listings)+3)
}

// The same with traffic: counters that are not 0, connections in many states,
// templates of persistence, of a mark too, and both sync daemons.
func TestTextsOfLiveConnections(t *testing.T) {
	requireIPVS(t)
	if out, err := exec.Command("modprobe", "-a", "ip_vs_pe_sip").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	director, client, rack := planetest.NewHost(t, "director"), planetest.NewHost(t, "client"), planetest.NewHost(t, "rack")
	director.Connect(t, "outside", "10.1.0.1/24", client, "eth0", "10.1.0.50/24")
	director.Connect(t, "inside", "10.240.0.1/24", rack, "eth0", "10.240.0.20/24")
	for _, a := range []string{"10.1.0.100/32", "2001:db8:1::1/64", "2001:db8:1::100/128"} {
		director.Address(t, "outside", a)
	}
	director.Address(t, "inside", "2001:db8:240::1/64")
	client.Address(t, "eth0", "2001:db8:1::50/64")
	rack.Address(t, "eth0", "2001:db8:240::20/64")
	rack.Route(t, "0.0.0.0/0", "10.240.0.1")
	rack.Route(t, "::/0", "2001:db8:240::1")
	director.Sysctl(t, "net/ipv4/ip_forward", "1")
	director.Sysctl(t, "net/ipv6/conf/all/forwarding", "1")

	rack.Do(t, func() {
		for _, a := range []string{"10.240.0.20", "2001:db8:240::20"} {
			for _, p := range []model.Protocol{model.TCP, model.UDP} {
				planetest.StartServer(t, p, netip.AddrPortFrom(netip.MustParseAddr(a), 80))
			}
		}
	})
	rules := `-A -t 10.1.0.100:80 -s rr
-a -t 10.1.0.100:80 -r 10.240.0.20:80 -m
-A -u 10.1.0.100:80 -s rr -p 300 -M 255.255.255.0
-a -u 10.1.0.100:80 -r 10.240.0.20:80 -m
-A -t [2001:db8:1::100]:80 -s lc -p 100000
-a -t [2001:db8:1::100]:80 -r [2001:db8:240::20]:80 -m -x 100
-A -u [2001:db8:1::100]:80 -s rr
-a -u [2001:db8:1::100]:80 -r [2001:db8:240::20]:80 -m
-A -u 10.1.0.100:5060 -s rr -p 60 --pe sip -o
-a -u 10.1.0.100:5060 -r 10.240.0.20:80 -m
-A -f 7 -s rr -p 60
-a -f 7 -r 10.240.0.20:80 -m
`
	var kernel *node.Kernel
	var err error
	director.Do(t, func() {
		var changes []model.Change
		if changes, err = readSave(strings.NewReader(rules), nil); err != nil {
			return
		}
		if kernel, err = node.OpenKernel(); err != nil {
			return
		}
		if _, err = kernel.Restore(t.Context(), changes, false); err != nil {
			return
		}
		_, err = ipvsadm("--start-daemon", "master", "--mcast-interface", "inside", "--syncid", "3")
		err = errors.Join(err, exec.Command("ipvsadm", "--start-daemon", "backup", "--mcast-interface", "outside", "--mcast-ttl", "4").Run(),
			exec.Command("ipvsadm", "--set", "1000", "20", "30").Run())
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		director.Do(t, func() {
			for _, role := range []string{"master", "backup"} {
				if _, err := ipvsadm("--stop-daemon", role); err != nil {
					t.Error(err)
				}
			}
		})
		if err := kernel.Close(); err != nil {
			t.Error(err)
		}
	})

	var open []net.Conn
	dial := func(from *planetest.Host, network, addr string, mark int) {
		t.Helper()
		var c net.Conn
		var err error
		d := net.Dialer{Timeout: 30 * time.Second, Control: func(_, _ string, raw syscall.RawConn) error {
			var serr error
			return errors.Join(raw.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark) }), serr)
		}}
		from.Do(t, func() { c, err = d.DialContext(t.Context(), network, addr) })
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := planetest.NewConn(c).Exchange(t.Context(), []byte("hello")); err != nil {
			t.Fatalf("%s %s: %v", network, addr, err)
		}
		open = append(open, c)
	}
	for range 5 {
		dial(client, "tcp", "10.1.0.100:80", 0)
		dial(client, "tcp", "[2001:db8:1::100]:80", 0)
		dial(client, "udp", "10.1.0.100:80", 0)
		dial(client, "udp", "[2001:db8:1::100]:80", 0)
	}
	dial(director, "tcp", "10.1.0.100:80", 7) // a client on the director itself, whose packets have the mark
	for _, c := range open[:8] {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// A call of SIP, so that its engine has something to say.
	client.Do(t, func() {
		c, cerr := net.Dial("udp", "10.1.0.100:5060")
		if cerr != nil {
			err = cerr
			return
		}
		_, err = c.Write([]byte("OPTIONS sip:x@10.1.0.100 SIP/2.0\r\nCall-ID: call-1@client\r\nContent-Length: 0\r\n\r\n"))
		open = append(open, c)
	})
	if err != nil {
		t.Fatal(err)
	}

	check := func(wanted ...string) {
		t.Helper()
		director.Do(t, func() { err = compare(t.Context(), kernel, wanted...) })
		if err != nil {
			t.Error(err)
		}
	}
	check(listings...)
	// More than eight digits: 100 MB and some through the first connection left.
	big := planetest.NewConn(open[8])
	chunk := make([]byte, 60_000)
	for range 1750 {
		if _, echo, err := big.Exchange(t.Context(), chunk); err != nil || len(echo) != len(chunk) {
			t.Fatal(err)
		}
	}
	check("-L -n --stats", "-L -n --stats --exact", "-L -n --rate", "-L -n --rate --exact")
	for _, c := range open[8:] {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	check("-L -n", "-L -n -c")
	director.Do(t, func() {
		out, err := ipvsadm("-L", "-n", "--stats")
		t.Logf("%v\n%s", err, out)
		out, err = ipvsadm("-L", "-n", "-c", "--persistent-conn")
		t.Logf("%v\n%s", err, out)
	})
}

// schedulerFlags are what ipvsadm calls the flags of a scheduler. sh and mh
// make nothing of the third, and ipvsadm has no word for it there.
func schedulerFlags(scheduler string) []string {
	switch scheduler {
	case "sh":
		return []string{"sh-fallback", "sh-port"}
	case "mh":
		return []string{"mh-fallback", "mh-port"}
	}
	return []string{"flag-1", "flag-2", "flag-3"}
}

// A third of all numbers: the first bytes of the addresses of one
// table. ipvsadm's order is circular, so numbers from all around have none.
type third []byte

var thirds = []third{{0, 0, 0, 1, 10, 100}, {130, 192, 223, 192}, {192, 223, 0, 1, 10, 60}}

// drawTable is any table that the kernel can carry.
func drawTable(rt *rapid.T) model.Table {
	var t model.Table
	from := rapid.SampledFrom(thirds).Draw(rt, "from")
	drawKey := func(rt *rapid.T) model.ServiceKey { return drawKey(rt, from) }
	schedulers := []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh"}
	for _, k := range rapid.SliceOfNDistinct(rapid.Custom(drawKey), 0, 12, rapid.ID).Draw(rt, "services") {
		v := model.VirtualService{Key: k, Scheduler: rapid.SampledFrom(schedulers).Draw(rt, "scheduler")}
		var flags []string
		for _, f := range schedulerFlags(v.Scheduler) {
			if rapid.IntRange(0, 3).Draw(rt, f) == 0 {
				flags = append(flags, f)
			}
		}
		v.SchedFlags = strings.Join(flags, ",")
		// Only a persistent service may be for all ports.
		if rapid.Bool().Draw(rt, "persistent") || !k.IsMark() && k.Addr.Port() == 0 {
			v.Persistence = model.Persistence{Enabled: true, Timeout: time.Duration(rapid.IntRange(1, 100000).Draw(rt, "seconds")) * time.Second}
			if rapid.Bool().Draw(rt, "masked") {
				v.Persistence.Netmask = drawMask(rt, k.Family())
			}
			if k.Proto == model.UDP && rapid.IntRange(0, 2).Draw(rt, "engine") == 0 {
				v.Persistence.Engine = "sip"
			}
		}
		v.OnePacket = k.Proto != model.TCP && k.Proto != model.SCTP && rapid.Bool().Draw(rt, "one packet")
		v.Reals = rapid.SliceOfNDistinct(rapid.Custom(func(rt *rapid.T) model.RealServer { return drawReal(rt, k, from) }), 0, 6,
			func(r model.RealServer) netip.AddrPort { return r.Addr }).Draw(rt, "reals")
		t.Services = append(t.Services, v)
	}
	t.Sort()
	return t
}

func drawMask(rt *rapid.T, f model.Family) netip.Addr {
	if f == model.IPv6 {
		return model.MaskOf(rapid.IntRange(1, 127).Draw(rt, "prefix"))
	}
	n := rapid.IntRange(1, 31).Draw(rt, "prefix")
	return netip.AddrFrom4([4]byte(model.MaskOf(n).AsSlice()[:4]))
}

func drawAddr(rt *rapid.T, f model.Family, from third) netip.Addr {
	if f == model.IPv6 {
		b := [16]byte{0x20, 0x01, 0x0d, 0xb8}
		for i := 4; i < 16; i++ { // many zeros, so that all ways to abbreviate come up
			b[i] = rapid.SampledFrom([]byte{0, 0, 0, 1, 0x10, 0xff}).Draw(rt, "byte")
			if i%4 == 0 {
				b[i] = rapid.SampledFrom(from).Draw(rt, "first byte")
			}
		}
		return netip.AddrFrom16(b)
	}
	var b [4]byte
	for i := range b {
		b[i] = rapid.SampledFrom([]byte{1, 9, 10, 100, 192, 223}).Draw(rt, "byte")
	}
	if b[0] = rapid.SampledFrom(from).Draw(rt, "first byte"); b[0] == 0 {
		b[0] = 9 // 0.0.0.0/8 is nobody
	}
	return netip.AddrFrom4(b)
}

func drawPort(rt *rapid.T, from int) uint16 {
	if rapid.Bool().Draw(rt, "usual port") {
		return rapid.SampledFrom([]uint16{53, 80, 443, 8080}).Draw(rt, "port")
	}
	return uint16(rapid.IntRange(from, 65535).Draw(rt, "port"))
}

func drawKey(rt *rapid.T, from third) model.ServiceKey {
	f := rapid.SampledFrom([]model.Family{model.IPv4, model.IPv6}).Draw(rt, "family")
	p := rapid.SampledFrom([]model.Protocol{model.TCP, model.TCP, model.UDP, model.SCTP, model.ProtocolNone}).Draw(rt, "protocol")
	if p == model.ProtocolNone {
		// ipvsadm -S writes greater marks as negative numbers, which it cannot
		// read back; batuta writes them as they are.
		return model.ServiceKey{Mark: rapid.Uint32Range(1, 1<<31-1).Draw(rt, "mark"), MarkFamily: f}
	}
	port := drawPort(rt, 1)
	if rapid.IntRange(0, 7).Draw(rt, "all ports") == 0 {
		port = 0
	}
	return model.ServiceKey{Proto: p, Addr: netip.AddrPortFrom(drawAddr(rt, f, from), port)}
}

func drawReal(rt *rapid.T, k model.ServiceKey, from third) model.RealServer {
	r := model.RealServer{Forward: rapid.SampledFrom([]model.Forward{model.Masq, model.Gate, model.IPIP}).Draw(rt, "forward"),
		Weight: rapid.SampledFrom([]int{0, 1, 1, 2, 100, 65535}).Draw(rt, "weight")}
	port := drawPort(rt, 1)
	if !k.IsMark() && r.Forward != model.Masq { // which alone changes the port
		port = k.Addr.Port()
	}
	r.Addr = netip.AddrPortFrom(drawAddr(rt, k.Family(), from), port)
	if r.Forward == model.IPIP {
		r.Tunnel = drawTunnel(rt)
	}
	if rapid.Bool().Draw(rt, "thresholds") {
		r.Lower = rapid.Uint32Range(0, 1000).Draw(rt, "lower")
		r.Upper = r.Lower + rapid.Uint32Range(1, 1000).Draw(rt, "room")
	}
	return r
}

func drawTunnel(rt *rapid.T) (tun model.Tunnel) {
	tun.Kind = rapid.SampledFrom([]model.TunnelKind{model.TunnelIPIP, model.TunnelIPIP, model.TunnelGUE, model.TunnelGRE}).Draw(rt, "tunnel")
	switch tun.Kind {
	case model.TunnelGUE:
		tun.Port = uint16(rapid.IntRange(1, 65535).Draw(rt, "tunnel port"))
		tun.Checksum = rapid.SampledFrom([]model.TunnelChecksum{model.TunnelNoChecksum, model.TunnelSum, model.TunnelRemoteChecksum}).Draw(rt, "sum")
	case model.TunnelGRE:
		tun.Checksum = rapid.SampledFrom([]model.TunnelChecksum{model.TunnelNoChecksum, model.TunnelSum}).Draw(rt, "sum")
	case model.TunnelIPIP:
	}
	return tun
}
