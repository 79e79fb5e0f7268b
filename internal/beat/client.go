package beat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/messenger"
	"github.com/batuta-ha/batuta/internal/model"
)

// Options say how a node's process keeps its beat process.
type Options struct {
	// Begin returns what the next life begins with: a new generation each time.
	Begin func() (Life, error)
	Sink  model.Sink
	// Renewed and Heard store what messenger.Config says of them.
	Renewed func(generation uint32) error
	Heard   func(map[model.NodeName]heartbeat.Floor) error
	// Learnt stores Life.Margins for the next life; see messenger.StoreMargins.
	Learnt func(margins string) error
}

const (
	viewPatience = time.Second            // for an answer; then the latest view known is told
	endPatience  = 5 * time.Second        // for the process to end when told so
	watchEvery   = 250 * time.Millisecond // between two looks at its pulse, at least
	pulseMissed  = 8                      // looks that find the same pulse: it hangs
	maxLives     = 5                      // that may end by themselves
	livesWithin  = time.Minute            // within this time
	learnEvery   = time.Minute            // between two looks at what was learnt: a crash forgets as much
	openPatience = 30 * time.Second       // for a process to open its links
)

// Client is the beat process as the node's process sees it: what messenger.Loop
// is without one.
type Client struct {
	opt    Options
	self   model.NodeName
	page   *page
	shared *os.File // the page's
	ready  chan struct{}
	once   sync.Once // of ready
	events chan model.ClusterEvent
	toKeep chan map[model.NodeName]heartbeat.Floor // the newest floors, to be stored

	mu      sync.Mutex
	life    *child  // nil while there is none
	begun   bool    // it takes orders
	orders  []order // for the next one
	stopped bool
	keys    *model.Keyring // newer than those of the configuration
	latest  seen
	asking  []chan struct{}
	waiting []model.ClusterEvent
	giving  int // events that hand has taken from waiting and not yet given
	evented chan struct{}
	up      bool // communication was up in some life: the next is told that it is renewed
}

// Start starts the first life and opens its links; no beat goes out before
// Run. Its error is that of the configuration or of the system.
func Start(opt Options) (*Client, error) {
	c := &Client{opt: opt, ready: make(chan struct{}), events: make(chan model.ClusterEvent), evented: make(chan struct{}, 1),
		toKeep: make(chan map[model.NodeName]heartbeat.Floor, 1)}
	var err error
	if c.page, c.shared, err = newPage(); err != nil {
		return nil, err
	}
	if c.life, err = c.spawn(); err != nil {
		return nil, errors.Join(err, c.shared.Close())
	}
	c.self = c.life.Heartbeat.Self
	c.latest.View = model.View{Self: c.self}
	return c, nil
}

// String names the task.
func (c *Client) String() string { return "heartbeat " + string(c.self) }

// Ready is closed when the first messages are out.
func (c *Client) Ready() <-chan struct{} { return c.ready }

// Events returns the stream of cluster events, in order. None is left out in a
// life; of what happened between two lives the views tell. It is closed when
// Run ends.
func (c *Client) Events() <-chan model.ClusterEvent { return c.events }

// Send queues a reliable message for all nodes and returns at once; see
// messenger.Loop.Send. What the process that dies has not sent is lost: the
// event Renewed then says that nothing that was said before counts.
func (c *Client) Send(m model.Message) error {
	if err := messenger.Sendable(m); err != nil {
		return err
	}
	return c.order(order{Message: &m})
}

// Rekey replaces the keys, for what is sent and received from now on.
func (c *Client) Rekey(keys model.Keyring) {
	c.mu.Lock()
	c.keys = &keys
	c.mu.Unlock()
	_ = c.order(order{Keys: &keys}) // stopped: nobody needs them
}

// Key is what this node signs with, if no original Heartbeat makes it use another.
func (c *Client) Key() model.KeyUse {
	c.mu.Lock()
	defer c.mu.Unlock()
	ring := c.keys
	if ring == nil && c.life != nil {
		ring = &c.life.Life.Heartbeat.Keys
	}
	if ring == nil {
		return model.KeyUse{}
	}
	return model.KeyUse{Number: ring.Send, Method: ring.Keys[ring.Send].Method}
}

// View returns a snapshot of the membership: the latest one known, if the beat
// process does not answer.
func (c *Client) View() model.View {
	c.look()
	return c.Known()
}

// Known is the latest view that is known, without a word to the beat process:
// every change of a node's state has come with one.
func (c *Client) Known() model.View {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.latest.View
}

// Packets are the totals of the protocol, and what each link has dropped unseen,
// in the present life: as they were at the latest View.
func (c *Client) Packets() (heartbeat.Counters, []model.LinkPackets) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.latest.Counters, c.latest.Links
}

// Decided says that the decision loop runs. Beats stop when it was called once
// and then is not for the time of Bound.
func (c *Client) Decided() { c.page.decisions.Add(1) }

