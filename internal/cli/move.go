package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/api"
)

// moveWords are the sets of resources that may be moved.
const moveWords = "[all|foreign|local|failback]"

// moveLong explains the sets.
const moveLong = `
local are the resources that haresources lists under this node's name, foreign
the others, all both (the default).`

func newStandbyCommand(o *options) *cobra.Command {
	return newMoveCommand(o, &cobra.Command{
		Use:   "standby " + moveWords,
		Short: "Hand resources over to the other node",
		Long: `Hand resources over to the other node, and return when it has them: exit code 0
says that it has. Who asked is kept in the journal.
` + moveLong + ` failback is foreign: it gives back what was taken over.`,
		Example: "  batuta standby\n  batuta standby failback",
	}, (*api.Client).Standby)
}

func newTakeoverCommand(o *options) *cobra.Command {
	return newMoveCommand(o, &cobra.Command{
		Use:   "takeover " + moveWords,
		Short: "Take resources from the other node",
		Long: `Have the other node hand resources over to this one, and return when they run
here: exit code 0 says that they do. Who asked is kept in the journal.
` + moveLong + ` failback is local: it takes back what was given away.`,
		Example: "  batuta takeover\n  batuta takeover local",
	}, (*api.Client).Takeover)
}

// newMoveCommand completes a verb that moves resources.
func newMoveCommand(o *options, cmd *cobra.Command, ask func(*api.Client, context.Context, api.MoveRequest) (api.MoveAnswer, error)) *cobra.Command {
	var r api.MoveRequest
	cmd.Args = positional(cobra.MaximumNArgs(1))
	cmd.ValidArgs = []string{"all", "foreign", "local", "failback"}
	cmd.Flags().BoolVar(&r.NoWait, "no-wait", false, "return once it has begun")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			if !isMoveWord(args[0]) {
				return usageError(cmd, fmt.Errorf("%q is no set of resources: want one of %s", args[0], moveWords))
			}
			r.Set = args[0]
		}
		a, err := ask(o.client(), cmd.Context(), r)
		switch {
		case err != nil:
			return err
		case o.json:
			return printJSON(cmd.OutOrStdout(), a)
		case a.Moved:
			fmt.Fprintf(cmd.OutOrStdout(), "%s has %s after %v; this node holds %s\n", a.To, r, a.Took.Round(100*time.Microsecond), a.Holding)
		default:
			fmt.Fprintf(cmd.OutOrStdout(), "%s is to have %s; batuta status shows how far it is\n", a.To, r)
		}
		return nil
	}
	return cmd
}

func isMoveWord(w string) bool {
	return strings.Contains("|"+strings.Trim(moveWords, "[]")+"|", "|"+w+"|") && w != ""
}

// newHbStandbyCommand and newHbTakeoverCommand are Heartbeat's commands, by
// their own names. They differ from the originals in one thing: they return
// when it is done, and the exit code is true.
func newHbStandbyCommand(o *options) *cobra.Command {
	return newHbMoveCommand(o, "hb_standby", func(w io.Writer, set string) {
		if set == "failback" {
			set = "foreign"
		}
		fmt.Fprintf(w, "%s Going standby [%s].\n", time.Now().Format("Jan _2 15:04:05"), set)
	}, (*api.Client).Standby)
}

func newHbTakeoverCommand(o *options) *cobra.Command {
	return newHbMoveCommand(o, "hb_takeover", func(io.Writer, string) {}, (*api.Client).Takeover)
}

func newHbMoveCommand(o *options, name string, announce func(io.Writer, string),
	ask func(*api.Client, context.Context, api.MoveRequest) (api.MoveAnswer, error)) *cobra.Command {
	return &cobra.Command{
		Use:   name + " " + moveWords,
		Short: "Heartbeat's " + name + ": as batuta " + strings.TrimPrefix(name, "hb_"),
		Long: "Heartbeat's " + name + ", also by a link of that name. It returns when the hand-over\nhas ended. Exit codes: 0 the resources are where they should be, 1 they are not,\nor the call was wrong." +
			"\n" + moveLong,
		Example:            "  batuta " + name + " local",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			args, err := ownFlags(o, args)
			wrong := ""
			switch {
			case err != nil:
				wrong = err.Error()
			case len(args) == 1 && args[0] == "--help":
				return cmd.Help()
			case len(args) > 1:
				wrong = "too many arguments"
			case len(args) == 1 && !isMoveWord(args[0]):
				wrong = "wrong resources(" + args[0] + ")."
			}
			if wrong != "" {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\nusage:\n", name, wrong)
				fmt.Fprintf(cmd.ErrOrStderr(), "%s %s\n", name, moveWords)
				return &exitError{code: exitFailed}
			}
			r := api.MoveRequest{Set: "all"}
			if len(args) == 1 {
				r.Set = args[0]
			}
			announce(cmd.ErrOrStderr(), r.Set)
			_, err = ask(o.client(), cmd.Context(), r)
			if err != nil {
				return &exitError{exitFailed, err.Error()}
			}
			return nil
		},
	}
}
