package crm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/batuta-ha/batuta/internal/agent"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/pair"
)

// Hand is what operations need of the world besides the agents. The loop's
// waits on the clock; a simulator's gives way to its other events.
type Hand interface {
	Now() time.Time
	// Pause waits, and tells whether ctx still lives.
	Pause(ctx context.Context, d time.Duration) bool
	// Limit returns a context for a start: it ends with ctx, or StartGrace
	// after begin has ended. A script that is killed half way may leave more
	// behind than one that comes to its end.
	Limit(ctx, begin context.Context) (context.Context, context.CancelFunc)
}

// Core is the resource manager for one caller: Step takes what is learnt,
// Begin hands out the operations that the decisions want, one at a time.
// Perform carries one out and may run beside Step; Finish tells the outcome.
type Core struct {
	cfg    Config
	hand   Hand
	groups []*group

	pair    *pair.Core
	queue   []*Job
	running *Job
	fence   bool // the other node is to be reset
	failing bool // the last message could not be sent
	stopped bool // a stop has ended
	left    pair.Set

	mu     sync.Mutex // guards what status shows
	hold   pair.Set   // what this node claims
	other  pair.Set   // what the other node claims, in this node's terms
	stable bool
}

// group is one line of haresources.
type group struct {
	model.ResourceGroup
	set     pair.Set
	members []*member // in start order
}

// member is one resource of a group. Members of several groups may share a unit.
type member struct {
	model.Resource
	unit  *unit
	state model.ResourceState // guarded by Core.mu
	err   error               // guarded by Core.mu
}

// unit is what an agent controls: a director that two groups name is one unit.
type unit struct {
	agent agent.Agent
	users map[*group]bool // groups that have it started
}

// Job is one resource operation.
type Job struct {
	op      int
	set     pair.Set
	release bool
	begin   context.Context // ends when the decisions have overtaken a start
	overrun context.CancelFunc
}

// errOvertaken ends a start that is no longer wanted.
var errOvertaken = errors.New("no longer wanted here")

// NewCore checks the resources and finds their agents. All errors are returned at once.
func NewCore(cfg Config, hand Hand) (*Core, error) {
	c := &Core{cfg: cfg, hand: hand}
	if cfg.Sink == nil {
		c.cfg.Sink = func(model.Event) {}
	}
	pc := pair.Config{Self: cfg.Self, Peer: cfg.Peer, Failback: cfg.Failback == model.FailbackOn,
		Legacy: cfg.Failback == model.FailbackLegacy, Ipfail: cfg.Ipfail, Fencing: cfg.Fence != nil,
		First: cfg.Peer == "" || slices.Index(cfg.Nodes, cfg.Self) < slices.Index(cfg.Nodes, cfg.Peer)}
	units := map[string]*unit{}
	var errs []error
	for _, g := range cfg.Groups {
		added := &group{ResourceGroup: g, set: pair.Foreign}
		if g.Owner == cfg.Self {
			added.set = pair.Local
			pc.LocalResources += len(g.Resources)
			pc.LocalGroups = append(pc.LocalGroups, g.Key())
		} else {
			pc.ForeignResources += len(g.Resources)
			pc.ForeignGroups = append(pc.ForeignGroups, g.Key())
		}
		for _, r := range startOrder(g.Resources) {
			u := units[unitKey(r)]
			if u == nil {
				a, err := cfg.Agents(r)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				u = &unit{agent: a, users: map[*group]bool{}}
				units[unitKey(r)] = u
			}
			added.members = append(added.members, &member{Resource: r, unit: u})
		}
		c.groups = append(c.groups, added)
	}
	c.pair = pair.New(pc)
	return c, errors.Join(errs...)
}

// unitKey is the same for resources that are one thing.
func unitKey(r model.Resource) string {
	if agent.KindOf(r) == agent.KindDirector && len(r.Args) == 0 {
		return r.Agent + "::ldirectord.cf"
	}
	return r.Text
}

// startOrder is the order in which a group starts; it stops in reverse. The
// written order holds, except for groups wholly of built-in resources: there
// the director comes first, so that it knows every connection before the first
// packet arrives, and the first address, which clients use, comes last.
func startOrder(rs []model.Resource) []model.Resource {
	var directors, addresses []model.Resource
	for _, r := range rs {
		switch agent.KindOf(r) {
		case agent.KindDirector:
			directors = append(directors, r)
		case agent.KindAddress:
			addresses = append(addresses, r)
		default:
			return slices.Clone(rs)
		}
	}
	if len(addresses) > 0 {
		addresses = append(addresses[1:], addresses[0])
	}
	return append(directors, addresses...)
}

