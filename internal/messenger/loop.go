package messenger

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/link"
	"github.com/batuta-ha/batuta/internal/model"
)

// Config is what a Loop needs. Sink and LoadAverage may be nil.
type Config struct {
	Heartbeat   model.Heartbeat
	Links       []link.Link   // Run closes them, Pings and Asking when it ends
	Pings       []link.Link   // those to ping nodes, called as the nodes are
	Asking      []link.Link   // those by which kernels of other nodes are asked; none: they are judged by their beats alone
	Boot        string        // this run of the machine, if its kernel answers for it; see heartbeat.Config
	Generation  uint32        // of this life; see OpenIdentity
	UUID        [16]byte      // of this node; see OpenIdentity
	Rand        *rand.Rand    // used by the loop only
	Sink        model.Sink    // what is worth logging
	LoadAverage func() string // text of the ld field
	// Renewed stores the generation that this node goes on with when the
	// stored one had been lost; see StoreGeneration. May be nil.
	Renewed func(generation uint32) error
	// Floors is what an earlier life heard of the others; Heard has what this
	// one has stored, without waiting for a disk. See LoadFloors. Both may be nil.
	Floors map[model.NodeName]heartbeat.Floor
	Heard  func(map[model.NodeName]heartbeat.Floor)
	// Margins is what an earlier life learnt of the others' beats; may be nil.
	Margins map[model.NodeName]heartbeat.Margin
	// Mute is asked before anything is sent; true: nothing is, as if the wires
	// were cut. May be nil.
	Mute func(now time.Time) bool

	// Attendant, if set, is looked after by the loop. All methods of the Loop
	// are then for it alone. Event takes what Events would have, and Started is
	// called when the first messages are out; both may be nil.
	Attendant Attendant
	Event     func(model.ClusterEvent)
	Started   func()
	// Alone says that the process does nothing else; see ppoll.
	Alone bool
}

// ErrStopped is returned by Send after the loop has ended.
var ErrStopped = errors.New("the messenger has stopped")

const (
	drainLimit  = 1024                   // packets taken in one go before time is looked at
	linkBackoff = 100 * time.Millisecond // after a link failed to receive
)

// Loop is one node's messenger. One goroutine waits, reads, decides and sends;
// there is one more for each link that is not link.Polled, and, unless
// Config.Event takes them, one that hands out events.
type Loop struct {
	cfg   Config
	ready chan struct{}

	mu   sync.Mutex // guards what core points to
	core *Core

	queue   sync.Mutex // guards pending, keys, waiting and stopped
	pending []model.Message
	keys    *model.Keyring // to be used from now on
	waiting []model.ClusterEvent
	stopped bool

	wake     chan struct{} // something is pending
	poller   *poller       // nil: there is nothing to poll, and wake is waited for
	evented  chan struct{} // something is waiting
	arrivals chan arrival
	doors    map[link.Link]*door           // of Links
	ring     atomic.Pointer[model.Keyring] // for the doors
	events   chan model.ClusterEvent
	floors   map[model.NodeName]heartbeat.Floor // the loop's alone
	failing  map[link.Link]bool                 // links whose latest Send failed
}

// arrival is a packet and where it came from.
type arrival struct {
	link string
	door *door // nil: it has none
	link.Packet
}

