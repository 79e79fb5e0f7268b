package sla

import (
	"errors"
	"fmt"
	"math"
)

// Experience is what a record tells about parts of one kind, like the nodes
// of a cluster.
type Experience struct {
	Parts     int  `json:"parts"`             // that were watched
	Operating Span `json:"operating_seconds"` // of all of them together
	Down      Span `json:"down_seconds"`      // until they were back
	Failures  int  `json:"failures"`

	// Failures of a part that carried something which another could carry.
	Tried    int  `json:"takeovers_tried"`
	Handled  int  `json:"takeovers_handled"` // it was carried elsewhere before the part was back
	Failover Span `json:"failover_seconds"`  // mean time of those from the failure until it was carried again
}

// ErrNoExperience is returned when nothing was watched.
var ErrNoExperience = errors.New("no operating time is recorded")

// Apply sets what the record tells: mean time between failures, mean time to
// repair, coverage and failover. What it does not tell stays as it is. The
// sentences say which is which, and how far it can be relied on.
func (e Experience) Apply(c *Cluster) ([]string, error) {
	if e.Operating <= 0 {
		return nil, ErrNoExperience
	}
	var said []string
	say := func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
	bounds := MTBFBounds(e.Operating, e.Failures, 0.9)
	watched := fmt.Sprintf("%s in %s of operation of %s", plural(e.Failures, "failure"), e.Operating, plural(e.Parts, "part"))
	if e.Failures == 0 {
		c.MTBF = bounds.Low
		say("MTBF %s is the least that the record allows with 90 %% confidence: %s", c.MTBF.InHours(), watched)
		say("MTTR %s is assumed: nothing had to be repaired", c.MTTR.InHours())
	} else {
		n := Span(e.Failures)
		c.MTBF, c.MTTR = e.Operating/n, e.Down/n
		few := ""
		if e.Failures < Few {
			few = "; not enough data for more"
		}
		say("MTBF %s from %s: between %s and %s with 90 %% confidence%s", c.MTBF.InHours(), watched, bounds.Low.InHours(), bounds.High.InHours(), few)
		say("MTTR %s from the same", c.MTTR)
	}
	if e.Tried == 0 {
		say("coverage %g is assumed: no node failed that carried anything", c.Coverage)
		return said, nil
	}
	c.Coverage = float64(e.Handled) / float64(e.Tried)
	say("coverage %.6g: %d of %s of a node that carried something were taken over; at least %.3g with 90 %% confidence",
		c.Coverage, e.Handled, plural(e.Tried, "failure"), LeastShare(e.Handled, e.Tried, 0.9))
	if e.Handled > 0 {
		c.Failover = e.Failover
		say("failover %s, their mean", c.Failover)
	}
	return said, nil
}

// LeastShare is the probability that a trial succeeds at least, with that
// confidence, when some of several did: the lower one-sided limit of Clopper
// and Pearson (Biometrika 26, 1934).
func LeastShare(succeeded, tried int, confidence float64) float64 {
	if succeeded <= 0 || tried <= 0 {
		return 0
	}
	// That many or more succeed with probability 1-confidence at the limit,
	// and with more probability above it.
	low, high := 0.0, 1.0
	for range 100 {
		p := (low + high) / 2
		if binomialTail(succeeded, tried, p) < 1-confidence {
			low = p
		} else {
			high = p
		}
	}
	return low
}

// binomialTail is the probability of k or more successes of n.
func binomialTail(k, n int, p float64) float64 {
	logN, _ := math.Lgamma(float64(n) + 1)
	var sum float64
	for i := k; i <= n; i++ {
		a, _ := math.Lgamma(float64(i) + 1)
		b, _ := math.Lgamma(float64(n-i) + 1)
		term := logN - a - b + float64(i)*math.Log(p)
		if i < n {
			term += float64(n-i) * math.Log1p(-p)
		}
		sum += math.Exp(term)
	}
	return sum
}

// Learn has a record set what it knows of the model's parts. Of each part with
// a mean time between failures, known is asked for by its name; nodes is how
// many it has. The sentences say what came from the record; the error is
// ErrNoExperience if nothing did.
func (m *Model) Learn(known func(name string, nodes int) (Experience, bool)) ([]string, error) {
	var said []string
	for _, b := range m.Root.find(func(b *Block) bool { return b.Kind == KindCluster }) {
		e, ok := known(b.Name, b.Cluster.Active+b.Cluster.Spares)
		if !ok {
			continue
		}
		list, err := e.Apply(&b.Cluster)
		if errors.Is(err, ErrNoExperience) {
			continue
		}
		for _, s := range list {
			said = append(said, b.Name+": "+s)
		}
	}
	if said == nil {
		return nil, ErrNoExperience
	}
	return said, nil
}
