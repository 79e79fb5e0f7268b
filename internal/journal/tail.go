package journal

import "fmt"

// Tail reads what is added to a journal.
type Tail struct {
	dir    string
	life   Opening // of the record read last
	first  uint64  // of the file that is read now
	offset int64
}

// NewTail stands at the end of a journal.
func NewTail(dir string) (*Tail, error) {
	t := &Tail{dir: dir}
	all, err := segments(dir, suffix)
	if err != nil {
		return nil, err
	}
	if n := len(all); n > 0 {
		t.first = all[n-1].first
	}
	_, err = t.Next()
	return t, err
}

// Next returns what was added since the last call. The times are those of the
// wall clock of then.
func (t *Tail) Next() ([]Entry, error) {
	all, err := segments(t.dir, suffix)
	if err != nil {
		return nil, err
	}
	var entries []Entry
	for _, s := range all {
		switch {
		case s.first < t.first:
			continue
		case s.first > t.first:
			t.first, t.offset = s.first, 0
		}
		t.offset, err = scan(s.path, t.offset, func(r Record) {
			if r.Kind == KindOpen && r.Open != nil {
				if t.life == *r.Open {
					return // goes on in another file
				}
				t.life = *r.Open
			}
			if !r.interesting() {
				return
			}
			entries = append(entries, Entry{fmt.Sprintf("%s:%d", t.life.Node, r.Seq), t.life.Node, r.At, r})
		}, nil)
		if err != nil {
			return entries, err
		}
	}
	return entries, nil
}
