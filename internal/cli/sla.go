package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	_ "time/tzdata" // --tz names zones on machines without a time zone database

	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/journal"
	"github.com/batuta-ha/batuta/internal/sla"
)

// slaVersion is the version of the JSON forms of this verb.
const slaVersion = 1

func newSLACommand(o *options) *cobra.Command {
	var f statementFlags
	cmd := &cobra.Command{
		Use:   "sla",
		Short: "Availability as a number: statements, the table of nines, predictions",
		Long: `Availability is the share of time with service:

  A = MTBF/(MTBF+MTTR)

the mean time between failures, divided by it and the mean time to repair.

Without a further word, state how available the services were in a period, from
the journal of this node, or with --journal from those of several. Planned down
time and what nobody recorded are told apart.`,
		Example: "  batuta sla --period 2026-10 --target 99.95\n  batuta sla --service 10.1.0.100:80 --period week --format csv\n  batuta sla nines\n  batuta sla model --preset active-passive",
		Args:    positional(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return slaStatement(cmd, o, f) },
	}
	f.add(cmd)
	cmd.AddCommand(newSLANinesCommand(o), newSLAModelCommand(o))
	return cmd
}

// ninesFlags are the flags of batuta sla nines.
type ninesFlags struct{ downtime, per, calendar, tz, at string }

