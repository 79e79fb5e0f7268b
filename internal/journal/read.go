package journal

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
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

// Story is what the journals of one or several nodes tell together.
type Story struct {
	Entries []Entry // ascending, without repeated states and signs of life
	Windows []Window
	Notes   []string // what is not as it should be: damage, gaps, steps
	Last    time.Time

	spans map[Thing][][]Span // by recorder
}

// Read reads journals: directories, each of one node.
func Read(dirs ...string) (*Story, error) {
	s := &Story{spans: map[Thing][][]Span{}}
	for _, dir := range dirs {
		if err := s.read(dir); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(s.Entries, func(a, b Entry) int { return a.Time.Compare(b.Time) })
	slices.SortStableFunc(s.Windows, func(a, b Window) int { return a.From.Compare(b.From) })
	return s, nil
}

// life is the records of one run of a daemon, in one boot.
type life struct {
	Opening
	records []Record
	closed  bool
	end     time.Duration // uptime of the last sign of life
}

func (s *Story) read(dir string) error {
	all, err := segments(dir)
	if missing(err) {
		return fmt.Errorf("there is no journal in %s: has a node run with that --state-dir? %w", dir, err)
	}
	if err != nil {
		return err
	}
	var lives []*life
	var now *life
	offsets := map[string]time.Duration{} // by boot, the latest
	take := func(r Record) {
		if r.Open != nil && r.Kind == KindAlive {
			// The last sign of a life that ended without a word; of the one before.
			for _, l := range lives {
				if l.Opening == *r.Open {
					l.end = max(l.end, r.Uptime)
					offsets[l.Boot] = wallOffset(r)
				}
			}
			return
		}
		if r.Kind == KindOpen && r.Open != nil && (now == nil || now.Opening != *r.Open) {
			now = &life{Opening: *r.Open}
			lives = append(lives, now)
		}
		if now == nil {
			return // the file's beginning is damaged
		}
		now.records = append(now.records, r)
		now.end = max(now.end, r.Uptime)
		now.closed = r.Kind == KindClose
		if r.Kind != KindEvent { // an event may have been stamped before a step
			offsets[now.Boot] = wallOffset(r)
		}
	}
	for i, seg := range all {
		good, err := scan(seg.path, 0, take, func(d damage) {
			s.Notes = append(s.Notes, fmt.Sprintf("%s: a line at byte %d cannot be read: %v", seg.path, d.offset, d.err))
		})
		if missing(errors.Unwrap(err)) {
			continue // removed meanwhile, being too old
		}
		if err != nil {
			return err
		}
		if info, err := os.Stat(seg.path); err == nil && i < len(all)-1 && info.Size() > good {
			s.Notes = append(s.Notes, fmt.Sprintf("%s: the last line is torn", seg.path))
		}
	}
	if r, ok := readAlive(dir); ok {
		take(r)
	}
	s.place(lives, offsets)
	return s.plans(dir)
}

func wallOffset(r Record) time.Duration {
	return time.Duration(r.At.UnixNano()) - r.Uptime
}

// place puts the records of one node on the line of time.
func (s *Story) place(lives []*life, offsets map[string]time.Duration) {
	byThing := map[Thing][]Span{}
	for _, l := range lives {
		when := func(up time.Duration) time.Time { return time.Unix(0, int64(offsets[l.Boot]+up)) }
		states := map[Thing][]Change{}
		for _, r := range l.records {
			switch r.Kind {
			case KindState:
				c := *r.State
				was := states[c.Thing]
				if n := len(was); c.Again && n > 0 && was[n-1].State == c.State && was[n-1].Since == c.Since {
					continue
				}
				states[c.Thing] = append(was, c)
				if c.Again {
					continue
				}
			case KindGap, KindCut:
				s.Notes = append(s.Notes, fmt.Sprintf("%s: %s: %s (%d)", when(r.Uptime).Format(time.RFC3339), l.Node, r.Text, r.Lost))
			case KindStep:
				s.Notes = append(s.Notes, fmt.Sprintf("%s: %s: %s", when(r.Uptime).Format(time.RFC3339), l.Node, r.Text))
			default:
			}
			if r.Kind == KindOpen && r.Seq != l.records[0].Seq {
				continue // the same life goes on in another file
			}
			s.Entries = append(s.Entries, Entry{fmt.Sprintf("%s:%d", l.Node, r.Seq), l.Node, when(r.Uptime), r})
		}
		end := when(l.end)
		if end.After(s.Last) {
			s.Last = end
		}
		for thing, list := range states {
			byThing[thing] = append(byThing[thing], spansOf(l.Node, list, when, end)...)
		}
	}
	for thing, spans := range byThing {
		s.spans[thing] = append(s.spans[thing], ascending(spans))
	}
}

// spansOf turns the changes of one thing in one life into stretches of time.
// A later change may begin before it was recorded: it cuts what was said before.
func spansOf(node model.NodeName, list []Change, when func(time.Duration) time.Time, end time.Time) []Span {
	var spans []Span
	to := end
	for i, c := range slices.Backward(list) {
		iv := sla.Interval{From: when(c.Since), To: to, State: c.State}
		if c.State == sla.Down && i+1 < len(list) && list[i+1].Ended != nil {
			iv.Repair = sla.Repair(*list[i+1].Ended)
		}
		if iv.To.After(iv.From) {
			spans = append(spans, Span{iv, node, c.Where, c.Why})
			to = iv.From
		}
	}
	slices.Reverse(spans)
	return spans
}

// ascending cuts what overlaps: lives in different boots whose clocks differ.
func ascending(spans []Span) []Span {
	slices.SortStableFunc(spans, func(a, b Span) int { return a.From.Compare(b.From) })
	out := spans[:0]
	for _, sp := range spans {
		if n := len(out); n > 0 && sp.From.Before(out[n-1].To) {
			sp.From = out[n-1].To
		}
		if sp.To.After(sp.From) {
			out = append(out, sp)
		}
	}
	return out
}

func (s *Story) plans(dir string) error {
	_, err := scan(filepath.Join(dir, plansFile), 0, func(r Record) {
		if r.Plan == nil {
			return
		}
		s.Windows = append(s.Windows, *r.Plan)
		s.Entries = append(s.Entries, Entry{fmt.Sprintf("plan:%d", r.Seq), "", r.At, r})
	}, func(d damage) {
		s.Notes = append(s.Notes, fmt.Sprintf("%s: a line at byte %d cannot be read: %v", plansFile, d.offset, d.err))
	})
	if missing(err) {
		return nil
	}
	return err
}

// Things lists what has a state, in the order of ThingKinds, then by name.
func (s *Story) Things() []Thing {
	var all []Thing
	for t := range s.spans {
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b Thing) int {
		if a.Kind != b.Kind {
			return slices.Index(ThingKinds, a.Kind) - slices.Index(ThingKinds, b.Kind)
		}
		return strings.Compare(a.Name, b.Name)
	})
	return all
}

