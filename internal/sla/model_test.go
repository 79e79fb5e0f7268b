package sla

import (
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// drawCluster draws any cluster that Check accepts.
func drawCluster(t *rapid.T) Cluster {
	span := func(label string, low, high float64) Span {
		return Span(math.Pow(10, rapid.Float64Range(low, high).Draw(t, label)))
	}
	c := Cluster{
		Active: rapid.IntRange(1, 4).Draw(t, "active"), Spares: rapid.IntRange(0, 3).Draw(t, "spares"),
		MTBF: span("mtbf", 4, 9), MTTR: span("mttr", 0, 6), Crews: rapid.IntRange(1, 4).Draw(t, "crews"),
		Coverage: rapid.SampledFrom([]float64{0, 0.5, 0.99, 1}).Draw(t, "coverage"), Standby: rapid.SampledFrom([]float64{0, 0.5, 1}).Draw(t, "standby"),
		Beta: rapid.SampledFrom([]float64{0, 0, 0.1, 1}).Draw(t, "beta"),
	}
	if rapid.Bool().Draw(t, "takes time") {
		c.Failover = span("failover", -3, 4)
	}
	c.Required = rapid.IntRange(1, c.Active).Draw(t, "required")
	return c
}

func clusterDown(t *rapid.T, c Cluster) float64 {
	u, err := ClusterModel("c", c).unavailability()
	if err != nil {
		t.Fatal(err)
	}
	if !(u >= 0 && u <= 1) {
		t.Fatalf("unavailability %g of %+v", float64(u), c)
	}
	return float64(u)
}

// Whatever improves a part never makes the cluster worse.
func TestImprovementsImprove(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := drawCluster(t)
		u := clusterDown(t, c)
		for what, improve := range map[string]func(*Cluster){
			"mtbf":     func(c *Cluster) { c.MTBF *= 1.5 },
			"mttr":     func(c *Cluster) { c.MTTR /= 1.5 },
			"crews":    func(c *Cluster) { c.Crews++ },
			"coverage": func(c *Cluster) { c.Coverage = (c.Coverage + 1) / 2 },
			"failover": func(c *Cluster) {
				// A node that carries fails where a cold spare cannot, so a spare
				// that takes its time may spare the cluster a failure.
				if c.Standby == 1 && c.Coverage == 1 {
					c.Failover /= 2
				}
			},
			"required": func(c *Cluster) { c.Required = max(1, c.Required-1) },
		} {
			better := c
			improve(&better)
			if b := clusterDown(t, better); b > u*(1+1e-9) {
				t.Errorf("%s: %g instead of %g for %+v", what, b, u, c)
			}
		}
		// One spare more helps where failures are handled at once and
		// independent. Otherwise it can do harm: a further node whose failure is
		// not noticed stops everything, and one that takes over stops it shortly,
		// where in passive redundancy nothing would have to be taken over.
		if c.Coverage == 1 && c.Failover == 0 {
			better := c
			better.Spares++
			if b := clusterDown(t, better); b > u*(1+1e-9) {
				t.Errorf("spares: %g instead of %g for %+v", b, u, c)
			}
		}
	})
}

func TestPredictionsMakeSense(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := drawCluster(t)
		p, err := ClusterModel("c", c).Evaluate()
		if err != nil {
			t.Fatal(err)
		}
		if !(p.Capacity >= 0 && p.Capacity <= 1) || p.MTBF < 0 || p.MTTR < 0 {
			t.Fatalf("%+v", p)
		}
		if a := float64(p.MTBF / (p.MTBF + p.MTTR)); math.Abs(a-p.Service.Availability()) > 1e-9 {
			t.Fatalf("MTBF/(MTBF+MTTR) = %g, availability %g", a, p.Service.Availability())
		}
		for i, s := range p.AtLeast {
			if !(s.Share >= 0 && s.Share <= 1) || i > 0 && (s.Share > p.AtLeast[i-1].Share || s.Capacity >= p.AtLeast[i-1].Capacity) {
				t.Fatalf("%+v", p.AtLeast)
			}
		}
		for _, check := range p.Classes {
			if check.Value == nil || !(*check.Value >= 0 && *check.Value <= 1) {
				t.Fatalf("%+v", check)
			}
		}
		_ = p.String()
		if _, err := Compare(c); err != nil {
			t.Fatal(err)
		}
	})
}

