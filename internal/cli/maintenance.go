package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/journal"
	"github.com/batuta-ha/batuta/internal/model"
)

func newMaintenanceCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "maintenance",
		Short: "Declare when service may be missing",
		Long: `Windows in which service may be missing. Down time within one is planned. All
nodes of a cluster know the same windows: the daemon tells the others, also
those that come back later. Without a daemon a window is recorded here, and told
when the node runs again.`,
		Example: `  batuta maintenance plan --from "2026-12-01 22:00" --to "2026-12-01 23:00" --reason "new switch"
  batuta maintenance list
  batuta maintenance cancel w3f9a1c2`,
		Args: positional(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newMaintenancePlanCommand(o), newMaintenanceCancelCommand(o), newMaintenanceListCommand(o))
	return cmd
}

// windowReport is the JSON form of plan and cancel.
type windowReport struct {
	Version int `json:"version"`
	journal.Window
	Late  bool             `json:"late"` // declared after it began
	Nodes []model.NodeName `json:"nodes,omitempty"`
}

func newMaintenancePlanCommand(o *options) *cobra.Command {
	var from, to, tz string
	var r api.PlanRequest
	cmd := &cobra.Command{
		Use:   "plan --from TIME --to TIME --reason TEXT",
		Short: "Declare a maintenance window before it begins",
		Long: `Declare a window in which service may be missing: batuta sla counts down time
within it as planned. A window that has begun already is recorded as well and
flagged: it excuses nothing.`,
		Example: `  batuta maintenance plan --from "2026-12-01 22:00" --to "2026-12-01 23:00" --reason "new switch"
  batuta maintenance plan --from +10m --to +40m --about 10.1.0.100 --reason "move to the new rack"`,
		Args: positional(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			loc, err := zone(tz)
			if err != nil {
				return usageError(cmd, err)
			}
			now := time.Now().In(loc)
			if r.From, err = parseTime(from, now); err != nil {
				return usageError(cmd, fmt.Errorf("--from: %w", err))
			}
			if r.To, err = parseTime(to, now); err != nil {
				return usageError(cmd, fmt.Errorf("--to: %w", err))
			}
			w := journal.Window{ID: journal.NewWindowID(), Declared: now, From: r.From, To: r.To, About: r.About, Reason: r.Reason, By: caller()}
			if err := w.Check(); err != nil {
				return usageError(cmd, err)
			}
			a, err := o.client().Plan(cmd.Context(), r)
			if nobodyThere(err) {
				if _, err := journal.Declare(journal.Dir(o.stateDir), w); err != nil {
					return err
				}
				a, err = api.PlanAnswer{Window: w, Late: w.Late()}, nil
			}
			if err != nil {
				return err
			}
			return tellWindow(cmd.OutOrStdout(), o, a, "")
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&from, "from", "", "when it begins: 2026-12-01 22:00, 22:00 today, or +10m")
	fl.StringVar(&to, "to", "", "when it ends")
	fl.StringVar(&r.About, "about", "", "only what has this text in its name, like 10.1.0.100 (default: everything)")
	fl.StringVar(&r.Reason, "reason", "", "what it is for")
	fl.StringVar(&tz, "tz", "", "time zone, like Europe/Berlin (default: this machine's)")
	return cmd
}

func newMaintenanceCancelCommand(o *options) *cobra.Command {
	var r api.CancelRequest
	cmd := &cobra.Command{
		Use:   "cancel WINDOW",
		Short: "Take a maintenance window back",
		Long: `Cancel a window, named as plan and list show it. One that has begun ends now:
what went before was maintenance all the same. One that is over stays.`,
		Example: "  batuta maintenance cancel w3f9a1c2 --reason \"the switch did not come\"",
		Args:    positional(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Window = args[0]
			a, err := o.client().Unplan(cmd.Context(), r)
			if nobodyThere(err) {
				var w journal.Window
				if w, _, err = journal.Revoke(journal.Dir(o.stateDir), journal.Cancel{Window: r.Window, At: time.Now(), By: caller(), Reason: r.Reason}); err != nil {
					return err
				}
				a = api.PlanAnswer{Window: w, Late: w.Late()}
			}
			if err != nil {
				return err
			}
			return tellWindow(cmd.OutOrStdout(), o, a, "canceled: ")
		},
	}
	cmd.Flags().StringVar(&r.Reason, "reason", "", "why it is not needed")
	return cmd
}

// listReport is the JSON form of list.
type listReport struct {
	Version int            `json:"version"`
	Windows []windowReport `json:"windows"`
}

func newMaintenanceListCommand(o *options) *cobra.Command {
	var all bool
	var f journalFlags
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "The maintenance windows that are to come or go on",
		Long:    `List the windows of the journal that are not over; with --all also those that are.`,
		Example: "  batuta maintenance list --all",
		Args:    positional(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, loc, err := f.read(cmd, o)
			if err != nil {
				return err
			}
			r := listReport{Version: journalVersion, Windows: []windowReport{}}
			now := time.Now()
			for _, w := range s.Windows {
				if all || w.End().After(now) {
					r.Windows = append(r.Windows, windowReport{Version: journalVersion, Window: w, Late: w.Late()})
				}
			}
			out := cmd.OutOrStdout()
			if o.json {
				return printJSON(out, r)
			}
			if len(r.Windows) == 0 {
				fmt.Fprintln(out, "no maintenance is planned")
			}
			for _, w := range r.Windows {
				fmt.Fprintf(out, "%s  %s\n", w.ID, windowText(w.Window, loc))
			}
			return nil
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "also those that are over")
	return cmd
}

// nobodyThere tells whether no daemon runs that could be asked.
func nobodyThere(err error) bool {
	return errors.Is(err, api.ErrNotRunning) || errors.Is(err, api.ErrDied)
}

// caller is who runs this command, as the environment has it: without a daemon
// nobody else can tell.
func caller() string {
	if by := os.Getenv("SUDO_USER"); by != "" {
		return by
	}
	return os.Getenv("USER")
}

func windowText(w journal.Window, loc *time.Location) string {
	what := "everything"
	if w.About != "" {
		what = w.About
	}
	text := fmt.Sprintf("maintenance of %s from %s to %s: %s%s", what, w.From.In(loc).Format(time.RFC3339), w.To.In(loc).Format(time.RFC3339), w.Reason, by(w.By))
	switch {
	case w.Canceled != nil && w.Excuses():
		text += "; ended by cancellation at " + w.Canceled.At.In(loc).Format(time.RFC3339)
	case w.Canceled != nil:
		text += "; canceled"
	case w.Late():
		text += "; declared after it began: it excuses nothing"
	}
	return text
}

func tellWindow(out io.Writer, o *options, a api.PlanAnswer, prefix string) error {
	if o.json {
		return printJSON(out, windowReport{journalVersion, a.Window, a.Late, a.Nodes})
	}
	w := a.Window
	fmt.Fprintf(out, "%s%s: %s\n", prefix, w.ID, windowText(w, w.From.Location()))
	if len(a.Nodes) > 0 {
		names := make([]string, len(a.Nodes))
		for i, n := range a.Nodes {
			names[i] = string(n)
		}
		fmt.Fprintf(out, "known to %s\n", strings.Join(names, ", "))
	}
	return nil
}
