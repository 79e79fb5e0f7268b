package node

import (
	"context"

	"github.com/batuta-ha/batuta/internal/agent"
	"github.com/batuta-ha/batuta/internal/journal"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// inKernel tells whether a plane carries packets while no daemon runs.
func inKernel(p plane.Plane) bool {
	switch p.Info().Name {
	case "ipvs", "ebpf":
		return true
	}
	return false
}

// heldTable are the services that a plane in the kernel has with a real server
// to send to. What cannot be read is no evidence.
func heldTable(ctx context.Context, p plane.Plane) map[string]bool {
	held := map[string]bool{}
	if !inKernel(p) {
		return held
	}
	t, err := p.Read(ctx)
	if err != nil {
		return held
	}
	for _, s := range t.Services {
		for _, r := range s.Reals {
			if r.Weight > 0 {
				held[s.Key.String()] = true
			}
		}
	}
	return held
}

// evidence is what the kernel shows of addresses and services now, before
// anything has been started: what an earlier life of this daemon left in force.
func (n *clusterNode) evidence(ctx context.Context) func(journal.Thing) journal.Evidence {
	held := map[journal.Thing]bool{}
	addresses := map[string]bool{} // of resources: whether this node has it
	for _, g := range n.cluster.Groups {
		for _, r := range g.Resources {
			if agent.KindOf(r) != agent.KindAddress {
				continue
			}
			a, err := n.network.Address(r)
			if err != nil {
				continue
			}
			state, err := a.Status(ctx)
			here := err == nil && state == model.ResourceRunning
			addresses[a.Addr().String()] = here
			held[journal.Thing{Kind: journal.ThingResource, Name: r.Text}] = here
			held[journal.Thing{Kind: journal.ThingAddress, Name: a.Addr().String()}] = here
		}
	}
	if n.plane != nil {
		table := heldTable(ctx, n.plane)
		for _, d := range n.cluster.Directors {
			for _, s := range d.Services {
				k := s.Virtual.Key
				here := k.IsMark() || addresses[k.Addr.Addr().String()]
				held[journal.Thing{Kind: journal.ThingService, Name: k.String()}] = here && table[k.String()]
			}
		}
	}
	return func(t journal.Thing) journal.Evidence {
		if held[t] {
			return journal.EvidenceHeld
		}
		return journal.EvidenceNone
	}
}
