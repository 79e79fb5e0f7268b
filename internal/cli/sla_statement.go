package cli

import (
	_ "embed" // of the page
	"encoding/csv"
	"errors"
	"fmt"
	"html/template"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/journal"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/sla"
)

// statementFlags are the flags of batuta sla itself.
type statementFlags struct {
	journalFlags
	service, period, format, target, hours string
}

func (f *statementFlags) add(cmd *cobra.Command) {
	f.journalFlags.add(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.service, "service", "", "only services (or whatever else the journal knows) with this text in their name; default: all services, else all addresses")
	fl.StringVar(&f.period, "period", "month", "year, quarter, month, week or day: the present one; or 2026, 2026-Q4, 2026-10, 2026-W43, 2026-10-25")
	fl.StringVar(&f.format, "format", "text", "text, json, csv or html")
	fl.StringVar(&f.target, "target", "", "what was promised, like 99.95: shows the error budget and burn rates (default: the configuration's sla block)")
	fl.StringVar(&f.hours, "hours", "", `when it counts, like "Mon-Fri 08:00-18:00" (default: the configuration's sla block, else always)`)
}

// statementReport is the JSON form of batuta sla.
type statementReport struct {
	Version    int              `json:"version"`
	Zone       string           `json:"zone"`
	Statements []thingStatement `json:"statements"`
	// Late are the windows that were declared after they began: they excuse nothing.
	Late  []journal.Window `json:"late_windows"`
	Notes []string         `json:"notes"`
}

type thingStatement struct {
	Thing journal.Thing `json:"thing"`
	sla.Statement
}

func slaStatement(cmd *cobra.Command, o *options, f statementFlags) error {
	if o.json {
		f.format = "json"
	}
	write, ok := statementFormats[f.format]
	if !ok {
		return usageError(cmd, fmt.Errorf("--format: no form %q: text, json, csv or html", f.format))
	}
	s, loc, err := f.read(cmd, o)
	if err != nil {
		return err
	}
	now := time.Now().In(loc)
	period, err := sla.ParsePeriod(f.period, now)
	if err != nil {
		return usageError(cmd, fmt.Errorf("--period: %w", err))
	}
	if _, err := f.agreement(model.Agreement{}, loc); err != nil {
		return usageError(cmd, err)
	}
	things, err := f.things(s)
	if err != nil {
		return err
	}
	r := statementReport{Version: slaVersion, Zone: loc.String(), Statements: []thingStatement{}, Late: []journal.Window{}, Notes: []string{}}
	for _, w := range s.LateWindows() {
		if w.From.Before(period.To) && w.To.After(period.From) {
			r.Late = append(r.Late, w)
		}
	}
	for _, t := range things {
		agreed, err := f.agreement(s.Agreed(t), loc)
		if err != nil {
			return fmt.Errorf("%s: %w", t, err)
		}
		st, err := sla.Account(s.IntervalsIn(t, sla.Reach(period, now), period.To), period, now, agreed)
		if err != nil {
			return fmt.Errorf("%s: %w", t, err)
		}
		r.Statements = append(r.Statements, thingStatement{t, st})
	}
	r.Notes = append(r.Notes, s.Notes()...)
	return write(cmd.OutOrStdout(), r)
}

// agreement is what the configuration promised, with what the flags say instead.
func (f *statementFlags) agreement(a model.Agreement, loc *time.Location) (sla.Agreement, error) {
	if f.target != "" {
		if _, err := sla.Agree(model.Agreement{Target: f.target}, loc); err != nil {
			return sla.Agreement{}, fmt.Errorf("--target: %w", err)
		}
		a.Target = f.target
	}
	if f.hours != "" {
		if _, err := sla.Agree(model.Agreement{Hours: f.hours}, loc); err != nil {
			return sla.Agreement{}, fmt.Errorf("--hours: %w", err)
		}
		a.Hours, a.Zone = f.hours, ""
	}
	return sla.Agree(a, loc)
}

// things are what the statements are about.
func (f *statementFlags) things(s *journal.Story) ([]journal.Thing, error) {
	of := func(kind string) (list []journal.Thing) {
		for _, t := range s.Things() {
			if (kind == "" || t.Kind == kind) && strings.Contains(t.String(), f.service) {
				list = append(list, t)
			}
		}
		return list
	}
	for _, kind := range []string{journal.ThingService, journal.ThingAddress, ""} {
		if list := of(kind); len(list) > 0 {
			return list, nil
		}
	}
	if f.service != "" {
		_, err := s.Find(f.service)
		return nil, err
	}
	return nil, errors.New("the journal knows of nothing yet: let the node run")
}

