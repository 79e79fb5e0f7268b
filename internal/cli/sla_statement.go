package cli

import (
	"encoding/csv"
	"errors"
	"fmt"
	"html/template"
	"io"
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
		"unknown_seconds", "availability", "availability_with_planned", "failures", "mtbf_seconds", "mttr_seconds",
		"detect_seconds", "decide_seconds", "switch_seconds", "verify_seconds"}}
	seconds := func(s sla.Span) string { return strconv.FormatFloat(float64(s), 'f', -1, 64) }
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
		rows = append(rows, []string{s.Thing.String(), s.Period.Name, s.Period.From.Format(time.RFC3339), s.Until.Format(time.RFC3339),
			seconds(s.Service), seconds(s.Up), seconds(s.Degraded), seconds(s.Down), seconds(s.Planned), seconds(s.Unknown),
			percent(s.Unplanned), percent(s.Total), strconv.Itoa(s.Failures), maybe(s.MTBF), maybe(s.MTTR),
			seconds(s.Parts.Detect), seconds(s.Parts.Decide), seconds(s.Parts.Switch), seconds(s.Parts.Verify)})
	}
	if err := out.WriteAll(rows); err != nil {
		return fmt.Errorf("write the statement: %w", err)
	}
	return nil
}

// statementPage is one page without scripts that prints well.
var statementPage = template.Must(template.New("statement").Parse(`<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>Availability</title>
<style>body{font:16px/1.5 sans-serif;max-width:50em;margin:2em auto;padding:0 1em}h2{margin-bottom:.2em}pre{background:#f4f4f4;padding:1em;overflow:auto}.flag{color:#a00}</style>
<h1>Availability</h1>
{{range .Statements}}<h2>{{.Thing}}</h2>
<p>{{.Period.Name}}: <strong>{{with .Unplanned}}{{.}}{{else}}not enough data{{end}}</strong>; down {{.Down}}, planned {{.Planned}}, unknown {{.Unknown}}; failures: {{.Failures}}</p>
<pre>{{.Statement.String}}</pre>
{{end}}{{range .Late}}<p class="flag">Maintenance from {{.From}} was declared after it began, at {{.Declared}}: it excuses nothing ({{.Reason}})</p>
{{end}}{{range .Notes}}<p class="flag">{{.}}</p>
{{end}}</html>
`))
