package check

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

// ways are the ways to make a check: their verdicts are the same.
var ways = map[string]func(*testing.T, model.Target) model.Verdict{
	"": func(t *testing.T, tg model.Target) model.Verdict { return Perform(t.Context(), For(tg), tg) },
	", polled": func(t *testing.T, tg model.Target) model.Verdict {
		if !Pollable(&tg) {
			return Perform(t.Context(), For(tg), tg)
		}
		p := newPollTest(t)
		p.Start(nil, &tg)
		return (<-p.ended).Verdict
	},
}

// pollTest is a Poll whose verdicts come one by one.
type pollTest struct {
	*Poll
	ended chan Ended
}

func newPollTest(t *testing.T) pollTest {
	ended := make(chan Ended, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	p, err := NewPoll(ctx, func(list []Ended) {
		for _, e := range list {
			ended <- e
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); p.Wait() })
	return pollTest{p, ended}
}

// pieces sends an answer a part at a time. Only the network may join them.
func pieces(parts ...string) func(net.Conn) {
	return func(c net.Conn) {
		readHead(c)
		for i, part := range parts {
			if i > 0 {
				time.Sleep(5 * time.Millisecond) // decides how it is read, not how it ends
			}
			if _, err := io.WriteString(c, part); err != nil {
				return
			}
		}
		if strings.Contains(parts[0], "Content-Length") {
			silent(c) // its length alone says that it is complete
		}
	}
}

// An answer is the same however it comes.
func TestPollPieces(t *testing.T) {
	const page = "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nall is alive"
	const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nalive\r\n0\r\n\r\n"
	each := func(s string) []string { return strings.Split(s, "") }
	for name, parts := range map[string][]string{
		"in two":                        {page[:20], page[20:]},
		"head and body":                 {page[:len(page)-12], page[len(page)-12:]},
		"byte by byte":                  each(page),
		"chunks, byte by byte":          each(chunked),
		"without its last line end yet": {chunked[:len(chunked)-2], "\r\n"},
		"until it is closed":            {"HTTP/1.1 200 OK\r\n\r\n", "al", "ive"},
		"long":                          {"HTTP/1.1 200 OK\r\n\r\n", strings.Repeat("x", 3*pollLimit), "alive"},
		"more than it said":             {page + strings.Repeat("x", 1000)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tg := target(script(t, pieces(parts...)), receive("alive"))
			if v := ways[", polled"](t, tg); v.Status != model.Up || v.Reason != "200 OK" {
				t.Errorf("%v, want up: 200 OK", v)
			}
		})
	}
}

// Hundreds at a time, the half of them in vain: each gets the verdict that is
// its own, one that hangs delays nobody, and nothing is left behind.
func TestPollMany(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("checks", pollMany)
}