// statementFormats are the forms of --format.
var statementFormats = map[string]func(io.Writer, statementReport) error{
	"text": writeStatements,
	"json": func(w io.Writer, r statementReport) error { return printJSON(w, r) },
	"csv":  writeStatementsCSV,
	"html": func(w io.Writer, r statementReport) error { return statementPage.Execute(w, r) },
}

func writeStatements(w io.Writer, r statementReport) error {
	for i, st := range r.Statements {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "%s\n%s", st.Thing, st.Statement)
	}
	for _, l := range r.Late {
		fmt.Fprintf(w, "! maintenance from %s was declared after it began, at %s: it excuses nothing (%s)\n",
			l.From.Format(time.RFC3339), l.Declared.Format(time.RFC3339), l.Reason)
	}
	for _, n := range r.Notes {
		fmt.Fprintln(w, "! "+n)
	}
	return nil
}

func writeStatementsCSV(w io.Writer, r statementReport) error {
	out := csv.NewWriter(w)
	rows := [][]string{{"thing", "period", "from", "until", "service_seconds", "up_seconds", "degraded_seconds", "down_seconds", "planned_seconds",
		"unknown_seconds", "availability", "availability_with_planned", "availability_at_worst", "failures", "mtbf_seconds", "mttr_seconds",
		"detect_seconds", "decide_seconds", "switch_seconds", "verify_seconds", "mtbf_low_seconds", "mtbf_high_seconds", "longest_outage_seconds",
		"target", "budget_seconds", "budget_left_seconds"}}
	seconds := func(s sla.Span) string {
		b, _ := s.MarshalJSON() // never fails for a number
		return string(b)
	}
	maybe := func(s *sla.Span) string {
		if s == nil {
			return ""
		}
		return seconds(*s)
	}
	percent := func(u *sla.Unavailability) string {
		if u == nil {
			return ""
		}
		return u.String()
	}
	for _, s := range r.Statements {
		row := []string{s.Thing.String(), s.Period.Name, s.Period.From.Format(time.RFC3339), s.Until.Format(time.RFC3339),
			seconds(s.Service), seconds(s.Up), seconds(s.Degraded), seconds(s.Down), seconds(s.Planned), seconds(s.Unknown),
			percent(s.Unplanned), percent(s.Total), percent(s.Worst), strconv.Itoa(s.Failures), maybe(s.MTBF), maybe(s.MTTR),
			seconds(s.Parts.Detect), seconds(s.Parts.Decide), seconds(s.Parts.Switch), seconds(s.Parts.Verify), "", "", "", "", "", ""}
		more := row[len(row)-6:]
		if b := s.Bounds; b != nil {
			more[0] = seconds(b.Low)
			if s.Failures > 0 {
				more[1] = seconds(b.High)
			}
		}
		if s.Longest != nil {
			more[2] = seconds(s.Longest.Down)
		}
		if b := s.Budget; b != nil {
			more[3], more[4], more[5] = b.Target.String(), seconds(b.Allowed), seconds(b.Left)
		}
		rows = append(rows, row)
	}
	if err := out.WriteAll(rows); err != nil {
		return fmt.Errorf("write the statement: %w", err)
	}
	return nil
}

// statementPage is one page without scripts that prints well.
//
//go:embed statement.html
var statementHTML string

var statementPage = template.Must(template.New("statement").Funcs(template.FuncMap{
	"stamp": func(t time.Time, zone string) string {
		if loc, err := time.LoadLocation(zone); err == nil {
			t = t.In(loc)
		}
		return t.Format("2006-01-02 15:04:05 MST")
	},
	"rate": func(r *float64) string {
		if r == nil {
			return "unknown"
		}
		return strconv.FormatFloat(*r, 'g', 3, 64)
	},
	// bar are the shares of a statement's time, in percent of its width.
	"bar": func(s sla.Statement) []barPart {
		var parts []barPart
		for _, p := range []struct {
			state sla.State
			time  sla.Span
		}{{sla.Up, s.Up}, {sla.Degraded, s.Degraded}, {sla.Down, s.Down}, {sla.Planned, s.Planned}, {sla.Unknown, s.Unknown}} {
			if p.time > 0 && s.Service > 0 {
				parts = append(parts, barPart{p.state, float64(100 * p.time / s.Service), p.time})
			}
		}
		return parts
	},
	"finite":  func(s sla.Span) bool { return !math.IsInf(float64(s), 0) },
	"percent": func(c float64) string { return strconv.FormatFloat(100*c, 'g', 4, 64) + " %" },
}).Parse(statementHTML))

// barPart is one state's part of a bar.
type barPart struct {
	State sla.State
	Width float64
	Time  sla.Span
}
