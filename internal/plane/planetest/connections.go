package planetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// shortTimeout is the idle time of UDP flows in cases that wait for it.
const shortTimeout = 500 * time.Millisecond

var connectionCases = []testCase{
	{name: "deleting a real server ends its connections and leaves the others", run: func(s *suite) {
		s.serve(model.TCP, 0, "rr", 1, 1)
		a, b := s.dial(model.TCP, 0), s.dial(model.TCP, 0)
		on, other := s.ask(model.TCP, a), s.ask(model.TCP, b)
		s.apply(s.real(model.RealDelete, model.TCP, 0, on, 0))
		s.wantEnded(model.TCP, a)
		if n := s.ask(model.TCP, b); n != other {
			s.Fatalf("the other connection is now answered by %d, was %d", n, other)
		}
		if got := s.visits(model.TCP, 0, 4); got[other] != 4 {
			s.Fatalf("connections per real server %v: only %d is left", got, other)
		}
	}},
	{name: "a real server deleted and added again does not get its old connections back", run: func(s *suite) {
		s.serve(model.TCP, 0, "rr", 1)
		c := s.dial(model.TCP, 0)
		s.ask(model.TCP, c)
		s.apply(s.real(model.RealDelete, model.TCP, 0, 0, 0))
		s.apply(s.real(model.RealAdd, model.TCP, 0, 0, 1))
		s.wantEnded(model.TCP, c)
		s.visit(model.TCP, 0)
	}},
	{name: "a UDP flow never reaches a deleted real server again", run: func(s *suite) {
		s.serve(model.UDP, 0, "rr", 1, 1)
		c := s.dial(model.UDP, 0)
		on := s.ask(model.UDP, c)
		s.apply(s.real(model.RealDelete, model.UDP, 0, on, 0))
		for range 2 { // dropped, or scheduled anew
			if n, err := s.tryAsk(model.UDP, c, []byte("again"), silence); err == nil && n == on {
				s.Fatalf("real server %d answered after it was deleted", n)
			}
		}
		if got := s.visits(model.UDP, 0, 2); got[on] != 0 {
			s.Fatalf("flows per real server %v after number %d was deleted", got, on)
		}
	}},
	{name: "deleting a service ends its connections and nobody else's", run: func(s *suite) {
		s.serve(model.TCP, 0, "rr", 1)
		s.serve(model.TCP, 1, "rr", 1)
		a, b := s.dial(model.TCP, 0), s.dial(model.TCP, 1)
		s.ask(model.TCP, a)
		s.ask(model.TCP, b)
		s.apply(model.Change{Op: model.ServiceDelete, Service: model.VirtualService{Key: s.key(model.TCP, 0)}})
		s.wantEnded(model.TCP, a)
		s.wantNoService(model.TCP, 0)
		s.ask(model.TCP, b)
		s.serve(model.TCP, 0, "rr", 1)
		s.visit(model.TCP, 0)
	}},
	{name: "a UDP flow stays with its real server", run: func(s *suite) {
		s.serve(model.UDP, 0, "rr", 1, 1, 1, 1)
		a, b := s.dial(model.UDP, 0), s.dial(model.UDP, 0)
		onA, onB := s.ask(model.UDP, a), s.ask(model.UDP, b)
		if onA == onB {
			s.Fatalf("both flows went to %d", onA)
		}
		for range 5 {
			if n := s.ask(model.UDP, a); n != onA {
				s.Fatalf("flow moved from %d to %d", onA, n)
			}
			if n := s.ask(model.UDP, b); n != onB {
				s.Fatalf("flow moved from %d to %d", onB, n)
			}
		}
	}},
	{name: "an idle UDP flow is forgotten after its time", needs: []Feature{Expiry}, options: Options{UDPTimeout: shortTimeout}, run: func(s *suite) {
		s.serve(model.UDP, 0, "rr", 1, 1)
		c := s.dial(model.UDP, 0)
		s.ask(model.UDP, c)
		s.eventually(func() string {
			s.Advance(shortTimeout / 2)
			if f, still := s.flow(model.UDP, c.Local()); still {
				return fmt.Sprintf("the flow is still there: %+v", f)
			}
			return ""
		})
		s.ask(model.UDP, c) // and is scheduled anew
	}},
	{name: "an empty datagram is carried like any other", run: func(s *suite) {
		s.serve(model.UDP, 0, "rr", 1)
		c := s.dial(model.UDP, 0)
		for _, size := range []int{0, 1, 1000, 1400} {
			if _, err := s.tryAsk(model.UDP, c, make([]byte, size), patience); err != nil {
				s.Fatalf("datagram with %d bytes: %v", size, err)
			}
		}
	}},
	{name: "a client that has closed its side still gets the answer", run: func(s *suite) {
		s.serve(model.TCP, 0, "rr", 1)
		c := s.dial(model.TCP, 0)
		msg := []byte("the last word is the server's")
		if _, err := s.tryAsk(model.TCP, c, msg, patience); err != nil {
			s.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(s.Context(), patience)
		defer cancel()
		got, err := c.Finish(ctx)
		if want := (Summary{Bytes: uint64(len(msg)), SHA256: sha256.Sum256(msg)}); err != nil || got != want {
			s.Fatalf("summary %+v, %v; want %+v", got, err, want)
		}
	}},
	{name: "a large transfer arrives unchanged in both directions", run: func(s *suite) {
		s.serve(model.TCP, 0, "rr", 1)
		msg := randomBytes(s, 8<<20)
		c := s.dial(model.TCP, 0)
		if _, err := s.tryAsk(model.TCP, c, msg, patience); err != nil {
			s.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(s.Context(), patience)
		defer cancel()
		got, err := c.Finish(ctx)
		if want := (Summary{Bytes: uint64(len(msg)), SHA256: sha256.Sum256(msg)}); err != nil || got != want {
			s.Fatalf("summary %+v, %v; want %+v", got, err, want)
		}
		s.eventually(func() string {
			k := s.counters(model.TCP, 0)
			if k.BytesIn < uint64(len(msg)) || k.BytesOut < uint64(len(msg)) {
				return fmt.Sprintf("counters %+v: want at least %d bytes each way", k.Counters, len(msg))
			}
			return ""
		})
	}},
	{name: "five hundred connections at once are shared and all answered", run: manyConnections},
	{name: "changes of the table during traffic lose no connection", run: changesDuringTraffic},
}

// randomBytes are the same for a seed, which is logged.
func randomBytes(s *suite, n int) []byte {
	seed := [32]byte{}
	for i := range seed {
		seed[i] = byte(rand.Uint32()) //nolint:gosec // test data
	}
	s.Logf("seed %x", seed)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(seed).Read(b)
	return b
}

func manyConnections(s *suite) {
	const total, atOnce = 500, 25
	s.serve(model.TCP, 0, "rr", 1, 1, 1, 1)
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		got   [Reals]int
		fails []error
		conns = make([]Conn, total)
		slots = make(chan struct{}, atOnce)
	)
	for i := range total {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(s.Context(), patience)
			defer cancel()
			c, err := s.Dial(ctx, model.TCP, s.Virtual(0))
			n := -1
			if err == nil {
				n, err = s.tryAsk(model.TCP, c, []byte("one of many"), patience)
			}
			mu.Lock()
			defer mu.Unlock()
			conns[i] = c
			if err != nil {
				fails = append(fails, err)
				return
			}
			got[n]++
		})
	}
	wg.Wait()
	s.Cleanup(func() {
		for _, c := range conns {
			if c != nil {
				_ = c.Close()
			}
		}
	})
	if len(fails) > 0 {
		s.Fatalf("%d of %d connections failed, the first with: %v", len(fails), total, fails[0])
	}
	for n, k := range got {
		if k < total/Reals*4/5 || k > total/Reals*6/5 {
			s.Errorf("connections per real server %v: number %d is far from its share of %d", got, n, total/Reals)
		}
	}
	for i, c := range conns {
		if _, err := s.tryAsk(model.TCP, c, []byte("still here"), patience); err != nil {
			s.Fatalf("connection %d of %d after all were open: %v", i, total, err)
		}
	}
	if f, err := s.Plane().Flows(s.Context()); err != nil || len(f) < total {
		s.Errorf("%d flows, %v; want %d", len(f), err, total)
	}
}

