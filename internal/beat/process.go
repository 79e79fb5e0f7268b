package beat

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/link"
	"github.com/batuta-ha/batuta/internal/messenger"
	"github.com/batuta-ha/batuta/internal/model"
)

// Verb is the argument that makes the program the beat process.
const Verb = "beat-process"

// Descriptors that the process inherits.
const (
	socketFD = 3 + iota
	pageFD
)

const (
	// maxReports is how many reports may wait for a node's process that does
	// not read: minutes of the worst flapping, and a few megabytes.
	maxReports = 4096
	// leastStandstill is the least that the decision loop may stand still before
	// this node falls silent. Stalls below it (a disk's flush, a collection of
	// garbage on a busy machine) are common, and a takeover costs more than they do.
	leastStandstill = time.Second
	// processors are the threads that run Go at once: one beats, and one collects
	// garbage or reads a link that cannot be polled.
	processors = 2
)

// process is the beat process. It is one goroutine, which the loop's Run has
// after the beginning, and looks after the socket between two waits.
type process struct {
	wire *rawWire
	page *page
	life Life
	loop *messenger.Loop

	begun   bool
	end     context.CancelCauseFunc // ends the loop
	reports []report                // that are not encoded yet
	dropped int                     // notes for which there was no room
	mute    mute
}

// Main is the beat process: it beats from when the node's process says so until
// that ends or says so. It returns at once when it is started by anybody else.
func Main() error {
	// A terminal's and a service manager's signals go to all processes of a
	// service; the end of this one is for the node's process to say.
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	runtime.GOMAXPROCS(processors)
	w, err := newRawWire(socketFD)
	if err != nil {
		return fmt.Errorf("%w; %s is started by batuta run, not by hand", err, Verb)
	}
	file := os.NewFile(pageFD, "page")
	page, err := openPage(file)
	if err != nil {
		return err
	}
	_ = file.Close()
	p := &process{wire: w, page: page}
	for {
		w.wait(unix.POLLIN)
		switch ok, err := w.decode(&p.life); {
		case err != nil:
			return fmt.Errorf("the life to live: %w", err)
		case ok:
			return p.run()
		}
	}
}

// run lives that life.
func (p *process) run() error {
	ctx, end := context.WithCancelCause(context.Background())
	defer end(nil)
	p.end = end
	defer p.finish()
	if err := p.build(); err != nil {
		p.report(report{Failed: err.Error()})
		return nil
	}
	if !p.life.Ordinary && p.life.Heartbeat.LockMemory {
		p.beReal()
	}
	p.report(report{Opened: true})
	for !p.begun && ctx.Err() == nil {
		_, events := p.Descriptor()
		p.wire.wait(events)
		p.Attend()
	}
	var err error
	if ctx.Err() == nil {
		err = p.loop.Run(ctx)
	}
	if cause := context.Cause(ctx); !errors.Is(cause, errEnd) {
		err = errors.Join(cause, err)
	}
	return err
}

var (
	errEnd  = errors.New("the node's process has said so")
	errGone = errors.New("the node's process is gone")
	errFull = errors.New("the node's process does not read what it is told")
)

// beReal takes the rights of a real-time process as far as it may.
func (p *process) beReal() {
	err := lockMemory()
	if err := errors.Join(err, schedule(p.life.Heartbeat.Priority)); err != nil {
		p.note(model.Event{At: time.Now(), Level: model.LevelNotice, Source: "heartbeat", Kind: "not-real-time", Subject: string(p.life.Heartbeat.Self),
			Text: fmt.Sprintf("beats go out with an ordinary priority, and may be late on a busy machine (%v): give the service CAP_SYS_NICE and CAP_IPC_LOCK, or write realtime off", err)})
	}
}

