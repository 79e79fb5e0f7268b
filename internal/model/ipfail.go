package model

import (
	"path"
	"strings"
)

// Ipfail tells whether ha.cf starts Heartbeat's ipfail: resources then move to
// the node that sees more ping nodes. Batuta has that built in and starts no
// program for it.
func (h *Heartbeat) Ipfail() bool {
	for _, s := range h.Recorded {
		words := strings.Fields(s.Value)
		if (s.Name == "respawn" || s.Name == "failfast") && len(words) > 1 && path.Base(words[1]) == "ipfail" {
			return true
		}
	}
	return false
}
