package ebpf

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// TestBenchStream sends a TCP stream from client to rack0 by each method of
// forwarding and, by turns in the same run, by plain forwarding on the same
// way: make bench-stream. The two ends and all between them are this process
// and its kernel: CPU is what all of it takes.
//
// Speed is the scheduler's, too: where it moves the sender to the other
// processor, packets overtake each other in the two queues, and TCP sends again
// what was not lost. So forwarding is measured twice, and its second row is what
// it does beside itself; many short rounds tell more than few long ones. On a
// machine of one processor whose clock counts instructions (package lab) a few are
// enough.
func TestBenchStream(t *testing.T) {
	benchmark(t, "stream")
	var table [][]string
	for _, m := range []struct {
		name string
		set  func(*testing.T)
	}{
		{"64 KB packets", func(*testing.T) {}},
		{"merged by the director", func(t *testing.T) {
			client.offload(t, "eth0", txChecksum, false)
			director.offload(t, "outside", receiveMerge, true)
		}},
		{"no offloads", withoutOffload},
	} {
		t.Run(m.name, func(t *testing.T) {
			m.set(t)
			var got [][]string
			t.Run("back by the director", func(t *testing.T) {
				got = append(got, streams(t, []way{{name: "forwarding"}, {name: "masq", forward: model.Masq}, {name: "forwarding, again"}})...)
				got = append(got, streams(t, []way{{name: "forwarding", six: true}, {name: "masq", six: true, forward: model.Masq}})...)
			})
			t.Run("straight back", func(t *testing.T) {
				direct(t, rack0)
				decapsulate(t, rack0)
				got = append(got, streams(t, []way{{name: "forwarding, straight back"}, {name: "gate", forward: model.Gate},
					{name: "4in4", forward: model.IPIP}, {name: "4in6", forward: model.IPIP, across: true}, {name: "forwarding, straight back, again"}})...)
				got = append(got, streams(t, []way{{name: "forwarding, straight back", six: true}, {name: "gate", six: true, forward: model.Gate},
					{name: "6in6", six: true, forward: model.IPIP}, {name: "6in4", six: true, forward: model.IPIP, across: true}})...)
			})
			if table == nil {
				table = got
				return
			}
			for i := range table {
				table[i] = append(table[i], got[i][2:]...)
			}
		})
	}
	of := []string{"of forwarding's speed"}
	if !counted {
		of = append(of, "of its CPU")
	}
	head(2, slices.Concat([]string{"way", "service", "64 KB packets: Gbit/s"}, of, []string{"merged by the director"}, of, []string{"no offloads"}, of)...)
	for _, r := range table {
		row(r...)
	}
}

// counted is a clock that counts instructions, on one processor: what CPU time
// says is in the speed.
var counted = os.Getenv("BATUTA_COUNTED") != ""

// way is one way to rack0: by plain forwarding, or by a service.
type way struct {
	name    string
	six     bool // the service is IPv6
	across  bool // and its real server of the other family
	forward model.Forward
}

// streams compares ways, the first of which is plain forwarding, and gives a row
// of each: medians of all rounds; of the ratios within a round, and where the
// middle half of these lies.
func streams(t *testing.T, ways []way) (rows [][]string) {
	t.Helper()
	rounds, length := int(number("ROUNDS", 25)), 100*time.Millisecond
	p := open(t, testOptions())
	var (
		listen, to []string
		perSecond  = make([][]float64, len(ways)) // Gbit
		cpu        = make([][]float64, len(ways)) // milliseconds a gigabyte
	)
	for i, w := range ways {
		in := func(six6 bool, addr string) string {
			text := fmt.Sprintf("%s:%d", addr, 8000+i)
			if six6 {
				return six(text)
			}
			return text
		}
		real, virtual := in(w.six != w.across, "10.240.0.20"), in(w.six, "10.1.0.100")
		if w.forward == 0 {
			listen, to = append(listen, real), append(to, real)
			continue
		}
		at := real
		if w.forward != model.Masq {
			at = virtual
		}
		listen, to = append(listen, at), append(to, virtual)
		key := netip.MustParseAddrPort(virtual)
		add := addReal(model.TCP, key, real, 1)
		add.Real.Forward = w.forward
		apply(t, p, addService(model.TCP, key, "rr"), add)
	}
	for range rounds {
		for i := range ways {
			bytes, took, used := stream(t, listen[i], to[i], length)
			perSecond[i] = append(perSecond[i], bytes*8/1e9/took.Seconds())
			cpu[i] = append(cpu[i], used.Seconds()*1e3/(bytes/1e9))
		}
	}
	for i, w := range ways {
		speed, cost := make([]float64, rounds), make([]float64, rounds)
		for n := range rounds {
			speed[n], cost[n] = perSecond[i][n]/perSecond[0][n], cpu[i][n]/cpu[0][n]
		}
		family := "IPv4"
		if w.six {
			family = "IPv6"
		}
		rows = append(rows, []string{w.name, family, fmt.Sprintf("%.1f", middle(perSecond[i])), halves(speed)})
		if !counted {
			rows[i] = append(rows[i], halves(cost))
		}
	}
	return rows
}

// halves writes a median, and the quartiles.
func halves(all []float64) string {
	sorted := slices.Sorted(slices.Values(all))
	n := len(sorted)
	return fmt.Sprintf("%.2f (%.2f–%.2f)", sorted[n/2], sorted[n/4], sorted[n-1-n/4])
}

// stream sends for a while, and tells how much came, and what it took.
func stream(t *testing.T, listen, to string, length time.Duration) (bytes float64, took, cpu time.Duration) {
	t.Helper()
	var (
		l    net.Listener
		c    net.Conn
		err  error
		done = make(chan int64)
	)
	rack0.do(func() { l, err = net.Listen("tcp", listen) })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		s, err := l.Accept()
		if err != nil {
			done <- 0
			return
		}
		var n int64
		for b := make([]byte, 1<<20); err == nil; {
			var more int
			more, err = s.Read(b)
			n += int64(more)
		}
		_ = s.Close()
		done <- n
	}()
	client.do(func() { c, err = net.DialTimeout("tcp", to, patience) })
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	msg := payload(1 << 20)
	began, used := time.Now(), cpuTime(t)
	var sent int64
	for time.Since(began) < length {
		n, err := c.Write(msg)
		if sent += int64(n); err != nil {
			t.Fatal(err)
		}
	}
	err = c.Close()
	if n := <-done; err != nil || n != sent {
		t.Fatalf("%d bytes arrived of %d, %v", n, sent, err)
	}
	return float64(sent), time.Since(began), cpuTime(t) - used
}
