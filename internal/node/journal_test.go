package node

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/journal"
	"github.com/batuta-ha/batuta/internal/model"
)

// An event makes the recorder look, and what it sees is in the journal with it.
func TestTheRecorderLooksAfterAnEvent(t *testing.T) {
	stateDir := t.TempDir()
	r := openRecorder(stateDir, "lvs01", func(e model.Event) { t.Errorf("report: %s", e) })
	var peer atomic.Value
	peer.Store(model.NodeUp)
	looked := make(chan struct{}, 1)
	r.look = func() journal.Snapshot {
		state := peer.Load().(model.NodeState)
		select {
		case looked <- struct{}{}:
		default:
		}
		return journal.Snapshot{Self: "lvs01", Ready: true, Nodes: []model.NodeView{
			{Name: "lvs02", State: state, LastBeat: time.Now()}}}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	<-looked
	peer.Store(model.NodeDead)
	r.hear(model.Event{At: time.Now(), Level: model.LevelWarning, Source: "heartbeat", Kind: "node-dead", Subject: "lvs02", Text: "node lvs02: is dead"})
	<-looked
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	s, err := journal.Open(journal.Dir(stateDir))
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	err = s.Entries(time.Time{}, time.Now().Add(time.Hour), func(e journal.Entry) bool {
		switch {
		case e.Event != nil:
			told = append(told, e.Event.Kind)
		case e.State != nil:
			told = append(told, e.State.Thing.String()+" "+e.State.State.String())
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{"node-dead": true, "node lvs02 up": true, "node lvs02 down": true}
	for _, line := range told {
		delete(want, line)
	}
	if len(want) > 0 {
		t.Errorf("the journal tells %q, and lacks %v", told, want)
	}
}

// A journal that cannot be opened is reported; the daemon runs without one.
func TestWithoutAJournalTheDaemonRuns(t *testing.T) {
	state := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(state, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var reports []string
	r := openRecorder(state, "lvs01", func(e model.Event) { reports = append(reports, e.Kind) })
	if r != nil || len(reports) != 1 || reports[0] != "journal-failed" {
		t.Errorf("recorder %v, reports %q", r, reports)
	}
	r.hear(model.Event{}) // of no consequence
}
