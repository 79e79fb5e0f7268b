package node

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/batuta-ha/batuta/internal/agent"
	"github.com/batuta-ha/batuta/internal/journal"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/sla"
)

const (
	lookEvery = time.Second            // at what happens without an event
	lookAgain = 100 * time.Millisecond // after an event: what it announced has come about
	lookPause = 20 * time.Millisecond  // between two looks, in a flood of events
)

// recorder keeps the journal: events as they come, and the states that it
// finds when it looks, which it does after each event and once a second. A nil
// recorder records nothing.
type recorder struct {
	journal *journal.Journal
	dir     string
	look    func() journal.Snapshot
	report  model.Sink
	ready   chan struct{}
	wake    chan struct{}

	evidence   func(journal.Thing) journal.Evidence        // of what was so while no daemon ran; nil for none
	agreements func() map[model.ServiceKey]model.Agreement // nil: nothing is promised
	agreed     map[journal.Thing]model.Agreement           // as it has been recorded

	mu    sync.Mutex
	heard []heard
}

// heard is an event that waits for the next look.
type heard struct {
	event  model.Event
	uptime time.Duration
}

// openRecorder opens the journal below the state directory. Where that is
// impossible the reason is reported, and the daemon runs without one.
func openRecorder(stateDir string, node model.NodeName, report model.Sink) *recorder {
	if stateDir == "" {
		return nil
	}
	j, err := journal.Begin(journal.Options{Dir: journal.Dir(stateDir), Node: node, Report: report})
	if err != nil {
		report(model.Event{At: time.Now(), Level: model.LevelWarning, Source: "journal", Kind: "journal-failed",
			Text: "there is no journal of this run: " + err.Error() + wayOut(err)})
		return nil
	}
	return &recorder{journal: j, dir: journal.Dir(stateDir), report: report, ready: make(chan struct{}), wake: make(chan struct{}, 1)}
}

// hear is the sink of the journal.
func (r *recorder) hear(e model.Event) {
	if r == nil {
		return
	}
	now := journal.Now()
	if e.At.IsZero() {
		e.At = now.Wall
	}
	r.journal.Event(e)
	r.mu.Lock()
	r.heard = append(r.heard, heard{e, now.Uptime - max(0, now.Wall.Sub(e.At))})
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run looks until ctx ends, and once more then, and closes the journal.
func (r *recorder) Run(ctx context.Context) error {
	close(r.ready)
	tracker := journal.NewTracker()
	tracker.Resume(r.journal.Before(), r.evidence)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			r.observe(tracker)
			if err := r.journal.Close(); err != nil {
				r.report(model.Event{At: time.Now(), Level: model.LevelWarning, Source: "journal", Kind: "close-failed", Text: err.Error()})
			}
			return nil // the journal's troubles stop nothing else
		case <-r.wake:
			again.Reset(lookAgain)
		case <-again.C:
		case <-tick.C:
		}
		r.observe(tracker)
		select {
		case <-ctx.Done():
		case <-time.After(lookPause):
		}
	}
}

// Ready is closed at once: nobody waits for the journal.
func (r *recorder) Ready() <-chan struct{} { return r.ready }

func (r *recorder) String() string { return "journal" }

func (r *recorder) observe(t *journal.Tracker) {
	r.mu.Lock()
	list := r.heard
	r.heard = nil
	r.mu.Unlock()
	for _, h := range list {
		t.Hear(h.event, h.uptime)
	}
	r.observeAgreements()
	s := r.look()
	r.journal.States(t.Observe(s, journal.Now()))
}

// observeAgreements records what was promised, when that has changed.
func (r *recorder) observeAgreements() {
	if r.agreements == nil {
		return
	}
	now := map[journal.Thing]model.Agreement{}
	for k, a := range r.agreements() {
		now[journal.Thing{Kind: journal.ThingService, Name: k.String()}] = a
	}
	if r.agreed != nil && maps.Equal(now, r.agreed) {
		return
	}
	r.agreed = now
	if err := journal.SetAgreed(r.dir, now); err != nil {
		r.report(model.Event{At: time.Now(), Level: model.LevelWarning, Source: "journal", Kind: "agreement-lost", Text: err.Error()})
	}
}

// checkAgreement says what is wrong with what was promised about a service.
func checkAgreement(a model.Agreement) error {
	_, err := sla.Agree(a, time.UTC)
	return err
}

// agreements are what the directors' configurations promise.
func (ds *directors) agreements() map[model.ServiceKey]model.Agreement {
	all := map[model.ServiceKey]model.Agreement{}
	for _, in := range ds.instances() {
		maps.Copy(all, in.loop.Agreements())
	}
	return all
}

// record starts the recorder of a cluster's node.
func (n *clusterNode) record(c *crew) {
	if n.recorder == nil {
		return
	}
	n.recorder.look = n.snapshots()
	n.recorder.evidence = n.evidence(c.ctx)
	if n.directors != nil {
		n.recorder.agreements = n.directors.agreements
	}
	c.start(n.recorder)
}

// snapshots makes the function that takes a snapshot of the node.
func (n *clusterNode) snapshots() func() journal.Snapshot {
	addresses := map[string]netip.Addr{} // of address resources
	var directors []string               // names of director resources
	for _, g := range n.cluster.Groups {
		for _, r := range g.Resources {
			switch agent.KindOf(r) {
			case agent.KindAddress:
				if a, err := n.network.Address(r); err == nil {
					addresses[r.Text] = a.Addr()
				}
			case agent.KindDirector:
				directors = append(directors, r.Text)
			default:
			}
		}
	}
	needs := func(k model.ServiceKey) []string {
		for _, g := range n.cluster.Groups {
			var found bool
			var names []string
			for _, r := range g.Resources {
				a, ok := addresses[r.Text]
				mine := ok && !k.IsMark() && a == k.Addr.Addr()
				found = found || mine
				if mine || slices.Contains(directors, r.Text) {
					names = append(names, r.Text)
				}
			}
			if found {
				return names
			}
		}
		return directors
	}
	return func() journal.Snapshot {
		view := n.messenger.View()
		s := journal.Snapshot{Self: n.hb.Self, Nodes: view.Nodes}
		if self := view.Find(n.hb.Self); self != nil {
			s.Ready = self.State == model.NodeActive
		}
		for _, r := range n.crm.Resources() {
			v := journal.Resource{ResourceView: r}
			if a, ok := addresses[r.Name]; ok {
				v.Address = a.String()
			}
			s.Resources = append(s.Resources, v)
		}
		if n.directors != nil {
			for _, v := range n.directors.states() {
				s.Services = append(s.Services, journal.Service{ServiceView: v, Needs: needs(v.Key)})
			}
		}
		return s
	}
}

// record starts the recorder of a director alone.
func (d *loneDirector) record(c *crew, r *recorder) {
	if r == nil {
		return
	}
	r.agreements = d.directors.agreements
	table := heldTable(c.ctx, d.plane)
	r.evidence = func(t journal.Thing) journal.Evidence {
		switch {
		case t.Kind != journal.ThingService:
		case !inKernel(d.plane):
			return journal.EvidenceGone
		case table[t.Name]:
			return journal.EvidenceHeld
		}
		return journal.EvidenceNone
	}
	r.look = func() journal.Snapshot {
		s := journal.Snapshot{Self: d.node, Ready: true, Nodes: []model.NodeView{{Name: d.node, State: model.NodeActive}}}
		for _, v := range d.directors.states() {
			s.Services = append(s.Services, journal.Service{ServiceView: v})
		}
		return s
	}
	c.start(r)
}
