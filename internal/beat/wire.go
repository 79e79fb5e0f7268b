package beat

import (
	"bytes"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
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

// wire is the node's end of the socket pair. Orders go out with their length
// before them, so that the other end can take them without waiting; reports
// come as they are.
type wire struct {
	*net.UnixConn
	raw  syscall.RawConn
	dec  *gob.Decoder  // of the one goroutine that reads
	rest chan struct{} // the socket has not taken all

	mu  sync.Mutex   // guards all below
	out bytes.Buffer // encoded and not sent yet
	one bytes.Buffer // what is being encoded
	enc *gob.Encoder
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
	w := &wire{UnixConn: u, dec: gob.NewDecoder(u), rest: make(chan struct{}, 1)}
	if w.raw, err = u.SyscallConn(); err != nil {
		return nil, errors.Join(fmt.Errorf("socket to the other process: %w", err), u.Close())
	}
	w.enc = gob.NewEncoder(&w.one)
	return w, nil
}

// put sends a life or an order, as far as the socket takes it at once: who puts
// it does not wait, and wakes nobody here. writeRest sends the rest.
func (w *wire) put(what any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.one.Reset()
	_ = w.enc.Encode(what) // into memory, of a type that gob can
	w.out.Write(binary.NativeEndian.AppendUint32(nil, uint32(w.one.Len())))
	w.out.Write(w.one.Bytes())
	sent := false
	_ = w.raw.Control(func(fd uintptr) { sent = flush(int(fd), &w.out) }) // closed: the life has ended
	if !sent {
		wake(w.rest)
	}
}

// writeRest is the goroutine that waits for a process that is slow to take
// orders. It ends when the wire is closed, or with done.
func (w *wire) writeRest(done <-chan struct{}) {
	for {
		select {
		case <-w.rest:
		case <-done:
			return
		}
		if w.finish() != nil {
			return
		}
	}
}

// finish waits until the socket has taken all.
func (w *wire) finish() error {
	return w.raw.Write(func(fd uintptr) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return flush(int(fd), &w.out)
	})
}

const (
	lengthSize = 4       // bytes before an order
	readSize   = 1 << 16 // bytes that are read at a time
)

// rawWire is the beat process's end. It never waits but in wait.
type rawWire struct {
	fd   int
	in   []byte // read and not decoded yet
	room []byte
	part bytes.Buffer // what dec reads: one life or order
	dec  *gob.Decoder
	out  bytes.Buffer // encoded and not sent yet
	enc  *gob.Encoder
}

// newRawWire takes a descriptor that was inherited.
func newRawWire(fd int) (*rawWire, error) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err == nil && kind != unix.AF_UNIX {
		err = errors.New("it is no Unix socket")
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, fmt.Errorf("socket to the other process: %w", err)
	}
	unix.CloseOnExec(fd)
	w := &rawWire{fd: fd, room: make([]byte, readSize)}
	w.dec, w.enc = gob.NewDecoder(&w.part), gob.NewEncoder(&w.out)
	return w, nil
}

// wait waits for one of these events (poll(2)).
func (w *rawWire) wait(events int16) {
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(w.fd), Events: events}}, -1) // what is there is looked at then
}

// decode decodes the next life or order, if all of it is there. io.EOF: nobody
// is at the other end.
func (w *rawWire) decode(into any) (ok bool, err error) {
	for {
		if len(w.in) >= lengthSize {
			n := int(binary.NativeEndian.Uint32(w.in))
			if whole := w.in[lengthSize:]; len(whole) >= n {
				w.part.Write(whole[:n])
				w.in = slices.Delete(w.in, 0, lengthSize+n)
				return true, w.dec.Decode(into)
			}
		}
		n, err := unix.Read(w.fd, w.room)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			return false, nil
		case err != nil:
			return false, err
		case n == 0:
			return false, io.EOF
		}
		w.in = append(w.in, w.room[:n]...)
	}
}

// encode puts a report into what is to be sent.
func (w *rawWire) encode(r *report) { _ = w.enc.Encode(r) } // into memory, of a type that gob can

// flush sends what the socket takes, and tells whether that was all. If nobody
// is there to read it, decode finds out.
func (w *rawWire) flush() bool { return flush(w.fd, &w.out) }

// flush sends what the socket takes, and tells whether that was all. What
// nobody will read is dropped.
func flush(fd int, out *bytes.Buffer) bool {
	for out.Len() > 0 {
		n, err := unix.SendmsgN(fd, out.Bytes(), nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return false
		case err != nil:
			out.Reset()
		default:
			out.Next(n)
		}
	}
	return true
}

// unsent tells whether flush has something to send.
func (w *rawWire) unsent() bool { return w.out.Len() > 0 }

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
