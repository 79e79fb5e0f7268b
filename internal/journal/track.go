package journal

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/sla"
)

// Snapshot is what a node knows at one moment.
type Snapshot struct {
	Self      model.NodeName
	Ready     bool // takes part in its cluster: what runs nowhere it knows of is down
	Nodes     []model.NodeView
	Resources []Resource
	Services  []Service
}

// Resource is a resource and the address it is, if it is one.
type Resource struct {
	model.ResourceView
	Address string // of a built-in address
}

// Service is a service and the resources without which nobody reaches it.
type Service struct {
	model.ServiceView
	Needs []string // names of resources
}

// settling is how long what never ran is not called down: a node that has
// just become ready has not heard yet what others hold.
const settling = 30 * time.Second

// Tracker finds the changes between snapshots. It is pure: the caller passes
// time, events and snapshots. Use it from one goroutine.
type Tracker struct {
	known   map[Thing]Change
	outages map[Thing]outage
	heard   map[string]time.Duration // uptime of the last event of a kind, and of a kind and subject
	ready   time.Duration            // uptime since which the node takes part; 0 = not yet

	self  model.NodeName
	alone bool          // there is no other node
	began time.Duration // uptime of the first look

	before   Before // see Resume
	evidence func(Thing) Evidence
}

// outage is what is known of one that goes on.
type outage struct{ from, detected time.Duration }

// NewTracker knows nothing yet.
func NewTracker() *Tracker {
	return &Tracker{known: map[Thing]Change{}, outages: map[Thing]outage{}, heard: map[string]time.Duration{}}
}

// Hear notes an event: some know better than a snapshot when something was.
func (t *Tracker) Hear(e model.Event, uptime time.Duration) {
	switch e.Kind {
	case "node-dead", "address-added", "address-removed":
		t.heard[e.Kind+" "+e.Subject] = uptime
	case "group-acquire", "standby-complete":
		t.heard[e.Kind] = uptime
	}
}

// finding is the state of a thing in a snapshot.
type finding struct {
	Change
	address string         // where known: whose arrival ends the switch
	lost    *time.Duration // it was on a node that has died, silent since
	dead    string
}

// Observe compares a snapshot with what was known, and returns the changes in
// the order of their beginning.
func (t *Tracker) Observe(s Snapshot, now Instant) []Change {
	if s.Ready && t.ready == 0 {
		t.ready = now.Uptime
	}
	if t.began == 0 {
		t.began = now.Uptime
	}
	t.self, t.alone = s.Self, soleNode(s)
	var changes []Change
	seen := map[Thing]bool{}
	for _, f := range t.findings(s, now) {
		seen[f.Thing] = true
		changes = append(changes, t.compare(f, now)...)
	}
	for thing, c := range t.known {
		if !seen[thing] && c.State != sla.Unknown {
			delete(t.outages, thing)
			c = Change{Thing: thing, State: sla.Unknown, Since: now.Uptime, Why: "no longer configured"}
			t.known[thing] = c
			changes = append(changes, c)
		}
	}
	slices.SortStableFunc(changes, func(a, b Change) int {
		if a.Since != b.Since {
			return int(min(max(a.Since-b.Since, -1), 1))
		}
		return strings.Compare(a.Thing.String(), b.Thing.String())
	})
	return changes
}

