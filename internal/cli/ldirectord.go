package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/config"
	"github.com/batuta-ha/batuta/internal/logfile"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/node"
)

// Exit codes of ldirectord where they differ from batuta's own. Those of
// status are the LSB's.
const (
	exitLdirectordConfig = 2
	exitLdirectordUsage  = 255

	exitStatusStale   = 1
	exitStatusStopped = 3
)

// defaultPidDir is where ldirectord's pid files are.
const defaultPidDir = "/var/run"

// ldirectordDirs are looked into for a configuration before the path as given.
var ldirectordDirs = []string{"/etc/ha.d", "/etc/ha.d/conf"}

// ldirectordCall is one call of the command.
type ldirectordCall struct {
	debug    bool
	plane    string
	detached string // the instance: this process is its daemon

	file     string // the configuration
	instance string
	pid      pidFile
	runDir   string // of this instance
	stateDir string
	flags    []string // for the daemon

	stdout, stderr io.Writer
	log            model.Sink
}

func newLdirectordCommand(o *options) *cobra.Command {
	var l ldirectordCall
	var question, tell bool
	cmd := &cobra.Command{
		Use:   "ldirectord [-d|--debug] [--] [CONFIG] start|stop|restart|try-restart|reload|force-reload|status",
		Short: "ldirectord's command line: director daemons with pid files",
		Long: `Start and steer a director as ldirectord does, also by a link named ldirectord.
CONFIG, by default ldirectord.cf, is looked for in /etc/ha.d, in /etc/ha.d/conf
and as a path. Its last component names the instance: ldirectord.INSTANCE.pid in
/var/run, control socket and lock in /run/batuta/ldirectord.INSTANCE. --run-dir
is the directory for both.

start       become a daemon; exit 0 once the file is valid and the daemon runs
stop        ask the daemon to end, by the rules of cleanstop; does not wait
restart     stop, wait for the end, start; try-restart only if it runs
reload      read the file again, also force-reload; exit 1 if nothing runs
status      exit 0 if it runs, 3 if not, 1 if its pid file is stale

A file with errors is exit 2 for the verbs that need it, and changes nothing;
stop and status work with any.`,
		Example: "  batuta ldirectord start\n  batuta ldirectord -d web.cf start\n  batuta status --run-dir /run/batuta/ldirectord.web.cf",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case question:
				return cmd.Help()
			case tell:
				fmt.Fprintf(cmd.OutOrStdout(), "batuta %s, in place of ldirectord 4.12\n", version())
				return nil
			case len(args) == 0:
				return ldirectordUsage(cmd, errors.New("the verb is missing"))
			}
			name, verb := "", args[0]
			if len(args) > 1 {
				name, verb = args[0], args[1]
			}
			do := l.verb(verb)
			if do == nil {
				return ldirectordUsage(cmd, fmt.Errorf("unknown verb %q", verb))
			}
			if err := knownPlane(cmd, l.plane, "auto"); err != nil {
				return ldirectordUsage(cmd, err)
			}
			l.stdout, l.stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
			if err := l.place(name, o, cmd.Flags().Changed("run-dir")); err != nil {
				return err
			}
			return do(cmd.Context())
		},
	}
	cmd.SetFlagErrorFunc(ldirectordUsage)
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&l.debug, "debug", "d", false, "stay in the foreground, with the log on standard error and no pid file")
	f.BoolVarP(&tell, "version", "v", false, "say which version this is")
	f.BoolVarP(&question, "?", "?", false, "as --help")
	f.StringVar(&l.plane, "plane", "auto", "who carries the packets: "+strings.Join(node.PlaneNames, ", "))
	f.StringVar(&l.detached, "detached", "", "")
	for _, name := range []string{"?", "detached"} {
		_ = f.MarkHidden(name) // fails for names that do not exist
	}
	return cmd
}

// ldirectordUsage is what a wrong call gets: the usage on standard output, and
// the reason on standard error.
func ldirectordUsage(cmd *cobra.Command, err error) error {
	fmt.Fprint(cmd.OutOrStdout(), cmd.UsageString())
	return &exitError{exitLdirectordUsage, err.Error()}
}

// verb is what a word does; nil for an unknown one.
func (l *ldirectordCall) verb(word string) func(context.Context) error {
	switch word {
	case "start":
		return l.start
	case "stop":
		return l.stop
	case "restart":
		return l.restart
	case "try-restart":
		return l.tryRestart
	case "reload", "force-reload":
		return l.reload
	case "status":
		return l.status
	}
	return nil
}

// place finds the configuration of an instance, and where its files are.
func (l *ldirectordCall) place(name string, o *options, runDirGiven bool) error {
	l.instance = filepath.Base(name)
	if name == "" {
		name, l.instance = "ldirectord.cf", "ldirectord"
	}
	dirs := ldirectordDirs
	if l.detached != "" {
		dirs, l.instance = nil, l.detached
	}
	var err error
	if l.file, err = findLdirectordConfig(name, dirs); err != nil {
		return err
	}
	runDir, err := filepath.Abs(o.runDir)
	if err != nil {
		return fmt.Errorf("find the run directory: %w", err)
	}
	stateDir, err := filepath.Abs(o.stateDir)
	if err != nil {
		return fmt.Errorf("find the state directory: %w", err)
	}
	l.flags = []string{"--plane=" + l.plane, "--state-dir=" + stateDir}
	pidDir := defaultPidDir
	if runDirGiven {
		pidDir = runDir
		l.flags = append(l.flags, "--run-dir="+runDir)
	}
	l.pid = pidFile{filepath.Join(pidDir, "ldirectord."+l.instance+".pid"), "ldirectord"}
	l.runDir = filepath.Join(runDir, "ldirectord."+l.instance)
	l.stateDir = filepath.Join(stateDir, "ldirectord."+l.instance) // a journal has one writer
	l.log = func(model.Event) {}
	return nil
}

