package cli

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/demo"
)

func newDemoCommand(o *options) *cobra.Command {
	var d time.Duration
	var keep, noRoot bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "A whole cluster on this machine: load, a failover, the measured gap",
		Long: `Build a cluster of two directors and four real servers on this machine, put
HTTP load on its service address, let a real server die, hand over from one
director to the other, crash the active one, and measure from the client's side
how long nobody answered. Everything is taken down at the end, also on Ctrl-C.

As root the machines are network namespaces with the files of the tutorial, and
the packets go through eBPF. Without root they are processes on loopback
addresses, with the proxy plane. Nothing needs to be installed.`,
		Example: "  batuta demo\n  sudo batuta demo --duration 1m\n  batuta demo --json",
		Args:    positional(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if d < demo.MinDuration {
				return usageError(cmd, fmt.Errorf("--duration %v has no room for two failovers: want at least %v", d, demo.MinDuration))
			}
			binary, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program's own file: %w", err)
			}
			dir, err := os.MkdirTemp("", "batuta-demo-")
			if err != nil {
				return fmt.Errorf("make a scratch directory: %w", err)
			}
			do := demo.Options{Duration: d, Binary: binary, Dir: dir, Root: os.Geteuid() == 0 && !noRoot, Account: cmd.OutOrStdout(), Keep: keep, RunDir: o.runDir}
			if o.json {
				do.Account = cmd.ErrOrStderr()
			}
			r, err := demo.Run(cmd.Context(), do)
			if cmd.Context().Err() != nil && (err != nil || !keep) {
				return errors.Join(errors.New("interrupted; everything is taken down"), os.RemoveAll(dir))
			}
			if err != nil {
				// The programs' output tells what the error does not.
				return fmt.Errorf("%w\nthe demo's files are kept in %s", err, dir)
			}
			if err := os.RemoveAll(dir); err != nil {
				return fmt.Errorf("remove the scratch directory: %w", err)
			}
			if o.json {
				if err := printJSON(cmd.OutOrStdout(), r); err != nil {
					return err
				}
			}
			if !r.Served() {
				return &exitError{exitFailed, "service did not continue after both failovers"}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.DurationVar(&d, "duration", 30*time.Second, "how long the load lasts, with both failovers inside it; at least 10s")
	f.BoolVar(&keep, "keep", false, "leave the cluster running after the story, until Ctrl-C")
	f.BoolVar(&noRoot, "loopback", false, "loopback addresses even as root")
	cmd.AddCommand(newDemoLoadCommand())
	return cmd
}

// newDemoLoadCommand is the load generator as a process of its own, inside
// the client's network namespace.
func newDemoLoadCommand() *cobra.Command {
	var p demo.Probes
	cmd := &cobra.Command{
		Use:    "load",
		Short:  "Ask for a page each millisecond, report each answer",
		Hidden: true,
		Args:   positional(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return demo.Load(cmd.Context(), p, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&p.URL, "url", "", "the page")
	cmd.Flags().StringVar(&p.Want, "want", "", "text of a correct answer")
	cmd.Flags().IntVar(&p.Count, "count", 0, "probes in all (default: until the end)")
	return cmd
}
