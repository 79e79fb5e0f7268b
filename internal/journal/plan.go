package journal

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Window is a declared maintenance window.
type Window struct {
	ID       string    `json:"id"` // the same in all journals
	Declared time.Time `json:"declared"`
	From     time.Time `json:"from"`
	To       time.Time `json:"to"`
	About    string    `json:"about,omitempty"` // part of the names of things; "" for all
	Reason   string    `json:"reason"`
	By       string    `json:"by,omitempty"` // who declared it

	Canceled *Cancel `json:"canceled,omitempty"`
}

// Cancel takes a window back.
type Cancel struct {
	Window string    `json:"window"` // its ID
	At     time.Time `json:"at"`
	By     string    `json:"by,omitempty"`
	Reason string    `json:"reason,omitempty"`
}

// NewWindowID is one that no other window has.
func NewWindowID() string {
	b := make([]byte, 4)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return "w" + hex.EncodeToString(b)
}

// Late tells whether it was declared after it began: then it excuses nothing.
func (w Window) Late() bool { return w.Declared.After(w.From) }

// End is when it ends, or when it was canceled: what went before was
// maintenance all the same.
func (w Window) End() time.Time {
	if w.Canceled != nil && w.Canceled.At.Before(w.To) {
		return w.Canceled.At
	}
	return w.To
}

// Excuses tells whether down time within it is planned.
func (w Window) Excuses() bool { return !w.Late() && w.End().After(w.From) }

// covers tells whether the window is about a thing.
func (w Window) covers(t Thing) bool { return strings.Contains(t.String(), w.About) }

// Check refuses a window that makes no sense.
func (w Window) Check() error {
	switch {
	case !w.From.Before(w.To):
		return errors.New("the window ends before it begins")
	case w.Reason == "":
		return errors.New("a window has a reason: say what it is for; the statement will show it")
	case w.ID == "":
		return errors.New("a window has a name")
	}
	return nil
}

// Declare adds a maintenance window to the journal in a directory, whether its
// node runs or not. One that is there already is left alone; added tells.
func Declare(dir string, w Window) (added bool, err error) {
	if err := w.Check(); err != nil {
		return false, err
	}
	c := w.Canceled
	w.Canceled = nil
	added, err = addPlan(dir, Record{Kind: KindPlan, Plan: &w}, func(have []Window) error {
		if slices.ContainsFunc(have, func(h Window) bool { return h.ID == w.ID }) {
			return errHave
		}
		return nil
	})
	if err == nil && c != nil {
		_, canceled, err := Revoke(dir, *c)
		return added || canceled, err
	}
	return added, err
}

// Revoke cancels a window of the journal in a directory; done is false for one
// that is canceled already. The error lists the windows if there is none of
// that name, and tells if it is over.
func Revoke(dir string, c Cancel) (w Window, done bool, err error) {
	done, err = addPlan(dir, Record{Kind: KindCancel, Cancel: &c}, func(have []Window) error {
		i := slices.IndexFunc(have, func(h Window) bool { return h.ID == c.Window })
		if i < 0 {
			return fmt.Errorf("there is no window %q; batuta maintenance list shows them", c.Window)
		}
		w = have[i]
		switch {
		case w.Canceled != nil:
			return errHave
		case !c.At.Before(w.To):
			return fmt.Errorf("window %s was over at %s: what was planned then stays planned", c.Window, w.To.Format(time.RFC3339))
		}
		w.Canceled = &c
		return nil
	})
	return w, done, err
}

// errHave says that a record is there already.
var errHave = errors.New("is there already")

// addPlan appends a record to the plans, unless check has something against it.
func addPlan(dir string, r Record, check func([]Window) error) (added bool, err error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return false, fmt.Errorf("make the directory of the journal: %w", err)
	}
	name := filepath.Join(dir, plansFile)
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o640)
	if err != nil {
		return false, fmt.Errorf("record the window: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return false, fmt.Errorf("record the window: lock %s: %w", name, err)
	}
	var have []Record
	good, err := scan(name, 0, func(r Record) { have = append(have, r) }, nil)
	if err != nil {
		return false, err
	}
	windows, _ := gatherPlans(have)
	if err := check(windows); errors.Is(err, errHave) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if _, err := cutTail(name, good); err != nil {
		return false, err
	}
	now := Now()
	r.Seq, r.At, r.Uptime = 1, now.Wall, now.Uptime
	if n := len(have); n > 0 {
		r.Seq = have[n-1].Seq + 1
	}
	line, err := appendLine(nil, &r)
	if err != nil {
		return false, err
	}
	if _, err := f.Write(line); err != nil {
		return false, fmt.Errorf("record the window: %w", err)
	}
	if err := f.Sync(); err != nil {
		return false, fmt.Errorf("record the window: %w", err)
	}
	return true, nil
}

// Windows are those of the journal in a directory, by their beginning.
func Windows(dir string) ([]Window, error) {
	list, err := readPlans(dir, func(error) {})
	windows, _ := gatherPlans(list)
	return windows, err
}

// readPlans reads the records of the windows; none without a file.
func readPlans(dir string, damaged func(error)) (list []Record, err error) {
	_, err = scan(filepath.Join(dir, plansFile), 0, func(r Record) { list = append(list, r) }, func(d damage) {
		damaged(fmt.Errorf("%s: a line at byte %d cannot be read: %w", filepath.Join(dir, plansFile), d.offset, d.err))
	})
	if missing(err) {
		return nil, nil
	}
	return list, err
}

// gatherPlans unites what the journals of several nodes say of windows, each
// told once, and makes the records of it.
func gatherPlans(records []Record) (windows []Window, entries []Entry) {
	cancels := map[string]*Cancel{}
	for _, r := range records {
		if c := r.Cancel; c != nil && (cancels[c.Window] == nil || c.At.Before(cancels[c.Window].At)) {
			cancels[c.Window] = c
		}
	}
	seen := map[string]bool{}
	for _, r := range records {
		switch {
		case r.Plan != nil && !seen[r.Plan.ID]:
			seen[r.Plan.ID] = true
			entries = append(entries, Entry{"plan:" + r.Plan.ID, "", r.Plan.Declared, r})
			w := *r.Plan
			w.Canceled = cancels[w.ID]
			windows = append(windows, w)
		case r.Cancel != nil && cancels[r.Cancel.Window] == r.Cancel:
			entries = append(entries, Entry{"cancel:" + r.Cancel.Window, "", r.Cancel.At, r})
		}
	}
	slices.SortStableFunc(windows, func(a, b Window) int { return cmp.Or(a.From.Compare(b.From), cmp.Compare(a.ID, b.ID)) })
	slices.SortStableFunc(entries, func(a, b Entry) int { return a.Time.Compare(b.Time) })
	return windows, entries
}