// findLdirectordConfig looks for a configuration in dirs, then as a path.
func findLdirectordConfig(name string, dirs []string) (string, error) {
	var tried []string
	for _, dir := range dirs {
		tried = append(tried, filepath.Join(dir, name))
	}
	tried = append(tried, name)
	for _, path := range tried {
		if i, err := os.Stat(path); err == nil && !i.IsDir() {
			return path, nil
		}
	}
	return "", fmt.Errorf("there is no configuration file %s", strings.Join(tried, " or "))
}

// read reads the configuration, and begins with the log that it names. A file
// with errors is nil, and the errors are printed.
func (l *ldirectordCall) read() (*model.Director, error) {
	reader, err := node.Reader("")
	if err != nil {
		return nil, err
	}
	cfg, problems := reader.Director(l.file)
	if config.Failed(problems) {
		for _, p := range problems {
			fmt.Fprintln(l.stderr, p)
		}
		return nil, nil
	}
	switch {
	case l.debug:
		l.log = logfile.Console(l.stderr)
	case cfg.Supervised:
		l.log = logfile.Supervised(l.stdout)
	default:
		l.log = logfile.Ldirectord(logfile.LdirectordOptions{LogFile: cfg.LogFile, Instance: l.instance, PID: os.Getpid(),
			Sink: func(model.Event) {}}) // what cannot be logged is seen on the terminal
	}
	if l.detached == "" {
		l.say("Invoking ldirectord invoked as: %s ", strings.Join(os.Args, " "))
	}
	return cfg, nil
}

// valid reads the configuration for a verb that needs one.
func (l *ldirectordCall) valid() (*model.Director, error) {
	cfg, err := l.read()
	if err == nil && cfg == nil {
		err = &exitError{exitLdirectordConfig, "Configuration Error: nothing was changed"}
	}
	return cfg, err
}

func (l *ldirectordCall) say(format string, args ...any) {
	l.log(model.Event{At: time.Now(), Level: model.LevelInfo, Source: "ldirectord", Text: fmt.Sprintf(format, args...)})
}

// exit is the end with a code other than 0.
func (l *ldirectordCall) exit(code int, text, reason string) error {
	l.say("Exiting with exit_status %d: %s", code, reason)
	return &exitError{code, text}
}

func (l *ldirectordCall) start(ctx context.Context) error {
	cfg, err := l.valid()
	if err != nil {
		return err
	}
	return l.begin(ctx, cfg)
}

// begin starts the director unless it runs.
func (l *ldirectordCall) begin(ctx context.Context, cfg *model.Director) error {
	switch {
	case l.detached != "":
		return l.daemon(ctx)
	case l.pid.read().runs:
		return nil
	case l.debug || cfg.Supervised:
		return l.foreground(ctx, l.stderr, nil)
	}
	return l.launch()
}

func (l *ldirectordCall) stop(context.Context) error {
	if _, err := l.read(); err != nil {
		return err
	}
	_, err := l.signal(unix.SIGTERM)
	return err
}

func (l *ldirectordCall) restart(ctx context.Context) error {
	cfg, err := l.valid()
	if err != nil {
		return err
	}
	if _, err := l.signal(unix.SIGTERM); err != nil {
		return err
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for l.pid.read().runs {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return l.exit(exitFailed, "interrupted; the director was asked to stop and is not started again", "interrupted")
		}
	}
	return l.begin(ctx, cfg)
}

func (l *ldirectordCall) tryRestart(ctx context.Context) error {
	if !l.pid.read().runs {
		_, err := l.valid()
		return err
	}
	return l.restart(ctx)
}

func (l *ldirectordCall) reload(context.Context) error {
	if _, err := l.valid(); err != nil {
		return err
	}
	ran, err := l.signal(unix.SIGHUP)
	if err != nil || ran {
		return err
	}
	return l.exit(exitFailed, "no director runs for "+l.file+": nothing to reload", "ldirectord is not running for "+l.file)
}

func (l *ldirectordCall) status(context.Context) error {
	if _, err := l.read(); err != nil {
		return err
	}
	p := l.pid.read()
	if p.runs {
		text := fmt.Sprintf("ldirectord for %s is running with pid: %d", l.file, p.pid)
		fmt.Fprintln(l.stderr, text)
		l.say("%s", text)
		l.say("Exiting from ldirectord status")
		return nil
	}
	code := exitStatusStopped
	if p.exists {
		code = exitStatusStale
		fmt.Fprintf(l.stderr, "ldirectord stale pid file %s for %s\n", l.pid, l.file)
	}
	fmt.Fprintln(l.stdout, "ldirectord is stopped for "+l.file)
	return l.exit(code, "", "Exiting from ldirectord status")
}

// signal sends a signal to the running director, and tells whether there is one.
func (l *ldirectordCall) signal(s unix.Signal) (ran bool, err error) {
	p := l.pid.read()
	if !p.runs {
		return false, nil
	}
	err = unix.Kill(p.pid, s)
	if errors.Is(err, unix.ESRCH) { // it ended just now
		return false, nil
	}
	if err != nil {
		return true, l.exit(exitFailed, fmt.Sprintf("send %s to pid %d of %s: %v", unix.SignalName(s), p.pid, l.pid, err), "cannot signal the director")
	}
	return true, nil
}
