package node

import (
	"context"
	"fmt"
	"math"
	"reflect"
	"time"

	"github.com/batuta-ha/batuta/internal/config"
	"github.com/batuta-ha/batuta/internal/model"
)

// reload reads the files again. Keys and each ldirectord.cf count at once.
// What is new in ha.cf and haresources begins a new life of this process, as
// Heartbeat has it: whatever runs here is left to it, nothing moves. One file
// with errors, and nothing of all files counts, but for an ldirectord.cf that
// is good.
func (n *clusterNode) reload() {
	if n.directors != nil {
		n.directors.reload()
	}
	reader, err := Reader(n.Node)
	if err != nil {
		n.say(model.LevelError, "reload-refused", err.Error())
		return
	}
	reader.Starting = true
	cluster, problems := reader.Load(n.HaD)
	if config.Failed(problems) {
		n.say(model.LevelError, "reload-refused", "nothing has changed, the keys in force stay: "+firstError(problems))
		return
	}
	if keys := cluster.Heartbeat.Keys; !reflect.DeepEqual(keys, n.hb.Keys) {
		n.hb.Keys = keys
		n.messenger.Rekey(keys)
		n.rekeyResponder(keys)
		n.say(model.LevelNotice, "keys-changed", fmt.Sprintf("authkeys has changed: key %d signs from now on, and all of the file verify", keys.Send))
	}
	fresh, running := *cluster.Heartbeat, *n.cluster.Heartbeat
	fresh.Keys, running.Keys = model.Keyring{}, model.Keyring{}
	if reflect.DeepEqual(fresh, running) && reflect.DeepEqual(cluster.Groups, n.cluster.Groups) {
		return
	}
	if n.Again == nil {
		n.say(model.LevelWarning, "restart-needed", "ha.cf or haresources has changed: that counts from the next start of this daemon on (heartbeat restart hands over first)")
		return
	}
	if patience, takes := restartPatience(&n.hb, n.messenger.View(), n.responder != nil), 2*n.startTook; takes > patience {
		n.say(model.LevelWarning, "restart-needed", fmt.Sprintf("ha.cf or haresources has changed: to start anew in place takes %v or less, but after %v another node takes this one for dead, and takes over: heartbeat restart hands over first",
			takes.Round(time.Millisecond), patience))
		return
	}
	for _, name := range gained(n.cluster.Groups, cluster.Groups, n.hb.Self) {
		n.say(model.LevelWarning, "owner-changed", fmt.Sprintf("resource %s now belongs to this node: it runs twice for a moment unless the other node was reloaded first", name))
	}
	n.again = cluster
}

// restartPatience is how long this node may be silent before another one that
// lives takes it for dead: its dead time, or suspecttime where this kernel
// answers for it meanwhile. That the other one asks is to be seen by its own
// kernel, which answers, too.
func restartPatience(hb *model.Heartbeat, view model.View, answers bool) time.Duration {
	patience := time.Duration(math.MaxInt64)
	for _, v := range view.Nodes {
		switch {
		case v.Name == hb.Self, v.Ping, v.State != model.NodeActive && v.State != model.NodeUp:
		case answers && v.Kernel:
			patience = min(patience, max(hb.DeadTime, hb.SuspectTime))
		default:
			patience = min(patience, hb.DeadTime)
		}
	}
	return patience
}

// gained are the resources that another node owned before.
func gained(before, after []model.ResourceGroup, self model.NodeName) []string {
	others := map[string]bool{}
	for _, g := range before {
		for _, r := range g.Resources {
			others[r.Text] = others[r.Text] || g.Owner != self
		}
	}
	var names []string
	for _, g := range after {
		for _, r := range g.Resources {
			if g.Owner == self && others[r.Text] {
				names = append(names, r.Text)
			}
		}
	}
	return names
}

// leave ends the resource manager for a new life of this process: what runs
// stays, but for what is no longer configured. It tells false when the node is
// to end after all. Beats go on meanwhile.
func (n *clusterNode) leave(ctx context.Context, c *crew) bool {
	n.say(model.LevelNotice, "restart-in-place", "ha.cf or haresources has changed: this daemon starts anew in place; what runs here stays")
	if err := n.crm.Leave(ctx); err != nil {
		return false // TERM came first
	}
	c.stopLast()
	if err := n.crm.Drop(c.ctx, n.again.Groups); err != nil {
		n.say(model.LevelCritical, "stop-failed", err.Error())
	}
	return true
}

// firstError is the first thing to mend.
func firstError(problems []config.Problem) string {
	for _, p := range problems {
		if p.Severity == config.Error {
			return p.String()
		}
	}
	return ""
}
