package plane

import (
	"hash/fnv"
	"math"
	"net/netip"
	"slices"

	"github.com/batuta-ha/batuta/internal/model"
)

// Schedulers are the names that ipvsadm(8) knows.
var Schedulers = []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh", "twos"}

// Candidate is a real server as a Scheduler sees it.
type Candidate struct {
	Addr     netip.AddrPort
	Weight   int
	Active   uint64
	Inactive uint64
	Skip     bool // not for this connection: overloaded, or tried already
}

// Scheduler chooses a real server for each new connection of one service, for
// planes that do this in Go. The zero value schedules as rr. It is not safe
// for concurrent use. Its place in the rotation is remembered by address, so
// real servers may come and go.
//
// rr, wrr, lc, wlc, sed, nq, fo, ovf, sh and mh do what ipvsadm(8) says; dh is sh,
// since one service has one destination; the cache schedulers lblc, lblcr
// and the sampling twos, which need what a model has not, choose as wlc.
type Scheduler struct {
	Name    string
	last    netip.AddrPort // the choice before
	current int            // wrr: the weight that is served now
}

// Next returns the index of the chosen candidate, -1 where none will do:
// those with weight 0 and those to skip are never chosen. Candidates are sorted
// by address.
func (s *Scheduler) Next(of []Candidate, client netip.Addr) int {
	var choice int
	switch s.Name {
	case "wrr":
		choice = s.weighted(of)
	case "lc":
		choice = least(of, func(c Candidate) float64 { return load(c) })
	case "wlc", "lblc", "lblcr", "twos":
		choice = least(of, func(c Candidate) float64 { return load(c) / float64(c.Weight) })
	case "sed":
		choice = least(of, shortestDelay)
	case "nq":
		choice = least(of, func(c Candidate) float64 {
			if c.Active == 0 {
				return -1 / shortestDelay(c)
			}
			return shortestDelay(c)
		})
	case "fo":
		choice = least(of, func(c Candidate) float64 { return -float64(c.Weight) })
	case "ovf":
		choice = least(of, func(c Candidate) float64 {
			if c.Active >= uint64(c.Weight) {
				return math.Inf(1)
			}
			return -float64(c.Weight)
		})
	case "sh", "dh", "mh":
		choice = rendezvous(of, client)
	default:
		choice = s.rotate(of)
	}
	if choice >= 0 {
		s.last = of[choice].Addr
	}
	return choice
}

func usable(c Candidate) bool { return c.Weight > 0 && !c.Skip }

// after is the index that follows the last choice in the rotation.
func (s *Scheduler) after(of []Candidate) int {
	i, found := slices.BinarySearchFunc(of, s.last, func(c Candidate, a netip.AddrPort) int { return c.Addr.Compare(a) })
	if found {
		i++
	}
	return i
}

func (s *Scheduler) rotate(of []Candidate) int {
	from := s.after(of)
	for n := range of {
		if i := (from + n) % len(of); usable(of[i]) {
			return i
		}
	}
	return -1
}

// weighted is the interleaved weighted round-robin that the LVS project
// documents: rounds with a threshold that falls from the greatest weight to
// the greatest common divisor, in each of which those are visited whose
// weight reaches it.
func (s *Scheduler) weighted(of []Candidate) int {
	greatest, divisor := 0, 0
	for _, c := range of {
		if c.Weight > 0 {
			greatest, divisor = max(greatest, c.Weight), gcd(divisor, c.Weight)
		}
	}
	if greatest == 0 {
		return -1
	}
	s.current = min(s.current, greatest)
	s.current -= s.current % divisor // weights may have changed since
	i := s.after(of)
	for range 3 * len(of) { // one round to its end, a whole one, and one in reserve
		if i >= len(of) {
			i = 0
			s.current -= divisor
		}
		if s.current <= 0 {
			s.current = greatest
		}
		if usable(of[i]) && of[i].Weight >= s.current {
			return i
		}
		i++
	}
	return s.rotate(of) // the heaviest are to be skipped
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// load counts an inactive connection as a small part of an active one.
func load(c Candidate) float64 { return float64(c.Active) + float64(c.Inactive)/256 }

func shortestDelay(c Candidate) float64 { return float64(c.Active+1) / float64(c.Weight) }

// least returns the candidate with the smallest cost, the first of equals;
// infinite cost only if nothing else is left.
func least(of []Candidate, cost func(Candidate) float64) int {
	best, lowest := -1, math.Inf(1)
	for i, c := range of {
		if !usable(c) {
			continue
		}
		if k := cost(c); best < 0 || k < lowest {
			best, lowest = i, k
		}
	}
	return best
}

// rendezvous sends a client address to the candidate with the highest
// weighted score, so that a change of the set moves few clients (Thaler and
// Ravishankar, "Using name-based mappings to increase hit rates", 1998).
func rendezvous(of []Candidate, client netip.Addr) int {
	return least(of, func(c Candidate) float64 {
		h := fnv.New64a()
		_, _ = h.Write(client.AsSlice())
		a := c.Addr.Addr().As16()
		_, _ = h.Write(append(a[:], byte(c.Addr.Port()>>8), byte(c.Addr.Port())))
		// FNV's high bits are poorly mixed for such short inputs: one round of
		// the 64-bit finalizer of MurmurHash3.
		x := h.Sum64()
		x = (x ^ x>>33) * 0xff51afd7ed558ccd
		x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
		u := (float64(x>>11) + 0.5) / (1 << 53)
		return -math.Log(u) / float64(c.Weight)
	})
}

// Overloaded applies the thresholds of a real server (ipvsadm -x and -y): no
// new connections once there are Upper, until there are fewer than Lower.
func Overloaded(was bool, connections uint64, r model.RealServer) bool {
	if r.Upper == 0 {
		return false
	}
	if !was {
		return connections >= uint64(r.Upper)
	}
	lower := uint64(r.Lower)
	if lower == 0 {
		lower = uint64(r.Upper) * 3 / 4
	}
	return connections >= lower
}
