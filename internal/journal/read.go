package journal

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/sla"
)

// Entry is one record of a Story, on its line of time.
type Entry struct {
	ID   string         `json:"id"` // node:number
	Node model.NodeName `json:"node"`
	Time time.Time      `json:"time"` // corrected by later steps of the clock
	Record
}

// Span is a thing in one state, as one node saw it.
type Span struct {
	sla.Interval
	Node  model.NodeName // who saw it
	Where string
	Why   string
}

// Story is what the journals of one or several nodes tell together. It knows
// where everything is, and reads it when asked: use it from one goroutine.
type Story struct {
	Windows []Window // by their beginning
	Last    time.Time

	books []*book
	plans []Entry
	notes []string
	found map[string]bool // damage is told once
}

// Open opens journals: directories, each of one node.
func Open(dirs ...string) (*Story, error) {
	s := &Story{found: map[string]bool{}}
	var plans []Record
	for _, dir := range dirs {
		b, err := openBook(dir, s.damaged)
		if missing(err) {
			return nil, fmt.Errorf("there is no journal in %s: has a node run with that --state-dir? %w", dir, err)
		}
		if err != nil {
			return nil, err
		}
		s.books = append(s.books, b)
		for i := range b.lives {
			if end := b.when(b.lives[i].Boot, b.lives[i].end); end.After(s.Last) {
				s.Last = end
			}
		}
		s.tellNotes(b)
		list, err := readPlans(dir, s.damaged)
		if err != nil {
			return nil, err
		}
		plans = append(plans, list...)
	}
	s.Windows, s.plans = gatherPlans(plans)
	return s, nil
}

// damaged notes what cannot be read.
func (s *Story) damaged(err error) {
	if text := err.Error(); !s.found[text] {
		s.found[text] = true
		s.notes = append(s.notes, text)
	}
}

func (s *Story) tellNotes(b *book) {
	for _, sh := range b.sheets {
		for _, n := range sh.notes {
			text := fmt.Sprintf("%s: %s: %s", b.when(sh.Boot, n.uptime).Format(time.RFC3339), sh.Node, n.text)
			if n.kind != KindStep {
				text += fmt.Sprintf(" (%d)", n.lost)
			}
			s.notes = append(s.notes, text)
		}
	}
}

// Notes say what is not as it should be: damage found until now, gaps, steps
// of the clock.
func (s *Story) Notes() []string { return slices.Clone(s.notes) }

// Things lists what has a state, in the order of ThingKinds, then by name.
func (s *Story) Things() []Thing {
	var all []Thing
	for i, b := range s.books {
		for _, t := range b.names.things {
			if !slices.ContainsFunc(s.books[:i], func(b *book) bool { return b.knows(t) }) {
				all = append(all, t)
			}
		}
	}
	slices.SortFunc(all, func(a, b Thing) int {
		if a.Kind != b.Kind {
			return slices.Index(ThingKinds, a.Kind) - slices.Index(ThingKinds, b.Kind)
		}
		return strings.Compare(a.Name, b.Name)
	})
	return all
}

// Beginning and end of all that a journal can tell of.
var (
	never   = time.Unix(0, -1<<62)
	forever = time.Unix(0, 1<<62)
)

// Intervals is the record of a thing by all nodes together, with the windows
// that were declared in time: down within one is planned.
func (s *Story) Intervals(t Thing) iter.Seq[sla.Interval] { return s.IntervalsIn(t, never, forever) }

// IntervalsIn is Intervals without what is of no matter to [from, to): files
// that lie outside are not read. An outage is followed to its end.
func (s *Story) IntervalsIn(t Thing, from, to time.Time) iter.Seq[sla.Interval] {
	var records []iter.Seq[sla.Interval]
	for _, b := range s.books {
		if b.knows(t) {
			records = append(records, func(yield func(sla.Interval) bool) {
				for st := range b.stretches(t, from, to) {
					if !yield(st.Interval) {
						return
					}
				}
			})
		}
	}
	merged := sla.Merge(records...)
	var windows []Window
	for _, w := range s.Windows {
		if w.covers(t) && w.Excuses() {
			windows = append(windows, w)
		}
	}
	if len(windows) == 0 {
		return merged
	}
	return func(yield func(sla.Interval) bool) {
		for iv := range merged {
			if iv.State != sla.Down {
				if !yield(iv) {
					return
				}
				continue
			}
			for piece := range plan(iv, windows) {
				if !yield(piece) {
					return
				}
			}
		}
	}
}

