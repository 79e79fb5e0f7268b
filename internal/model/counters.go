package model

import (
	"net/netip"
	"time"
)

// Counters are totals since the plane began to count, as ipvsadm --stats
// shows them: In is from clients, Out is towards clients.
type Counters struct {
	Connections uint64 `json:"connections"`
	PacketsIn   uint64 `json:"packets_in"`
	PacketsOut  uint64 `json:"packets_out"`
	BytesIn     uint64 `json:"bytes_in"`
	BytesOut    uint64 `json:"bytes_out"`
}

// Add sums two counters member by member.
func (c Counters) Add(o Counters) Counters {
	return Counters{c.Connections + o.Connections, c.PacketsIn + o.PacketsIn, c.PacketsOut + o.PacketsOut,
		c.BytesIn + o.BytesIn, c.BytesOut + o.BytesOut}
}

// RealCounters belong to one real server of one service.
type RealCounters struct {
	Addr     netip.AddrPort `json:"addr"`
	Counters                // totals
	Active   uint64         `json:"active"`   // connections now that are established
	Inactive uint64         `json:"inactive"` // connections now that are opening or closing; all UDP flows

	// Persistent is how many templates of persistence lead here now.
	Persistent uint64 `json:"persistent,omitempty"`
}

// ServiceCounters belong to one service; Reals is sorted by address.
type ServiceCounters struct {
	Key      ServiceKey     `json:"service"`
	Counters                // totals
	Reals    []RealCounters `json:"reals"`
}

// Flow is one connection that a plane knows.
type Flow struct {
	Proto   Protocol       `json:"proto"`
	Client  netip.AddrPort `json:"client"`
	Virtual netip.AddrPort `json:"virtual"`
	Real    netip.AddrPort `json:"real"`
	State   string         `json:"state"`   // ESTABLISHED, FIN_WAIT, UDP ... as ipvsadm -Lc prints
	Expires time.Duration  `json:"expires"` // until it is forgotten if nothing more is heard

	// Engine and EngineData say by what a persistence engine knows the client.
	Engine     string `json:"pe,omitempty"`
	EngineData string `json:"pe_data,omitempty"`
}

// Binding is what a persistent service remembers of a client: its next
// connections get that real server.
type Binding struct {
	Service ServiceKey
	Client  netip.Addr // or its network, under the service's mask
	Real    netip.AddrPort
	Expires time.Duration // until it is forgotten if nothing more is heard
}

// PlaneInfo describes a plane for people.
type PlaneInfo struct {
	Name   string `json:"name"`   // ipvs, ebpf, proxy, memory
	Detail string `json:"detail"` // how it attaches, and why this one was chosen
	Size   int    `json:"size"`   // how many connections its table can hold, or buckets for IPVS
}
