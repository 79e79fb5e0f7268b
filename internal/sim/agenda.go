package sim

import "time"

// agenda is what is to happen, in order of time and, at equal times, of entry.
type agenda struct {
	heap  []entry
	order uint64
}

type entry struct {
	at    time.Time
	order uint64
	do    func()
}

func (e entry) before(o entry) bool {
	if c := e.at.Compare(o.at); c != 0 {
		return c < 0
	}
	return e.order < o.order
}

func (a *agenda) add(at time.Time, do func()) {
	a.order++
	a.heap = append(a.heap, entry{at, a.order, do})
	for i := len(a.heap) - 1; i > 0; {
		up := (i - 1) / 2
		if !a.heap[i].before(a.heap[up]) {
			break
		}
		a.heap[i], a.heap[up] = a.heap[up], a.heap[i]
		i = up
	}
}

// take removes the first entry.
func (a *agenda) take() entry {
	first, last := a.heap[0], len(a.heap)-1
	a.heap[0], a.heap[last] = a.heap[last], entry{}
	a.heap = a.heap[:last]
	for i := 0; ; {
		down := 2*i + 1
		if down >= last {
			break
		}
		if down+1 < last && a.heap[down+1].before(a.heap[down]) {
			down++
		}
		if !a.heap[down].before(a.heap[i]) {
			break
		}
		a.heap[i], a.heap[down] = a.heap[down], a.heap[i]
		i = down
	}
	return first
}