// plan cuts a down interval at the windows, which ascend by their beginning.
func plan(iv sla.Interval, windows []Window) iter.Seq[sla.Interval] {
	return func(yield func(sla.Interval) bool) {
		from := iv.From
		piece := func(to time.Time, state sla.State) bool {
			if !to.After(from) {
				return true
			}
			p := sla.Interval{From: from, To: to, State: state}
			if state == sla.Down && from.Equal(iv.From) {
				p.Repair = iv.Repair
			}
			from = to
			return yield(p)
		}
		for _, w := range windows {
			begin, end := w.From, w.End()
			if !begin.Before(iv.To) || !end.After(from) {
				continue
			}
			if end.After(iv.To) {
				end = iv.To
			}
			if !piece(begin, sla.Down) || !piece(end, sla.Planned) {
				return
			}
		}
		piece(iv.To, sla.Down)
	}
}

// LateWindows are those that were declared after they began: they excuse nothing.
func (s *Story) LateWindows() []Window {
	return slices.DeleteFunc(slices.Clone(s.Windows), func(w Window) bool { return !w.Late() })
}

// Standing is a thing in a state at one moment.
type Standing struct {
	Thing Thing          `json:"thing"`
	State sla.State      `json:"state"`
	Since time.Time      `json:"since"`
	Where string         `json:"where,omitempty"`
	Why   string         `json:"why,omitempty"`
	By    model.NodeName `json:"by"` // whose journal says so
}

// At is how everything was at a moment: of what the nodes say of a thing, the
// strongest statement counts, as in the intervals, and of two the same the one
// that reaches further back.
func (s *Story) At(at time.Time) []Standing {
	all := []Standing{}
	for _, thing := range s.Things() {
		st := Standing{Thing: thing, State: sla.Unknown, Why: "no journal tells"}
		for _, b := range s.books {
			for sp := range b.stretches(thing, at, at) {
				if at.Before(sp.From) {
					break
				}
				if !at.Before(sp.To) && (!at.Equal(s.Last) || !sp.To.Equal(at)) {
					continue
				}
				if sp.State > st.State || st.By == "" || sp.State == st.State && sp.From.Before(st.Since) {
					sp := sp.span()
					st = Standing{thing, sp.State, sp.From, sp.Where, sp.Why, sp.Node}
				}
			}
		}
		for _, w := range s.Windows {
			if st.State == sla.Down && w.covers(thing) && w.Excuses() && !at.Before(w.From) && at.Before(w.End()) {
				st.State, st.Why = sla.Planned, w.Reason
			}
		}
		all = append(all, st)
	}
	return all
}

// Spans are the stretches of a thing as the nodes saw them, node by node.
func (s *Story) Spans(t Thing) iter.Seq[Span] { return s.spansIn(t, never, forever) }

func (s *Story) spansIn(t Thing, from, to time.Time) iter.Seq[Span] {
	return func(yield func(Span) bool) {
		for _, b := range s.books {
			for st := range b.stretches(t, from, to) {
				if !yield(st.span()) {
					return
				}
			}
		}
	}
}

// eventReach is how far before its record an event may have been.
const eventReach = time.Minute

