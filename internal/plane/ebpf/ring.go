package ebpf

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/batuta-ha/batuta/internal/plane"
)

// scheduler is the number of a scheduler in the services map.
type scheduler uint8

// Schedulers that this plane has.
const (
	schedulerUnset scheduler = iota
	roundRobin
	weightedRoundRobin
)

func (s scheduler) String() string {
	switch s {
	case roundRobin:
		return "rr"
	case weightedRoundRobin:
		return "wrr"
	case schedulerUnset:
	}
	return "unset"
}

func parseScheduler(s string) (scheduler, error) {
	switch s {
	case "rr":
		return roundRobin, nil
	case "wrr":
		return weightedRoundRobin, nil
	}
	return schedulerUnset, fmt.Errorf("scheduler %q: the eBPF plane has rr and wrr: %w", s, plane.ErrNotSupported)
}

// minRing is the number of turns below which wrr keeps every ratio exactly.
const minRing = 4096

// ring gives the order of turns: indices into weights, which are not
// negative. rr gives every positive weight one turn. wrr gives each its share,
// spread evenly: turn k of n for a server falls at (k+1/2)/n of the ring. The
// shares are exact while the weights, divided by their common divisor, add up
// to at most minRing or 16 turns a server; above that each is off by less than
// one turn, and none is left out.
func ring(s scheduler, weights []int) []int {
	turns := make([]int, len(weights))
	for i, w := range weights {
		turns[i] = min(w, 1)
	}
	if s == weightedRoundRobin {
		turns = shares(weights, max(minRing, 16*len(weights)))
	}

	type turn struct{ server, k int }
	var order []turn
	for i, n := range turns {
		for k := range n {
			order = append(order, turn{i, k})
		}
	}
	slices.SortStableFunc(order, func(a, b turn) int {
		// (2a.k+1)/(2*turns[a]) against the same of b.
		return cmp.Compare((2*a.k+1)*turns[b.server], (2*b.k+1)*turns[a.server])
	})
	out := make([]int, len(order))
	for i, t := range order {
		out[i] = t.server
	}
	return out
}

// shares divides at most limit turns in the ratio of the weights.
func shares(weights []int, limit int) []int {
	divisor, sum := 0, 0
	for _, w := range weights {
		divisor = gcd(divisor, w)
		sum += w
	}
	out := make([]int, len(weights))
	if sum == 0 {
		return out
	}
	if sum/divisor <= limit {
		for i, w := range weights {
			out[i] = w / divisor
		}
		return out
	}
	// Largest remainder; a positive weight gets one turn at least.
	left := limit
	for i, w := range weights {
		out[i] = w * limit / sum
		if w > 0 {
			out[i] = max(out[i], 1)
		}
		left -= out[i]
	}
	byRemainder := make([]int, len(weights))
	for i := range byRemainder {
		byRemainder[i] = i
	}
	slices.SortStableFunc(byRemainder, func(a, b int) int {
		return cmp.Compare(weights[b]*limit%sum, weights[a]*limit%sum)
	})
	for _, i := range byRemainder {
		if left <= 0 {
			break
		}
		if weights[i] > 0 && weights[i]*limit >= sum {
			out[i]++
			left--
		}
	}
	return out
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