// changesDuringTraffic keeps visitors and lasting connections busy while the
// table changes in every way that must not touch them: real servers 0 and 1
// stay, 2 changes its weight, 3 comes and goes with weight 0, the
// scheduler changes, and another service is born and dies.
func changesDuringTraffic(s *suite) {
	s.serve(model.TCP, 0, "rr", 1, 1, 1)
	ctx, stop := context.WithCancel(s.Context())
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		fails  []error
		visits int
	)
	// note returns false when the visitor should go home.
	note := func(err error) bool {
		mu.Lock()
		defer mu.Unlock()
		visits++
		if err != nil && ctx.Err() == nil {
			fails = append(fails, err)
		}
		return err == nil && ctx.Err() == nil
	}
	ask := func(c Conn) error {
		_, err := s.tryAsk(model.TCP, c, []byte("busy"), patience)
		return err
	}
	for range 2 {
		lasting := s.dial(model.TCP, 0)
		wg.Go(func() {
			for note(ask(lasting)) {
			}
		})
		wg.Go(func() {
			for {
				c, err := s.Dial(s.Context(), model.TCP, s.Virtual(0))
				if err == nil {
					err = ask(c)
					_ = c.Close()
				}
				if !note(err) {
					return
				}
			}
		})
	}
	edit := func(scheduler string) model.Change {
		c := s.service(model.TCP, 0, scheduler)
		c.Op = model.ServiceEdit
		return c
	}
	for i := range 100 {
		err := s.Plane().Apply(s.Context(), [][]model.Change{
			{s.real(model.RealEdit, model.TCP, 0, 2, 0), s.real(model.RealAdd, model.TCP, 0, 3, 0)},
			{edit("wrr"), s.service(model.TCP, 1, "rr"), s.real(model.RealAdd, model.TCP, 1, 0, 1)},
			{s.real(model.RealEdit, model.TCP, 0, 2, 3), s.real(model.RealDelete, model.TCP, 0, 3, 0)},
			{edit("rr"), {Op: model.ServiceDelete, Service: model.VirtualService{Key: s.key(model.TCP, 1)}}},
		}[i%4])
		if err != nil {
			s.Errorf("apply: %v", err)
			break
		}
		before := func() int { mu.Lock(); defer mu.Unlock(); return visits }
		was := before()
		s.eventually(func() string { // traffic moves between any two changes
			mu.Lock()
			defer mu.Unlock()
			if visits > was || len(fails) > 0 {
				return ""
			}
			return "no traffic moves"
		})
	}
	stop()
	wg.Wait()
	if len(fails) > 0 {
		s.Fatalf("%d of %d visits failed, the first with: %v", len(fails), visits, fails[0])
	}
}