// Undecided says that there is no decision loop any more whose standstill would
// mean anything.
func (c *Client) Undecided() { c.page.decisions.Store(0) }

// Close ends a process that Run has not ended.
func (c *Client) Close() error {
	c.mu.Lock()
	life := c.life
	c.mu.Unlock()
	if life != nil {
		life.kill()
	}
	return c.shared.Close()
}

// order gives an order to the life that is, or else to the next one.
func (c *Client) order(o order) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.stopped:
		return messenger.ErrStopped
	case c.begun:
		c.life.wire.put(&o)
	default:
		c.orders = append(c.orders, o)
	}
	return nil
}

// begin lets the life begin, and gives it the orders that have waited for it.
func (c *Client) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.life.wire.put(&order{Begin: true})
	for i := range c.orders {
		c.life.wire.put(&c.orders[i])
	}
	c.orders, c.begun = nil, true
}

// Margins returns what was learnt of the others' beats, for the next life.
func (c *Client) Margins() string {
	c.look()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.latest.Margins
}

// look has the latest view renewed.
func (c *Client) look() {
	answer := make(chan struct{})
	c.mu.Lock()
	if c.stopped || !c.begun {
		c.mu.Unlock()
		return
	}
	c.asking = append(c.asking, answer)
	c.life.wire.put(&order{View: true})
	c.mu.Unlock()
	patience := time.NewTimer(viewPatience)
	defer patience.Stop()
	select {
	case <-answer:
	case <-patience.C:
	}
}

// Run lives until ctx ends, and returns nil then. A process that ends by itself
// is followed by another one, the others hear a new generation, and Events has
// Renewed. When that happens too often Run returns how the last one ended.
func (c *Client) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	inner, stop := context.WithCancel(context.Background())
	wg.Go(func() { c.hand(inner) })
	wg.Go(func() { c.keep(inner) })
	defer func() {
		c.mu.Lock()
		c.stopped = true
		c.mu.Unlock()
		stop()
		wg.Wait()
	}()
	var ends []time.Time
	for {
		err := c.live(ctx)
		if ctx.Err() != nil {
			return err
		}
		now := time.Now()
		ends = append(ends, now)
		if n := len(ends) - maxLives; n >= 0 && now.Sub(ends[n]) < livesWithin {
			return fmt.Errorf("the beat process has ended %d times within %v, lately so: %w", maxLives, livesWithin, err)
		}
		c.fault("beat-process-ended", fmt.Sprintf("the beat process has ended (%v): another one goes on with the next generation; nothing is released", err))
		life, err := c.spawn()
		if err != nil {
			return fmt.Errorf("start the beat process again: %w", err)
		}
		c.mu.Lock()
		c.life = life
		c.mu.Unlock()
	}
}

// live begins the life that was started and returns how it ended.
func (c *Client) live(ctx context.Context) error {
	life := c.life
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { life.wire.writeRest(done) })
	c.begin()
	wg.Go(func() { c.watch(life, done) })
	wg.Go(func() { c.read(life) })
	select {
	case <-life.ended:
	case <-ctx.Done():
		c.look() // what it has learnt
		_ = c.order(order{End: true})
		patience := time.NewTimer(endPatience)
		select {
		case <-life.ended:
		case <-patience.C:
			life.kill()
		}
		patience.Stop()
	}
	close(done)
	wg.Wait() // what it has still said is read
	c.mu.Lock()
	defer c.mu.Unlock()
	c.life, c.begun = nil, false
	for _, a := range c.asking {
		close(a)
	}
	c.asking = nil
	if ctx.Err() != nil && errors.Is(life.how, errEnded) {
		return nil
	}
	return life.how
}

// read takes reports until there are no more.
func (c *Client) read(life *child) {
	defer life.wire.Close()
	for {
		var r report
		if err := life.wire.dec.Decode(&r); err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
				c.fault("beat-process-unclear", fmt.Sprintf("what the beat process says cannot be understood: %v", err))
				life.kill()
			}
			return
		}
		r.settle()
		c.take(&r)
	}
}

// take does what a report says.
func (c *Client) take(r *report) {
	switch {
	case r.Begun:
		c.once.Do(func() { close(c.ready) })
	case r.Note != nil:
		c.opt.Sink(*r.Note)
	case r.Renewed != 0:
		if err := c.opt.Renewed(r.Renewed); err != nil {
			c.fault("generation-not-stored", fmt.Sprintf("generation %d could not be stored: %v; the next start may be refused by the others for a moment", r.Renewed, err))
		}
	case r.Heard != nil:
		select {
		case <-c.toKeep: // older ones that were not stored yet
		default:
		}
		c.toKeep <- r.Heard
	case r.Event != nil:
		c.mu.Lock()
		defer c.mu.Unlock()
		e := *r.Event
		c.latest.View = e.View
		if e.Kind == model.CommunicationUp {
			if c.up {
				e.Kind = model.Renewed // to those who were told in an earlier life
			}
			c.up = true
		}
		if c.giving == 0 && len(c.waiting) == 0 {
			select {
			case c.events <- e: // its reader waits: a hand-over is one goroutine shorter
				return
			default:
			}
		}
		c.waiting = append(c.waiting, e)
		wake(c.evented)
	case r.Seen != nil:
		c.mu.Lock()
		defer c.mu.Unlock()
		c.latest = *r.Seen
		if len(c.asking) > 0 {
			close(c.asking[0])
			c.asking = c.asking[1:]
		}
	}
}

