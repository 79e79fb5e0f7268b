package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/node"
)

func newRunCommand(o *options) *cobra.Command {
	var no node.Options
	var name, source string
	cmd := &cobra.Command{
		Use:   "run --ha.d DIR",
		Short: "The node daemon: heartbeat, resources and director, in the foreground",
		Long: `Run this node of the cluster that the files in DIR describe: ha.cf, authkeys,
haresources and, where a resource names it, ldirectord.cf, as they are.

SIGTERM hands the resources over to the other node and exits 0. SIGHUP reads
ldirectord.cf again; a broken file changes nothing and says why.`,
		Example: "  batuta run --ha.d /etc/ha.d",
		Args:    positional(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			no.Node = model.NodeName(strings.ToLower(name))
			if source != "" {
				a, err := netip.ParseAddr(source)
				if err != nil {
					return usageError(cmd, fmt.Errorf("--heartbeat-address: %w", err))
				}
				no.HeartbeatAddress = a
			}
			no.RunDir, no.StateDir, no.Stderr = o.runDir, o.stateDir, cmd.ErrOrStderr()
			ctx, stop := onHangup(cmd.Context(), &no.Hangup)
			defer stop()
			return daemonError(node.Run(ctx, no))
		},
	}
	f := cmd.Flags()
	f.StringVar(&no.HaD, "ha.d", "/etc/ha.d", "directory of ha.cf, authkeys, haresources")
	f.StringVar(&name, "node", "", "this node's name (default: uname -n)")
	f.StringVar(&no.Plane, "plane", "auto", "who carries the packets: "+strings.Join(node.PlaneNames, ", "))
	f.StringVar(&source, "heartbeat-address", "", "bind heartbeats to this address: for several nodes on one host")
	return cmd
}

func newDirectorCommand(o *options) *cobra.Command {
	var do node.DirectorOptions
	cmd := &cobra.Command{
		Use:   "director CONFIG",
		Short: "The director alone: checks and balances what an ldirectord.cf describes",
		Long: `Run the director of CONFIG, an ldirectord.cf, without a cluster, in the
foreground. --dry-run checks for real but changes nothing on this host: the
table is kept in memory, and hooks (fallbackcommand, callback, e-mail) run only
with --hooks.

SIGHUP reads the file again; SIGTERM stops, by the rules of cleanstop.`,
		Example: "  batuta director /etc/ha.d/ldirectord.cf\n  batuta director --dry-run --events - ldirectord.cf",
		Args:    positional(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !do.DryRun && (do.Events != "" || do.Table != "") {
				return usageError(cmd, errors.New("--events and --table go with --dry-run"))
			}
			do.Config, do.RunDir, do.Stderr, do.Stdout = args[0], o.runDir, cmd.ErrOrStderr(), cmd.OutOrStdout()
			ctx, stop := onHangup(cmd.Context(), &do.Hangup)
			defer stop()
			return daemonError(node.RunDirector(ctx, do))
		},
	}
	f := cmd.Flags()
	f.StringVar(&do.Plane, "plane", "auto", "who carries the packets: "+strings.Join(node.PlaneNames, ", "))
	f.BoolVar(&do.DryRun, "dry-run", false, "change nothing on this host: memory plane, no hooks")
	f.BoolVar(&do.Hooks, "hooks", false, "with --dry-run: run hooks as configured")
	f.StringVar(&do.Events, "events", "", "with --dry-run: append each change to FILE as a line of JSON; implies --hooks")
	f.StringVar(&do.Table, "table", "", "with --dry-run: the table to start from and keep up to date")
	return cmd
}

// onHangup turns SIGHUP into values on a channel.
func onHangup(ctx context.Context, to *<-chan struct{}) (context.Context, func()) {
	sig := make(chan os.Signal, 1)
	out := make(chan struct{}, 1)
	signal.Notify(sig, syscall.SIGHUP)
	*to = out
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-sig:
			}
			select {
			case out <- struct{}{}:
			default: // one is waiting already: it will read the newest file
			}
		}
	}()
	return ctx, func() { signal.Stop(sig); cancel() }
}

// daemonError gives a refusal of the configuration its exit code; the
// problems themselves have been printed.
func daemonError(err error) error {
	if errors.Is(err, node.ErrBadConfig) {
		return &exitError{exitBadConfig, err.Error()}
	}
	return err
}