// Entries gives the records from one moment to another, ascending, without
// repeated states and signs of life. The error is the disk's.
func (s *Story) Entries(from, to time.Time, yield func(Entry) bool) error {
	type source struct {
		head Entry
		err  error
		more bool
		next func() (Entry, error, bool)
	}
	var all []*source
	add := func(seq iter.Seq2[Entry, error]) func() {
		next, stop := iter.Pull2(seq)
		src := &source{next: next}
		src.head, src.err, src.more = next()
		all = append(all, src)
		return stop
	}
	for _, b := range s.books {
		defer add(b.entries(from, to))()
	}
	defer add(func(yield func(Entry, error) bool) {
		for _, e := range s.plans {
			if !e.Time.Before(from) && !e.Time.After(to) && !yield(e, nil) {
				return
			}
		}
	})()
	for {
		var first *source
		for _, src := range all {
			if src.more && (first == nil || src.head.Time.Before(first.head.Time)) {
				first = src
			}
		}
		if first == nil {
			return nil
		}
		if first.err != nil {
			return first.err
		}
		if !yield(first.head) {
			return nil
		}
		first.head, first.err, first.more = first.next()
	}
}

// entries are those of one node. An event may lie before records that were
// written earlier, so they are held back until nothing can come before them.
func (b *book) entries(from, to time.Time) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		var held []Entry
		flush := func(before time.Time) bool {
			slices.SortStableFunc(held, func(x, y Entry) int { return x.Time.Compare(y.Time) })
			n := 0
			for n < len(held) && held[n].Time.Before(before) {
				if !yield(held[n], nil) {
					return false
				}
				n++
			}
			held = slices.Delete(held, 0, n)
			return true
		}
		for i := range b.lives {
			l := &b.lives[i]
			for k, sh := range l.sheets {
				begin := b.when(l.Boot, sh.begin)
				if begin.Add(-eventReach).After(to) || b.when(l.Boot, sh.end).Before(from) {
					continue
				}
				if !flush(begin.Add(-eventReach)) {
					return
				}
				_, err := scan(segmentName(b.dir, sh.first), 0, func(r Record) {
					e := Entry{fmt.Sprintf("%s:%d", l.Node, r.Seq), l.Node, b.when(l.Boot, r.Uptime), r}
					if r.interesting() && (r.Kind != KindOpen || k == 0) && !e.Time.Before(from) && !e.Time.After(to) {
						held = append(held, e)
					}
				}, func(d damage) {
					b.damaged(fmt.Errorf("%s: a line at byte %d cannot be read: %w", segmentName(b.dir, sh.first), d.offset, d.err))
				})
				if err != nil && !missing(err) { // gone because of its size: the states have stayed
					yield(Entry{}, err)
					return
				}
			}
		}
		flush(forever)
	}
}

// interesting tells whether a record is one that people ask for.
func (r *Record) interesting() bool {
	return r.Kind != KindAlive && (r.State == nil || !r.State.Again)
}

// Entry finds a record by its number. The error says that there is none.
func (s *Story) Entry(id string) (Entry, error) {
	for _, e := range s.plans {
		if e.ID == id {
			return e, nil
		}
	}
	var found Entry
	for _, b := range s.books {
		for i := range b.lives {
			l := &b.lives[i]
			for k, sh := range l.sheets {
				if !strings.HasPrefix(id, string(l.Node)+":") {
					continue
				}
				next := uint64(1<<64 - 1)
				if k+1 < len(l.sheets) {
					next = l.sheets[k+1].first
				}
				var seq uint64
				if _, err := fmt.Sscanf(id[len(l.Node):], ":%d", &seq); err != nil || seq < sh.first || seq >= next {
					continue
				}
				_, err := scan(segmentName(b.dir, sh.first), 0, func(r Record) {
					if r.Seq == seq && r.interesting() {
						found = Entry{id, l.Node, b.when(l.Boot, r.Uptime), r}
					}
				}, nil)
				if err != nil && !missing(err) {
					return found, err
				}
			}
		}
	}
	if found.ID == "" {
		return found, errNoEntry
	}
	return found, nil
}

var errNoEntry = errors.New("no record has that number")

func wallOffset(r *Record) time.Duration {
	return time.Duration(r.At.UnixNano()) - r.Uptime
}
