package messenger

import (
	"time"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/member"
	"github.com/batuta-ha/batuta/internal/model"
)

// Core is heartbeat and member joined: a deterministic step machine for one
// caller. Start comes first; then Receive, Send and Tick in any order.
type Core struct {
	hb  *heartbeat.Core
	mb  *member.Core
	ran time.Time // when the latest step was taken
	due time.Time // when the next one was wanted at the latest
	lag time.Duration
	log logLimit
	out Output

	// What the step before has used, given back by the next.
	beats   [][]heartbeat.Effect
	members [][]member.Effect
}

// Output is what one step wants done, each list in order. It is valid until the
// next step, which uses the memory of its packets again; Events and Notes are
// the caller's.
type Output struct {
	Datagrams [][]byte // to be sent on all links
	Probes    []heartbeat.Probe
	Asks      [][]byte          // questions to kernels, to be sent by all links that can; answers go to Receive
	Heard     []heartbeat.Heard // floors to be stored soon
	Renewed   uint32            // the generation that this node goes on with, to be stored at once; 0: no change
	Events    []model.ClusterEvent
	Voucher   heartbeat.Voucher // of what was received
	Notes     []model.Event
}

// NewCore joins the two; their life begins with Start.
func NewCore(cfg heartbeat.Config) (*Core, error) {
	hb, err := heartbeat.New(cfg)
	if err != nil {
		return nil, err
	}
	mb, err := member.New(cfg.Heartbeat, cfg.Generation)
	if err != nil {
		return nil, err
	}
	return &Core{hb: hb, mb: mb, lag: cfg.Heartbeat.Keepalive / 4}, nil
}

// Start sends the first messages of this life.
func (c *Core) Start(now time.Time) Output {
	return c.step(now, func() {
		c.beat(now, heartbeat.Start{})
		c.member(now, member.Start{})
	})
}

// Receive takes a datagram that came in by the link of that name, which the
// kernel received at that time.
func (c *Core) Receive(now time.Time, link string, data []byte, at time.Time) Output {
	return c.step(now, func() { c.beat(now, heartbeat.Datagram{Link: link, Data: data, At: at}) })
}

// Send sends a message reliably.
func (c *Core) Send(now time.Time, m model.Message) Output {
	return c.step(now, func() { c.beat(now, heartbeat.Submit{Message: m}) })
}

// Tick does what time demands. It is to be called at Next, after everything
// that was received until then.
func (c *Core) Tick(now time.Time) Output {
	return c.step(now, func() {
		c.member(now, member.Tick{})
		c.beat(now, heartbeat.Tick{})
	})
}

// Unread says that what the links received in this last while has not been
// read yet. It counts until the next call.
func (c *Core) Unread(last time.Duration) { c.hb.Unread(last) }

// Rekey replaces the keys.
func (c *Core) Rekey(now time.Time, keys model.Keyring) Output {
	return c.step(now, func() { c.beat(now, heartbeat.Rekey{Keys: keys}) })
}

// Next returns when Tick is due; the zero time before Start.
func (c *Core) Next() time.Time {
	a, b := c.mb.Next(), c.hb.Next()
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// View returns a snapshot of the membership.
func (c *Core) View() model.View { return c.mb.View() }

// Counters returns the totals of the protocol.
func (c *Core) Counters() heartbeat.Counters { return c.hb.Counters() }

// Margins returns what was learnt of the others' beats.
func (c *Core) Margins() map[model.NodeName]heartbeat.Margin { return c.hb.Margins() }

// step carries out one input. If this node comes much later than it wanted
// to, it was stopped or starved: that time must not count against others. It
// may have begun right after the step before, long before anything was due.
func (c *Core) step(now time.Time, do func()) Output {
	c.reuse()
	c.out = Output{Datagrams: c.out.Datagrams[:0]}
	if late := now.Sub(c.due); !c.due.IsZero() && late > 0 {
		c.beat(now, heartbeat.Late{By: late})
	}
	if !c.due.IsZero() && now.Sub(c.due) > c.lag {
		c.beat(now, heartbeat.Excuse{From: c.ran})
	}
	c.ran = now
	do()
	if c.due = c.Next(); c.due.Before(now) {
		c.due = now
	}
	return c.out
}

// reuse gives back what the step before has used.
func (c *Core) reuse() {
	for _, e := range c.beats {
		c.hb.Reuse(e)
	}
	for _, e := range c.members {
		c.mb.Reuse(e)
	}
	c.beats, c.members = c.beats[:0], c.members[:0]
}

func (c *Core) beat(now time.Time, in heartbeat.Input) {
	effects := c.hb.Step(now, in)
	c.beats = append(c.beats, effects)
	if _, packet := in.(heartbeat.Datagram); packet {
		c.out.Voucher = c.hb.Voucher()
	}
	for _, e := range effects {
		switch e := e.(type) {
		case *heartbeat.Send:
			c.out.Datagrams = append(c.out.Datagrams, e.Data)
		case heartbeat.Probe:
			c.out.Probes = append(c.out.Probes, e)
		case heartbeat.Deliver:
			c.member(now, member.Received{Message: e.Message})
		case *heartbeat.Sighted:
			c.member(now, member.Sighting{Sighting: e.Sighting})
		case heartbeat.Ask:
			c.out.Asks = append(c.out.Asks, e.Data)
		case heartbeat.Heard:
			c.out.Heard = append(c.out.Heard, e)
		case heartbeat.Renewed:
			c.out.Renewed = e.Generation
			c.member(now, member.Renewed{Generation: e.Generation})
		case heartbeat.Note:
			c.note(now, e.Event)
		}
	}
}

func (c *Core) member(now time.Time, in member.Input) {
	effects := c.mb.Step(now, in)
	c.members = append(c.members, effects)
	for _, e := range effects {
		switch e := e.(type) {
		case *member.Submit:
			c.beat(now, heartbeat.Submit{Message: e.Message})
		case member.Running:
			c.beat(now, heartbeat.Running{})
		case member.Event:
			c.out.Events = append(c.out.Events, e.ClusterEvent)
		case member.Note:
			c.note(now, e.Event)
		}
	}
}
