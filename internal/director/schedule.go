package director

import (
	"container/heap"
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

const (
	// startSpacing is the time between the first checks of two targets: small
	// enough that the first verdicts come at once, and no less than a check
	// takes of a core, so that ten thousand connections are not open at the
	// same instant.
	startSpacing = 120 * time.Microsecond

	// Checks are spread over their interval, in groups: between few checks it
	// is not the check that costs but waking up for it (docs/performance.md).
	// There are so many groups, or as many as have the size.
	spreadGroups = 20
	groupSize    = 16
)

// prober makes one probe again and again. It belongs to the loop's goroutine.
type prober struct {
	*probe
	due    time.Time     // of its next check, by the interval
	at     time.Time     // the same with jitter
	second time.Duration // from the first check's due to the second's; 0 once that is over
	place  int           // in the schedule, while it waits there

	connects int                // combined checks: connects until the next negotiate
	stop     context.CancelFunc // ends the check under way; nil for none that can be ended
	gone     bool               // a reload has no use for it
}

// spread sets when fresh probers begin: their first checks at once, one after
// the other, the second ones evenly over the interval.
func spread(fresh []*prober, now time.Time) {
	groups := min(len(fresh), max(spreadGroups, len(fresh)/groupSize))
	for n, w := range fresh {
		first := time.Duration(n) * startSpacing
		group := n * groups / len(fresh)
		w.due = now.Add(first)
		w.at = w.due
		w.second = w.interval*time.Duration(2*group+1)/time.Duration(2*groups) - first
		for w.second <= 0 {
			w.second += w.interval
		}
	}
}

// again sets when the prober's next check is due: an interval after the last
// one was, which is now if that took longer.
func (w *prober) again(now time.Time, rnd *rand.Rand) {
	if w.second > 0 {
		w.due, w.second = w.due.Add(w.second), 0
	} else {
		w.due = w.due.Add(w.interval)
	}
	if w.due.Before(now) {
		w.due = now
	}
	w.at = w.due
	if w.jitter > 0 {
		w.at = w.due.Add(time.Duration(rnd.Int64N(int64(2*w.jitter)+1)) - w.jitter)
	}
}

// part is what of its target the prober has to check now: of a combined check
// Connects connects after each negotiate that succeeds, and negotiate after
// any failure.
func (w *prober) part() *model.Target {
	if w.target.Kind != model.CheckCombined {
		return w.target
	}
	t := *w.target
	if w.connects > 0 {
		w.connects--
		t.Kind = model.CheckConnect
	} else {
		w.connects = t.Connects
		t.Kind = model.CheckNegotiate
	}
	return &t
}

// schedule holds the probers that wait for their next check: a heap
// (container/heap), the first that is due first.
type schedule []*prober

func (s schedule) Len() int           { return len(s) }
func (s schedule) Less(i, j int) bool { return s[i].at.Before(s[j].at) }

func (s schedule) Swap(i, j int) {
	s[i], s[j] = s[j], s[i]
	s[i].place, s[j].place = i, j
}

// Push adds x, a *prober, at the end.
func (s *schedule) Push(x any) {
	w := x.(*prober)
	w.place = len(*s)
	*s = append(*s, w)
}

// Pop takes the last one away.
func (s *schedule) Pop() any {
	old := *s
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*s = old[:len(old)-1]
	last.place = -1
	return last
}

func (s *schedule) add(w *prober) { heap.Push(s, w) }

// remove takes a prober out, if it waits here.
func (s *schedule) remove(w *prober) {
	if w.place >= 0 {
		heap.Remove(s, w.place)
	}
}

// next takes out the first prober that is due, nil if none is.
func (s *schedule) next(now time.Time) *prober {
	if len(*s) == 0 || (*s)[0].at.After(now) {
		return nil
	}
	return heap.Pop(s).(*prober)
}

// heard is a verdict for a prober.
type heard struct {
	from    *prober
	verdict model.Verdict
}

// inbox is where verdicts wait for the loop: at most one of each prober.
type inbox struct {
	full chan struct{} // has room for one signal

	mu    sync.Mutex
	list  []heard
	spare []heard // becomes the list
}

func (b *inbox) put(list ...heard) {
	b.mu.Lock()
	b.list = append(b.list, list...)
	b.mu.Unlock()
	offer(b.full)
}

// take empties the inbox. What it returns is good until the next take.
func (b *inbox) take() []heard {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := b.list
	b.list, b.spare = b.spare[:0], list
	return list
}
