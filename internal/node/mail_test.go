package node

import (
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/agent"
	"github.com/batuta-ha/batuta/internal/alert"
	"github.com/batuta-ha/batuta/internal/model"
)

// MailTo writes when its group comes and when it goes: once each time, also
// where the daemon began anew in between.
func TestMailTo(t *testing.T) {
	var sent []string
	date := regexp.MustCompile(` at .* (on|from) `)
	life := func(dir string) agent.Agent {
		n := &clusterNode{Options: Options{RunDir: dir}}
		n.hb.Self = "lvs01"
		a, err := n.mailNotice(model.Resource{Agent: "MailTo", Args: []string{"ops@example.com boss@example.com", "Web"}, Text: "MailTo::ops@example.com boss@example.com::Web"})
		if err != nil {
			t.Fatal(err)
		}
		a.(*mailNotice).send = func(m alert.Message) {
			sent = append(sent, m.To+": "+date.ReplaceAllString(m.Subject, " at DATE $1 "))
			if m.Text != "\t"+m.Subject+"\n" {
				t.Errorf("text %q", m.Text)
			}
		}
		return a
	}
	dir := t.TempDir()
	state := func(a agent.Agent, want model.ResourceState) {
		t.Helper()
		if got, err := a.Status(t.Context()); got != want || err != nil {
			t.Errorf("status %v, %v, want %v", got, err, want)
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	first := life(dir)
	state(first, model.ResourceStopped)
	for range 2 {
		do(first.Start(t.Context()))
	}
	second := life(dir)
	state(second, model.ResourceRunning)
	do(second.Start(t.Context()))
	for range 2 {
		do(second.Stop(t.Context()))
	}
	state(second, model.ResourceStopped)
	const to = "ops@example.com,boss@example.com: Web "
	want := []string{to + "Takeover in progress at DATE on lvs01", to + "Migrating resource away at DATE from lvs01"}
	if diff := cmp.Diff(want, sent); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	if _, err := new(clusterNode).mailNotice(model.Resource{Agent: "MailTo", Text: "MailTo"}); err == nil || !strings.Contains(err.Error(), "nobody to write to; write MailTo::root@localhost") {
		t.Errorf("without an address: %v", err)
	}
}