// compare tells what changed about one thing.
func (t *Tracker) compare(f finding, now Instant) []Change {
	before, ok := t.known[f.Thing]
	if ok && before.State == f.State && before.Where == f.Where {
		return nil
	}
	if !ok && f.State == sla.Unknown {
		return nil // nothing was known, and nothing is
	}
	serves := func(s sla.State) bool { return s == sla.Up || s == sla.Degraded }
	var changes []Change
	if !ok {
		changes = t.closeGap(&f, now)
	}
	if f.lost != nil && serves(before.State) && before.Where == f.dead && f.Where != f.dead && f.State != sla.Unknown {
		// Where it was there has been silence since before anybody knew.
		o := outage{max(*f.lost, before.Since), max(t.heard["node-dead "+f.dead], *f.lost)}
		t.outages[f.Thing] = o
		down := Change{Thing: f.Thing, State: sla.Down, Since: o.from, Why: fmt.Sprintf("it was on %s, which is silent since then", f.dead)}
		if f.State == sla.Down {
			t.known[f.Thing] = down
			return []Change{down}
		}
		changes = append(changes, down)
	}
	if removed, ok := t.heard["address-removed "+f.address]; ok && removed >= before.Since && serves(before.State) && serves(f.State) &&
		before.Where != f.Where && f.lost == nil {
		// A hand-over between two snapshots: the address was nowhere for a moment.
		end := now.Uptime
		if done := t.heard["standby-complete"]; done > removed {
			end = min(end, done)
		}
		changes = append(changes, Change{Thing: f.Thing, State: sla.Down, Since: removed, Why: "handed over from " + before.Where + " to " + f.Where})
		t.outages[f.Thing] = outage{removed, removed}
		f.Since = end
	}
	switch {
	case f.State == sla.Down:
		if _, goes := t.outages[f.Thing]; !goes {
			t.outages[f.Thing] = outage{f.Since, now.Uptime}
		}
	case serves(f.State):
		if o, was := t.outages[f.Thing]; was {
			f.Ended = t.repair(o, f)
			delete(t.outages, f.Thing)
		}
	default:
		delete(t.outages, f.Thing)
	}
	t.known[f.Thing] = f.Change
	return append(changes, f.Change)
}

// repair splits an outage that ends: noticed, decided, switched, verified.
// What no event tells apart belongs to the step before.
func (t *Tracker) repair(o outage, f finding) *Repair {
	end := f.Since
	at := func(key string, from, otherwise time.Duration) time.Duration {
		if v, ok := t.heard[key]; ok && v >= from && v <= end {
			return v
		}
		return otherwise
	}
	detected := min(max(o.detected, o.from), end)
	decided := at("group-acquire", detected, detected)
	switched := at("address-added "+f.address, decided, end)
	return &Repair{Detect: detected - o.from, Decide: decided - detected, Switch: switched - decided, Verify: end - switched}
}

// findings are the states of all things in a snapshot.
func (t *Tracker) findings(s Snapshot, now Instant) []finding {
	var all []finding
	dead := map[string]time.Duration{} // uptime of the last beat of nodes that died
	for _, n := range s.Nodes {
		thing := Thing{ThingNode, string(n.Name)}
		f := finding{Change: Change{Thing: thing, State: sla.Unknown, Since: now.Uptime}}
		switch n.State {
		case model.NodeUp, model.NodeActive, model.NodePing:
			f.State = sla.Up
		case model.NodeDead:
			f.State, f.Why = sla.Down, "no beat for its deadtime"
			if t.known[thing].State != sla.Up && t.known[thing].State != sla.Down {
				f.State, f.Why = sla.Unknown, "never heard" // since this daemon runs
				if !n.LastBeat.IsZero() {
					f.State = sla.Down
				}
			}
			if !n.LastBeat.IsZero() {
				f.Since = min(now.Uptime, now.Uptime-now.Wall.Sub(n.LastBeat))
			}
			dead[thing.Name] = f.Since
		default:
		}
		if n.Name == s.Self {
			f.State, f.Why = sla.Up, ""
		}
		all = append(all, f)
		for _, l := range n.Links {
			f := finding{Change: Change{Thing: Thing{ThingLink, string(n.Name) + ":" + l.Name}, State: sla.Up, Since: now.Uptime}}
			if !l.Up {
				f.State, f.Why = sla.Down, "nothing came in by it for the deadtime"
				if n.State == model.NodeInit || n.State == model.NodeUnknown {
					f.State, f.Why = sla.Unknown, "never heard"
				}
			}
			all = append(all, f)
		}
	}
	resources := map[string]finding{}
	for _, r := range s.Resources {
		f := t.resource(s, r, dead, now)
		all = append(all, f)
		resources[r.Name] = f
		if r.Address != "" {
			f.Thing = Thing{ThingAddress, r.Address}
			all = append(all, f)
		}
	}
	for _, v := range s.Services {
		all = append(all, t.service(s, v, resources, now))
		for _, r := range v.Reals {
			all = append(all, realServer(s, v, r, now))
		}
	}
	// One resource may be in two groups; a real server in one service once.
	var once []finding
	seen := map[Thing]bool{}
	for _, f := range all {
		if !seen[f.Thing] {
			seen[f.Thing] = true
			once = append(once, f)
		}
	}
	return once
}

