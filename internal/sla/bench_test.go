package sla

import "testing"

// BenchmarkLargestCluster is what the limits allow in one cluster.
func BenchmarkLargestCluster(b *testing.B) {
	c := One(1000*Hour, 10*Hour)
	c.Active, c.Required, c.Spares, c.Coverage, c.Failover = MostNodes/2, MostNodes/2, MostNodes/2, 0.99, 2
	for b.Loop() {
		if _, err := ClusterModel("c", c).Evaluate(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkManyCopies is what the limits allow in copies of one unit.
func BenchmarkManyCopies(b *testing.B) {
	m := &Model{Root: &Block{Kind: KindKOfN, Name: "k", Need: 100, Count: mostParts - 1, Parts: []*Block{unit("u", 1000*Hour, 10*Hour)}}}
	for b.Loop() {
		if _, err := m.Evaluate(); err != nil {
			b.Fatal(err)
		}
	}
}
