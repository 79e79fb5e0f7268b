package ebpf

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// The cost of one packet in the ingress program alone, as BPF test-run
// measures it: parsing, look-ups, routing, translation, checksums. What the
// kernel does with the verdict is not in it; "other protocol" is the cost of
// the measurement itself.
//
// A repeated test-run works on the packet that the run before has left. So
// the virtual address is the real server's own here: all the work is done, and
// the packet is the same afterwards but for its hop count, which bounds a run
// to 200 packets.
func BenchmarkProgram(b *testing.B) {
	requireRoot(b)
	p := open(b, testOptions())
	self := netip.MustParseAddrPort("10.240.0.20:53")
	web := netip.MustParseAddrPort("10.240.0.20:80")
	apply(b, p, addService(model.UDP, self, "rr"), addReal(model.UDP, self, self.String(), 1),
		addService(model.TCP, web, "rr"), addReal(model.TCP, web, web.String(), 1))
	// A known neighbor, so that the connection remembers its route.
	echoStream(b, rack0, "10.240.0.20:8000", netip.MustParseAddrPort("10.240.0.20:8000"), 1)
	for _, c := range []struct {
		name, packet string
		want         uint32
		renew        bool
	}{
		{"other protocol", "gre 10.1.0.50 > 10.1.0.7 len=40", pass, false},
		{"no service", "udp 10.1.0.50:40000 > 10.1.0.7:99 ttl=255 len=18", pass, false},
		{"udp flow", "udp 10.1.0.50:40000 > 10.240.0.20:53 ttl=255 len=18", redirected, false},
		{"tcp flow", "tcp 10.1.0.50:40000 > 10.240.0.20:80 S ttl=255", redirected, false},
		// Each packet ends the connection of the one before and opens another.
		{"new for old", "tcp 10.1.0.50:40001 > 10.240.0.20:80 S ttl=255", redirected, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			if c.renew {
				p.t.control.Timeout[tcFlowStateFLOW_SYN_RECV] = 1<<32 - 1
				defer p.setTimeouts()
			}
			in, err := parsePacket(c.packet)
			if err != nil {
				b.Fatal(err)
			}
			frame := append([]byte{0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 9, 8, 0}, in.ip()...)
			var sum time.Duration
			runs := 0
			for b.Loop() {
				got, each, err := p.in.Benchmark(frame, 200, func() {})
				if err != nil || got != c.want {
					b.Fatalf("verdict %d, %v; want %d", int32(got), err, c.want)
				}
				sum += each
				runs++
			}
			b.ReportMetric(float64(sum.Nanoseconds())/float64(runs), "ns/packet")
			b.ReportMetric(0, "ns/op")
		})
	}
}

const (
	pass       = 0xffffffff
	redirected = 7
)

// A stream through the plane and, beside it, through plain forwarding.
func BenchmarkStream(b *testing.B) {
	requireRoot(b)
	p := open(b, testOptions())
	apply(b, p, addService(model.TCP, vip(0, 80), "rr"), addReal(model.TCP, vip(0, 80), "10.240.0.20:8000", 1))
	for _, c := range []struct{ name, to string }{{"plane", vip(0, 80).String()}, {"forwarding", "10.240.0.20:8000"}} {
		b.Run(c.name, func(b *testing.B) { stream(b, "10.240.0.20:8000", c.to) })
	}
}

func stream(b *testing.B, listen, to string) {
	const chunk = 1 << 20
	var (
		l    net.Listener
		c    net.Conn
		err  error
		done = make(chan int64)
	)
	rack0.do(func() { l, err = net.Listen("tcp4", listen) })
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		s, err := l.Accept()
		if err != nil {
			done <- 0
			return
		}
		n, _ := io.Copy(io.Discard, s)
		done <- n
	}()
	client.do(func() { c, err = net.DialTimeout("tcp4", to, patience) })
	if err != nil {
		b.Fatal(err)
	}
	msg := payload(chunk)
	b.SetBytes(chunk)
	b.ResetTimer()
	for range b.N {
		if _, err := c.Write(msg); err != nil {
			b.Fatal(err)
		}
	}
	_ = c.Close()
	if n := <-done; n != int64(b.N)*chunk {
		b.Fatal(fmt.Errorf("%d bytes arrived of %d", n, int64(b.N)*chunk))
	}
}
