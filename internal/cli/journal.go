package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/journal"
	"github.com/batuta-ha/batuta/internal/model"
)

// journalFlags say which journals to read, and how times are meant.
type journalFlags struct {
	dirs []string
	tz   string
}

func (f *journalFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringArrayVar(&f.dirs, "journal", nil, "a journal's directory, to read instead of this node's; repeat it to read the nodes of a cluster together")
	fl.StringVar(&f.tz, "tz", "", "time zone, like Europe/Berlin (default: this machine's)")
}

// paths are the journals to read.
func (f *journalFlags) paths(o *options) []string {
	if len(f.dirs) == 0 {
		return []string{journal.Dir(o.stateDir)}
	}
	return f.dirs
}

// read opens the journals.
func (f *journalFlags) read(cmd *cobra.Command, o *options) (*journal.Story, *time.Location, error) {
	loc, err := zone(f.tz)
	if err != nil {
		return nil, nil, usageError(cmd, err)
	}
	s, err := journal.Open(f.paths(o)...)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, nil, fmt.Errorf("%w; run as root, or name a journal that you may read with --journal", err)
	case err != nil:
		return nil, nil, err
	}
	return s, loc, nil
}

// notes prints what is not as it should be with the journals.
func notes(w io.Writer, s *journal.Story) {
	for _, n := range s.Notes() {
		fmt.Fprintln(w, "batuta: note: "+n)
	}
}

func zone(name string) (*time.Location, error) {
	if name == "" {
		return time.Local, nil
	}
	loc, err := time.LoadLocation(name)
	if err != nil {
		return nil, fmt.Errorf("--tz: %w: write it like Europe/Berlin", err)
	}
	return loc, nil
}

// timeLayouts are the forms of a time that verbs take; those without a date
// mean today.
var timeLayouts = []string{time.RFC3339Nano, "2006-01-02 15:04:05.999999999", "2006-01-02T15:04:05.999999999", "2006-01-02 15:04", "2006-01-02T15:04", time.DateOnly}

// parseTime reads a time, or how long ago it was: "10m", "2h30m"; with a plus
// sign, in how long it will be.
func parseTime(text string, now time.Time) (time.Time, error) {
	if text == "now" {
		return now, nil
	}
	if d, err := time.ParseDuration(strings.TrimPrefix(text, "-")); err == nil {
		if strings.HasPrefix(text, "+") {
			return now.Add(d), nil
		}
		return now.Add(-d), nil
	}
	for _, l := range timeLayouts {
		if t, err := time.ParseInLocation(l, text, now.Location()); err == nil {
			return t, nil
		}
	}
	for _, l := range []string{"15:04:05.999999999", "15:04"} {
		if t, err := time.Parse(l, text); err == nil {
			return time.Date(now.Year(), now.Month(), now.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), now.Location()), nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no time: write it like 2026-11-22 14:30, 14:30:05, or 10m for ten minutes ago", text)
}

// stamp is the form of an instant in lists.
const stamp = "2006-01-02 15:04:05.000"

// writeEntry prints one record as a line.
func writeEntry(w io.Writer, e journal.Entry, loc *time.Location) {
	text := entryText(e)
	if text == "" {
		return
	}
	fmt.Fprintf(w, "%s  %-12s %s\n", e.Time.In(loc).Format(stamp), e.ID, text)
}

// entryText says what a record tells; "" for what is of no interest.
func entryText(e journal.Entry) string {
	switch {
	case e.Kind == journal.KindEvent && e.Event != nil:
		level := ""
		if e.Event.Level >= model.LevelWarning {
			level = e.Event.Level.String() + ": "
		}
		return level + e.Event.String()
	case e.Kind == journal.KindState && e.State != nil:
		return "state: " + changeText(*e.State)
	case e.Kind == journal.KindPlan && e.Plan != nil:
		about := ""
		if e.Plan.About != "" {
			about = " about " + e.Plan.About
		}
		return fmt.Sprintf("maintenance %s%s planned from %s to %s: %s", e.Plan.ID, about, e.Plan.From.Format(time.RFC3339), e.Plan.To.Format(time.RFC3339), e.Plan.Reason) + by(e.Plan.By)
	case e.Kind == journal.KindCancel && e.Cancel != nil:
		text := fmt.Sprintf("maintenance %s canceled", e.Cancel.Window)
		if e.Cancel.Reason != "" {
			text += ": " + e.Cancel.Reason
		}
		return text + by(e.Cancel.By)
	case e.Kind == journal.KindOpen:
		return "journal: begins"
	case e.Kind == journal.KindClose:
		return "journal: ends in good order"
	case e.Kind == journal.KindStep, e.Kind == journal.KindGap, e.Kind == journal.KindCut:
		return "journal: " + e.Text
	}
	return ""
}

// by says who did it, where that is known.
func by(who string) string {
	if who == "" {
		return ""
	}
	return " (by " + who + ")"
}

func changeText(c journal.Change) string {
	t := fmt.Sprintf("%s is %s", c.Thing, c.State)
	if c.Where != "" {
		t += " on " + c.Where
	}
	if c.Why != "" {
		t += ": " + c.Why
	}
	return t
}

// about tells whether a record is about something: its text has the word.
func about(e journal.Entry, word string) bool {
	return word == "" || strings.Contains(entryText(e), word) || e.Event != nil && strings.Contains(e.Event.Subject, word)
}
