package planetest

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"strconv"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

const (
	// patience bounds waiting for what must happen. It decides only how long
	// a broken plane is watched.
	patience = 20 * time.Second
	// silence is how long no answer must come where none may come. A machine
	// too slow for it makes the check weaker, never wrong.
	silence = 400 * time.Millisecond
)

// key is the service on virtual address i.
func (s *suite) key(p model.Protocol, i int) model.ServiceKey {
	return model.ServiceKey{Proto: p, Addr: s.Virtual(i)}
}

// service is an addition (or edit) of the service on virtual address i.
func (s *suite) service(p model.Protocol, i int, scheduler string) model.Change {
	return model.Change{Op: model.ServiceAdd, Service: model.VirtualService{Key: s.key(p, i), Scheduler: scheduler}}
}

// real is a change of real server n under the service on virtual address i.
func (s *suite) real(op model.ChangeOp, p model.Protocol, i, n, weight int) model.Change {
	return model.Change{Op: op, Service: model.VirtualService{Key: s.key(p, i)},
		Real: model.RealServer{Addr: s.Real(p, n), Forward: model.Masq, Weight: weight}}
}

// serve adds the service on virtual address i with one real server for each weight.
func (s *suite) serve(p model.Protocol, i int, scheduler string, weights ...int) {
	s.Helper()
	changes := []model.Change{s.service(p, i, scheduler)}
	for n, w := range weights {
		changes = append(changes, s.real(model.RealAdd, p, i, n, w))
	}
	s.apply(changes...)
}

func (s *suite) apply(changes ...model.Change) {
	s.Helper()
	if err := s.Plane().Apply(s.Context(), changes); err != nil {
		s.Fatalf("apply: %v", err)
	}
}

func (s *suite) read() model.Table {
	s.Helper()
	t, err := s.Plane().Read(s.Context())
	if err != nil {
		s.Fatalf("read: %v", err)
	}
	return t
}

// wantTable compares what the plane carries with a table.
func (s *suite) wantTable(want model.Table) {
	s.Helper()
	if d := diff(want, s.read()); d != "" {
		s.Fatalf("table (-want +got):\n%s", d)
	}
}

func diff(want, got any) string {
	return cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}))
}

// dial opens a connection to virtual address i; it ends with the test.
func (s *suite) dial(p model.Protocol, i int) Conn {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	c, err := s.Dial(ctx, p, s.Virtual(i))
	if err != nil {
		s.Fatalf("dial %s: %v", s.key(p, i), err)
	}
	s.Cleanup(func() { _ = c.Close() })
	return c
}

// ask exchanges one message and returns the number of the real server that
// answered.
func (s *suite) ask(p model.Protocol, c Conn) int {
	s.Helper()
	n, err := s.tryAsk(p, c, []byte("ping"), patience)
	if err != nil {
		s.Fatalf("no answer: %v", err)
	}
	return n
}

func (s *suite) tryAsk(p model.Protocol, c Conn, msg []byte, within time.Duration) (int, error) {
	ctx, cancel := context.WithTimeout(s.Context(), within)
	defer cancel()
	who, echo, err := c.Exchange(ctx, msg)
	if err != nil {
		return -1, err
	}
	if !bytes.Equal(echo, msg) {
		return -1, errors.New("the echo of " + strconv.Itoa(len(msg)) + " bytes differs from the message")
	}
	for n := range Reals {
		if s.Real(p, n) == who {
			return n, nil
		}
	}
	return -1, errors.New("answered by " + who.String() + ", which is no real server of the bench")
}

// visit opens a connection, asks once and closes it.
func (s *suite) visit(p model.Protocol, i int) int {
	s.Helper()
	c := s.dial(p, i)
	n := s.ask(p, c)
	_ = c.Close()
	return n
}

// visits counts which real servers answer n new connections.
func (s *suite) visits(p model.Protocol, i, n int) [Reals]int {
	s.Helper()
	var got [Reals]int
	for range n {
		got[s.visit(p, i)]++
	}
	return got
}

// wantNoService requires that a new connection gets no answer: refused,
// reset or silent.
func (s *suite) wantNoService(p model.Protocol, i int) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), silence)
	defer cancel()
	c, err := s.Dial(ctx, p, s.Virtual(i))
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	if n, err := s.tryAsk(p, c, []byte("ping"), silence); err == nil {
		s.Fatalf("%s: real server %d answered a new connection, want no answer", s.key(p, i), n)
	}
}

// wantEnded requires that an open connection gets no more answers.
func (s *suite) wantEnded(p model.Protocol, c Conn) {
	s.Helper()
	if n, err := s.tryAsk(p, c, []byte("still there?"), silence); err == nil {
		s.Fatalf("real server %d still answers on a connection that must have ended", n)
	}
}

// eventually waits until ok returns "" and fails with its last words. It
// polls in real time: planes report counters and states a moment later.
func (s *suite) eventually(ok func() string) {
	s.Helper()
	deadline := time.Now().Add(patience)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		said := ok()
		if said == "" {
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("not within %v: %s", patience, said)
		}
		time.Sleep(pause)
	}
}

// counters returns the counters of the service on virtual address i.
func (s *suite) counters(p model.Protocol, i int) model.ServiceCounters {
	s.Helper()
	all, err := s.Plane().Counters(s.Context())
	if err != nil {
		s.Fatalf("counters: %v", err)
	}
	for _, c := range all {
		if c.Key == s.key(p, i) {
			return c
		}
	}
	s.Fatalf("no counters for %s among %d services", s.key(p, i), len(all))
	return model.ServiceCounters{}
}

// flow finds a client's connection in Flows.
func (s *suite) flow(p model.Protocol, client netip.AddrPort) (model.Flow, bool) {
	s.Helper()
	flows, err := s.Plane().Flows(s.Context())
	if err != nil {
		s.Fatalf("flows: %v", err)
	}
	for _, f := range flows {
		if f.Proto == p && f.Client == client {
			return f, true
		}
	}
	return model.Flow{}, false
}

// refused unpacks the row errors of an Apply.
func refused(err error) []*plane.RowError {
	var rows []*plane.RowError
	var walk func(error)
	walk = func(err error) {
		switch e := err.(type) { //nolint:errorlint // the tree itself is walked
		case nil:
		case *plane.RowError:
			rows = append(rows, e)
		case interface{ Unwrap() []error }:
			for _, e := range e.Unwrap() {
				walk(e)
			}
		case interface{ Unwrap() error }:
			walk(e.Unwrap())
		}
	}
	walk(err)
	return rows
}
