// Package cli is the command line: one file a verb. Arguments come in, text
// or JSON and an exit code go out; what a verb does is done by the packages
// below.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/api"
)

// Exit codes of every verb.
const (
	exitFine      = 0
	exitFailed    = 1
	exitUsage     = 2
	exitBadConfig = 78 // EX_CONFIG of sysexits.h
)

// defaultRunDir is where a machine's one daemon is.
const defaultRunDir = "/run/batuta"

// exitError carries the exit code a verb wants. An empty text prints nothing:
// the verb has said all there is to say.
type exitError struct {
	code int
	text string
}

func (e *exitError) Error() string { return e.text }

// options are the global flags.
type options struct {
	runDir   string
	stateDir string
	socket   string
	json     bool
}

// socketPath is where the daemon listens.
func (o *options) socketPath() string {
	if o.socket != "" {
		return o.socket
	}
	return filepath.Join(o.runDir, "batuta.sock")
}

func (o *options) client() *api.Client { return api.NewClient(o.socketPath()) }

// Main runs the command line and returns the exit code.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var exit *exitError
	switch {
	case err == nil:
		return exitFine
	case errors.As(err, &exit):
		if exit.text != "" {
			fmt.Fprintln(stderr, "batuta: "+exit.text)
		}
		return exit.code
	}
	fmt.Fprintln(stderr, "batuta: "+err.Error())
	return exitFailed
}

func newRoot() *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use:   "batuta",
		Short: "Highly available service clusters: director, health checks, heartbeat, failover",
		Long: `Batuta balances TCP and UDP services over checked real servers and keeps their
addresses alive on two directors. It reads the files of ldirectord and
Heartbeat as they are.

Try it:          batuta demo
Check files:     batuta check-config /etc/ha.d
Run a node:      batuta run --ha.d /etc/ha.d`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError(cmd, fmt.Errorf("unknown verb %q%s", args[0], suggestion(cmd, args[0])))
			}
			return cmd.Help()
		},
	}
	root.SetFlagErrorFunc(usageError)
	f := root.PersistentFlags()
	f.StringVar(&o.runDir, "run-dir", defaultRunDir, "directory of the control socket and the lock")
	f.StringVar(&o.stateDir, "state-dir", "/var/lib/batuta", "directory of what must survive a restart")
	f.StringVar(&o.socket, "socket", "", "control socket of the daemon to ask (default: in --run-dir)")
	f.BoolVar(&o.json, "json", false, "print JSON")
	root.AddCommand(
		newRunCommand(o),
		newDirectorCommand(o),
		newLdirectordCommand(o),
		newCheckConfigCommand(o),
		newImportCommand(o),
		newStatusCommand(o),
		newTableCommand(o),
		newTraceCommand(o),
		newExplainCommand(o),
		newMetricsCommand(o),
		newIpvsadmCommand(o),
		newDoctorCommand(o),
		newDrainCommand(o),
		newReadyCommand(o),
		newStandbyCommand(o),
		newTakeoverCommand(o),
		newHeartbeatCommand(o),
		newClStatusCommand(o),
		newHbStandbyCommand(o),
		newHbTakeoverCommand(o),
		newEventsCommand(o),
		newWhyCommand(o),
		newSLACommand(o),
		newMaintenanceCommand(o),
		newDebugCommand(o),
		newBeatProcessCommand(),
		newLabCommand(o),
		newDemoCommand(o),
		newVersionCommand(o),
	)
	return root
}

// suggestion proposes the verbs that look like what was typed.
func suggestion(cmd *cobra.Command, word string) string {
	cmd.SuggestionsMinimumDistance = 2
	for _, s := range cmd.SuggestionsFor(word) {
		return fmt.Sprintf("; did you mean %q?", s)
	}
	return ""
}

// usageError is what a wrong call gets: one line, where to read on, exit 2.
func usageError(cmd *cobra.Command, err error) error {
	return &exitError{exitUsage, fmt.Sprintf("%v (see %s --help)", err, cmd.CommandPath())}
}

// exactArgs is cobra's check with a usage error for its answer.
func positional(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError(cmd, err)
		}
		return nil
	}
}

// printJSON writes one object on one line.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
