package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/api"
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
