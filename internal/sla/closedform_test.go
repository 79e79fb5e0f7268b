package sla

import (
	"fmt"
	"math"
	"strings"
	"testing"
)

// solved is the unavailability of a model.
func solved(t *testing.T, b *Block) float64 {
	t.Helper()
	u, err := (&Model{Root: b}).unavailability()
	if err != nil {
		t.Fatal(err)
	}
	return float64(u)
}

func cluster(change func(*Cluster)) *Block {
	c := One(1000*Hour, 10*Hour)
	change(&c)
	return &Block{Kind: KindCluster, Name: "c", Cluster: c}
}

func unit(name string, mtbf, mttr Span) *Block {
	return &Block{Kind: KindCluster, Name: name, Cluster: One(mtbf, mttr)}
}

// near compares relatively: an unavailability of 1e-9 has to be right in its
// digits, not in those of 1.
func near(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if math.IsNaN(got) || math.Abs(got-want) > tolerance*math.Abs(want) {
		t.Errorf("%s: %.17g, want %.17g (off by %.2g)", what, got, want, math.Abs(got-want)/math.Abs(want))
	}
}

func binomial(n, k int) float64 {
	b := 1.0
	for i := range k {
		b = b * float64(n-i) / float64(i+1)
	}
	return b
}

// TestClosedForms is the table of checks against formulas of the textbooks;
// λ = 1/MTBF, μ = 1/MTTR, r = λ/μ, q = λ/(λ+μ).
func TestClosedForms(t *testing.T) {
	const tolerance = 1e-12
	var table strings.Builder
	fmt.Fprintf(&table, "MTBF 1000 h, MTTR 10 h: r = λ/μ = 0.01, q = λ/(λ+μ); failover 30 s, coverage 0.9, beta 0.1\n\n%-62s %-22s %s\n", "model", "unavailability", "formula and program differ by")
	for _, mttr := range []Span{0.001 * Hour, 10 * Hour, 500 * Hour} {
		const mtbf = 1000 * Hour
		λ, μ := 1/float64(mtbf), 1/float64(mttr)
		r, q := λ/μ, λ/(λ+μ)
		set := func(change func(*Cluster)) *Block {
			return cluster(func(c *Cluster) { c.MTBF, c.MTTR = mtbf, mttr; change(c) })
		}
		pair := func(crews int, coverage float64, failover Span) *Block {
			return set(func(c *Cluster) {
				c.Active, c.Spares, c.Crews, c.Coverage, c.Failover = 1, 1, crews, coverage, failover
			})
		}
		both := func(crews int, coverage float64) *Block {
			return set(func(c *Cluster) { c.Active, c.Crews, c.Coverage = 2, crews, coverage })
		}
		δ := 1.0 / 30
		beta := 0.1
		one := func() *Block { return unit("u", mtbf, mttr) }
		checks := []struct {
			name  string
			block *Block
			want  float64
		}{
			{"one unit: A = MTBF/(MTBF+MTTR)", one(), float64(mttr / (mtbf + mttr))},
			{"1 of 2, one crew: 2r²/(1+2r+2r²)", both(1, 1), 2 * r * r / (1 + 2*r + 2*r*r)},
			{"1 of 2, two crews: q²", both(2, 1), q * q},
			{"active/passive hot, one crew", pair(1, 1, 0), 2 * r * r / (1 + 2*r + 2*r*r)},
			{"active/passive hot, two crews", pair(2, 1, 0), q * q},
			{"active/passive cold, one crew: r²/(1+r+r²)", set(func(c *Cluster) { c.Spares, c.Standby = 1, 0 }), r * r / (1 + r + r*r)},
			{"active/passive cold, two crews: r²/(2+2r+r²)", set(func(c *Cluster) { c.Spares, c.Standby, c.Crews = 1, 0, 2 }), r * r / (2 + 2*r + r*r)},
			{"duplex, coverage c: (2r²+2r(1-c)/(1+r))/(1+2r+2r²)", both(1, 0.9), (2*r*r + 2*r*0.1/(1+r)) / (1 + 2*r + 2*r*r)},
			{"duplex, coverage 0", both(1, 0), (2*r*r + 2*r/(1+r)) / (1 + 2*r + 2*r*r)},
			// Only failures of the carrying node have to be noticed.
			{"active/passive, coverage c: (2r²+r(1-c)/(1+r))/(1+2r+2r²)", pair(1, 0.9, 0), (2*r*r + r*0.1/(1+r)) / (1 + 2*r + 2*r*r)},
			{"active/passive, failover: (2r²+λ/(δ+λ+μ))/(1+2r+2r²)", pair(1, 1, 30), (2*r*r + λ/(δ+λ+μ)) / (1 + 2*r + 2*r*r)},
			{"series of 3: 1-(1-q)³", &Block{Kind: KindSeries, Count: 3, Parts: []*Block{one()}}, q * (3 - 3*q + q*q)},
			{"parallel of 3: q³", &Block{Kind: KindParallel, Count: 3, Parts: []*Block{one()}}, q * q * q},
			{"2 of 3: 3q²-2q³", &Block{Kind: KindKOfN, Need: 2, Count: 3, Parts: []*Block{one()}}, 3*q*q - 2*q*q*q},
			{"series of different units", &Block{Kind: KindSeries, Parts: []*Block{unit("a", mtbf, mttr), unit("b", 3*mtbf, mttr)}}, either(q, r/3/(1+r/3))},
			{"1 of 2 with common causes", &Block{Kind: KindParallel, Count: 2, Beta: beta, Parts: []*Block{one()}},
				either(beta*r/(1+beta*r), math.Pow((1-beta)*r/(1+(1-beta)*r), 2))},
			// All nodes fail together: the pair's chain has a third way, λβ from both states in service.
			{"1 of 2, two crews, common causes", set(func(c *Cluster) { c.Active, c.Crews, c.Beta = 2, 2, beta }), betaPair(r, beta)},
		}
		for n := 1; n <= 6; n++ {
			for k := 1; k <= n; k++ {
				want := 0.0
				for j := n - k + 1; j <= n; j++ {
					want += binomial(n, j) * math.Pow(q, float64(j)) * math.Pow(1-q, float64(n-j))
				}
				checks = append(checks,
					struct {
						name  string
						block *Block
						want  float64
					}{fmt.Sprintf("%d of %d: binomial", k, n), &Block{Kind: KindKOfN, Need: k, Count: n, Parts: []*Block{one()}}, want},
					struct {
						name  string
						block *Block
						want  float64
					}{fmt.Sprintf("cluster %d of %d, a crew for each: binomial", k, n), set(func(c *Cluster) { c.Active, c.Required, c.Crews = n, k, n }), want},
					struct {
						name  string
						block *Block
						want  float64
					}{fmt.Sprintf("cluster %d of %d, one crew: machine repair", k, n), set(func(c *Cluster) { c.Active, c.Required = n, k }), repairman(n, 1, k, r)},
					struct {
						name  string
						block *Block
						want  float64
					}{fmt.Sprintf("cluster %d of %d, two crews: machine repair", k, n), set(func(c *Cluster) { c.Active, c.Required, c.Crews = n, k, 2 }), repairman(n, 2, k, r)},
				)
			}
		}
		for _, c := range checks {
			t.Run(fmt.Sprintf("MTTR %s/%s", mttr, c.name), func(t *testing.T) {
				got := solved(t, c.block)
				near(t, "unavailability", got, c.want, tolerance)
				if mttr == 10*Hour {
					fmt.Fprintf(&table, "%-62s %-22.12g less than 1e-12\n", c.name, got)
				}
			})
		}
	}
	golden(t, "closed-forms.txt", table.String())
}

// either is the probability of one of two independent things, or both.
func either(a, b float64) float64 { return a + b - a*b }

// repairman is the machine repair model M/M/c//n: the probability that fewer
// than k of n machines run. p(j)/p(0) = n!/(n-j)! r^j / Π min(i, c).
func repairman(n, crews, k int, r float64) float64 {
	p, sum, bad := 1.0, 0.0, 0.0
	for j := 0; j <= n; j++ {
		if j > 0 {
			p *= float64(n-j+1) * r / float64(min(j, crews))
		}
		sum += p
		if n-j < k {
			bad += p
		}
	}
	return bad / sum
}

// betaPair solves the three states of a pair with common causes by hand:
//
//	p0 (2(1-β)+β) r = p1,   p1 (1+r) = 2 p2 + 2(1-β) r p0   (in units of μ)
func betaPair(r, beta float64) float64 {
	p0 := 1.0
	p1 := (2*(1-beta) + beta) * r * p0
	// One that is left fails alone or by a common cause: rate λ either way.
	p2 := (p1*(1+r) - 2*(1-beta)*r*p0) / 2
	return p2 / (p0 + p1 + p2)
}
