package api

import (
	"context"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// MoveRequest asks to hand resources over to the other node, or to take them
// from it.
type MoveRequest struct {
	Set    string `json:"set"`     // all, local, foreign, failback; "" for all
	NoWait bool   `json:"no_wait"` // answer once the hand-over has begun, not when it has ended
}

// String is the request as on the command line.
func (r MoveRequest) String() string {
	if r.Set == "" {
		return "all"
	}
	return r.Set
}

// MoveAnswer tells how a hand-over went.
type MoveAnswer struct {
	Version int            `json:"version"`
	Moved   bool           `json:"moved"`   // it has ended well; false where nobody waited
	Took    time.Duration  `json:"took_ns"` // from the request on
	Holding string         `json:"holding"` // what this node holds now, as cl_status rscstatus has it
	To      model.NodeName `json:"to"`      // the node that got the resources
}

// Mover is implemented by nodes of a cluster. Both return once the resources
// are where they should be, or with the reason why they are not.
type Mover interface {
	Standby(ctx context.Context, r MoveRequest) (MoveAnswer, error)
	Takeover(ctx context.Context, r MoveRequest) (MoveAnswer, error)
}

// Standby asks the daemon to hand resources over.
func (c *Client) Standby(ctx context.Context, r MoveRequest) (MoveAnswer, error) {
	return post[MoveAnswer](ctx, c, "standby", r)
}

// Takeover asks the daemon to take resources from the other node.
func (c *Client) Takeover(ctx context.Context, r MoveRequest) (MoveAnswer, error) {
	return post[MoveAnswer](ctx, c, "takeover", r)
}

// Heartbeat is what Heartbeat's own commands tell of a cluster.
type Heartbeat struct {
	Version    int               `json:"version"`
	Self       model.NodeName    `json:"self"`
	PID        int               `json:"pid"`
	Holding    string            `json:"holding"` // none, local, foreign, all, or transition while something is under way
	Nodes      []HeartbeatNode   `json:"nodes"`   // as cl_status listnodes orders them
	Clients    []string          `json:"clients"` // programs beside the daemon that are well, by the names that clientstatus takes
	Parameters map[string]string `json:"parameters"`
}

// HeartbeatNode is a node or a ping node.
type HeartbeatNode struct {
	Name   string           `json:"name"`
	Type   string           `json:"type"` // normal, ping
	Status string           `json:"status"`
	Weight int              `json:"weight"`
	Site   string           `json:"site"`
	Links  []model.LinkView `json:"links"`
}

// Node finds a node by its name, or nil.
func (h *Heartbeat) Node(name string) *HeartbeatNode {
	for i := range h.Nodes {
		if h.Nodes[i].Name == name {
			return &h.Nodes[i]
		}
	}
	return nil
}

// Link finds a link by its name, or nil.
func (n *HeartbeatNode) Link(name string) *model.LinkView {
	for i := range n.Links {
		if n.Links[i].Name == name {
			return &n.Links[i]
		}
	}
	return nil
}

// Clusterer is implemented by nodes of a cluster.
type Clusterer interface {
	Heartbeat(ctx context.Context) (Heartbeat, error)
}

// Heartbeat asks for what Heartbeat's own commands tell. A director without a
// cluster answers with an error.
func (c *Client) Heartbeat(ctx context.Context) (Heartbeat, error) {
	return get[Heartbeat](ctx, c, "heartbeat")
}