// Intervals is the record of a thing by all nodes together, with the windows
// that were declared in time: down within one is planned.
func (s *Story) Intervals(t Thing) iter.Seq[sla.Interval] {
	var records []iter.Seq[sla.Interval]
	for _, spans := range s.spans[t] {
		records = append(records, func(yield func(sla.Interval) bool) {
			for _, sp := range spans {
				if !yield(sp.Interval) {
					return
				}
			}
		})
	}
	merged := sla.Merge(records...)
	var windows []Window
	for _, w := range s.Windows {
		if w.covers(t) && !w.Late() {
			windows = append(windows, w)
		}
	}
	return func(yield func(sla.Interval) bool) {
		for iv := range merged {
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
		if iv.State != sla.Down {
			yield(iv)
			return
		}
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
			begin, end := w.From, w.To
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
// strongest statement counts, as in the intervals.
func (s *Story) At(at time.Time) []Standing {
	all := []Standing{}
	for _, thing := range s.Things() {
		st := Standing{Thing: thing, State: sla.Unknown, Why: "no journal tells"}
		for _, spans := range s.spans[thing] {
			i, found := slices.BinarySearchFunc(spans, at, func(sp Span, t time.Time) int { return sp.From.Compare(t) })
			if !found {
				i--
			}
			if i < 0 || !at.Before(spans[i].To) && (!at.Equal(s.Last) || !spans[i].To.Equal(at)) {
				continue
			}
			if sp := spans[i]; sp.State > st.State || st.By == "" {
				st = Standing{thing, sp.State, sp.From, sp.Where, sp.Why, sp.Node}
			}
		}
		for _, w := range s.Windows {
			if st.State == sla.Down && w.covers(thing) && !w.Late() && !at.Before(w.From) && at.Before(w.To) {
				st.State, st.Why = sla.Planned, w.Reason
			}
		}
		all = append(all, st)
	}
	return all
}

// Spans are the stretches of a thing as the nodes saw them, node by node.
func (s *Story) Spans(t Thing) iter.Seq[Span] {
	return func(yield func(Span) bool) {
		for _, spans := range s.spans[t] {
			for _, sp := range spans {
				if !yield(sp) {
					return
				}
			}
		}
	}
}
