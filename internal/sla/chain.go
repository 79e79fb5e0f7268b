package sla

import (
	"errors"
	"fmt"
	"math"
)

// Chain is a continuous-time Markov chain: what a system does next depends
// only on the state it is in. It begins in state 0, in which all is well.
type Chain struct {
	States []ChainState
	Rate   [][]float64 // Rate[i][j] is how often a second i turns into j; the diagonal counts for nothing
}

// ChainState is one state of a chain.
type ChainState struct {
	Name     string  `json:"name"`
	Up       bool    `json:"up"`       // serves as required
	Capacity float64 `json:"capacity"` // what it can carry, of the whole: 0 to 1
}

// NewChain has these states and no transitions yet.
func NewChain(states []ChainState) *Chain {
	c := &Chain{States: states, Rate: make([][]float64, len(states))}
	for i := range c.Rate {
		c.Rate[i] = make([]float64, len(states))
	}
	return c
}

// errNoReturn is wrapped when a chain has no steady state that its beginning
// does not decide.
var errNoReturn = errors.New("no way leads back to the first state")

// Steady is the share of time that the chain spends in each state in the long
// run. The error names a state from which the chain never returns.
//
// It is the elimination of Grassmann, Taksar and Heyman (1985), which never
// subtracts: even a share of 1e-30 has all its digits.
func (c *Chain) Steady() ([]float64, error) {
	n := len(c.States)
	q := make([][]float64, n)
	for i := range q {
		q[i] = append([]float64(nil), c.Rate[i]...)
		q[i][i] = 0
	}
	for k := n - 1; k > 0; k-- {
		var out float64
		for j := range k {
			out += q[k][j]
		}
		if out == 0 {
			return nil, fmt.Errorf("state %q: %w", c.States[k].Name, errNoReturn)
		}
		for i := range k {
			if q[i][k] == 0 {
				continue
			}
			q[i][k] /= out
			for j := range k {
				if j != i {
					q[i][j] += q[i][k] * q[k][j]
				}
			}
		}
	}
	share := make([]float64, n)
	share[0] = 1
	total := 1.0
	for k := 1; k < n; k++ {
		for i := range k {
			share[k] += share[i] * q[i][k]
		}
		total += share[k]
	}
	for i := range share {
		share[i] /= total
	}
	return share, nil
}

// At is the probability of each state a time after the beginning.
//
// Uniformization turns the chain into one that jumps at the times of a Poisson
// process; the jumps within a short step are summed, and the step is doubled
// until it is the whole time. Nothing is subtracted, so a probability of
// 1e-12 has its digits after years in steps of seconds as well.
func (c *Chain) At(t Span) []float64 {
	n := len(c.States)
	first := make([]float64, n)
	first[0] = 1
	var fastest float64
	leave := make([]float64, n)
	for i, row := range c.Rate {
		for j, r := range row {
			if j != i {
				leave[i] += r
			}
		}
		fastest = math.Max(fastest, leave[i])
	}
	jumps := fastest * float64(t)
	if jumps <= 0 {
		return first
	}
	doublings := max(0, int(math.Ceil(math.Log2(jumps/0.25))))
	jumps = math.Ldexp(jumps, -doublings)

	jump := square(n)
	for i := range jump {
		for j := range jump[i] {
			if i != j {
				jump[i][j] = c.Rate[i][j] / fastest
			}
		}
		jump[i][i] = (fastest - leave[i]) / fastest
	}

	// The sum over m jumps of Poisson(m) · jump^m, by Horner's rule. With a
	// mean of 0.25 what is left out after 16 is below 1e-24.
	const most = 16
	step := square(n)
	for i := range step {
		step[i][i] = 1
	}
	for m := most; m >= 1; m-- {
		step = multiply(step, jump)
		for i := range step {
			for j := range step[i] {
				step[i][j] *= jumps / float64(m)
			}
			step[i][i]++
		}
	}
	for i := range step {
		for j := range step[i] {
			step[i][j] *= math.Exp(-jumps)
		}
	}
	closeRows(step)
	for range doublings {
		step = multiply(step, step)
		closeRows(step)
	}
	return step[0]
}

// Outage is the probability that service stops at least once within a time
// from the beginning.
func (c *Chain) Outage(t Span) float64 {
	once := NewChain(c.States)
	for i, s := range c.States {
		if s.Up {
			copy(once.Rate[i], c.Rate[i])
		}
	}
	return down(once.States, once.At(t))
}

// frequency is how often a second service stops in the long run.
func (c *Chain) frequency(steady []float64) float64 {
	var f float64
	for i, from := range c.States {
		for j, to := range c.States {
			if from.Up && !to.Up {
				f += steady[i] * c.Rate[i][j]
			}
		}
	}
	return f
}

// down is the probability of the states without service.
func down(states []ChainState, p []float64) float64 {
	var sum float64
	for i, s := range states {
		if !s.Up {
			sum += p[i]
		}
	}
	return math.Min(sum, 1)
}

func square(n int) [][]float64 {
	m := make([][]float64, n)
	cells := make([]float64, n*n)
	for i := range m {
		m[i] = cells[i*n : (i+1)*n]
	}
	return m
}

func multiply(a, b [][]float64) [][]float64 {
	out := square(len(a))
	for i := range a {
		for k, x := range a[i] {
			if x == 0 {
				continue
			}
			for j, y := range b[k] {
				out[i][j] += x * y
			}
		}
	}
	return out
}

// closeRows makes each row a distribution again by its largest entry, which
// bears the rounding best; doubling would double the error otherwise.
func closeRows(m [][]float64) {
	for i := range m {
		largest := i
		for j, p := range m[i] {
			if p > m[i][largest] {
				largest = j
			}
		}
		var others float64
		for j, p := range m[i] {
			if j != largest {
				others += p
			}
		}
		m[i][largest] = math.Max(0, 1-others)
	}
}
