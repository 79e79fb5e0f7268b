package sla

import (
	"fmt"
	"strings"
	"text/tabwriter"
)

// Simple is the availability of one node:
//
//	A = MTBF/(MTBF+MTTR)
//
// the mean time between failures, divided by it and the mean time to repair.
func Simple(mtbf, mttr Span) Unavailability {
	return Unavailability(mttr / (mtbf + mttr))
}

// ClusterModel is a model of one cluster.
func ClusterModel(name string, c Cluster) *Model {
	return &Model{Title: describe(name, c), Root: &Block{Kind: KindCluster, Name: name, Cluster: c}}
}

func describe(name string, c Cluster) string {
	parts := []string{fmt.Sprintf("%s: %s of MTBF %s and MTTR %s", name, plural(c.Active, "node"), c.MTBF.InHours(), c.MTTR.InHours())}
	if c.Spares > 0 {
		parts = append(parts, plural(c.Spares, "spare"))
	}
	parts = append(parts, fmt.Sprintf("%d required", c.Required), plural(c.Crews, "crew"), fmt.Sprintf("coverage %g", c.Coverage))
	if c.Spares > 0 {
		parts = append(parts, "failover "+c.Failover.String())
	}
	if c.Beta > 0 {
		parts = append(parts, fmt.Sprintf("beta %g", c.Beta))
	}
	return strings.Join(parts, ", ")
}

// Redundancy is one way to use nodes.
type Redundancy struct {
	Way      string         `json:"way"` // none, active, passive
	Means    string         `json:"means"`
	Service  Unavailability `json:"service"`
	Full     Unavailability `json:"full_capacity"` // share of time with the whole capacity
	Capacity Unavailability `json:"capacity"`      // capacity-weighted
}

// Compare uses the nodes of a cluster in three ways: without redundancy, with
// active redundancy (spares take over, the capacity stays) and with passive
// redundancy (all carry; a failure costs capacity, not service).
func Compare(c Cluster) ([]Redundancy, error) {
	all := c.Active + c.Spares
	plain, active, passive := c, c, c
	plain.Spares, plain.Required = 0, plain.Active
	if c.Spares == 0 {
		plain.Active, plain.Required = 1, 1
		active.Active, active.Spares = max(1, all-1), min(1, all-1)
	}
	active.Required = active.Active
	passive.Active, passive.Spares, passive.Required = all, 0, 1
	var rows []Redundancy
	for _, w := range []struct {
		way, means string
		cluster    Cluster
	}{
		{"none", plural(plain.Active, "node") + ", none to stand in", plain},
		{"active", fmt.Sprintf("%s and %s: spares take over, all capacity is required", plural(active.Active, "node"), plural(active.Spares, "spare")), active},
		{"passive", fmt.Sprintf("%s, 1 required: a failure costs capacity, not service", plural(all, "node")), passive},
	} {
		s, root, err := ClusterModel(w.way, w.cluster).solve()
		if err != nil {
			return nil, err
		}
		r := Redundancy{Way: w.way, Means: w.means, Service: Unavailability(root.downOf(steadyDown))}
		var shares []CapacityShare
		r.Capacity, shares = capacity(s.order[0].levels)
		for _, sh := range shares {
			if sh.Capacity >= 1 {
				r.Full = sh.Share
			}
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// CompareText is the canonical text of a comparison.
func CompareText(rows []Redundancy) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 2, 0, 2, ' ', 0)
	fmt.Fprintln(w, "  redundancy\tservice\tall capacity\tcapacity-weighted\tnodes")
	for _, r := range rows {
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\n", r.Way, r.Service, r.Full, r.Capacity, r.Means)
	}
	_ = w.Flush()
	return b.String()
}
