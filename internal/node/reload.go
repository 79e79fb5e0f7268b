package node

import (
	"fmt"
	"path/filepath"
	"reflect"

	"github.com/batuta-ha/batuta/internal/config"
	"github.com/batuta-ha/batuta/internal/model"
)

// reload reads the files again. Keys and each ldirectord.cf count at once; what
// is new in ha.cf and haresources counts from the next start on, which is said.
// A file with errors changes nothing.
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
	if !reflect.DeepEqual(fresh, running) || !reflect.DeepEqual(cluster.Groups, n.cluster.Groups) {
		n.say(model.LevelWarning, "restart-needed", "ha.cf or haresources has changed: that counts from the next start of this daemon on (heartbeat restart hands over first)")
	}
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
