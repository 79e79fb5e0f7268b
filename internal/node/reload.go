package node

import (
	"context"
	"fmt"
	"path/filepath"
	"reflect"

	"github.com/batuta-ha/batuta/internal/config"
	"github.com/batuta-ha/batuta/internal/model"
)

// reload reads the files again. Keys and each ldirectord.cf count at once.
// What is new in ha.cf and haresources begins a new life of this process, as
// Heartbeat has it: whatever runs here is left to it, nothing moves. A file
// with errors changes nothing.
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
	keys, problems := reader.Authkeys(filepath.Join(n.HaD, "authkeys"))
	switch {
	case config.Failed(problems):
		n.say(model.LevelError, "reload-refused", "the keys in force stay: "+firstError(problems))
	case !reflect.DeepEqual(keys, n.hb.Keys):
		n.hb.Keys = keys
		n.messenger.Rekey(keys)
		n.rekeyResponder(keys)
		n.say(model.LevelNotice, "keys-changed", fmt.Sprintf("authkeys has changed: key %d signs from now on, and all of the file verify", keys.Send))
	}
	cluster, problems := reader.Load(n.HaD)
	if config.Failed(problems) {
		n.say(model.LevelError, "reload-refused", "nothing else has changed: "+firstError(problems))
		return
	}
	fresh, running := *cluster.Heartbeat, *n.cluster.Heartbeat
	fresh.Keys, running.Keys = model.Keyring{}, model.Keyring{}
	switch {
	case reflect.DeepEqual(fresh, running) && reflect.DeepEqual(cluster.Groups, n.cluster.Groups):
		return
	case n.Again == nil:
		n.say(model.LevelWarning, "restart-needed", "ha.cf or haresources has changed: that counts from the next start of this daemon on (heartbeat restart hands over first)")
		return
	}
	for _, name := range gained(n.cluster.Groups, cluster.Groups, n.hb.Self) {
		n.say(model.LevelWarning, "owner-changed", fmt.Sprintf("resource %s now belongs to this node: it runs twice for a moment unless the other node was reloaded first", name))
	}
	n.again = cluster
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
