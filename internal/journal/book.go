package journal

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/sla"
)

// book is the journal of one node, open for reading: of the states it knows
// where they are, and reads them when asked.
type book struct {
	dir    string
	sheets []*sheet  // ascending, of the files that have gone, too
	logs   []segment // the files with all records, ascending
	lives  []life
	names  *names
	agreed map[Thing]model.Agreement

	offsets map[string]time.Duration // wall clock minus uptime by boot, the latest word
	damaged func(error)              // hears of what cannot be read
}

// life is one run of a daemon, in one boot.
type life struct {
	Opening
	sheets []*sheet
	end    time.Duration // uptime of the last sign of life
}

// openBook reads what the directory of a journal has.
func openBook(dir string, damaged func(error)) (*book, error) {
	b := &book{dir: dir, names: newNames(), offsets: map[string]time.Duration{}, damaged: damaged}
	for {
		again, err := b.open()
		if err != nil {
			return nil, err
		}
		if !again {
			break
		}
	}
	b.arrange()
	if a, err := readAgreed(dir); err != nil {
		damaged(err)
	} else {
		b.agreed = a
	}
	return b, nil
}

// open lists the sheets, and makes those that are not there from the records.
// Again: a file went while it was read.
func (b *book) open() (again bool, err error) {
	b.sheets = nil
	if b.logs, err = segments(b.dir, suffix); err != nil {
		return false, err
	}
	have := map[uint64]*sheet{}
	made, err := segments(b.dir, sheetSuffix)
	if err != nil {
		return false, err
	}
	for _, g := range made {
		s, err := openSheet(g.path, g.first, b.names)
		switch {
		case missing(err):
			continue // too old meanwhile
		case errors.Is(err, errSheet):
			b.damaged(err)
			continue
		case err != nil:
			return false, err
		}
		have[g.first] = s
	}
	for i, g := range b.logs {
		if have[g.first] != nil {
			continue
		}
		m := newSheetMaker(g.first, b.names)
		good, err := scan(g.path, 0, func(r Record) { m.add(&r) }, func(d damage) {
			b.damaged(fmt.Errorf("%s: a line at byte %d cannot be read: %w", g.path, d.offset, d.err))
		})
		if missing(err) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if info, err := os.Stat(g.path); err == nil && i < len(b.logs)-1 && info.Size() > good {
			b.damaged(fmt.Errorf("%s: the last line is torn", g.path))
		}
		if m.any {
			have[g.first] = m.finish()
		}
	}
	for _, s := range have {
		b.sheets = append(b.sheets, s)
	}
	slices.SortFunc(b.sheets, func(x, y *sheet) int { return cmp.Compare(x.first, y.first) })
	return false, nil
}

// arrange finds the lives of the daemon.
func (b *book) arrange() {
	for _, s := range b.sheets {
		if n := len(b.lives); n == 0 || b.lives[n-1].Opening != s.Opening {
			b.lives = append(b.lives, life{Opening: s.Opening})
		}
		l := &b.lives[len(b.lives)-1]
		l.sheets = append(l.sheets, s)
		l.end = max(l.end, s.end)
		b.offsets[s.Boot] = s.offset
		for _, g := range s.signs {
			b.sign(g)
		}
	}
	if r, ok := readAlive(b.dir); ok {
		b.sign(sign{*r.Open, r.Uptime, wallOffset(&r)})
	}
}

// sign takes a sign of life, which may be the last one of a life that ended
// without a word.
func (b *book) sign(g sign) {
	for i := range b.lives {
		if l := &b.lives[i]; l.Opening == g.Opening && g.uptime > l.end {
			l.end = g.uptime
			b.offsets[l.Boot] = g.offset
		}
	}
}

// knows tells whether the journal has a thing.
func (b *book) knows(t Thing) bool {
	_, ok := b.names.ids[t.String()]
	return ok
}

// when places an uptime on the line of time.
func (b *book) when(boot string, uptime time.Duration) time.Time {
	return time.Unix(0, int64(b.offsets[boot]+uptime))
}

// stretch is a Span before its texts are looked up.
type stretch struct {
	sla.Interval
	life       *life
	sheet      *sheet
	where, why uint32
}

func (st *stretch) span() Span {
	return Span{st.Interval, st.life.Node, st.sheet.texts[st.where], st.sheet.texts[st.why]}
}

// stretches are those of a thing, ascending and apart, as far as they touch
// [from, to): what lies wholly outside may be left out. The pointer is to one
// that changes.
func (b *book) stretches(t Thing, from, to time.Time) iter.Seq[*stretch] {
	return func(yield func(*stretch) bool) {
		r := reader{book: b, thing: t, yield: yield, from: from.UnixNano(), to: to.UnixNano(), last: -1 << 63}
		for i := range b.lives {
			if !r.life(&b.lives[i]) {
				return
			}
		}
	}
}

// reader turns changes into stretches. A change may begin before it was
// recorded: it ends what was said before, but nothing before that.
type reader struct {
	book     *book
	thing    Thing
	yield    func(*stretch) bool
	from, to int64 // nanoseconds since 1970
	buf      []byte

	now   stretch       // that goes on
	since time.Duration // uptime at which it began
	open  bool
	past  bool  // the rest of this life begins after to
	last  int64 // end of what was given: lives in different boots may overlap where clocks differ
}

func (r *reader) life(l *life) bool {
	offset := r.book.offsets[l.Boot]
	r.open, r.past = false, false
	for _, s := range l.sheets {
		if r.past {
			return true
		}
		if int64(offset+max(s.end, s.begin)) < r.from && s != l.sheets[len(l.sheets)-1] {
			continue
		}
		// What goes on is followed to its end if it is an outage.
		if min(int64(offset+s.begin), int64(offset+s.earliest)) > r.to && (!r.open || r.now.State != sla.Down) {
			if r.open {
				return r.end(s.begin, offset)
			}
			return true
		}
		if !r.sheet(l, s, offset) {
			return false
		}
	}
	return !r.open || r.past || r.end(l.end, offset)
}

func (r *reader) sheet(l *life, s *sheet, offset time.Duration) bool {
	b, err := s.bytes(r.thing, r.buf)
	if err != nil {
		r.book.damaged(err)
		if r.open { // nobody knows how it went on
			ok := r.end(s.begin, offset)
			r.open = false
			return ok
		}
		return true
	}
	if s.path != "" && cap(b) > cap(r.buf) {
		r.buf = b
	}
	var k mark
	last := s.begin
	for len(b) > 0 && !r.past {
		if b = k.next(b, last, uint32(len(s.texts))); b == nil {
			r.book.damaged(fmt.Errorf("%s: %s: %w", s.path, r.thing, errSheet))
			return true
		}
		last = k.since
		if r.open {
			if k.again && k.state == r.now.State {
				continue
			}
			if k.repaired && r.now.State == sla.Down {
				r.now.Repair = sla.Repair(k.ended)
			}
			if !r.end(k.since, offset) {
				return false
			}
			k.since = max(k.since, r.since)
		}
		r.open, r.since = true, k.since
		r.now = stretch{sla.Interval{State: k.state}, l, s, k.where, k.why}
	}
	return true
}

// end gives the stretch that went on until then.
func (r *reader) end(uptime, offset time.Duration) bool {
	from, to := max(int64(offset+r.since), r.last), int64(offset+uptime)
	if from > r.to {
		r.past = true
	}
	if to <= from || r.past {
		return true
	}
	r.last = to
	r.now.From, r.now.To = time.Unix(0, from), time.Unix(0, to)
	return r.yield(&r.now)
}
