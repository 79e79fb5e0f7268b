package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/google/go-cmp/cmp"
)

// Status tells where a resource runs, not what this node would rather say of itself.
func TestStatusOfResources(t *testing.T) {
	var out strings.Builder
	writeStatus(&out, api.Status{Node: "lvs02", State: "standby", Resources: []model.ResourceView{
		{Name: "10.1.0.100", State: model.ResourceRunning, Here: model.ResourceStopped, Node: "lvs01"},
		{Name: "apache2", State: model.ResourceRunning, Here: model.ResourceFailed, Node: "lvs01", Error: "exit status 1"},
		{Name: "ldirectord", State: model.ResourceStopped, Here: model.ResourceStopped},
	}}, time.Time{})
	_, got, _ := strings.Cut(out.String(), "Resources\n")
	want := `  10.1.0.100                   running   on lvs01
  apache2                      running   on lvs01; failed here: exit status 1
  ldirectord                   stopped   on nowhere
`
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

// Status tells how short the dead time could be, and since when that is known.
func TestStatusOfMargins(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for since, want := range map[time.Duration]string{7 * 24 * time.Hour: "in the last 7 days", 50 * time.Hour: "in the last 2 days",
		30 * time.Hour: "in the last 30 hours", 10 * time.Minute: "in the last 10 minutes", 0: "since it was first heard, less than two minutes ago"} {
		var out strings.Builder
		writeStatus(&out, api.Status{Peers: []api.Peer{{Name: "lvs02", State: "active",
			Margin: model.Margin{DeadTime: model.Millis(87 * time.Millisecond), Since: now.Add(-since)}}}}, now)
		if want = "a deadtime of 87 ms would have raised no false alarm " + want + "\n"; !strings.HasSuffix(out.String(), want) {
			t.Errorf("%v: %q, want %q", since, out.String(), want)
		}
	}
}

// Status tells what the heartbeats dropped, by reason and link, if they did.
func TestStatusOfPackets(t *testing.T) {
	var out strings.Builder
	st := api.Status{Packets: heartbeat.Counters{Sent: 1000, Received: 990}, LinkPackets: []model.LinkPackets{{Name: "eth1"}, {Name: "eth2"}}}
	writePackets(&out, st)
	if out.String() != "" {
		t.Errorf("nothing was dropped: %q", out.String())
	}
	st.Packets.Bad, st.Packets.Unproven, st.Packets.Excess, st.Packets.Dropped = 3, 4, 5, 700
	st.LinkPackets[1] = model.LinkPackets{Name: "eth2", Flooded: true, Kernel: 600, Again: 100, Bad: 2}
	writePackets(&out, st)
	want := `
Heartbeat packets: 1000 sent, 990 received; dropped: 3 not authentic, 4 unproven, 5 more than a node may send, 700 unseen
  link eth2            600 dropped by the kernel, 100 repeated, 2 not authentic
`
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}
