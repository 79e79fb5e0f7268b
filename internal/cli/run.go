package cli

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

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

SIGTERM hands the resources over to the other node and exits 0; while something
cannot be stopped the node stays and says so, until a second one. SIGHUP reads
the files again; a broken one changes nothing and says why. What is new in ha.cf
or haresources starts this process anew in place, and nothing moves.`,
		Example: "  batuta run --ha.d /etc/ha.d",
		Args:    positional(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := knownPlane(cmd, no.Plane, no.XDP); err != nil {
				return err
			}
			no.Node = model.NodeName(strings.ToLower(name))
			if source != "" {
				a, err := netip.ParseAddr(source)
				if err != nil {
					return usageError(cmd, fmt.Errorf("--heartbeat-address: %w", err))
				}
				no.HeartbeatAddress = a
			}
			no.RunDir, no.StateDir, no.Stderr = o.runDir, o.stateDir, cmd.ErrOrStderr()
			hangup, force, stop := onSignals()
			defer stop()
			no.Hangup, no.Force, no.Again = hangup, force, again
			return daemonError(node.Run(cmd.Context(), no))
		},
	}
	f := cmd.Flags()
	f.StringVar(&no.HaD, "ha.d", "/etc/ha.d", "directory of ha.cf, authkeys, haresources")
	f.StringVar(&name, "node", "", "this node's name (default: uname -n)")
	planeFlags(f, &no.Plane, &no.XDP, &no.EBPFTable)
	f.StringVar(&source, "heartbeat-address", "", "bind heartbeats to this address: for several nodes on one host")
	ipvsFlags(f, &no.IPVS)
	return cmd
}

func newDirectorCommand(o *options) *cobra.Command {
	var do node.DirectorOptions
	cmd := &cobra.Command{
		Use:   "director CONFIG",
		Short: "The director alone: checks and balances what a file describes",
		Long: `Run the director of CONFIG, a batuta.hcl or an ldirectord.cf, without a cluster,
in the foreground. --dry-run checks for real but changes nothing on this host: the
table is kept in memory, and hooks (fallbackcommand, callback, e-mail) run only
with --hooks.

SIGHUP reads the file again; SIGTERM stops, by the rules of cleanstop.`,
		Example: "  batuta director /etc/batuta/batuta.hcl\n  batuta director --dry-run ldirectord.cf",
		Args:    positional(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := knownPlane(cmd, do.Plane, do.XDP); err != nil {
				return err
			}
			if !do.DryRun && (do.Events != "" || do.Table != "" || do.Hooks) {
				return usageError(cmd, errors.New("--events, --table and --hooks go with --dry-run"))
			}
			if do.Events == "-" {
				do.Events = "/dev/stdout"
			}
			do.Config, do.RunDir, do.StateDir, do.Stderr, do.Stdout = args[0], o.runDir, o.stateDir, cmd.ErrOrStderr(), cmd.OutOrStdout()
			hangup, _, stop := onSignals()
			defer stop()
			do.Hangup = hangup
			return daemonError(node.RunDirector(cmd.Context(), do))
		},
	}
	f := cmd.Flags()
	planeFlags(f, &do.Plane, &do.XDP, &do.EBPFTable)
	f.BoolVar(&do.DryRun, "dry-run", false, "change nothing on this host: memory plane, no hooks")
	f.BoolVar(&do.Hooks, "hooks", false, "with --dry-run: run hooks as configured")
	f.StringVar(&do.Events, "events", "", "with --dry-run: append each change to FILE (- for standard output) as a line of JSON; implies --hooks")
	f.StringVar(&do.Table, "table", "", "with --dry-run: the table to start from and keep up to date")
	ipvsFlags(f, &do.IPVS)
	return cmd
}

// planeFlags adds who carries the packets.
func planeFlags(f *pflag.FlagSet, plane, xdp *string, table *map[string]int) {
	f.StringVar(plane, "plane", node.PlaneNames[0], "who carries the packets: "+strings.Join(node.PlaneNames, ", "))
	f.StringVar(xdp, "xdp", node.XDPNames[0], "eBPF, before the stack, too: auto (cards whose drivers do it), on (all that take it), off")
	f.Func("ebpf-table", "eBPF: room for so many, `NAME=N,...` of "+strings.Join(sizeNames(), ", ")+"; without it, for 262144 flows, or as it is", func(s string) error {
		sizes := map[string]int{}
		for word := range strings.SplitSeq(s, ",") {
			name, value, _ := strings.Cut(word, "=")
			most, ok := node.EBPFSizes[name]
			if !ok {
				return fmt.Errorf("%q: want NAME=N of %s, as flows=1048576", word, strings.Join(sizeNames(), ", "))
			}
			n, err := strconv.Atoi(value)
			if err != nil || n < 1 || n > most {
				return fmt.Errorf("%q: want a number from 1 to %d", word, most)
			}
			sizes[name] = n
		}
		*table = sizes
		return nil
	})
}

func sizeNames() []string { return slices.Sorted(maps.Keys(node.EBPFSizes)) }

// knownPlane refuses a --plane or --xdp that does not exist.
func knownPlane(cmd *cobra.Command, plane, xdp string) error {
	for _, x := range []struct {
		flag, name string
		names      []string
	}{{"plane", plane, node.PlaneNames}, {"xdp", xdp, node.XDPNames}} {
		if !slices.Contains(x.names, x.name) {
			return usageError(cmd, fmt.Errorf("--%s %q: want one of %s", x.flag, x.name, strings.Join(x.names, ", ")))
		}
	}
	return nil
}

// onSignals turns SIGHUP into values of the first channel, and closes the
// second one at the second TERM or INT; the first one ends the command's
// context, which is main's business.
func onSignals() (hangup, force <-chan struct{}, stop func()) {
	sig := make(chan os.Signal, 4)
	again, now, done := make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	signal.Notify(sig, syscall.SIGHUP, syscall.SIGTERM, os.Interrupt)
	go func() {
		for ends := 0; ends < 2; {
			select {
			case <-done:
				return
			case s := <-sig:
				if s != syscall.SIGHUP {
					ends++
					continue
				}
			}
			select {
			case again <- struct{}{}:
			default: // one is waiting already: it will read the newest file
			}
		}
		close(now)
	}()
	return again, now, func() { signal.Stop(sig); close(done) }
}

// daemonError gives a refusal of the configuration its exit code; the
// problems themselves have been printed.
func daemonError(err error) error {
	if errors.Is(err, node.ErrBadConfig) {
		return &exitError{exitBadConfig, err.Error()}
	}
	return err
}