var reportCases = []testCase{
	{name: "counters count connections, packets and bytes in both directions", run: func(s *suite) {
		const conns, asks, size = 4, 3, 500
		for _, p := range []model.Protocol{model.TCP, model.UDP} {
			s.serve(p, 0, "rr", 1, 1)
			for range conns {
				c := s.dial(p, 0)
				for range asks {
					if _, err := s.tryAsk(p, c, bytes.Repeat([]byte("x"), size), patience); err != nil {
						s.Fatal(err)
					}
				}
				_ = c.Close()
			}
			s.eventually(func() string { return implausible(s.counters(p, 0), conns, asks, size) })
		}
	}},
	{name: "counters never go back when the table is edited", run: func(s *suite) {
		s.serve(model.TCP, 0, "rr", 1, 1)
		s.visits(model.TCP, 0, 4)
		s.eventually(func() string { return implausible(s.counters(model.TCP, 0), 4, 1, 4) })
		was := s.counters(model.TCP, 0).Counters
		s.apply(s.service(model.TCP, 0, "wrr"), s.real(model.RealEdit, model.TCP, 0, 0, 5))
		if now := s.counters(model.TCP, 0).Counters; now.Connections < was.Connections || now.BytesIn < was.BytesIn || now.PacketsOut < was.PacketsOut {
			s.Fatalf("counters %+v became %+v", was, now)
		}
	}},
	{name: "open connections are active, and UDP flows inactive", run: func(s *suite) {
		s.serve(model.TCP, 0, "rr", 1)
		s.serve(model.UDP, 0, "rr", 1)
		a, b := s.dial(model.TCP, 0), s.dial(model.TCP, 0)
		s.ask(model.TCP, a)
		s.ask(model.TCP, b)
		s.ask(model.UDP, s.dial(model.UDP, 0))
		want := func(p model.Protocol, active, inactive uint64) func() string {
			return func() string {
				r := s.counters(p, 0).Reals
				if len(r) != 1 || r[0].Active != active || p == model.UDP && r[0].Inactive != inactive {
					return fmt.Sprintf("%s: %+v, want %d active", p, r, active)
				}
				return ""
			}
		}
		s.eventually(want(model.TCP, 2, 0))
		s.eventually(want(model.UDP, 0, 1))
		_ = a.Close()
		s.eventually(want(model.TCP, 1, 0))
		s.ask(model.TCP, b)
	}},
	{name: "a connection is listed with its client, virtual and real address", run: func(s *suite) {
		for p, state := range map[model.Protocol]string{model.TCP: "ESTABLISHED", model.UDP: "UDP"} {
			s.serve(p, 0, "rr", 1, 1)
			c := s.dial(p, 0)
			on := s.ask(p, c)
			want := model.Flow{Proto: p, Client: c.Local(), Virtual: s.Virtual(0), Real: s.Real(p, on), State: state}
			s.eventually(func() string {
				got, ok := s.flow(p, c.Local())
				got.Expires = 0
				if !ok {
					return "no such flow: " + fmt.Sprint(want)
				}
				return diff(want, got)
			})
		}
	}},
	{name: "a connection of a deleted real server is no longer listed", run: func(s *suite) {
		s.serve(model.TCP, 0, "rr", 1)
		c := s.dial(model.TCP, 0)
		s.ask(model.TCP, c)
		s.apply(s.real(model.RealDelete, model.TCP, 0, 0, 0))
		s.eventually(func() string {
			if f, still := s.flow(model.TCP, c.Local()); still {
				return fmt.Sprintf("still listed: %+v", f)
			}
			return ""
		})
	}},
}