// watch ends a process that hangs: the others take it for dead, and this node
// would go on holding what they take over.
func (c *Client) watch(life *child, done <-chan struct{}) {
	every := time.NewTicker(max(watchEvery, life.Heartbeat.Keepalive))
	defer every.Stop()
	for last, missed := c.page.pulse.Load(), 0; ; {
		select {
		case <-done:
			return
		case <-every.C:
		}
		pulse := c.page.pulse.Load()
		if missed++; pulse != last {
			last, missed = pulse, 0
		}
		if missed == pulseMissed {
			c.fault("beat-process-hangs", fmt.Sprintf("the beat process has not beaten for %v: it is ended", pulseMissed*max(watchEvery, life.Heartbeat.Keepalive)))
			life.kill()
			return
		}
	}
}

// hand is the goroutine that gives events to their reader, at its pace.
func (c *Client) hand(ctx context.Context) {
	defer close(c.events)
	for {
		c.mu.Lock()
		waiting := c.waiting
		c.waiting, c.giving = nil, len(waiting)
		c.mu.Unlock()
		for _, e := range waiting {
			select {
			case c.events <- e:
			case <-ctx.Done():
				return
			}
		}
		c.mu.Lock()
		c.giving = 0
		more := len(c.waiting) > 0
		c.mu.Unlock()
		if more {
			continue
		}
		select {
		case <-c.evented:
		case <-ctx.Done():
			return
		}
	}
}

// keep is the goroutine that stores floors and margins: a slow disk must not
// delay events.
func (c *Client) keep(ctx context.Context) {
	learn := time.NewTicker(learnEvery)
	defer learn.Stop()
	for failed := false; ; {
		select {
		case <-ctx.Done():
			c.learnt()
			return
		case <-learn.C:
			c.learnt()
		case floors := <-c.toKeep:
			err := c.opt.Heard(floors)
			if err != nil && !failed {
				c.fault("floors-not-stored", fmt.Sprintf("what was heard of the others could not be stored: %v; after a restart old packets could be played to this node", err))
			}
			failed = err != nil
		}
	}
}

// learnt stores what was learnt of the others' beats. A failure costs no more
// than that: the disk's trouble is told by others.
func (c *Client) learnt() {
	if margins := c.Margins(); margins != "" {
		_ = c.opt.Learnt(margins)
	}
}

// spawn starts a process for the next life and waits until its links are open.
func (c *Client) spawn() (*child, error) {
	next, err := c.opt.Begin()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	if c.keys != nil {
		next.Heartbeat.Keys = *c.keys
	}
	if c.latest.Margins != "" {
		next.Margins = c.latest.Margins // newer than what is stored, perhaps
	}
	if c.up { // this is no start of the cluster: the others are there, or dead
		next.Heartbeat.InitDead = min(next.Heartbeat.InitDead, 2*next.Heartbeat.DeadTime)
	}
	c.mu.Unlock()
	life := &child{Life: next, ended: make(chan struct{})}
	if err := life.start(c.shared); err != nil {
		return nil, fmt.Errorf("the beat process: %w", err)
	}
	if err := c.open(life); err != nil {
		life.kill()
		return nil, errors.Join(err, life.wire.Close())
	}
	return life, nil
}

// open hands the life over and waits for its links.
func (c *Client) open(life *child) error {
	if err := life.wire.SetDeadline(time.Now().Add(openPatience)); err != nil {
		return err
	}
	life.wire.put(&life.Life)
	if err := life.wire.finish(); err != nil {
		return fmt.Errorf("the beat process did not start: %w", err)
	}
	for {
		var r report
		if err := life.wire.dec.Decode(&r); err != nil {
			return fmt.Errorf("the beat process did not start: %w", err)
		}
		switch r.settle(); {
		case r.Failed != "":
			return errors.New(r.Failed)
		case r.Opened:
			return life.wire.SetDeadline(time.Time{})
		}
		c.take(&r)
	}
}

func (c *Client) fault(kind, text string) {
	c.opt.Sink(model.Event{At: time.Now(), Level: model.LevelError, Source: "heartbeat", Kind: kind, Subject: string(c.self), Text: text})
}

// wake wakes whoever waits on a channel with room for one.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
