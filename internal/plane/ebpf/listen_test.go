package ebpf

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

// heard listens while do is done again and again, until so many were told, and
// returns them without what differs from run to run.
func heard(t *testing.T, p *Plane, w Wanted, n int, do func()) (got []string) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	enough := errors.New("enough")
	done := make(chan error, 1)
	go func() {
		_, err := Listen(ctx, p.o.Dir, w, func(e Packet) error {
			if len(got) < n {
				_, line, _ := strings.Cut(e.String(), " ")
				got = append(got, line)
			}
			if len(got) == n {
				return enough
			}
			return nil
		})
		done <- err
	}()
	for {
		select {
		case err := <-done:
			if !errors.Is(err, enough) {
				t.Fatalf("listen: %v; heard %q", err, got)
			}
			return got
		default:
			if p.t.watched() {
				do()
			}
			time.Sleep(time.Millisecond) // what decides is what is heard
		}
	}
}

// What does not simply go its way is told by its reason, and new connections.
func TestListen(t *testing.T) {
	requireRoot(t)
	p := open(t, testOptions())
	p.stop() // nothing is swept: each packet meets what is told of
	apply(t, p, addService(model.TCP, vip(0, 80), "rr"), addReal(model.TCP, vip(0, 80), "10.240.0.20:8000", 1),
		addService(model.UDP, vip(0, 53), "rr"))
	send := func(text string) func() {
		return func() {
			q, err := parsePacket(text)
			if err != nil {
				t.Fatal(err)
			}
			testRun(t, p, "ingress", "outside", q.ip(), 1)
		}
	}
	port := 40000
	open := func() {
		port++
		send(fmt.Sprintf("tcp 10.1.0.50:%d > 10.1.0.100:80 S", port))()
	}
	var got []string
	hear := func(w Wanted, do func()) { got = append(got, heard(t, p, w, 1, do)...) }
	hear(Wanted{}, send("udp 10.1.0.50:40000 > 10.1.0.100:53"))
	hear(Wanted{}, send("tcp 10.1.0.50:39999 > 10.1.0.100:80 A"))
	hear(Wanted{Reasons: []Reason{ReasonLateFragment}}, func() {
		send("udp 10.1.0.50:40000 > 10.1.0.100:53")() // of no interest
		send("udp 10.1.0.50 > 10.1.0.100 frag=1480 id=7 len=100")()
	})
	hear(Wanted{Reasons: []Reason{ReasonNone}, Every: 3}, open)
	hear(Wanted{Client: netip.MustParsePrefix("10.1.0.51/32")}, func() {
		open()
		send("tcp 10.1.0.51:40000 > 10.1.0.100:80 A")()
	})
	hear(Wanted{Virtual: vip(0, 0).Addr(), Port: 53, Proto: model.UDP}, func() {
		open()
		send("udp 10.1.0.50:40000 > 10.1.0.100:53")()
	})
	for i, g := range got {
		if _, after, ok := strings.Cut(g, "10.1.0.50:40"); ok && strings.Contains(g, "opened") {
			got[i] = g[:len(g)-len(after)] + "..." + after[3:]
		}
	}
	want := []string{
		"outside ingress: udp 10.1.0.50:40000 > 10.1.0.100:53: no-real-server, dropped",
		"outside ingress: tcp 10.1.0.50:39999 > 10.1.0.100:80: no-connection, left to the stack",
		"outside ingress: udp 10.1.0.50:0 > 10.1.0.100:0: late-fragment, dropped",
		"outside ingress: tcp 10.1.0.50:40... > 10.1.0.100:80: opened, to 10.240.0.20:8000",
		"outside ingress: tcp 10.1.0.51:40000 > 10.1.0.100:80: no-connection, left to the stack",
		"outside ingress: udp 10.1.0.50:40000 > 10.1.0.100:53: no-real-server, dropped",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if p.t.watched() {
		t.Error("the programs go on telling when nobody listens")
	}
}

// One listens at a time; after one that was killed the next one need not wait
// for longer than its lease.
func TestOneListener(t *testing.T) {
	requireRoot(t)
	p := open(t, testOptions())
	p.t.control.Watched = ticksNow() + toTicks(listenFor)
	if _, err := Listen(t.Context(), p.o.Dir, Wanted{}, nil); err == nil {
		t.Error("two listen")
	}
	p.t.control.Watched = ticksNow() - 1
	p.t.hushed()
	if p.t.watched() {
		t.Error("a listener that is gone is still told")
	}
}

// A client on the director is told of, too.
func TestListenToSockets(t *testing.T) {
	requireGroup(t)
	p := open(t, testOptions())
	apply(t, p, addService(model.TCP, vip(0, 80), "rr"))
	got := heard(t, p, Wanted{}, 1, func() {
		if c, err := net.Dial("tcp", vip(0, 80).String()); err == nil {
			_ = c.Close()
		}
	})
	if want := []string{"socket: tcp 0.0.0.0:0 > 10.1.0.100:80: no-real-server, dropped"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// Every reason has its word, and the reference explains it.
func TestReasonsAreExplained(t *testing.T) {
	text, err := os.ReadFile("../../../docs/reference/packets.md")
	if err != nil {
		t.Fatal(err)
	}
	for r := range Reason(reasons) {
		if r == ReasonNone || r == Reason(tcReasonREASON_STACK) {
			continue
		}
		if !strings.Contains(string(text), "| `"+r.String()+"` |") {
			t.Errorf("docs/reference/packets.md does not explain %s", r)
		}
		if back, err := ParseReason(r.String()); err != nil || back != r {
			t.Errorf("%s is read as %s (%v)", r, back, err)
		}
	}
}