// build opens the links and makes the loop.
func (p *process) build() error {
	links, pings, asking, err := p.openLinks()
	if err != nil {
		return err
	}
	var seed [16]byte
	_, _ = rand.Read(seed[:]) // never fails (crypto/rand)
	hb := p.life.Heartbeat
	p.mute = mute{page: p.page, bound: Bound(&hb), note: p.loudNote, self: hb.Self,
		silence: standstill{step: 2 * hb.Keepalive}}
	margins, err := heartbeat.ParseMargins(p.life.Margins)
	if err != nil {
		return err
	}
	p.loop, err = messenger.New(messenger.Config{
		Heartbeat:   hb,
		Links:       links,
		Pings:       pings,
		Asking:      asking,
		Boot:        p.life.Boot,
		Generation:  p.life.Generation,
		UUID:        p.life.UUID,
		Rand:        mathrand.New(mathrand.NewPCG(binary.LittleEndian.Uint64(seed[:8]), binary.LittleEndian.Uint64(seed[8:]))),
		Sink:        p.note,
		LoadAverage: loadAverage(),
		Renewed:     func(g uint32) error { p.report(report{Renewed: g}); return nil },
		Floors:      p.life.Floors,
		Heard:       func(f map[model.NodeName]heartbeat.Floor) { p.report(report{Heard: f}) },
		Margins:     margins,
		Mute:        p.mute.now,
		Attendant:   p,
		Event:       func(e model.ClusterEvent) { p.report(report{Event: &e}) },
		Started:     func() { p.report(report{Begun: true}) },
		Alone:       true,
	})
	return err
}

// openLinks opens all media, apart those to ping nodes and those by which
// kernels are asked. What stays unused when a later one fails ends with the process.
func (p *process) openLinks() (links, pings, asking []link.Link, err error) {
	opt := link.Options{Source: p.life.Source, Warn: func(err error) { p.warn("", err) }}
	for _, m := range p.life.Heartbeat.Media {
		l, err := link.Open(m, opt)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("heartbeat medium %s %s: %w", m.Kind, m.Name, err)
		}
		if m.Kind == model.Ping || m.Kind == model.PingGroup {
			pings = append(pings, l)
			continue
		}
		links = append(links, l)
		if p.life.Heartbeat.SuspectTime == 0 {
			continue
		}
		// No right is needed to ask. Who cannot be asked is judged by its beats.
		switch a, err := link.OpenAsking(m, link.Options{Source: p.life.Source}); {
		case err == nil:
			asking = append(asking, a)
		case !errors.Is(err, link.ErrNotSupported):
			p.warn(m.Name, fmt.Errorf("by link %s other nodes' kernels cannot be asked: %w", m.Name, err))
		}
	}
	return links, pings, asking, nil
}

func (p *process) warn(link string, err error) {
	p.note(model.Event{At: time.Now(), Level: model.LevelWarning, Source: "heartbeat", Kind: "link-warning", Subject: link, Text: err.Error()})
}

// Descriptor is the socket to the node's process.
func (p *process) Descriptor() (fd int, events int16) {
	events = unix.POLLIN
	if p.wire.unsent() {
		events |= unix.POLLOUT
	}
	return p.wire.fd, events
}

// Attend takes the orders that are there, and sends what could not be sent.
func (p *process) Attend() {
	for {
		var o order
		switch ok, err := p.wire.decode(&o); {
		case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
			// Nobody is left who could want another beat, or read why. The kernel
			// closes the sockets; whoever comes next finds the ports free.
			os.Exit(0)
		case err != nil:
			p.end(fmt.Errorf("%w: %w", errGone, err))
			return
		case !ok:
			p.write()
			return
		}
		p.obey(&o)
	}
}

// obey does what an order says.
func (p *process) obey(o *order) {
	switch {
	case o.Message != nil:
		_ = p.loop.Send(*o.Message) // checked by the client
	case o.Keys != nil:
		p.loop.Rekey(*o.Keys)
	case o.View:
		p.report(report{Seen: &seen{p.loop.View(), p.loop.Counters(), p.loop.LinkPackets(), heartbeat.FormatMargins(p.loop.Margins())}})
	case o.Begin:
		p.begun = true
	case o.End:
		p.end(errEnd)
	}
}

