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
