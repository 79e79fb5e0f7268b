package node

import (
	"errors"
	"fmt"
	"time"

	"github.com/batuta-ha/batuta/internal/link/responder"
	"github.com/batuta-ha/batuta/internal/model"
)

// buildResponder has the kernel answer for this machine, where it can. Where
// it cannot, the others judge this node by its beats alone, as they do an
// original Heartbeat: that is said once, and is no fault.
func (n *clusterNode) buildResponder() {
	if n.hb.SuspectTime == 0 || n.HeartbeatAddress.IsValid() { // an address of its own: nodes share one host's loopback
		return
	}
	r, err := responder.Open(responder.Options{Node: n.hb.Self, Media: n.hb.Media, Keys: n.hb.Keys, Sink: n.sink})
	switch {
	case errors.Is(err, responder.ErrNoMedium):
	case err != nil:
		n.silent = err
		n.sink(model.Event{At: time.Now(), Level: model.LevelNotice, Source: "heartbeat", Kind: "kernel-answers-not", Subject: string(n.hb.Self),
			Text: fmt.Sprintf("this machine's kernel does not answer when this daemon is silent: %v; the other nodes judge by the dead time alone", err)})
	default:
		n.responder = r
		n.closers = append(n.closers, r)
	}
}

// boot is what the others are told of this run of the machine.
func (n *clusterNode) boot() string {
	if n.responder == nil {
		return ""
	}
	return n.responder.Boot()
}

func (n *clusterNode) rekeyResponder(keys model.Keyring) {
	if n.responder == nil {
		return
	}
	if err := n.responder.Rekey(keys); err != nil {
		n.say(model.LevelError, "keys-refused", fmt.Sprintf("the kernel answers under the old keys: %v; restart this daemon", err))
	}
}

// silence ends the answers when nothing runs here any more: the others need not
// wait. After any other end they go on, for the daemon that follows.
func (n *clusterNode) silence() {
	if n.responder == nil {
		return
	}
	if err := n.responder.Remove(); err != nil {
		n.say(model.LevelWarning, "close-failed", fmt.Sprintf("take the kernel's answers away: %v; remove %s", err, responder.DefaultDir))
	}
}
