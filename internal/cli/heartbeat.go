package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/config"
	"github.com/batuta-ha/batuta/internal/node"
)

// exitHeartbeatConfig is heartbeat's exit code for files with errors.
const exitHeartbeatConfig = 6

// heartbeatCall is one call of the command.
type heartbeatCall struct {
	haD, plane, node    string
	source              string // of --heartbeat-address
	runDir, stateDir    string
	foreground          bool
	detached            bool // this process is the daemon
	pid                 pidFile
	stdout, stderr      io.Writer
	debug               int
	kill, ask, reload   bool
	defaults, printConf bool
	version             bool
	ordinary            bool // -l: no real-time priority, no locked memory
	noResources         bool // -M
}

func newHeartbeatCommand(o *options) *cobra.Command {
	var h heartbeatCall
	cmd := &cobra.Command{
		Use:   "heartbeat [-dflv] [-k|-r|-s|-D|-V] | start|stop|restart|reload|status",
		Short: "heartbeat's command line: the node as a daemon with a pid file",
		Long: `Start and steer this node as heartbeat(8) does, also by a link named heartbeat.
Without a word or a letter it starts.

start         become a daemon; exit 0 once the files are valid and the daemon runs
-k, stop      hand over and end; returns when it has ended
restart       stop and start; try-restart only if it runs
-r, reload    read the files again, also force-reload; exit 1 if nothing runs
-s, status    exit 0 if it runs, 3 if not, 1 if it died and left its pid file

-f            stay in the foreground, with the log on standard error
-l            without real-time priority and locked memory
-D            print the parameters and their defaults
-v            print the configuration, then start
-V            print the version

Files with errors are exit 6 for what needs them, and change nothing. The pid
file is /run/heartbeat.pid; --run-dir is the directory for it, too.`,
		Example: "  batuta heartbeat start\n  heartbeat -s\n  batuta heartbeat --ha.d /srv/ha.d status",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			h.stdout, h.stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
			if err := knownPlane(cmd, h.plane, "auto"); err != nil {
				return err
			}
			if err := h.place(o, cmd.Flags().Changed("run-dir")); err != nil {
				return err
			}
			do, err := h.choose(args)
			if err != nil {
				return usageError(cmd, err)
			}
			return do(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&h.haD, "ha.d", "/etc/ha.d", "directory of ha.cf, authkeys, haresources")
	f.StringVar(&h.node, "node", "", "this node's name (default: uname -n)")
	f.StringVar(&h.plane, "plane", "auto", "who carries the packets: "+strings.Join(node.PlaneNames, ", "))
	f.StringVar(&h.source, "heartbeat-address", "", "bind heartbeats to this address: for several nodes on one host")
	f.CountVarP(&h.debug, "debug", "d", "debug messages, too")
	f.BoolVarP(&h.foreground, "foreground", "f", false, "stay in the foreground")
	f.BoolVarP(&h.kill, "kill", "k", false, "stop the one that runs")
	f.BoolVarP(&h.ask, "status", "s", false, "tell whether it runs")
	f.BoolVarP(&h.reload, "reload", "r", false, "have the one that runs read its files again")
	f.BoolVarP(&h.defaults, "defaults", "D", false, "print the parameters and their defaults")
	f.BoolVarP(&h.printConf, "verbose", "v", false, "print the configuration")
	f.BoolVarP(&h.version, "version", "V", false, "print the version")
	f.BoolVarP(&h.ordinary, "no-realtime", "l", false, "an ordinary priority, memory not locked")
	f.BoolVarP(&h.noResources, "no-resources", "M", false, "")
	f.BoolVar(&h.detached, "detached", false, "")
	for _, name := range []string{"detached", "no-resources"} {
		_ = f.MarkHidden(name) // fails for names that do not exist
	}
	return cmd
}

// choose is what the words and letters ask for.
func (h *heartbeatCall) choose(args []string) (func(context.Context) error, error) {
	letters := 0
	do := h.start
	for _, l := range []struct {
		given bool
		do    func(context.Context) error
	}{{h.kill, h.stop}, {h.ask, h.status}, {h.reload, h.rereadOrStart}, {h.defaults, h.printDefaults}, {h.version, h.printVersion}} {
		if l.given {
			letters++
			do = l.do
		}
	}
	if h.noResources {
		return nil, errors.New("-M: a node without resources is one that haresources does not name; leave it out there")
	}
	if letters > 1 || letters == 1 && len(args) > 0 {
		return nil, errors.New("one thing at a time")
	}
	if len(args) == 0 {
		return do, nil
	}
	switch args[0] {
	case "start":
		return h.start, nil
	case "stop":
		return h.stop, nil
	case "restart":
		return h.restart, nil
	case "try-restart":
		return h.tryRestart, nil
	case "reload", "force-reload":
		return h.reread, nil
	case "status":
		return h.status, nil
	}
	return nil, fmt.Errorf("unknown verb %q: want start, stop, restart, try-restart, reload, force-reload or status", args[0])
}

// place finds where the files of this node are.
func (h *heartbeatCall) place(o *options, runDirGiven bool) (err error) {
	if h.haD, err = filepath.Abs(h.haD); err != nil {
		return fmt.Errorf("find the configuration directory: %w", err)
	}
	if h.runDir, err = filepath.Abs(o.runDir); err != nil {
		return fmt.Errorf("find the run directory: %w", err)
	}
	if h.stateDir, err = filepath.Abs(o.stateDir); err != nil {
		return fmt.Errorf("find the state directory: %w", err)
	}
	h.pid = pidFile{"/run/heartbeat.pid", "heartbeat"}
	if runDirGiven {
		h.pid.path = filepath.Join(h.runDir, "heartbeat.pid")
	}
	return nil
}

// valid checks the files for a verb that needs them, so that a broken one
// never takes anything away from a node that runs. What a daemon will say
// itself is said here only if there will be no daemon.
func (h *heartbeatCall) valid(daemonFollows bool) error {
	reader, err := node.Reader(h.nodeName())
	if err != nil {
		return err
	}
	reader.Starting = true
	cluster, problems := reader.Load(h.haD)
	if config.Failed(problems) || !daemonFollows {
		for _, p := range problems {
			fmt.Fprintln(h.stderr, p)
		}
	}
	if config.Failed(problems) {
		return &exitError{exitHeartbeatConfig, "Configuration Error: nothing was changed"}
	}
	if h.printConf {
		writeHaConfig(h.stdout, cluster.Heartbeat)
	}
	return nil
}

func (h *heartbeatCall) start(ctx context.Context) error {
	switch {
	case h.detached:
		return h.daemon(ctx)
	case h.pid.read().runs:
		return nil
	}
	if err := h.valid(true); err != nil {
		return err
	}
	if h.foreground {
		return h.run(ctx, h.stderr, nil)
	}
	argv := []string{"heartbeat", "--detached", "--ha.d=" + h.haD, "--plane=" + h.plane, "--state-dir=" + h.stateDir, "--node=" + h.node}
	if h.pid.path != "/run/heartbeat.pid" || h.runDir != defaultRunDir {
		argv = append(argv, "--run-dir="+h.runDir)
	}
	if h.source != "" {
		argv = append(argv, "--heartbeat-address="+h.source)
	}
	if h.ordinary {
		argv = append(argv, "-l")
	}
	for range h.debug {
		argv = append(argv, "-d")
	}
	code, err := launch(argv, h.stderr)
	if errors.Is(err, errNotLaunched) {
		return &exitError{code: code}
	}
	return err
}

// daemon is the process that start launches.
func (h *heartbeatCall) daemon(ctx context.Context) error {
	report := daemonReport()
	defer h.pid.remove()
	err := h.run(ctx, report, func() error {
		if err := h.pid.write(); err != nil {
			return err
		}
		return report.ready()
	})
	if err != nil {
		fmt.Fprintln(report, "heartbeat: "+err.Error())
	}
	return err
}

// run is the node in this process.
func (h *heartbeatCall) run(ctx context.Context, stderr io.Writer, ready func() error) error {
	var source netip.Addr
	if h.source != "" {
		var err error
		if source, err = netip.ParseAddr(h.source); err != nil {
			return fmt.Errorf("--heartbeat-address: %w", err)
		}
	}
	hangup, force, done := onSignals()
	defer done()
	err := node.Run(ctx, node.Options{
		HaD: h.haD, Node: h.nodeName(), Plane: h.plane, HeartbeatAddress: source, RunDir: h.runDir, StateDir: h.stateDir,
		Stderr: stderr, Hangup: hangup, Force: force, Ready: ready, Again: again, Debug: h.debug, Ordinary: h.ordinary,
	})
	if errors.Is(err, node.ErrBadConfig) {
		return &exitError{exitHeartbeatConfig, err.Error()}
	}
	return err
}

func (h *heartbeatCall) stop(ctx context.Context) error {
	if !h.pid.read().runs {
		fmt.Fprintln(h.stderr, "INFO: Heartbeat already stopped.")
		return nil
	}
	if err := h.signal(unix.SIGTERM); err != nil {
		return err
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for h.pid.read().runs {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return &exitError{exitFailed, "interrupted; heartbeat was asked to stop and may still be handing over (batuta status)"}
		}
	}
	return nil
}

func (h *heartbeatCall) restart(ctx context.Context) error {
	if err := h.valid(true); err != nil {
		return err
	}
	if err := h.stop(ctx); err != nil {
		return err
	}
	return h.start(ctx)
}

func (h *heartbeatCall) tryRestart(ctx context.Context) error {
	if !h.pid.read().runs {
		return nil
	}
	return h.restart(ctx)
}

func (h *heartbeatCall) reread(context.Context) error {
	if !h.pid.read().runs {
		return &exitError{exitFailed, "heartbeat does not run: nothing to reload"}
	}
	if err := h.valid(false); err != nil {
		return err
	}
	fmt.Fprintf(h.stderr, "info: Signaling heartbeat pid %d to reread config files\n", h.pid.read().pid)
	return h.signal(unix.SIGHUP)
}

// rereadOrStart is -r: as heartbeat(8) has it, it starts one if none runs.
func (h *heartbeatCall) rereadOrStart(ctx context.Context) error {
	if !h.pid.read().runs {
		return h.start(ctx)
	}
	return h.reread(ctx)
}

func (h *heartbeatCall) signal(s unix.Signal) error {
	p := h.pid.read()
	if err := unix.Kill(p.pid, s); err != nil && !errors.Is(err, unix.ESRCH) {
		return &exitError{exitFailed, fmt.Sprintf("send %s to pid %d of %s: %v", unix.SignalName(s), p.pid, h.pid, err)}
	}
	return nil
}

func (h *heartbeatCall) status(context.Context) error {
	p := h.pid.read()
	if p.runs {
		host, _ := os.Hostname() // "" reads as well
		self := h.node
		if self == "" {
			self = strings.ToLower(host)
		}
		fmt.Fprintf(h.stdout, "heartbeat OK [pid %d et al] is running on %s [%s]...\n", p.pid, host, self)
		return nil
	}
	fmt.Fprintln(h.stdout, "heartbeat is stopped. No process")
	if p.exists {
		return &exitError{code: exitStatusStale}
	}
	return &exitError{code: exitStatusStopped}
}

func (h *heartbeatCall) printVersion(context.Context) error {
	fmt.Fprintf(h.stdout, "%s (batuta %s)\n", heartbeatVersion, version())
	return nil
}

func (h *heartbeatCall) printDefaults(context.Context) error {
	fmt.Fprintf(h.stdout, "%-24s %-9s %s\n%s\n", "Directive", "Default", "Description", strings.Repeat("-", 80))
	for _, p := range config.HaParameters {
		if p.Default != "" {
			fmt.Fprintf(h.stdout, "%-24s %-9s %s\n", p.Name, p.Default, p.Text)
		}
	}
	return nil
}