// drawBlock draws a tree of a few units and clusters.
func drawBlock(t *rapid.T, depth int) *Block {
	kinds := []Kind{KindCluster, KindSeries, KindParallel, KindKOfN}
	if depth == 0 {
		kinds = kinds[:1]
	}
	b := &Block{Kind: rapid.SampledFrom(kinds).Draw(t, "kind")}
	if b.Kind == KindCluster {
		b.Cluster = One(Span(math.Pow(10, rapid.Float64Range(1, 3).Draw(t, "mtbf"))), Span(math.Pow(10, rapid.Float64Range(-1, 2).Draw(t, "mttr"))))
		if rapid.IntRange(0, 4).Draw(t, "pair") == 0 {
			b.Cluster.Spares, b.Cluster.Coverage = 1, 0.9
		}
		return b
	}
	for range rapid.IntRange(1, 3).Draw(t, "parts") {
		b.Parts = append(b.Parts, drawBlock(t, depth-1))
	}
	if b.Kind == KindKOfN {
		b.Need = rapid.IntRange(1, len(b.Parts)).Draw(t, "need")
	}
	b.Passive = b.Kind != KindSeries && rapid.Bool().Draw(t, "passive")
	return b
}

// The formulas for trees agree with the Markov chain of all parts together:
// unavailability, frequency of outages, and the bound of the first outage.
func TestTreesAgainstTheirChain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &Model{Root: drawBlock(t, 2)}
		_, root, err := m.solve()
		if err != nil {
			t.Fatal(err)
		}
		c := root.joint()
		if c == nil {
			return
		}
		steady, err := c.Steady()
		if err != nil {
			t.Fatal(err)
		}
		same := func(what string, a, b float64) {
			if math.Abs(a-b) > 1e-9*math.Abs(b) {
				t.Fatalf("%s: %g, by the chain %g", what, a, b)
			}
		}
		u := root.downOf(steadyDown)
		same("unavailability", u, down(c.States, steady))
		same("frequency", root.oftenOf(), c.frequency(steady))
		for _, at := range []Span{0.1, 10} {
			exact := c.Outage(at)
			got, _ := root.outage(at)
			same("outage", got, exact)
			if bound := math.Min(1, root.oftenOf()*float64(at)/(1-u)); exact > bound*(1+1e-9) {
				t.Fatalf("an outage has probability %g, its bound is %g", exact, bound)
			}
		}
		levels, err := root.levelsOf()
		if err != nil {
			t.Fatal(err)
		}
		var all, off float64
		for _, l := range levels {
			all += l.p
			if !l.up {
				off += l.p
			}
			if l.capacity < 0 || l.capacity > 1+1e-9 || l.up && l.capacity == 0 {
				t.Fatalf("level %+v", l)
			}
		}
		same("levels together", all, 1)
		if math.Abs(off-u) > 1e-12 {
			t.Fatalf("levels: down %g, formula %g", off, u)
		}
		p, err := m.Evaluate()
		if err != nil {
			t.Fatal(err)
		}
		var outages float64
		for _, part := range p.Parts {
			if part.Birnbaum < -1e-12 || part.Birnbaum > 1 || part.Criticality < -1e-9 || part.Criticality > 1+1e-9 {
				t.Fatalf("%+v", part)
			}
			outages += float64(part.Copies) * part.Outages
		}
		same("outages of the parts", outages, p.PerYear)
	})
}

