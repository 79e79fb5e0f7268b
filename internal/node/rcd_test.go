package node

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/agent"
	"github.com/batuta-ha/batuta/internal/model"
)

// What an administrator has put into rc.d runs, with the message in its
// environment and in the order of the events; Heartbeat's own scripts, which
// would move resources a second time, do not.
func TestEventScripts(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "rc.d", name), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "rc.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	write("status", `echo "$1 $HA_src is $HA_st info=$HA_info own=$HA_OSTATUS alone=$HA_DONTASK here=$HA_CURHOST keepalive=$HA_keepalive" >>`+log+"\n")
	write("hb_takeover", "echo never >>"+log+"; $HA_BIN/mach_down\n")
	write("backup", `echo "$HA_t from $HA_src to $HA_dest seq=$HA_seq of $HA_what dir=$HA_DIR" >>`+log+"\n")
	write("last", "echo last >>"+log+"\n")
	m := &memo{}
	s := newEventScripts(agent.ScriptOptions{HaD: dir, Self: "a", Settings: []model.Setting{{Name: "keepalive", Value: "1"}}}, m.hear)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()

	view := func(b, ping model.NodeState) model.View {
		return model.View{Self: "a", Nodes: []model.NodeView{{Name: "a", State: model.NodeActive}, {Name: "b", State: b}, {Name: "gate", State: ping, Ping: true}}}
	}
	send := func(kind string) {
		s.hear(model.ClusterEvent{Kind: model.MessageReceived, View: view(model.NodeActive, model.NodePing), Message: model.Message{
			Type: kind, From: "b", To: "a", Number: 31, Fields: []model.Field{{Name: "what", Value: "two words; $(no command)"}, {Name: "DIR", Value: "/else"}, {Name: "a=b", Value: "x"}}}})
	}
	s.hear(model.ClusterEvent{Kind: model.CommunicationUp, View: view(model.NodeInit, model.NodeInit)})
	s.hear(model.ClusterEvent{Kind: model.NodeJoined, View: view(model.NodeActive, model.NodePing)})
	s.hear(model.ClusterEvent{Kind: model.LinkChanged, View: view(model.NodeActive, model.NodePing)})
	send("Backup")
	send("hb_takeover")
	send("../rc.d/status")
	send("resource")
	s.hear(model.ClusterEvent{Kind: model.NodeDied, View: view(model.NodeDead, model.NodePing)})
	send("last")
	want := `status b is active info= own=active alone= here=a keepalive=1
status gate is ping info=ping own=active alone= here=a keepalive=1
Backup from b to a seq=1f of two words; $(no command) dir=` + dir + `
status b is dead info= own=active alone=yes here=a keepalive=1
status b is active info= own=active alone= here=a keepalive=1
last
`
	until(t, "the last script", func() bool {
		got, _ := os.ReadFile(log)
		return strings.HasSuffix(string(got), "last\n")
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	got, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	if m.count("event-script-failed") != 0 {
		t.Errorf("events %v", m.kinds)
	}
}

// A script that hangs is ended, and said so.
func TestEventScriptThatHangs(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "rc.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "rc.d", "slow"), []byte("#!/bin/sh\nsleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	m := &memo{}
	s := newEventScripts(agent.ScriptOptions{HaD: dir}, m.hear)
	s.limit = 10 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	s.hear(model.ClusterEvent{Kind: model.MessageReceived, Message: model.Message{Type: "slow", From: "b"}})
	until(t, "its end", func() bool { return m.count("event-script-failed") == 1 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Events that come faster than a script takes are left out, and nobody waits.
func TestEventScriptsDoNotBlock(t *testing.T) {
	m := &memo{}
	s := newEventScripts(agent.ScriptOptions{HaD: t.TempDir()}, m.hear)
	for range 2 * maxEvents {
		s.hear(model.ClusterEvent{Kind: model.MessageReceived, Message: model.Message{Type: "flood", From: "b"}})
	}
	if m.count("event-left-out") != 1 {
		t.Errorf("events %v", m.kinds)
	}
}