// implausible says what is wrong with the counters of a service that was
// asked `asks` times with `size` bytes on each of `conns` connections.
func implausible(k model.ServiceCounters, conns, asks, size uint64) string {
	var sum model.Counters
	for _, r := range k.Reals {
		sum = sum.Add(r.Counters)
	}
	switch c := k.Counters; {
	case c.Connections != conns:
		return fmt.Sprintf("%+v: want %d connections", c, conns)
	case c.BytesIn < conns*asks*size || c.BytesOut < conns*asks*size:
		return fmt.Sprintf("%+v: want at least %d bytes each way", c, conns*asks*size)
	case c.BytesIn > 4*conns*asks*(size+200) || c.BytesOut > 4*conns*asks*(size+200):
		return fmt.Sprintf("%+v: too many bytes for %d exchanges of %d", c, conns*asks, size)
	case c.PacketsIn < conns*asks || c.PacketsOut < conns*asks:
		return fmt.Sprintf("%+v: want at least %d packets each way", c, conns*asks)
	case sum != c:
		return fmt.Sprintf("%+v: the real servers' counters add up to %+v", c, sum)
	}
	return ""
}

var restartCases = []testCase{
	{name: "a reopened plane adopts the table it finds", needs: []Feature{KeepsTable}, run: func(s *suite) {
		s.serve(model.TCP, 0, "wrr", 2, 1)
		s.serve(model.UDP, 1, "rr", 0, 3)
		want := s.read()
		s.Reopen(s.T)
		s.wantTable(want)
		s.visit(model.TCP, 0)
		s.apply(s.real(model.RealEdit, model.TCP, 0, 0, 0))
		if got := s.visits(model.TCP, 0, 3); got != [Reals]int{0, 3} {
			s.Fatalf("connections per real server %v after 0 got weight 0", got)
		}
	}},
	{name: "a plane that keeps nothing is reopened empty", run: func(s *suite) {
		if _, lacks := s.without[KeepsTable]; !lacks {
			s.Skip("declared: the plane keeps its table")
		}
		s.serve(model.TCP, 0, "rr", 1)
		s.Reopen(s.T)
		s.wantTable(model.Table{})
		s.serve(model.TCP, 0, "rr", 1)
		s.visit(model.TCP, 0)
	}},
	{name: "connections go on through a restart", needs: []Feature{KeepsConnections}, run: func(s *suite) {
		s.serve(model.TCP, 0, "rr", 1, 1)
		s.serve(model.UDP, 0, "rr", 1, 1)
		c, u := s.dial(model.TCP, 0), s.dial(model.UDP, 0)
		on, onUDP := s.ask(model.TCP, c), s.ask(model.UDP, u)
		s.Reopen(s.T)
		if n := s.ask(model.TCP, c); n != on {
			s.Errorf("the connection is now answered by %d, was %d", n, on)
		}
		if n := s.ask(model.UDP, u); n != onUDP {
			s.Errorf("the flow is now answered by %d, was %d", n, onUDP)
		}
		if _, ok := s.flow(model.TCP, c.Local()); !ok {
			s.Errorf("the connection is no longer listed")
		}
	}},
	{name: "a closed plane says so", run: func(s *suite) {
		s.serve(model.TCP, 0, "rr", 1)
		p, ctx := s.Plane(), s.Context()
		if err := p.Close(); err != nil {
			s.Fatalf("close: %v", err)
		}
		_, read := p.Read(ctx)
		_, counters := p.Counters(ctx)
		_, flows := p.Flows(ctx)
		for what, err := range map[string]error{
			"read": read, "counters": counters, "flows": flows, "close": p.Close(),
			"apply": p.Apply(ctx, []model.Change{s.service(model.TCP, 1, "rr")}),
		} {
			if !errors.Is(err, plane.ErrClosed) {
				s.Errorf("%s after close: %v, want %v", what, err, plane.ErrClosed)
			}
		}
		if i := p.Info(); i.Name == "" {
			s.Error("a closed plane forgot its name")
		}
	}},
}
