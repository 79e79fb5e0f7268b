package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/agent"
	"github.com/batuta-ha/batuta/internal/config"
	"github.com/batuta-ha/batuta/internal/crm"
	"github.com/batuta-ha/batuta/internal/model"
)

// settleProcess does what the configuration says of this process itself:
// realtime, coredumps.
func (n *clusterNode) settleProcess() {
	if n.hb.LockMemory && !n.Ordinary {
		// What is not touched is not locked: address space alone costs nothing.
		if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
			n.sink(model.Event{At: time.Now(), Level: model.LevelNotice, Source: "node", Kind: "memory-not-locked",
				Text: fmt.Sprintf("the memory of this daemon may be swapped out, and it hang then (mlockall: %v): give it CAP_IPC_LOCK, or write realtime off", err)})
		}
	}
	var limit unix.Rlimit
	if n.hb.CoreDumps == model.ChoiceUnset || unix.Getrlimit(unix.RLIMIT_CORE, &limit) != nil {
		return
	}
	limit.Cur = 0
	if n.hb.CoreDumps == model.ChoiceYes {
		debug.SetTraceback("crash") // else the runtime ends by itself, without a dump
		limit.Cur = limit.Max
	}
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &limit) // lowering, or up to what is allowed: never fails
}

// quietDebug keeps debug messages from a sink unless the configuration asks for
// them.
func (n *clusterNode) quietDebug(to model.Sink) model.Sink {
	if n.hb.Debug+n.Debug > 0 {
		return to
	}
	return func(e model.Event) {
		if e.Level > model.LevelDebug {
			to(e)
		}
	}
}

// buildPrograms makes the tasks beside the resources: respawn, failfast and
// the watchdog.
func (n *clusterNode) buildPrograms() error {
	options := n.scriptOptions()
	for _, line := range n.hb.Programs {
		p, err := newProgram(line)
		if err != nil {
			return err
		}
		p.env, p.output, p.sink = agent.Environment(options), n.scriptOutput(), n.sink
		p.talks = func() bool {
			view := n.messenger.View()
			self := view.Find(n.hb.Self)
			return self != nil && self.State == model.NodeActive
		}
		n.beside = append(n.beside, p)
	}
	alive := func(ctx context.Context) error {
		if err := n.crm.Alive(ctx); !errors.Is(err, crm.ErrNotRunning) {
			return err
		}
		return nil // the node has handed over and is about to end
	}
	if w := openWatchdog(n.hb.Watchdog, alive, n.sink); w != nil {
		n.beside = append(n.beside, w)
	}
	return nil
}

// clients are the programs beside this daemon that run now, by their names.
func (n *clusterNode) clients() []string {
	list := []string{}
	if n.hb.Ipfail() {
		list = append(list, "ipfail") // built in
	}
	for _, t := range n.beside {
		if p, ok := t.(*program); ok && p.runs.Load() {
			list = append(list, filepath.Base(p.Command[0]))
		}
	}
	return list
}

// scriptOptions are what every script is told.
func (n *clusterNode) scriptOptions() agent.ScriptOptions {
	return agent.ScriptOptions{HaD: n.HaD, Settings: config.Parameters(&n.hb), Programs: config.Environment(&n.hb),
		Legacy: n.hb.Failback == model.FailbackLegacy, Self: n.hb.Self, Output: n.scriptOutput()}
}
