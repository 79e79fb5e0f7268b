package sla

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// randomChain draws a chain in which every state has a way back to the first,
// with rates over many orders of magnitude.
func randomChain(t *rapid.T, most int) *Chain {
	n := rapid.IntRange(1, most).Draw(t, "states")
	states := make([]ChainState, n)
	for i := range states {
		states[i] = ChainState{Name: fmt.Sprint(i), Up: i == 0 || rapid.Bool().Draw(t, "up")}
	}
	c := NewChain(states)
	rate := func() float64 { return math.Pow(10, rapid.Float64Range(-6, 3).Draw(t, "rate")) }
	for i := range n {
		for j := range n {
			if i != j && rapid.IntRange(0, 2).Draw(t, "arrow") == 0 {
				c.Rate[i][j] = rate()
			}
		}
		if i > 0 {
			c.Rate[i][rapid.IntRange(0, i-1).Draw(t, "back")] += rate()
		}
	}
	return c
}

// slowSteady solves πQ = 0 the obvious way: Gaussian elimination, in exact
// fractions so that nothing is lost.
func slowSteady(c *Chain) []float64 {
	n := len(c.States)
	m := make([][]*big.Rat, n) // rows: balance of each state; the last one: the sum is 1
	for i := range m {
		m[i] = make([]*big.Rat, n+1)
		for j := range m[i] {
			m[i][j] = new(big.Rat)
		}
	}
	for from := range n {
		for to := range n {
			if from != to && c.Rate[from][to] > 0 {
				r := new(big.Rat).SetFloat64(c.Rate[from][to])
				m[to][from].Add(m[to][from], r)
				m[from][from].Sub(m[from][from], r)
			}
		}
	}
	for j := range n + 1 {
		m[n-1][j] = big.NewRat(1, 1)
	}
	for k := range n {
		for i := k; i < n; i++ {
			if m[i][k].Sign() != 0 {
				m[i], m[k] = m[k], m[i]
				break
			}
		}
		for i := range n {
			if i == k || m[i][k].Sign() == 0 {
				continue
			}
			f := new(big.Rat).Quo(m[i][k], m[k][k])
			for j := k; j <= n; j++ {
				m[i][j] = new(big.Rat).Sub(m[i][j], new(big.Rat).Mul(f, m[k][j]))
			}
		}
	}
	out := make([]float64, n)
	for i := range out {
		out[i], _ = new(big.Rat).Quo(m[i][n], m[i][i]).Float64()
	}
	return out
}

func TestSteadyAgainstFractions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := randomChain(t, 7)
		got, err := c.Steady()
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range slowSteady(c) {
			if math.Abs(got[i]-want) > 1e-12*want {
				t.Fatalf("state %d: %g, want %g", i, got[i], want)
			}
		}
	})
}

func TestSteadyNeedsAWayBack(t *testing.T) {
	c := NewChain([]ChainState{{Name: "good", Up: true}, {Name: "lost"}})
	c.Rate[0][1] = 1
	if _, err := c.Steady(); !errors.Is(err, errNoReturn) || !strings.Contains(err.Error(), `"lost"`) {
		t.Errorf("%v", err)
	}
}

// exponential is the first row of exp(Qt): the power series in numbers of 300
// and more bits, which cancellation does not hurt.
func exponential(c *Chain, t float64) []float64 {
	n := len(c.States)
	number := func(f float64) *big.Float { return new(big.Float).SetPrec(2000).SetFloat64(f) }
	q := make([][]*big.Float, n)
	for i := range q {
		q[i] = make([]*big.Float, n)
		out := number(0)
		for j, r := range c.Rate[i] {
			q[i][j] = new(big.Float).Mul(number(r), number(t))
			if j != i {
				out.Add(out, q[i][j])
			}
		}
		q[i][i] = out.Neg(out)
	}
	term := make([]*big.Float, n)
	sum := make([]*big.Float, n)
	for j := range n {
		term[j], sum[j] = number(0), number(0)
	}
	term[0], sum[0] = number(1), number(1)
	for m := 1; m < 900; m++ {
		next := make([]*big.Float, n)
		for j := range n {
			next[j] = number(0)
			for i := range n {
				next[j].Add(next[j], new(big.Float).Mul(term[i], q[i][j]))
			}
			next[j].Quo(next[j], number(float64(m)))
			sum[j].Add(sum[j], next[j])
		}
		term = next
	}
	out := make([]float64, n)
	for j := range out {
		out[j], _ = sum[j].Float64()
	}
	return out
}