func pollMany(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex
	got := map[any]model.Verdict{}
	all := make(chan struct{})
	const n = 400
	p, err := NewPoll(ctx, func(list []Ended) {
		mu.Lock()
		defer mu.Unlock()
		for _, e := range list {
			if _, twice := got[e.Of]; twice {
				t.Errorf("two verdicts for %v", e.Of)
			}
			got[e.Of] = e.Verdict
		}
		if len(got) == n {
			close(all)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	well := script(t, says("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nalive"))
	sick := script(t, says("HTTP/1.1 503 Sorry\r\nContent-Length: 5\r\n\r\nalive"))
	hung := target(script(t, silent))
	for i := range 10 {
		p.Start(fmt.Sprint("hung", i), &hung)
	}
	for i := range n {
		tg := target([]string{well, sick}[i%2], receive("alive"))
		p.Start(i, &tg)
	}
	<-all
	for i := range n {
		want := []string{"up: 200 OK", "down: 503 Sorry"}[i%2]
		if v := got[i]; v.Status.String()+": "+v.Reason != want || v.Duration <= 0 || v.At.IsZero() {
			t.Errorf("%d: %v, want %s", i, v, want)
		}
	}
	cancel() // the others are open still
	p.Wait()
	p.Start("late", &hung) // and nothing comes of this
	mu.Lock()
	defer mu.Unlock()
	if len(got) != n {
		t.Errorf("%d verdicts, want %d", len(got), n)
	}
}

// The first to time out need not be the first to start.
func TestPollTimeouts(t *testing.T) {
	p := newPollTest(t)
	hangs := script(t, silent)
	var targets [3]model.Target
	for i, d := range []time.Duration{30 * time.Millisecond, 20 * time.Millisecond, 10 * time.Millisecond} {
		targets[i] = target(hangs)
		targets[i].NegotiateTimeout = d
		p.Start(d, &targets[i])
	}
	for range targets {
		e := <-p.ended
		if want := fmt.Sprintf("no answer within %v", e.Of); e.Verdict.Status != model.Down || e.Verdict.Reason != want || e.Verdict.Duration < e.Of.(time.Duration) {
			t.Errorf("%v, want down: %s", e.Verdict, want)
		}
	}
}

// A machine that has no descriptors left says nothing about a server.
func TestPollWithoutDescriptors(t *testing.T) {
	p := newPollTest(t)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := limit
	none.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal("cannot lower the limit:", err)
	}
	tg := target("127.0.0.1:9")
	p.Start(nil, &tg)
	v := (<-p.ended).Verdict
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if v.Status != model.Unknown || !strings.Contains(v.Reason, "too many open files") {
		t.Errorf("%v, want unknown: too many open files", v)
	}
}

// Which checks a Poll takes.
func TestPollable(t *testing.T) {
	kind := func(k model.CheckType) func(*model.Target) { return func(t *model.Target) { t.Kind = k } }
	for name, tc := range map[string]struct {
		alter func(*model.Target)
		want  bool
	}{
		"http":                         {func(*model.Target) {}, true},
		"http_proxy":                   {func(t *model.Target) { t.Application = "http_proxy" }, true},
		"https":                        {func(t *model.Target) { t.Application = "https" }, false},
		"http by HTTP/2":               {func(t *model.Target) { t.HTTP2 = true }, false},
		"a URL of its own":             {func(t *model.Target) { t.RequestURL = "http://www.example.test/" }, false},
		"with an agent":                {func(t *model.Target) { t.AgentPort = 9 }, false},
		"by the virtual address":       {func(t *model.Target) { t.Via = model.ViaVirtual }, false},
		"connect":                      {kind(model.CheckConnect), true},
		"ping":                         {kind(model.CheckPing), false},
		"connect of a UDP service":     {func(t *model.Target) { t.Kind, t.Proto = model.CheckConnect, model.UDP }, false},
		"no port":                      {func(t *model.Target) { t.Addr = netip.MustParseAddrPort("127.0.0.1:0") }, false},
		"an address with a zone":       {func(t *model.Target) { t.Addr = netip.MustParseAddrPort("[fe80::1%lo]:80") }, false},
		"an IPv4 address in IPv6 form": {func(t *model.Target) { t.Addr = netip.MustParseAddrPort("[::ffff:127.0.0.1]:80") }, true},
	} {
		tg := target("127.0.0.1:80", tc.alter)
		if Pollable(&tg) != tc.want {
			t.Errorf("%s: %v, want %v", name, !tc.want, tc.want)
		}
	}
}

// BenchmarkPoll makes checks against a server in the same process.
func BenchmarkPoll(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go answerAll(l)
	turn := make(chan struct{}, 64)
	p, err := NewPoll(b.Context(), func(list []Ended) {
		for _, e := range list {
			if e.Verdict.Status != model.Up {
				b.Error(e.Verdict)
			}
			<-turn
		}
	})
	if err != nil {
		b.Fatal(err)
	}
	t := target(l.Addr().String(), receive("alive"))
	b.ReportAllocs()
	for b.Loop() {
		turn <- struct{}{}
		p.Start(nil, &t)
	}
}
