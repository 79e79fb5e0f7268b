package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newTableCommand(o *options) *cobra.Command {
	var stats, rate, connections, save bool
	cmd := &cobra.Command{
		Use:   "table",
		Short: "Print the table of the running daemon as ipvsadm does",
		Long: `Print the virtual services and real servers of the running daemon, in the text
form of ipvsadm -L -n, whatever carries the packets (IPVS, eBPF or proxy).`,
		Example: "  batuta table -n\n  batuta table --stats\n  batuta table --connections",
		Args:    positional(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if form, second := chosen(cmd, "stats", "rate", "connections", "save"); second != "" {
				return usageError(cmd, fmt.Errorf("--%s and --%s are two different listings: ask for one", form, second))
			}
			out := cmd.OutOrStdout()
			if connections {
				flows, err := o.client().Flows(cmd.Context())
				if err != nil {
					return err
				}
				if o.json {
					return printJSON(out, flows)
				}
				writeFlows(out, flows.Flows)
				return nil
			}
			t, err := o.client().Table(cmd.Context())
			if err != nil {
				return err
			}
			switch {
			case o.json:
				return printJSON(out, t)
			case save:
				writeSave(out, t)
			case stats:
				writeCounters(out, t, t.Counters, statsHead)
			case rate:
				writeCounters(out, t, t.Rates, rateHead)
			default:
				writeList(out, t)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolP("numeric", "n", true, "print numbers, not names (always so; accepted because hands type it)")
	f.BoolVar(&stats, "stats", false, "totals: connections, packets, bytes")
	f.BoolVar(&rate, "rate", false, "the same per second")
	f.BoolVarP(&connections, "connections", "c", false, "the connections one by one")
	f.BoolVar(&save, "save", false, "the commands that make this table, as ipvsadm -S -n")
	return cmd
}

// chosen returns the first two of the flags that were given.
func chosen(cmd *cobra.Command, flags ...string) (first, second string) {
	for _, f := range flags {
		switch {
		case !cmd.Flags().Changed(f):
		case first == "":
			first = f
		case second == "":
			second = f
		}
	}
	return first, second
}