// Stable tells whether both nodes agree and nothing is under way.
func (c *Core) Stable() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stable
}

// Holding is the word of cl_status rscstatus: what this node claims, or
// transition while the two do not agree or something is under way.
func (c *Core) Holding() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.stable {
		return "transition"
	}
	return c.hold.String()
}

// Resources shows every resource in file order, as far as this node knows.
func (c *Core) Resources() []model.ResourceView {
	c.mu.Lock()
	defer c.mu.Unlock()
	views := []model.ResourceView{}
	for _, g := range c.groups {
		for _, r := range g.Resources {
			i := slices.IndexFunc(g.members, func(m *member) bool { return m.Text == r.Text })
			m := g.members[i]
			v := model.ResourceView{Name: m.Text, Group: g.Key(), Owner: g.Owner, State: m.state, Here: m.state}
			switch {
			case m.state == model.ResourceRunning || m.state == model.ResourceStopping:
				v.Node = c.cfg.Self
			case c.other&g.set != pair.None:
				v.Node, v.State = c.cfg.Peer, model.ResourceRunning
			}
			if m.err != nil {
				v.Error = m.err.Error()
			}
			views = append(views, v)
		}
	}
	return views
}

// String is the canonical text of the pair's state.
func (c *Core) String() string { return c.pair.String() }

// Next is when Step must be called at the latest; zero for no time in sight.
func (c *Core) Next() time.Time { return c.pair.Next() }

// Stopped tells whether a stop has ended, and what could not be stopped.
func (c *Core) Stopped() (left pair.Set, ended bool) { return c.left, c.stopped }

// Fence tells, once, that the other node's machine is to be reset; a Step with
// pair.Fenced follows.
func (c *Core) Fence() bool {
	due := c.fence
	c.fence = false
	return due
}

// Begin returns the next operation to perform, nil while there is none or
// another is being performed.
func (c *Core) Begin() *Job {
	if c.running != nil || len(c.queue) == 0 {
		return nil
	}
	c.running, c.queue = c.queue[0], c.queue[1:]
	return c.running
}

// Finish tells the pair what Perform returned.
func (c *Core) Finish(f pair.Finished) {
	c.running.overrun()
	c.running = nil
	c.Step(f)
}

// Step lets the pair decide, sends its messages and queues its operations.
func (c *Core) Step(in pair.Input) {
	for _, e := range c.pair.Step(c.hand.Now(), in) {
		switch e := e.(type) {
		case pair.Send:
			c.send(e.Message)
		case pair.Acquire:
			c.enqueue(&Job{op: e.Op, set: e.Set})
		case pair.Release:
			c.enqueue(&Job{op: e.Op, set: e.Set, release: true})
		case pair.Fence:
			c.fence = true
		case pair.Reannounce:
			if c.cfg.Reannounce != nil {
				c.cfg.Reannounce()
			}
		case pair.Say:
			c.cfg.Sink(e.Event)
		case pair.Stopped:
			c.left, c.stopped = e.Left, true
		}
	}
	c.mu.Lock()
	c.hold, c.other, c.stable = c.pair.Hold(), c.pair.Other(), c.pair.Stable()
	c.mu.Unlock()
}

// enqueue adds an operation. A release ends starts of the same set that have
// not come to their end.
func (c *Core) enqueue(j *Job) {
	var overrun context.CancelCauseFunc
	j.begin, overrun = context.WithCancelCause(context.Background())
	j.overrun = func() { overrun(errOvertaken) }
	if j.release {
		for _, other := range slices.Concat(c.queue, []*Job{c.running}) {
			if other != nil && !other.release && other.set&j.set != pair.None {
				other.overrun()
			}
		}
	}
	c.queue = append(c.queue, j)
}

func (c *Core) send(m model.Message) { c.sent(m, c.cfg.Send(m)) }

// sent notes what came of sending a message: what fails is said once.
func (c *Core) sent(m model.Message, err error) {
	if err != nil && !c.failing {
		c.say(model.LevelError, "send-failed", m.Type, "message %s could not be sent: %v", m.Type, err)
	}
	c.failing = err != nil
}

func (c *Core) say(level model.Level, kind, subject, format string, args ...any) {
	c.cfg.Sink(model.Event{At: c.hand.Now(), Level: level, Source: "resources", Kind: kind, Subject: subject, Text: fmt.Sprintf(format, args...)})
}