// Birnbaum and criticality importance of the textbook: a series of a and b.
func TestImportance(t *testing.T) {
	m := &Model{Root: &Block{Kind: KindSeries, Parts: []*Block{unit("a", 99*Hour, Hour), unit("b", 9*Hour, Hour)}}}
	p, err := m.Evaluate()
	if err != nil {
		t.Fatal(err)
	}
	const qa, qb = 0.01, 0.1
	near(t, "down", float64(p.Service), either(qa, qb), 1e-12)
	if p.Parts[0].Name != "b" || p.Parts[1].Name != "a" {
		t.Fatalf("%+v", p.Parts)
	}
	near(t, "Birnbaum of a", p.Parts[1].Birnbaum, 1-qb, 1e-12)
	near(t, "Birnbaum of b", p.Parts[0].Birnbaum, 1-qa, 1e-12)
	near(t, "criticality of a", p.Parts[1].Criticality, (1-qb)*qa/either(qa, qb), 1e-12)
	// What helps most is about the part that matters most.
	if !strings.HasPrefix(p.WhatIf[0].Change, "b: ") {
		t.Errorf("%+v", p.WhatIf[0])
	}
}

func TestPresets(t *testing.T) {
	for _, c := range []struct {
		name          string
		nodes, spares int
		want          string // active+spares, required
		bad           string
	}{
		{"active-passive", 0, 0, "1+1 1", ""},
		{"active-passive", 2, 0, "1+1 1", ""},
		{"active-passive", 1, 2, "1+2 1", ""},
		{"active-passive", 2, 1, "", "n+m"},
		{"active-active", 0, 0, "2+0 1", ""},
		{"active-active", 4, 0, "4+0 1", ""},
		{"active-active", 2, 1, "", "n+1"},
		{"n+1", 5, 0, "5+1 5", ""},
		{"n+1", 5, 2, "", "n+m"},
		{"n+m", 5, 3, "5+3 5", ""},
		{"n-1", 0, 0, "", "active-passive, active-active, n+1, n+m"},
	} {
		got, err := Preset(c.name, c.nodes, c.spares)
		if c.bad != "" {
			if err == nil || !strings.Contains(err.Error(), c.bad) {
				t.Errorf("%s %d+%d: %v, want %q", c.name, c.nodes, c.spares, err, c.bad)
			}
			continue
		}
		if text := sprint(got); err != nil || text != c.want {
			t.Errorf("%s %d+%d: %s, %v, want %s", c.name, c.nodes, c.spares, text, err, c.want)
		}
	}
	for name, c := range map[string]Cluster{
		"no nodes":     {},
		"too many":     {Active: MostNodes, Spares: 1, Required: 1, MTBF: 1, MTTR: 1, Crews: 1},
		"no repair":    {Active: 1, Required: 1, MTBF: 1, Crews: 1},
		"no crews":     {Active: 1, Required: 1, MTBF: 1, MTTR: 1},
		"not a number": {Active: 1, Required: 1, MTBF: Span(math.NaN()), MTTR: 1, Crews: 1, Coverage: math.NaN()},
	} {
		if _, err := c.Chain(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestWhatIf(t *testing.T) {
	m := parseFile(t, "shop.hcl")
	for change, bad := range map[string]string{
		"directors.mttr=4h":      "",
		"directors.nodes=2":      "",
		"web.count=5":            "",
		"web.need=3":             "",
		"web.beta=0":             "",
		"web server.mttr=1h":     "",
		"directors.coverage=98%": "",
		"directors":              "NAME.SETTING=VALUE",
		"directors.speed=5":      "no setting",
		"director.mttr=4h":       "there are: uplink, directors, web, web server",
		"mttr=4h":                "which part?",
		"directors.mttr=4":       "no length of time",
		"directors.count=4":      "no part",
	} {
		changed, err := m.What([]string{change})
		if bad != "" {
			if err == nil || !strings.Contains(err.Error(), bad) {
				t.Errorf("%s: %v, want %q", change, err, bad)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", change, err)
			continue
		}
		before, err1 := m.unavailability()
		after, err2 := changed.unavailability()
		if err1 != nil || err2 != nil || before == after {
			t.Errorf("%s: %g, %v and %g, %v", change, float64(before), err1, float64(after), err2)
		}
	}
}

func parseFile(t testing.TB, name string) *Model {
	t.Helper()
	src, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	m, problems := Parse(name, src)
	for _, p := range problems {
		t.Error(p)
	}
	if m == nil {
		t.FailNow()
	}
	return m
}

func sprint(c Cluster) string { return fmt.Sprintf("%d+%d %d", c.Active, c.Spares, c.Required) }