func TestAtAgainstMatrixExponential(t *testing.T) {
	seed := uint64(7)
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 40 {
		n := 2 + rng.IntN(4)
		c := NewChain(make([]ChainState, n))
		for i := range n {
			for j := range n {
				if i != j && rng.IntN(2) == 0 {
					c.Rate[i][j] = math.Pow(10, -4*rng.Float64())
				}
			}
		}
		for _, time := range []float64{0, 1e-6, 0.3, 7, 60} {
			got := c.At(Span(time))
			for i, want := range exponential(c, time) {
				// Relatively: a probability of 1e-20 has its digits, too.
				if math.Abs(got[i]-want) > 1e-12*want+1e-250 {
					t.Errorf("%d states, time %g, state %d: %.17g, want %.17g", n, time, i, got[i], want)
				}
			}
		}
	}
}

// One unit: u(t) = q (1 - exp(-(λ+μ)t)), from the first second to years.
func TestAtOneUnit(t *testing.T) {
	c, err := One(1000*Hour, 10*Hour).Chain()
	if err != nil {
		t.Fatal(err)
	}
	λ, μ := 1/float64(1000*Hour), 1/float64(10*Hour)
	for _, at := range []Span{0.001, 1, Hour, Day, 30 * Day, 10 * Year} {
		near(t, at.String(), c.At(at)[1], -λ/(λ+μ)*math.Expm1(-(λ+μ)*float64(at)), 1e-10)
		near(t, at.String(), c.Outage(at), -math.Expm1(-λ*float64(at)), 1e-10)
	}
}

// A pair: the time to the first outage has the well-known mean 3/2λ + μ/2λ²
// and two exponential phases.
func TestOutageOfAPair(t *testing.T) {
	pair := One(1000*Hour, 10*Hour)
	pair.Spares = 1
	c, err := pair.Chain()
	if err != nil {
		t.Fatal(err)
	}
	λ, μ := 1/float64(1000*Hour), 1/float64(10*Hour)
	root := math.Sqrt(λ*λ + 6*λ*μ + μ*μ)
	s1, s2 := (-(3*λ+μ)+root)/2, (-(3*λ+μ)-root)/2
	for _, at := range []float64{3600 * 100, 3600 * 8760, 3600 * 87600} {
		want := 1 - (s1*math.Exp(s2*at)-s2*math.Exp(s1*at))/(s1-s2)
		near(t, Span(at).String(), c.Outage(Span(at)), want, 1e-9)
	}
	// Without repair: 1 - 2e^-λt + e^-2λt; a failover of two seconds changes nothing in years.
	pair.Failover = 2
	at := 100 * Hour
	x := math.Exp(-λ * float64(at))
	frozen := pair.unrepaired()
	near(t, "without repair", down(frozen.States, frozen.At(at)), (1-x)*(1-x), 2e-4)
}

// Probabilities stay probabilities.
func TestAtIsADistribution(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := randomChain(t, 6)
		at := Span(math.Pow(10, rapid.Float64Range(-6, 10).Draw(t, "time")))
		var sum float64
		for i, p := range c.At(at) {
			if !(p >= 0 && p <= 1) {
				t.Fatalf("state %d: %g", i, p)
			}
			sum += p
		}
		if math.Abs(sum-1) > 1e-9 {
			t.Fatalf("together %.17g", sum)
		}
		steady, err := c.Steady()
		if err != nil {
			t.Fatal(err)
		}
		// After a very long time it is the steady state.
		for i, p := range c.At(1e13) {
			if math.Abs(p-steady[i]) > 1e-6 {
				t.Fatalf("state %d: %g in the end, %g in the long run", i, p, steady[i])
			}
		}
	})
}
