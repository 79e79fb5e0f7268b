package responder

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/rig"
)

// vector is what may come in, and what is answered; nil: nothing.
type vector struct {
	name             string
	question, answer []byte
}

// vectors reads the file that binds internal/heartbeat, too.
func vectors(t *testing.T) (all []vector) {
	t.Helper()
	b, err := os.ReadFile("../../heartbeat/testdata/questions.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		data, _ := hex.DecodeString(line[min(2, len(line)):])
		switch {
		case strings.HasPrefix(line, "# "):
		case strings.HasPrefix(line, "? "):
			all[len(all)-1].question = data
		case strings.HasPrefix(line, "! "):
			all[len(all)-1].answer = data
		case strings.HasPrefix(line, "- "):
		default:
			all = append(all, vector{name: line})
		}
	}
	if len(all) < 10 {
		t.Fatalf("only %d vectors", len(all))
	}
	return all
}

const (
	redirected = 7          // TC_ACT_REDIRECT
	passed     = 0xffffffff // TC_ACT_UNSPEC
)

// way is how a question comes, and what the answer is to be sent from.
type way struct {
	name               string
	mac                [6]byte // destination; zero: the interface's own
	source, to, expect netip.Addr
}

func ways(r *Responder) []way {
	p := place(r)
	addr := netip.MustParseAddr
	return []way{
		{"broadcast", [6]byte{255, 255, 255, 255, 255, 255}, addr("10.9.0.2"), addr("10.9.0.255"), addr("10.9.0.1")},
		{"multicast", [6]byte{1, 0, 0x5e, 0, 0, 1}, addr("10.9.0.2"), addr("225.0.0.1"), addr("10.9.0.1")},
		{"unicast", p.Mac, addr("10.77.0.2"), addr("10.9.0.1"), addr("10.9.0.1")},
		{"unicast to another address", p.Mac, addr("10.9.0.2"), addr("10.9.0.99"), addr("10.9.0.99")},
		{"multicast6", [6]byte{0x33, 0x33, 0, 0, 6, 0x94}, addr("fd09::2"), addr("ff05::694"), addr("fd09::1")},
		{"unicast6", p.Mac, addr("fd09::2"), addr("fd09::1"), addr("fd09::1")},
	}
}

var askerMAC = [6]byte{2, 0, 0, 0, 0, 2}

