package heartbeat

import (
	"slices"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// rekey takes new keys, unless they are unusable. What is kept for
// retransmission is signed or encrypted anew at once, while the key that opens
// it is still there.
func (c *Core) rekey(now time.Time, ring model.Keyring) {
	auth, err := c.cfg.authenticator(ring)
	if err != nil {
		c.note(now, model.LevelError, "keys-refused", string(c.self), "the new keys are not used: %v", err)
		return
	}
	old := c.auth
	c.auth, c.hb.Keys, c.send = auth, ring, ring.Send
	c.questionKeys = QuestionKeys(ring)
	for i := range c.out.slots {
		c.resign(old, &c.out.slots[i])
	}
	c.note(now, model.LevelNotice, "keys-changed", string(c.self), "sending with key %d (%v); keys accepted: %d", ring.Send, ring.Keys[ring.Send].Method, len(ring.Keys))
	for _, n := range c.names {
		p := c.peers[n]
		if _, there := ring.Keys[p.key]; !there && p.listens() {
			c.note(now, model.LevelWarning, "key-missed", string(n),
				"node %s signs with key %d, which authkeys here has no more: nothing of that node is believed until it signs with another one; put the key back, or reload that node", n, p.key)
		}
	}
}

// resign makes a kept packet, which the authenticator given can open, one
// under the key in use now: the one before may be gone from everybody's
// authkeys. What it says stays.
func (c *Core) resign(opener *Authenticator, s *sent) {
	p, err := Parse(s.data)
	if err != nil {
		return // an empty slot
	}
	if _, err := opener.Verify(&p); err != nil {
		return
	}
	fields := slices.DeleteFunc(p.Fields, func(f Field) bool { return f.Name == "auth" })
	s.data, s.key = c.auth.Seal(nil, p.Encoding, fields, c.hb.InnerAuth, c.send), c.send
}
