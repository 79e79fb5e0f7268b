package journal

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/sla"
)

// What closes the time between two lives of the daemon of lvs02, which served
// until its last sign of life at an uptime of 50 minutes, and is back at an hour.
func TestTheGapBetweenTwoLives(t *testing.T) {
	key := model.ServiceKey{Proto: model.TCP, Addr: netip.MustParseAddrPort("10.1.0.100:80")}
	service := Thing{ThingService, key.String()}
	const end = 50 * time.Minute
	for _, c := range []struct {
		name     string
		before   Before
		evidence Evidence
		alone    bool // a director without a cluster
		removed  bool // the address went and came back after the start
		want     string
	}{
		{name: "nothing is known of an earlier life", evidence: EvidenceHeld,
			want: "service up at 60m, vip up at 60m"},
		{name: "the daemon crashed, and the kernel went on", before: Before{Known: true, SameBoot: true}, evidence: EvidenceHeld,
			want: "service up at 50m, vip up at 50m"},
		{name: "the daemon crashed, and the kernel has nothing", before: Before{Known: true, SameBoot: true},
			want: "service up at 60m, vip up at 60m"},
		{name: "the address was gone and came back", before: Before{Known: true, SameBoot: true}, evidence: EvidenceHeld, removed: true,
			want: "service up at 60m, vip up at 60m"},
		{name: "the daemon ended in good order", before: Before{Known: true, SameBoot: true, InOrder: true}, evidence: EvidenceHeld,
			want: "service up at 60m, vip up at 60m"},
		{name: "the machine was restarted; the other node may have served", before: Before{Known: true}, evidence: EvidenceHeld,
			want: "node down at 0m, node up at 60m, service up at 60m, vip up at 60m"},
		{name: "the machine was restarted, and there is no other", before: Before{Known: true}, alone: true,
			want: "node down at 0m, service down at 0m, node up at 60m, service up at 60m (detect 1h0m0s)"},
		{name: "the plane died with the daemon", before: Before{Known: true, SameBoot: true}, evidence: EvidenceGone, alone: true,
			want: "service down at 50m, service up at 60m (detect 10m0s)"},
		{name: "the plane died with the daemon; the other node may have served", before: Before{Known: true, SameBoot: true}, evidence: EvidenceGone,
			want: "service up at 60m, vip up at 60m"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := Snapshot{Self: "lvs02", Ready: true, Nodes: []model.NodeView{{Name: "lvs02", State: model.NodeActive}}}
			v := Service{ServiceView: model.ServiceView{Key: key, Reals: []model.RealView{{Addr: "10.2.0.1:80", Status: model.Up}}}}
			if !c.alone {
				s.Nodes = append(s.Nodes, model.NodeView{Name: "lvs01", State: model.NodeInit})
				s.Resources = []Resource{{Address: "10.1.0.100", ResourceView: model.ResourceView{Name: "10.1.0.100", State: model.ResourceRunning, Node: "lvs02"}}}
				v.Needs = []string{"10.1.0.100"}
			}
			s.Services = []Service{v}
			c.before.End = end
			c.before.States = map[Thing]Change{}
			for _, thing := range []Thing{service, vip, {ThingNode, "lvs02"}} {
				c.before.States[thing] = Change{Thing: thing, State: sla.Up, Where: "lvs02"}
			}
			tracker := NewTracker()
			tracker.Resume(c.before, func(Thing) Evidence { return c.evidence })
			if c.removed {
				tracker.Hear(model.Event{Kind: "address-removed", Subject: "10.1.0.100"}, time.Hour)
			}
			var got []string
			for _, ch := range tracker.Observe(s, Instant{epoch, time.Hour}) {
				if ch.Thing.Kind == ThingReal || ch.Thing.Kind == ThingResource || ch.Thing.Kind == ThingNode && !c.before.Known ||
					ch.Thing.Kind == ThingNode && c.before.SameBoot {
					continue
				}
				text := fmt.Sprintf("%s %s at %gm", ch.Thing.Kind, ch.State, ch.Since.Minutes())
				if ch.Ended != nil {
					text += fmt.Sprintf(" (detect %v)", ch.Ended.Detect)
				}
				got = append(got, text)
			}
			text := strings.Join(got, ", ")
			// The repair of the node itself is of no interest here.
			text = strings.Replace(text, "node up at 60m (detect 1h0m0s)", "node up at 60m", 1)
			same(t, c.want, text)
		})
	}
}

// A journal tells the next life how the one before ended.
func TestTheLifeBefore(t *testing.T) {
	c := newClocks()
	j := start(t, Options{clock: c.read})
	same(t, false, j.Before().Known)
	j.States([]Change{up(vip, c.read().Uptime)})
	c.pass(30 * time.Second)
	j.tickNow()
	c.pass(500 * time.Millisecond)
	crash(t, j)
	c.pass(time.Minute)
	j = start(t, Options{Dir: j.o.Dir, clock: c.read})
	b := j.Before()
	same(t, Before{Known: true, SameBoot: true, End: time.Hour + 30*time.Second, States: map[Thing]Change{vip: up(vip, time.Hour)}}, b)
	// What the new life knows by it, the journal tells: there was no gap.
	j.States([]Change{up(vip, b.End)})
	c.pass(10 * time.Second)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	same(t, []string{"0-100.5 up"}, tell(read(t, j.o.Dir), vip))
	j = start(t, Options{Dir: j.o.Dir, clock: c.read, boot: "another"})
	if b := j.Before(); b.SameBoot || !b.InOrder {
		t.Errorf("%+v", b)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}
