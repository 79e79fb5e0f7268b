// Package api is the face of a running daemon: JSON over HTTP on a Unix
// socket. Requests come in, what the daemon knows goes out; the package
// decides nothing and keeps nothing.
package api

import (
	"context"
	"time"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/model"
)

// Version is the version of the JSON documents. It rises when a member
// changes its meaning or goes away; members may be added at any time.
const Version = 1

// Daemon is what the server needs of the program it speaks for.
type Daemon interface {
	Status(ctx context.Context) (Status, error)
	Table(ctx context.Context) (Table, error)
	Flows(ctx context.Context) (Flows, error)
}

// Status is the answer to "how are you".
type Status struct {
	Version    int                  `json:"version"`
	Node       model.NodeName       `json:"node"`
	State      string               `json:"state"` // starting, active, standby, stopping
	Plane      string               `json:"plane"`
	PlaneInfo  model.PlaneInfo      `json:"plane_info"`
	Mode       string               `json:"mode"` // safety mode: classic; "director" without a cluster
	Peers      []Peer               `json:"peers"`
	Resources  []model.ResourceView `json:"resources"`
	Services   []model.ServiceView  `json:"services"`
	Sentences  []string             `json:"sentences"` // what an operator should know, most urgent first
	PID        int                  `json:"pid"`
	BadPackets uint64               `json:"bad_packets"` // heartbeat packets dropped because they failed authentication
	// KernelSilent is why this machine's kernel does not answer the other nodes
	// while this daemon is silent; "" where it does, or where that is not wanted.
	KernelSilent string `json:"kernel_silent,omitempty"`
	// Packets are the totals of the heartbeats, and LinkPackets what each link
	// has dropped unseen; since the heartbeats' process began. Absent without a cluster.
	Packets     heartbeat.Counters  `json:"packets,omitzero"`
	LinkPackets []model.LinkPackets `json:"link_packets,omitempty"`
}

// Peer is one node of the cluster, this one among them.
type Peer struct {
	Name  model.NodeName   `json:"name"`
	State string           `json:"state"`
	Self  bool             `json:"self"`
	Ping  bool             `json:"ping"` // a host that is asked whether it is there, no member
	Links []model.LinkView `json:"links"`
	// Suspect: its daemon has been silent for its deadtime since LastBeat, but
	// its kernel answers. Kernel: its kernel answers when it is asked.
	Suspect  bool      `json:"suspect,omitempty"`
	Kernel   bool      `json:"kernel,omitempty"`
	LastBeat time.Time `json:"last_beat,omitzero"`
	// Key is the line of authkeys that it signs with: "2 sha256"; "" while not known.
	Key string `json:"key,omitempty"`
	// Quarantine: it failed too often, and is given nothing back by itself until then.
	Quarantine time.Time `json:"quarantine,omitzero"`
	// Margin is what its beats of the last days would have allowed.
	Margin model.Margin `json:"margin,omitzero"`
}

// Table is the plane's table with its counters.
type Table struct {
	Version  int                     `json:"version"`
	Plane    model.PlaneInfo         `json:"plane"`
	Services []model.VirtualService  `json:"services"`
	Counters []model.ServiceCounters `json:"counters"`
	Rates    []model.ServiceCounters `json:"rates"` // the same per second, over the last two seconds

	// Where the plane has them:
	Timeouts model.Timeouts     `json:"timeouts,omitzero"`
	Sync     []model.SyncDaemon `json:"sync,omitempty"`
	Sysctls  []model.Setting    `json:"sysctls,omitempty"`
}

// Flows lists the plane's connections.
type Flows struct {
	Version int          `json:"version"`
	Flows   []model.Flow `json:"flows"`
}
