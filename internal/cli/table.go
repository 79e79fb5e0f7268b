package cli

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/node"
)

func newTableCommand(o *options) *cobra.Command {
	var l listing
	var numeric, save, dryRun bool
	var restore string
	cmd := &cobra.Command{
		Use:   "table",
		Short: "Print the table of the running daemon as ipvsadm does",
		Long: `Print the virtual services and real servers of the running daemon, in the text
form of ipvsadm -L -n, whatever carries the packets (IPVS, eBPF or proxy).

--save writes the commands that make the table, as ipvsadm -S -n; --restore
carries such commands out on this machine's IPVS, as ipvsadm -R, but adds only
what is not there, and may be repeated.`,
		Example: "  batuta table -n\n  batuta table --stats --exact\n  batuta table --connections\n  batuta table --restore ipvs.rules --dry-run",
		Args:    positional(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			what, second := chosen(cmd, "stats", "rate", "connections", "thresholds", "persistent-conn", "tun-info", "timeout", "daemon", "sysctl", "save", "restore")
			if second != "" {
				return usageError(cmd, fmt.Errorf("--%s and --%s are two different listings: ask for one", what, second))
			}
			if !numeric {
				l.names = newMachineNames(cmd.Context())
			}
			l.form = map[string]form{"stats": formStats, "rate": formRate, "thresholds": formThresholds,
				"persistent-conn": formPersistent, "tun-info": formTunnels}[what]
			if dryRun && what != "restore" {
				return usageError(cmd, fmt.Errorf("--dry-run goes with --restore"))
			}
			switch what {
			case "restore":
				return restoreTable(cmd, restore, dryRun)
			case "connections":
				return o.flows(cmd.Context(), cmd.OutOrStdout(), l)
			}
			return o.table(cmd.Context(), cmd.OutOrStdout(), l, what)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&numeric, "numeric", "n", true, "print numbers; -n=false prints names")
	f.Bool("stats", false, "totals: connections, packets, bytes")
	f.Bool("rate", false, "the same per second")
	f.BoolVar(&l.exact, "exact", false, "counters in full, not in thousands")
	f.BoolP("connections", "c", false, "the connections one by one")
	f.Bool("thresholds", false, "connections at which a real server gets no more, and again")
	f.Bool("persistent-conn", false, "how many clients are bound to each real server")
	f.Bool("tun-info", false, "how tunnels wrap")
	f.Bool("timeout", false, "how long silent connections stay")
	f.Bool("daemon", false, "daemons that share connections with other directors")
	f.Bool("sysctl", false, "the kernel's settings below net.ipv4.vs")
	f.Bool("sort", false, "as always; accepted because hands type it")
	f.BoolVar(&save, "save", false, "the commands that make this table, as ipvsadm -S -n")
	f.StringVar(&restore, "restore", "", "carry the commands of `FILE` out on this machine's IPVS (- for standard input)")
	f.BoolVar(&dryRun, "dry-run", false, "with --restore: print what would change")
	return cmd
}

func (o *options) flows(ctx context.Context, out io.Writer, l listing) error {
	flows, err := o.client().Flows(ctx)
	if err != nil {
		return err
	}
	if o.json {
		return printJSON(out, flows)
	}
	l.writeFlows(out, flows.Flows)
	return nil
}

func (o *options) table(ctx context.Context, out io.Writer, l listing, what string) error {
	t, err := o.client().Table(ctx)
	if err != nil {
		return err
	}
	switch {
	case o.json:
		return printJSON(out, t)
	case what == "save":
		l.writeSave(out, t)
	case what == "timeout":
		writeTimeouts(out, t.Timeouts)
	case what == "daemon":
		writeDaemons(out, t.Sync)
	case what == "sysctl":
		writeSysctls(out, t)
	default:
		return l.write(out, t)
	}
	return nil
}

// writeSysctls is sysctl net.ipv4.vs.
func writeSysctls(w io.Writer, t api.Table) {
	for _, s := range t.Sysctls {
		fmt.Fprintf(w, "net.ipv4.vs.%s = %s\n", s.Name, s.Value)
	}
}

// restoreTable carries saved commands out on the kernel's table.
func restoreTable(cmd *cobra.Command, file string, dryRun bool) error {
	in := cmd.InOrStdin()
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	changes, err := readSave(in, newMachineNames(cmd.Context()))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	kernel, err := node.OpenKernel()
	if err != nil {
		return err
	}
	defer kernel.Close() //nolint:errcheck // what was written is in the kernel
	changes, err = kernel.Restore(cmd.Context(), changes, dryRun)
	for _, c := range changes {
		fmt.Fprintln(cmd.OutOrStdout(), c)
	}
	return err
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