func newSLANinesCommand(o *options) *cobra.Command {
	var f ninesFlags
	cmd := &cobra.Command{
		Use:   "nines [PERCENT | --downtime D --per PERIOD]",
		Short: "How much down time a percentage is, and the other way round",
		Long: `Print how much down time an availability leaves in a year, a quarter, a month, a
week and a day: for one percentage, or as a table from 90 % to seven nines. With
--downtime and --per, the other way round: which availability that much down
time leaves.

The periods are those around now, with leap years and the days of 23 and 25
hours of the time zone. --calendar conventional takes a year of 365 days, a
quarter of 90, a month of 30.`,
		Example: "  batuta sla nines\n  batuta sla nines 99.95\n  batuta sla nines --downtime 43m12s --per month --calendar conventional",
		Args:    positional(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return slaNines(cmd, o, f, args)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.downtime, "downtime", "", "down time to convert, like 43m12s or 3d (needs --per)")
	fl.StringVar(&f.per, "per", "", "the period of --downtime: year, quarter, month, week, day")
	fl.StringVar(&f.calendar, "calendar", "actual", "actual: the periods around now; conventional: 365, 90, 30, 7, 1 days")
	fl.StringVar(&f.tz, "tz", "", "time zone of the actual calendar, like Europe/Berlin (default: this machine's)")
	fl.StringVar(&f.at, "at", "", "a day like 2026-10-25 to take instead of now")
	return cmd
}

// ninesReport is the JSON form of batuta sla nines.
type ninesReport struct {
	Version  int             `json:"version"`
	Calendar sla.Calendar    `json:"calendar"`
	Zone     string          `json:"zone,omitempty"` // of the actual calendar
	Periods  []sla.Yardstick `json:"periods"`
	Rows     []sla.NinesRow  `json:"rows"`
	Question *ninesQuestion  `json:"question,omitempty"` // what --downtime asked
}

type ninesQuestion struct {
	DownTime sla.Span `json:"down_seconds"`
	Per      sla.Unit `json:"per"`
}

func slaNines(cmd *cobra.Command, o *options, f ninesFlags, args []string) error {
	calendar, err := sla.ParseCalendar(f.calendar)
	if err != nil {
		return usageError(cmd, fmt.Errorf("--calendar: %w", err))
	}
	at, err := instant(f.tz, f.at)
	if err != nil {
		return usageError(cmd, err)
	}
	r := ninesReport{Version: slaVersion, Calendar: calendar, Periods: sla.Yardsticks(calendar, at)}
	if calendar == sla.CalendarActual {
		r.Zone = at.Location().String()
	}
	switch {
	case (f.downtime != "") != (f.per != ""):
		return usageError(cmd, errors.New("--downtime and --per belong together"))
	case f.downtime != "" && len(args) > 0:
		return usageError(cmd, errors.New("give a percentage or a down time, not both"))
	case f.downtime != "":
		u, q, err := shortfall(f, r.Periods)
		if err != nil {
			return usageError(cmd, err)
		}
		r.Question, r.Rows = &q, []sla.NinesRow{sla.Allowed(u, r.Periods)}
	case len(args) > 0:
		u, err := sla.ParsePercent(args[0])
		if err != nil {
			return usageError(cmd, err)
		}
		r.Rows = []sla.NinesRow{sla.Allowed(u, r.Periods)}
	default:
		r.Rows = sla.NinesTable(r.Periods)
	}
	out := cmd.OutOrStdout()
	if o.json {
		return printJSON(out, r)
	}
	if r.Question != nil {
		fmt.Fprintf(out, "%s of down time a %s leave %s\n\n", r.Question.DownTime, r.Question.Per, r.Rows[0].Target)
	}
	fmt.Fprint(out, sla.NinesText(r.Rows, r.Periods))
	return nil
}

// instant is noon of the day, or now, in the zone.
func instant(zone, day string) (time.Time, error) {
	loc := time.Local
	if zone != "" {
		var err error
		if loc, err = time.LoadLocation(zone); err != nil {
			return time.Time{}, fmt.Errorf("--tz: %w: write it like Europe/Berlin", err)
		}
	}
	if day == "" {
		return time.Now().In(loc), nil
	}
	t, err := time.Parse(time.DateOnly, day)
	if err != nil {
		return time.Time{}, fmt.Errorf("--at: %q is no day: write it like 2026-10-25", day)
	}
	return time.Date(t.Year(), t.Month(), t.Day(), 12, 0, 0, 0, loc), nil
}

func shortfall(f ninesFlags, periods []sla.Yardstick) (sla.Unavailability, ninesQuestion, error) {
	down, err := sla.ParseSpan(f.downtime)
	if err != nil {
		return 0, ninesQuestion{}, fmt.Errorf("--downtime: %w", err)
	}
	per, err := sla.ParseUnit(f.per)
	if err != nil {
		return 0, ninesQuestion{}, fmt.Errorf("--per: %w", err)
	}
	for _, p := range periods {
		if p.Per == per {
			u, err := sla.Shortfall(down, p.Length)
			return u, ninesQuestion{down, per}, err
		}
	}
	return 0, ninesQuestion{}, fmt.Errorf("--per: no period %s", per)
}

// modelFlags are the flags of batuta sla model.
type modelFlags struct {
	preset, class, target string
	settings              map[string]*string // by name; those given replace the preset's
	whatIf                []string
	fromJournal           bool
	journal               journalFlags
}

// modelSettings are the settings of a preset that have a flag, with its help.
var modelSettings = [][2]string{
	{"mtbf", "mean operating time between failures of a node (default 1000h)"},
	{"mttr", "mean time to repair a node (default 10h)"},
	{"nodes", "nodes that carry the load"},
	{"spares", "nodes that wait to take over"},
	{"coverage", "probability that a failure is noticed and handled (default 1)"},
	{"crews", "nodes that can be repaired at once (default 1)"},
	{"failover", "mean time to take over (default 0s)"},
	{"beta", "share of failures that hit all nodes at once (default 0)"},
	{"required", "nodes that must carry for the service to be up"},
	{"standby", "failure rate of a spare relative to a working node, 0 cold to 1 hot (default 1)"},
}

func newSLAModelCommand(o *options) *cobra.Command {
	f := modelFlags{settings: map[string]*string{}}
	cmd := &cobra.Command{
		Use:   "model FILE | --preset NAME",
		Short: "Predict availability from MTBF, MTTR and redundancy",
		Long: `Predict the availability of a system whose parts fail and are repaired: from a
file, or for one of the usual clusters:

  active-passive  one node carries the load, a spare takes over
  active-active   all nodes carry: a failure costs capacity, not service
  n+1, n+m        N nodes carry, all are needed, 1 or M spares

A file describes units and clusters, in series (all needed), in parallel (one is
enough) or k of n; the outermost are in series:

  title  = "web shop"
  target = "99.95%"
  class  = "highly-available"       # general, highly-available, critical, long-lived

  unit "uplink" {
    mtbf = "4000h"
    mttr = "4h"
  }
  cluster "directors" {
    preset   = "active-passive"     # or nodes, spares, required
    mtbf     = "1000h"
    mttr     = "10h"
    coverage = 0.99
    failover = "2s"
  }
  k_of_n "web" {
    need       = 2
    count      = 4
    redundancy = "passive"
    beta       = 0.02
    unit "web server" {
      mtbf = "2000h"
      mttr = "5h"
    }
  }

A unit has mttr, and mtbf or availability; a cluster besides crews, standby (0
cold to 1 hot) and beta. A chain is any Markov chain, with mean times from state
to state, beginning where all is well:

  chain "database" {
    state "good" {
      to = { replica = "1000h" }
    }
    state "replica" {
      capacity = 0.5
      to       = { good = "10h", lost = "1000h" }
    }
    state "lost" {
      up = false
      to = { replica = "20h" }
    }
  }

With --from-journal, MTBF, MTTR, coverage and failover are those that the
journal has seen: of a preset, and of a file's clusters of several nodes, the
nodes'; of a file's unit those of the thing with its name in batuta status --at
("lvs01", "10.0.0.11:80"). Flags that are given count more.

Failures and repairs have no memory; the table of what would help most tries one
change at a time. --what-if combines changes of your own.`,
		Example: `  batuta sla model --preset active-passive --mtbf 1000h --mttr 10h --coverage 0.95 --failover 2s
  batuta sla model --preset active-passive --from-journal --journal lvs01/journal --journal lvs02/journal
  batuta sla model shop.hcl --what-if directors.coverage=0.999 --what-if uplink.mttr=1h`,
		Args: positional(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return slaModel(cmd, o, f, args)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.preset, "preset", "", "active-passive, active-active, n+1 or n+m")
	for _, s := range modelSettings {
		f.settings[s[0]] = fl.String(s[0], "", s[1])
	}
	fl.StringVar(&f.class, "class", "", "class that the system is meant for: general, highly-available, critical, long-lived")
	fl.StringVar(&f.target, "target", "", "availability that it is meant to have, like 99.95")
	fl.BoolVar(&f.fromJournal, "from-journal", false, "take MTBF, MTTR, coverage and failover from the journal")
	f.journal.add(cmd)
	fl.StringArrayVar(&f.whatIf, "what-if", nil, "compare with this change: PART.SETTING=VALUE, or SETTING=VALUE with a preset; may be repeated")
	return cmd
}

// modelReport is the JSON form of batuta sla model.
type modelReport struct {
	Version  int           `json:"version"`
	Problems []sla.Problem `json:"problems,omitempty"`
	// Availability repeats service.availability, for scripts.
	Availability *float64 `json:"availability,omitempty"`
	*sla.Prediction
	Preset  string           `json:"preset,omitempty"`
	Learned []string         `json:"from_journal,omitempty"` // with --from-journal: what it told
	Node    *nodeReport      `json:"node,omitempty"`         // of a preset
	Compare []sla.Redundancy `json:"compare,omitempty"`      // of a preset: the same nodes, used in other ways
	Changed *changedReport   `json:"changed,omitempty"`      // with --what-if
}

// nodeReport is the formula of one node.
type nodeReport struct {
	MTBF         sla.Span           `json:"mtbf_seconds"`
	MTTR         sla.Span           `json:"mttr_seconds"`
	Availability sla.Unavailability `json:"node"`
}

type changedReport struct {
	Changes []string       `json:"changes"`
	Result  sla.Prediction `json:"result"`
}

func slaModel(cmd *cobra.Command, o *options, f modelFlags, args []string) error {
	if (len(args) == 1) == (f.preset != "") {
		return usageError(cmd, errors.New("give a model file or --preset, one of them"))
	}
	r := modelReport{Version: slaVersion, Preset: f.preset}
	var m *sla.Model
	var told *journal.Story
	if f.fromJournal {
		var err error
		if told, _, err = f.journal.read(cmd, o); err != nil {
			return err
		}
	}
	if f.preset != "" {
		c, learned, err := presetCluster(f, told)
		r.Learned = learned
		if err != nil {
			return usageError(cmd, err)
		}
		m = sla.ClusterModel(f.preset, c)
		r.Node = &nodeReport{c.MTBF, c.MTTR, sla.Simple(c.MTBF, c.MTTR)}
		if r.Compare, err = sla.Compare(c); err != nil {
			return usageError(cmd, err)
		}
	} else {
		for name, value := range f.settings {
			if *value != "" {
				return usageError(cmd, fmt.Errorf("--%s goes with --preset; for a file use --what-if PART.%s=%s", name, name, *value))
			}
		}
		var problems []sla.Problem
		var err error
		if m, problems, err = readModel(args[0]); err != nil {
			return err
		}
		if len(problems) > 0 {
			return badModel(cmd.OutOrStdout(), o, problems)
		}
		if told != nil {
			if r.Learned, err = learn(m, told); err != nil {
				return err
			}
		}
	}
	if err := expect(m, f); err != nil {
		return usageError(cmd, err)
	}
	p, err := m.Evaluate()
	if err != nil {
		return usageError(cmd, err)
	}
	a := p.Service.Availability()
	r.Prediction, r.Availability = &p, &a
	if len(f.whatIf) > 0 {
		changed, err := m.What(f.whatIf)
		if err != nil {
			return usageError(cmd, fmt.Errorf("--what-if: %w", err))
		}
		after, err := changed.Evaluate()
		if err != nil {
			return usageError(cmd, fmt.Errorf("--what-if: %w", err))
		}
		r.Changed = &changedReport{f.whatIf, after}
	}
	if o.json {
		return printJSON(cmd.OutOrStdout(), r)
	}
	writeModel(cmd.OutOrStdout(), r)
	return nil
}

// learn sets what the journal knows of a file's parts.
func learn(m *sla.Model, told *journal.Story) ([]string, error) {
	var failed error
	learned, err := m.Learn(func(name string, nodes int) (sla.Experience, bool) {
		e, ok, err := told.Known(name, nodes)
		failed = errors.Join(failed, err)
		return e, ok
	})
	if failed == nil && errors.Is(err, sla.ErrNoExperience) {
		return nil, fmt.Errorf("--from-journal: the journal knows no part of this model: name units like what batuta status --at shows: %w", err)
	}
	return learned, errors.Join(failed, err)
}

// presetCluster is the preset with what the journal told, if one was read, and
// the settings that were given.
func presetCluster(f modelFlags, told *journal.Story) (c sla.Cluster, learned []string, err error) {
	counts := map[string]int{}
	for _, name := range []string{"nodes", "spares"} {
		if text := *f.settings[name]; text != "" {
			c, err := sla.ParseCount(text)
			if err != nil {
				return sla.Cluster{}, nil, fmt.Errorf("--%s: %w", name, err)
			}
			counts[name] = c
		}
	}
	if c, err = sla.Preset(f.preset, counts["nodes"], counts["spares"]); err != nil {
		return c, nil, fmt.Errorf("--preset: %w", err)
	}
	if told != nil {
		e, err := told.NodesExperience()
		if err == nil {
			learned, err = e.Apply(&c)
		}
		if err != nil {
			return c, nil, fmt.Errorf("--from-journal: %w", err)
		}
	}
	for _, s := range modelSettings {
		name, text := s[0], *f.settings[s[0]]
		if _, done := counts[name]; done || text == "" {
			continue
		}
		if err := c.Set(name, text); err != nil {
			return c, nil, fmt.Errorf("--%s: %w", name, err)
		}
	}
	return c, learned, errors.Join(c.Check()...)
}

func readModel(path string) (*sla.Model, []sla.Problem, error) {
	src, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("read the model: %w", err)
	}
	m, problems := sla.Parse(path, src)
	return m, problems, nil
}

func badModel(w io.Writer, o *options, problems []sla.Problem) error {
	if o.json {
		if err := printJSON(w, modelReport{Version: slaVersion, Problems: problems}); err != nil {
			return err
		}
	} else {
		for _, p := range problems {
			fmt.Fprintln(w, p)
		}
	}
	return &exitError{code: exitBadConfig}
}

// expect puts the expectations of the command line above the file's.
func expect(m *sla.Model, f modelFlags) error {
	if f.class != "" {
		c, err := sla.ParseClass(f.class)
		if err != nil {
			return fmt.Errorf("--class: %w", err)
		}
		m.Class = c
	}
	if f.target != "" {
		u, err := sla.ParsePercent(f.target)
		if err != nil {
			return fmt.Errorf("--target: %w", err)
		}
		m.Target = &u
	}
	return nil
}

func writeModel(w io.Writer, r modelReport) {
	if len(r.Learned) > 0 {
		fmt.Fprintln(w, "From the journal")
		for _, l := range r.Learned {
			fmt.Fprintln(w, "  "+l)
		}
		fmt.Fprintln(w)
	}
	if r.Node != nil {
		fmt.Fprintf(w, "A = MTBF/(MTBF+MTTR): availability is the mean time between failures, divided by\n"+
			"it and the mean time to repair. One node: %s/(%s + %s) = %s\n\n",
			r.Node.MTBF.InHours(), r.Node.MTBF.InHours(), r.Node.MTTR.InHours(), r.Node.Availability)
	}
	fmt.Fprint(w, r.Prediction.String())
	if len(r.Compare) > 0 {
		fmt.Fprint(w, "\nThe same nodes, used in other ways\n", sla.CompareText(r.Compare))
	}
	if r.Changed != nil {
		before, after := r.Prediction, r.Changed.Result
		fmt.Fprintf(w, "\nWhat if %s\n  service   %s instead of %s\n  down time %s a year instead of %s\n  outages   %.3g a year instead of %.3g\n",
			strings.Join(r.Changed.Changes, ", "), after.Service, before.Service, after.DownYear, before.DownYear, after.PerYear, before.PerYear)
	}
}