// resource is the state of a resource, wherever it runs.
func (t *Tracker) resource(s Snapshot, r Resource, dead map[string]time.Duration, now Instant) finding {
	thing := Thing{ThingResource, r.Name}
	f := finding{Change: Change{Thing: thing, State: sla.Down, Since: now.Uptime, Where: string(r.Node)}, address: r.Address}
	before := t.known[thing]
	if since, died := dead[before.Where]; died {
		f.lost, f.dead = &since, before.Where
	}
	if since, died := dead[f.Where]; died && f.Where != "" {
		f.lost, f.dead, f.Where = &since, f.Where, ""
		f.Why = f.dead + " is dead"
		return f
	}
	switch {
	case r.State == model.ResourceRunning && r.Node != "":
		f.State = sla.Up
	case r.State == model.ResourceFailed:
		f.Where, f.Why = string(s.Self), "failed: "+r.Error
	case !s.Ready:
		f.State, f.Where, f.Why = sla.Unknown, "", "the node is not part of its cluster yet"
	default:
		f.Where, f.Why = "", "it runs nowhere"
		if r.State == model.ResourceStarting || r.State == model.ResourceStopping {
			f.Why = fmt.Sprintf("%s on %s", r.State, s.Self)
		}
		if (before.State == sla.StateUnset || before.State == sla.Unknown) && now.Uptime-t.ready < settling {
			f.State, f.Why = sla.Unknown, "not heard yet where it runs"
		}
	}
	return f
}

// service is the state of a service: it needs its resources, and a real server.
func (t *Tracker) service(s Snapshot, v Service, resources map[string]finding, now Instant) finding {
	f := finding{Change: Change{Thing: Thing{ThingService, v.Key.String()}, State: sla.Up, Since: now.Uptime, Where: string(s.Self)}}
	if !v.Key.IsMark() {
		f.address = v.Key.Addr.Addr().String()
	}
	var up, down int
	for _, r := range v.Reals {
		switch r.Status {
		case model.Up:
			up++
		case model.Down:
			down++
		default:
		}
	}
	switch {
	case up == 0 && down == 0:
		f.State, f.Why = sla.Unknown, "no real server has been checked yet"
	case up == 0:
		f.State, f.Why = sla.Down, "no real server is up"
		if v.Fallback {
			f.Why += ", the fallback answers"
		}
	case down > 0:
		f.State, f.Why = sla.Degraded, fmt.Sprintf("%d of %d real servers are up", up, len(v.Reals))
	}
	for _, name := range v.Needs {
		r, ok := resources[name]
		if !ok {
			continue
		}
		if r.Where != "" {
			f.Where = r.Where
		}
		if r.lost != nil {
			f.lost, f.dead = r.lost, r.dead
		}
		switch {
		case r.State == sla.Down:
			f.State, f.Where, f.Why = sla.Down, "", name+": "+r.Why
		case r.State == sla.Unknown && f.State != sla.Down:
			f.State, f.Why = sla.Unknown, name+": "+r.Why
		}
		if r.State == sla.Down {
			break
		}
	}
	return f
}

func realServer(s Snapshot, v Service, r model.RealView, now Instant) finding {
	f := finding{Change: Change{Thing: Thing{ThingReal, v.Key.String() + " " + r.Addr}, State: sla.Unknown, Since: now.Uptime, Where: string(s.Self)}}
	switch r.Status {
	case model.Up:
		f.State = sla.Up
	case model.Down:
		f.State, f.Why = sla.Down, r.Reason
	default:
		f.Why = "not checked yet"
	}
	return f
}
