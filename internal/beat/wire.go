package beat

import (
	"encoding/gob"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/model"
)

// Life is what one life of the beat process begins with.
type Life struct {
	Heartbeat  model.Heartbeat
	Source     netip.Addr // of heartbeats; zero for any
	Boot       string     // see messenger.Config
	Generation uint32
	UUID       [16]byte
	Floors     map[model.NodeName]heartbeat.Floor
	Margins    string // of earlier lives; heartbeat.FormatMargins
	Ordinary   bool   // no real-time priority, memory not locked, whatever Heartbeat says
}

// order is what the node's process asks for: exactly one of its members.
type order struct {
	Message *model.Message
	Keys    *model.Keyring
	View    bool // asks for a report with one
	Begin   bool // the first beat may go out
	End     bool // what was ordered before is still sent
}

// report is what the beat process has to tell: one of its members, with the
// moment when it was written.
type report struct {
	Wall time.Time // of the sender
	Mono int64     // CLOCK_MONOTONIC then, which is the same in both processes

	Opened  bool   // all links are open
	Failed  string // why there will be no life
	Begun   bool   // the first messages are out
	Event   *model.ClusterEvent
	Note    *model.Event
	Seen    *seen
	Renewed uint32
	Heard   map[model.NodeName]heartbeat.Floor
}

// seen answers an order for a view.
type seen struct {
	View     model.View
	Counters heartbeat.Counters
	Links    []model.LinkPackets
	Margins  string
}

// wire is one end of the socket pair.
type wire struct {
	*net.UnixConn
	enc *gob.Encoder // of the one goroutine that writes
	dec *gob.Decoder // of the one that reads
}

func newWire(f *os.File) (*wire, error) {
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("socket to the other process: %w", err)
	}
	u, ok := conn.(*net.UnixConn)
	if !ok {
		_ = conn.Close()
		return nil, fmt.Errorf("socket to the other process: %T is no Unix socket", conn)
	}
	return &wire{UnixConn: u, enc: gob.NewEncoder(u), dec: gob.NewDecoder(u)}, nil
}

// stamped is a report with its moment. Its times are then as this moment's wall
// clock has them: encoding takes from a time what is monotonic in it, and the
// wall clock may have been set since.
func stamped(r report) report {
	r.Wall, r.Mono = time.Now(), monotonic()
	r.times(func(t time.Time) time.Time { return r.Wall.Add(t.Sub(r.Wall)) })
	return r
}

// settle turns the sender's times into the same moments by this process's clock.
func (r *report) settle() {
	written := time.Now().Add(-time.Duration(monotonic() - r.Mono))
	r.times(func(t time.Time) time.Time { return written.Add(t.Sub(r.Wall)) })
}

// times changes all moments in a report.
func (r *report) times(change func(time.Time) time.Time) {
	var all []*time.Time
	var views []*model.View
	if e := r.Event; e != nil {
		all, views = append(all, &e.At), append(views, &e.View)
	}
	if r.Seen != nil {
		views = append(views, &r.Seen.View)
	}
	if r.Note != nil {
		all = append(all, &r.Note.At)
	}
	for _, v := range views {
		for i := range v.Nodes {
			all = append(all, &v.Nodes[i].LastBeat, &v.Nodes[i].Quarantine)
		}
	}
	for _, t := range all {
		if !t.IsZero() {
			*t = change(*t)
		}
	}
}

// monotonic is CLOCK_MONOTONIC in nanoseconds.
func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // never fails
	return ts.Nano()
}