// frame is a datagram as it comes off the wire, with right checksums.
func frame(destination, source [6]byte, from, to netip.AddrPort, ttl byte, payload []byte) []byte {
	b := append(append([]byte(nil), destination[:]...), source[:]...)
	udp := binary.BigEndian.AppendUint16(nil, from.Port())
	udp = binary.BigEndian.AppendUint16(udp, to.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(append(udp, 0, 0), payload...)
	pseudo := append(append([]byte(nil), from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	pseudo = append(pseudo, 0, 17, udp[4], udp[5])
	if binary.BigEndian.PutUint16(udp[6:], sum(pseudo, udp)); udp[6]|udp[7] == 0 {
		udp[6], udp[7] = 255, 255
	}
	if from.Addr().Is4() {
		ip := []byte{0x45, 0x10, 0, byte(20 + len(udp)), 0x12, 0x34, 0x40, 0, ttl, 17, 0, 0}
		ip = append(append(ip, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
		binary.BigEndian.PutUint16(ip[10:], sum(ip))
		return append(append(append(b, 8, 0), ip...), udp...)
	}
	ip := []byte{0x60, 1, 2, 3, 0, byte(len(udp)), 17, ttl}
	ip = append(append(ip, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	return append(append(append(b, 0x86, 0xdd), ip...), udp...)
}

// sum is the Internet checksum (RFC 1071).
func sum(parts ...[]byte) uint16 {
	var s uint32
	for i, c := range bytes.Join(parts, nil) {
		s += uint32(c) << (8 * (1 - i%2))
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

// The program and heartbeat.Reply say the same, by each way that a question can
// come; what is not answered is left as it is.
func TestVectors(t *testing.T) {
	r := open(t, []model.Medium{broadcast}, named)
	for _, v := range vectors(t) {
		for _, w := range ways(r) {
			from, to := netip.AddrPortFrom(w.source, 40001), netip.AddrPortFrom(w.to, 694)
			in := frame(w.mac, askerMAC, from, to, 7, v.question)
			verdict, out := run(t, r, in)
			want, wantVerdict := in, uint32(passed)
			if v.answer != nil {
				want, wantVerdict = frame(askerMAC, place(r).Mac, netip.AddrPortFrom(w.expect, 694), from, 64, v.answer), redirected
			}
			if verdict != wantVerdict {
				t.Errorf("%s by %s: verdict %d, want %d", v.name, w.name, verdict, wantVerdict)
			}
			if d := cmp.Diff(hex.Dump(want), hex.Dump(out)); d != "" {
				t.Errorf("%s by %s (-want +got):\n%s", v.name, w.name, d)
			}
		}
	}
}

// named makes the responder answer as the vectors do.
func named(o *Options) { o.Keys = ring }

// run puts a frame through the program as if it came by eth1. The run of the
// machine is that of the vectors.
func run(t *testing.T, r *Responder, in []byte) (verdict uint32, out []byte) {
	t.Helper()
	r.run = heartbeat.RunOf("a run")
	if err := r.introduce(); err != nil {
		t.Fatal(err)
	}
	l, err := netlink.LinkByName("eth1")
	if err != nil {
		t.Fatal(err)
	}
	o := ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+256), Context: skb{Ifindex: uint32(l.Attrs().Index)}}
	if verdict, err = r.objects.Respond.Run(&o); err != nil {
		t.Fatal(err)
	}
	return verdict, o.DataOut
}

// skb is the part of struct __sk_buff that a test run looks at.
type skb struct {
	_       [10]uint32
	Ifindex uint32
	_       [34]uint32
}

// What is no whole question in a plain UDP datagram to a known port passes, and
// is not even counted.
func TestOthersPass(t *testing.T) {
	r := open(t, []model.Medium{broadcast}, named)
	good := vectors(t)[0].question
	w := ways(r)[0]
	from, to := netip.AddrPortFrom(w.source, 40001), netip.AddrPortFrom(w.to, 694)
	change := func(at int, to byte) []byte {
		b := frame(w.mac, askerMAC, from, netip.AddrPortFrom(w.to, 694), 7, good)
		b[at] = to
		return b
	}
	before, err := r.Counters()
	if err != nil {
		t.Fatal(err)
	}
	for name, in := range map[string][]byte{
		"another port":      frame(w.mac, askerMAC, from, netip.AddrPortFrom(w.to, 695), 7, good),
		"a beat":            frame(w.mac, askerMAC, from, to, 7, []byte("###\n(1)t=(6)status%%%\n")),
		"TCP":               change(14+9, 6),
		"IP options":        change(14, 0x46),
		"a fragment":        change(14+6, 0x20),
		"a later fragment":  change(14+7, 1),
		"another UDP size":  change(14+20+5, 71),
		"another word":      change(14+28, '!'),
		"not for this host": change(0, 0x02),
		"ARP":               change(13, 6),
		"IPv4 said to be 6": frame(w.mac, askerMAC, from, to, 7, good)[:40],
	} {
		verdict, out := run(t, r, in)
		if verdict != passed || !bytes.Equal(in, out) {
			t.Errorf("%s: verdict %d, changed %v", name, verdict, !bytes.Equal(in, out))
		}
	}
	after, err := r.Counters()
	if d := cmp.Diff(before, after); err != nil || d != "" {
		t.Errorf("counted (-before +after): %v\n%s", err, d)
	}
}

// An interface without an address of the family leaves questions to all
// unanswered, and counts them.
func TestNoAddress(t *testing.T) {
	r := open(t, []model.Medium{broadcast}, named)
	for k, p := range r.places {
		p.V4 = [4]byte{}
		if err := r.objects.Places.Put(k, p); err != nil {
			t.Fatal(err)
		}
	}
	w := ways(r)[0]
	in := frame(w.mac, askerMAC, netip.AddrPortFrom(w.source, 40001), netip.AddrPortFrom(w.to, 694), 7, vectors(t)[0].question)
	verdict, out := run(t, r, in)
	if verdict != passed || !bytes.Equal(in, out) {
		t.Errorf("verdict %d, changed %v", verdict, !bytes.Equal(in, out))
	}
	if c, err := r.Counters(); err != nil || c.NoAddress != 1 {
		t.Errorf("counted %+v, %v", c, err)
	}
}

func queryTCX(index int) (int, error) {
	q, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return 0, err
	}
	return len(q.Programs), nil
}

// What an answer costs, program only.
func BenchmarkAnswer(b *testing.B) {
	requireRoot(b)
	r, err := Open(Options{Node: "lvs01", Media: []model.Medium{broadcast}, Keys: ring, Dir: "/sys/fs/bpf/bench"})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Remove()
	q := heartbeat.Question{Key: 1, Nonce: 1, Node: heartbeat.FingerprintOf("lvs01"), Asker: heartbeat.FingerprintOf("lvs02")}
	for _, x := range []struct {
		name string
		key  heartbeat.QuestionKey
	}{{"wrong key", heartbeat.QuestionKey{}}} {
		w := ways(r)[0]
		in := frame(w.mac, askerMAC, netip.AddrPortFrom(w.source, 40001), netip.AddrPortFrom(w.to, 694), 7, q.Append(nil, x.key))
		l, err := netlink.LinkByName("eth1")
		if err != nil {
			b.Fatal(err)
		}
		b.Run(x.name, func(b *testing.B) {
			o := ebpf.RunOptions{Data: in, DataOut: make([]byte, 512), Repeat: uint32(b.N), Context: skb{Ifindex: uint32(l.Attrs().Index)}}
			if _, err := r.objects.Respond.Run(&o); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// make test-plane-kernel asks that of the oldest kernel.
func TestVerifier(t *testing.T) {
	requireRoot(t)
	spec, err := loadRespond()
	if err != nil {
		t.Fatal(err)
	}
	rig.Verify(t, spec, nil)
}