// note is the loop's sink.
func (p *process) note(e model.Event) { p.report(report{Note: &e}) }

// loudNote is a note that is also printed: the node's process may be what it
// is about.
func (p *process) loudNote(e model.Event) {
	p.note(e)
	go fmt.Fprintln(os.Stderr, "batuta "+Verb+": "+e.Text) // whoever reads it may hang, too
}

// report sends a report, or puts it in line if the reader is slow. It does not
// wait: notes are left out where half of the line is taken, and a life in which
// something else has no room ends.
func (p *process) report(r report) {
	switch n := len(p.reports); {
	case r.Note != nil && n >= maxReports/2:
		p.dropped++
		return
	case n >= maxReports:
		p.end(errFull)
		return
	}
	p.reports = append(p.reports, stamped(r))
	p.write()
}

// write sends what the socket takes.
func (p *process) write() {
	if !p.wire.flush() {
		return
	}
	if n := p.dropped; n > 0 && len(p.reports) < maxReports/2 {
		p.dropped = 0
		p.reports = append(p.reports, stamped(report{Note: &model.Event{At: time.Now(), Level: model.LevelWarning, Source: "heartbeat",
			Kind: "notes-dropped", Text: fmt.Sprintf("%d messages of the beat process were left out: this daemon did not read them in time", n)}}))
	}
	sent := 0
	for sent < len(p.reports) {
		p.wire.encode(&p.reports[sent])
		sent++
		if !p.wire.flush() {
			break
		}
	}
	p.reports = slices.Delete(p.reports, 0, sent)
}

// finish sends what is left to be said.
func (p *process) finish() {
	for p.write(); p.wire.unsent() || len(p.reports) > 0 || p.dropped > 0; p.write() {
		p.wire.wait(unix.POLLOUT)
	}
}

// Bound is how long the decision loop of a node may stand still before its
// beats stop: its dead time, but a second at least. What hangs is then noticed
// by the others as soon as they would notice the end of the whole machine.
func Bound(hb *model.Heartbeat) time.Duration { return max(hb.DeadTime, leastStandstill) }

// mute decides when no beat goes out, of the loop's goroutine alone.
type mute struct {
	page    *page
	bound   time.Duration
	self    model.NodeName
	note    func(model.Event)
	silence standstill
	muted   bool
}

// now tells whether nothing is to be sent, as the decision loop stands still:
// a node that decides nothing must not look as if it held its resources.
func (m *mute) now(now time.Time) bool {
	m.page.pulse.Add(1)
	decisions := m.page.decisions.Load()
	lasts := m.silence.look(now, decisions)
	muted := decisions != 0 && lasts > m.bound
	if muted != m.muted {
		m.muted = muted
		e := model.Event{At: now, Level: model.LevelNotice, Source: "heartbeat", Kind: "beats-resumed", Subject: string(m.self),
			Text: "the decision loop runs again: this node sends beats"}
		if muted {
			e.Level, e.Kind = model.LevelCritical, "beats-withheld"
			e.Text = fmt.Sprintf("the decision loop has stood still for %v: this node sends no beats until it runs again, so that the other takes over", lasts.Round(time.Millisecond))
		}
		m.note(e)
	}
	return muted
}

// loadAverage returns the text of a beat's load field, which is read anew after
// a second.
func loadAverage() func() string {
	f, err := os.Open("/proc/loadavg")
	if err != nil {
		return nil
	}
	var room [64]byte
	text, read := "", time.Time{}
	return func() string {
		if now := time.Now(); read.IsZero() || now.Sub(read) >= time.Second {
			read = now
			if n, err := f.ReadAt(room[:], 0); n > 0 && (err == nil || errors.Is(err, io.EOF)) {
				text = strings.TrimSpace(string(room[:n]))
			}
		}
		return text
	}
}