// New checks the configuration. Nothing is sent before Run.
func New(cfg Config) (*Loop, error) {
	if len(cfg.Links) == 0 {
		return nil, errors.New("heartbeat: no link; ha.cf needs at least one bcast or ucast line")
	}
	l := &Loop{cfg: cfg, ready: make(chan struct{}), wake: make(chan struct{}, 1), evented: make(chan struct{}, 1),
		arrivals: make(chan arrival, drainLimit), events: make(chan model.ClusterEvent), failing: map[link.Link]bool{},
		floors: maps.Clone(cfg.Floors)}
	if l.floors == nil {
		l.floors = map[model.NodeName]heartbeat.Floor{}
	}
	core, err := NewCore(heartbeat.Config{Heartbeat: cfg.Heartbeat, Generation: cfg.Generation, UUID: cfg.UUID,
		Rand: cfg.Rand, Random: func(b []byte) { _, _ = crand.Read(b) }, Load: cfg.LoadAverage, Boot: cfg.Boot,
		Floors: cfg.Floors, Margins: cfg.Margins})
	if err != nil {
		return nil, err
	}
	l.core = core
	l.ring.Store(&cfg.Heartbeat.Keys)
	l.doors = map[link.Link]*door{}
	for _, k := range cfg.Links {
		l.doors[k] = newDoor(k, &l.ring, l.note)
	}
	var links []polled
	for _, k := range l.links() {
		if p, ok := k.(link.Polled); ok {
			links = append(links, polled{Polled: p, door: l.doors[k]})
		}
	}
	// An attendant is waited for even where all links have goroutines of their
	// own, as serial lines do.
	if len(links) > 0 || cfg.Attendant != nil {
		if l.poller, err = newPoller(links, cfg.Attendant, cfg.Alone); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// String names the task.
func (l *Loop) String() string { return "heartbeat " + string(l.cfg.Heartbeat.Self) }

// Ready is closed when the first messages are out.
func (l *Loop) Ready() <-chan struct{} { return l.ready }

// Events returns the stream of cluster events, in order, none left out. The
// loop never waits for its reader. It is closed when Run ends.
func (l *Loop) Events() <-chan model.ClusterEvent { return l.events }

// View returns a snapshot of the membership.
func (l *Loop) View() model.View {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.core.View()
}

// Counters returns the totals of the protocol.
func (l *Loop) Counters() heartbeat.Counters {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.core.Counters()
	for _, d := range l.doors {
		p := d.packets()
		c.Bad += p.Bad
		c.Dropped += p.Kernel + p.Again
	}
	return c
}

// LinkPackets counts what each link has dropped unseen, in the order of Config.Links.
func (l *Loop) LinkPackets() (list []model.LinkPackets) {
	for _, k := range l.cfg.Links {
		list = append(list, l.doors[k].packets())
	}
	return list
}

// Margins returns what was learnt of the others' beats, to be stored now and then.
func (l *Loop) Margins() map[model.NodeName]heartbeat.Margin {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.core.Margins()
}

// Send queues a reliable message for all nodes and returns at once. Messages
// of one goroutine keep their order. What is queued when Run is told to end
// is still sent. The error is ErrStopped, or says what the wire cannot carry.
func (l *Loop) Send(m model.Message) error {
	if err := Sendable(m); err != nil {
		return err
	}
	l.queue.Lock()
	defer l.queue.Unlock()
	if l.stopped {
		return ErrStopped
	}
	l.pending = append(l.pending, m)
	l.rouse()
	return nil
}

// Rekey replaces the keys, for what is sent and received from now on.
func (l *Loop) Rekey(keys model.Keyring) {
	l.queue.Lock()
	defer l.queue.Unlock()
	l.keys = &keys
	l.ring.Store(&keys)
	l.rouse()
}

// rouse wakes the loop. An attendant need not: it is part of the loop's turn.
func (l *Loop) rouse() {
	switch {
	case l.poller == nil:
		signal(l.wake)
	case l.cfg.Attendant == nil:
		l.poller.ring()
	}
}

// links are all of them.
func (l *Loop) links() []link.Link { return slices.Concat(l.cfg.Links, l.cfg.Pings, l.cfg.Asking) }

// Sendable says what of a message the wire cannot carry.
func Sendable(m model.Message) error {
	if m.Type == "" {
		return errors.New("heartbeat: a message without a type")
	}
	for _, f := range m.Fields {
		if !heartbeat.ValidField(f.Name) {
			return fmt.Errorf("heartbeat: message %s: field name %q cannot be sent", m.Type, f.Name)
		}
	}
	return nil
}

// Run talks to the cluster until ctx ends, and returns nil then. It may be
// called once: the next life needs the next generation.
func (l *Loop) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	inner, stop := context.WithCancel(context.Background())
	for _, k := range l.links() {
		if _, ok := k.(link.Polled); !ok {
			wg.Go(func() { l.read(inner, k) })
		}
	}
	if l.cfg.Event == nil {
		wg.Go(func() { l.hand(inner) })
	}
	l.decide(ctx)
	l.queue.Lock()
	l.stopped = true
	l.queue.Unlock()
	l.sendPending()
	stop()
	var err error
	for _, k := range l.links() {
		err = errors.Join(err, k.Close())
	}
	wg.Wait()
	if l.poller != nil {
		err = errors.Join(err, l.poller.close())
	}
	return err
}

// decide is the loop: it sleeps until a packet, a message or a deadline, takes
// all packets that are there, and only then lets time pass. A late loop thus
// first hears everyone out.
func (l *Loop) decide(ctx context.Context) {
	l.do(l.core.Start)
	close(l.ready)
	if l.cfg.Started != nil {
		l.cfg.Started()
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	if l.poller != nil {
		rung := make(chan struct{})
		defer func(unneeded func() bool) {
			if !unneeded() {
				<-rung // it is still there then
			}
		}(context.AfterFunc(ctx, func() { l.poller.ring(); close(rung) }))
	}
	for ctx.Err() == nil {
		if l.poller != nil {
			l.poll(l.next())
		} else if !l.sleep(ctx, timer, l.next()) {
			return
		}
		l.turn()
	}
}

// sleep waits for goroutines.
func (l *Loop) sleep(ctx context.Context, timer *time.Timer, until time.Time) bool {
	timer.Reset(time.Until(until))
	select {
	case <-ctx.Done():
		return false
	case a := <-l.arrivals:
		l.receive(time.Now(), a)
	case <-l.wake:
	case <-timer.C:
	}
	return true
}

// poll waits for links, and takes what has come by them.
func (l *Loop) poll(until time.Time) {
	l.poller.wait(time.Now(), until)
	now := time.Now()
	l.poller.take(now, func(k *polled, p link.Packet) { l.receive(now, arrival{k.Name(), k.door, p}) })
}

// turn takes what goroutines have read or want sent, and lets time pass.
func (l *Loop) turn() {
	l.drain()
	l.sendPending()
	if !time.Now().Before(l.next()) {
		l.do(l.core.Tick)
	}
}

func (l *Loop) next() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, unread := time.Now(), time.Duration(0)
	for _, d := range l.doors {
		unread = max(unread, d.unread(now))
	}
	l.core.Unread(unread)
	return l.core.Next()
}

// drain takes the packets that have been read, up to a bound so that a flood
// cannot keep the loop from its own beats.
func (l *Loop) drain() {
	for range drainLimit {
		select {
		case a := <-l.arrivals:
			l.receive(time.Now(), a)
		default:
			return
		}
	}
}

// receive takes a packet that the door of its link lets in.
func (l *Loop) receive(now time.Time, a arrival) {
	if a.door != nil && !a.door.admit(now, a.Packet) {
		return
	}
	l.do(func(now time.Time) Output {
		out := l.core.Receive(now, a.link, a.Data, a.At)
		if a.door != nil {
			a.door.learn(a.Packet, out.Voucher)
		}
		return out
	})
}

func (l *Loop) sendPending() {
	l.queue.Lock()
	pending, keys := l.pending, l.keys
	l.pending, l.keys = nil, nil
	l.queue.Unlock()
	if keys != nil {
		l.do(func(now time.Time) Output { return l.core.Rekey(now, *keys) })
	}
	for _, m := range pending {
		l.do(func(now time.Time) Output { return l.core.Send(now, m) })
	}
}

// do takes one step and carries out what it wants.
func (l *Loop) do(step func(now time.Time) Output) {
	now := time.Now()
	l.mu.Lock()
	out := step(now)
	l.mu.Unlock()
	if out.Renewed != 0 && l.cfg.Renewed != nil {
		if err := l.cfg.Renewed(out.Renewed); err != nil {
			l.note(model.Event{At: time.Now(), Level: model.LevelError, Source: "heartbeat", Kind: "generation-not-stored", Subject: string(l.cfg.Heartbeat.Self),
				Text: fmt.Sprintf("generation %d could not be stored: %v; the next start may be refused by the others for a moment", out.Renewed, err)})
		}
	}
	if len(out.Heard) > 0 && l.cfg.Heard != nil {
		for _, h := range out.Heard {
			l.floors[h.Node] = h.Floor
		}
		l.cfg.Heard(maps.Clone(l.floors))
	}
	if len(out.Datagrams) > 0 && l.cfg.Mute != nil && l.cfg.Mute(now) {
		out.Datagrams, out.Asks, out.Probes = nil, nil, nil
	}
	for _, d := range out.Datagrams {
		for _, k := range l.cfg.Links {
			l.sent(k, k.Send(d))
		}
	}
	for _, q := range out.Asks {
		for _, k := range l.cfg.Asking {
			_ = k.Send(q) // a link that cannot send has been complained of, or will be at the next beat
		}
	}
	for _, p := range out.Probes {
		for _, k := range l.cfg.Pings {
			// A host without a route is dead, and said to be so: no word of it here.
			if strings.EqualFold(k.Name(), string(p.Node)) {
				_ = k.Send(p.Data)
			}
		}
	}
	for _, n := range out.Notes {
		l.note(n)
	}
	if l.cfg.Event != nil {
		for _, e := range out.Events {
			l.cfg.Event(e)
		}
		return
	}
	if len(out.Events) > 0 {
		l.queue.Lock()
		l.waiting = append(l.waiting, out.Events...)
		l.queue.Unlock()
		signal(l.evented)
	}
}

// sent reports when a link begins to fail and when it works again, not each
// datagram: the cluster lives on the other links, or on the next beat.
func (l *Loop) sent(k link.Link, err error) {
	if (err != nil) == l.failing[k] {
		return
	}
	l.failing[k] = err != nil
	e := model.Event{At: time.Now(), Source: "heartbeat", Subject: k.Name()}
	if err != nil {
		e.Level, e.Kind, e.Text = model.LevelError, "link-send-failed", fmt.Sprintf("link %s cannot send: %v; trying on", k.Name(), err)
	} else {
		e.Level, e.Kind, e.Text = model.LevelNotice, "link-send-works", fmt.Sprintf("link %s can send again", k.Name())
	}
	l.note(e)
}

func (l *Loop) note(e model.Event) {
	if l.cfg.Sink != nil {
		l.cfg.Sink(e)
	}
}

// read is the goroutine of one link.
func (l *Loop) read(ctx context.Context, k link.Link) {
	d := l.doors[k]
	for {
		p, err := k.Receive()
		switch {
		case errors.Is(err, link.ErrClosed):
			return
		case err != nil:
			select {
			case <-time.After(linkBackoff):
			case <-ctx.Done():
				return
			}
			continue
		}
		p.Data = bytes.Clone(p.Data)
		select {
		case l.arrivals <- arrival{k.Name(), d, p}:
		case <-ctx.Done():
			return
		}
		if l.poller != nil {
			l.poller.ring()
		}
	}
}

// hand is the goroutine that gives events to their reader, at its pace.
func (l *Loop) hand(ctx context.Context) {
	defer close(l.events)
	for {
		l.queue.Lock()
		waiting := l.waiting
		l.waiting = nil
		l.queue.Unlock()
		for _, e := range waiting {
			select {
			case l.events <- e:
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-l.evented:
		case <-ctx.Done():
			return
		}
	}
}

// signal wakes whoever waits on a channel with room for one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
