package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/doctor"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/node"
)

func newDoctorCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Say what is wrong with this machine's settings, and how to mend it",
		Long: `Look at this machine, a director or a real server of one, and explain settings
that do not go together: forwarding, redirects, filters of the way back, ARP for
hidden virtual addresses, tunnels that are too narrow, sync daemons in the open,
and settings of IPVS. Each finding has a code and the command that mends it.
Nothing is changed. The exit code is 1 where something is found that does not
work, or will not some day.`,
		Example: "  batuta doctor\n  batuta doctor --json",
		Args:    positional(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			st, err := o.client().Status(ctx)
			var t api.Table
			switch {
			case errors.Is(err, api.ErrNotRunning) || errors.Is(err, api.ErrDied):
			case err != nil:
				return err
			case st.Plane != "": // it balances
				if t, err = o.client().Table(ctx); err != nil {
					return err
				}
			}
			facts, err := node.Facts(ctx, t, st)
			if err != nil {
				return err
			}
			found := doctor.Examine(facts)
			if err := o.printFindings(cmd, found); err != nil {
				return err
			}
			if len(found) > 0 && found[0].Level >= model.LevelWarning {
				return &exitError{exitFailed, ""}
			}
			return nil
		},
	}
}

// findings is the document of doctor --json.
type findings struct {
	Version  int              `json:"version"`
	Findings []doctor.Finding `json:"findings"`
}

func (o *options) printFindings(cmd *cobra.Command, found []doctor.Finding) error {
	out := cmd.OutOrStdout()
	if o.json {
		return printJSON(out, findings{api.Version, append([]doctor.Finding{}, found...)})
	}
	if len(found) == 0 {
		fmt.Fprintln(out, "nothing found")
	}
	for _, x := range found {
		fmt.Fprintf(out, "%s %s: %s\n", x.Code, x.Level, x.Text)
		if x.Fix != "" {
			fmt.Fprintf(out, "    %s\n", x.Fix)
		}
	}
	return nil
}
