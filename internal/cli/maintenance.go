package cli

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/journal"
)

func newMaintenanceCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "maintenance",
		Short:   "Declare when service may be missing",
		Long:    `Windows in which service may be missing. Down time within one is planned.`,
		Example: `  batuta maintenance plan --from "2026-12-01 22:00" --to "2026-12-01 23:00" --reason "new switch"`,
		Args:    positional(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newMaintenancePlanCommand(o))
	return cmd
}

func newMaintenancePlanCommand(o *options) *cobra.Command {
	var from, to, tz string
	var w journal.Window
	cmd := &cobra.Command{
		Use:   "plan --from TIME --to TIME --reason TEXT",
		Short: "Declare a maintenance window before it begins",
		Long: `Declare a window in which service may be missing: batuta sla counts down time
within it as planned. It is recorded in this node's journal, whether the daemon
runs or not. A window that has begun already is recorded as well and flagged:
it excuses nothing.`,
		Example: `  batuta maintenance plan --from "2026-12-01 22:00" --to "2026-12-01 23:00" --reason "new switch"
  batuta maintenance plan --from +10m --to +40m --about 10.1.0.100 --reason "move to the new rack"`,
		Args: positional(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			loc, err := zone(tz)
			if err != nil {
				return usageError(cmd, err)
			}
			now := time.Now().In(loc)
			if w.From, err = parseTime(from, now); err != nil {
				return usageError(cmd, fmt.Errorf("--from: %w", err))
			}
			if w.To, err = parseTime(to, now); err != nil {
				return usageError(cmd, fmt.Errorf("--to: %w", err))
			}
			switch {
			case !w.From.Before(w.To):
				return usageError(cmd, errors.New("the window ends before it begins"))
			case w.Reason == "":
				return usageError(cmd, errors.New("--reason: say what the window is for; the statement will show it"))
			}
			w.Declared, w.By = now, os.Getenv("SUDO_USER")
			if w.By == "" {
				w.By = os.Getenv("USER")
			}
			w.ID = journal.NewWindowID()
			if _, err := journal.Declare(journal.Dir(o.stateDir), w); err != nil {
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), windowReport{journalVersion, w, w.Late()})
			}
			what := "everything"
			if w.About != "" {
				what = w.About
			}
			fmt.Fprintf(cmd.OutOrStdout(), "maintenance of %s from %s to %s: %s\n", what, w.From.Format(time.RFC3339), w.To.Format(time.RFC3339), w.Reason)
			if w.Late() {
				fmt.Fprintln(cmd.OutOrStdout(), "! it was declared after it began: it is recorded, and excuses nothing")
			}
			return nil
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&from, "from", "", "when it begins: 2026-12-01 22:00, 22:00 today, or +10m")
	fl.StringVar(&to, "to", "", "when it ends")
	fl.StringVar(&w.About, "about", "", "only what has this text in its name, like 10.1.0.100 (default: everything)")
	fl.StringVar(&w.Reason, "reason", "", "what it is for")
	fl.StringVar(&tz, "tz", "", "time zone, like Europe/Berlin (default: this machine's)")
	return cmd
}

// windowReport is the JSON form of a window.
type windowReport struct {
	Version int `json:"version"`
	journal.Window
	Late bool `json:"late"` // declared after it began
}
