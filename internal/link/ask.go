package link

import (
	"fmt"

	"github.com/batuta-ha/batuta/internal/model"
)

// OpenAsking opens a socket by which the kernels of other nodes are asked: what
// is sent goes to all who hear the medium, what is received are answers. They
// come from the heartbeat port to a port of this socket's own, so that they
// cannot be mixed up with beats. Other media than UDP give ErrNotSupported.
func OpenAsking(m model.Medium, opt Options) (Link, error) {
	var how sockets
	switch m.Kind {
	case model.Broadcast:
		how = bcast(m, opt)
	case model.Unicast:
		how = ucast(m, opt)
	case model.Multicast:
		how = mcast(m, opt)
	case model.MediumNone, model.Serial, model.Ping, model.PingGroup:
		return nil, fmt.Errorf("asking kernels by %s %s: %w", m.Kind, m.Name, ErrNotSupported)
	}
	how.asks = true
	return openUDP(m, opt, how)
}
