package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/api"
)

// drainLook is how often --wait looks.
const drainLook = 500 * time.Millisecond

func newDrainCommand(o *options) *cobra.Command {
	var deadline time.Duration
	var wait bool
	cmd := &cobra.Command{
		Use:   "drain REAL",
		Short: "Take a real server out of service gently",
		Long: `Take the real server REAL, ADDRESS:PORT or ADDRESS for all its ports, out of
service in every virtual service that has it: it gets no new connections, and
those that it has may end. With --deadline what is left then is cut. batuta
status shows how many there are; --wait waits for the last one.

A reload keeps it drained, and so does a restart of the daemon. batuta ready
REAL puts it back.`,
		Example: "  batuta drain 10.0.0.11:80 --deadline 10m --wait",
		Args:    positional(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if deadline < 0 {
				return usageError(cmd, errors.New("--deadline is a time from now, such as 10m"))
			}
			a, err := o.client().Drain(cmd.Context(), api.DrainRequest{Real: args[0], Deadline: deadline})
			if err != nil {
				return err
			}
			if wait {
				if err := waitDrained(cmd.Context(), cmd.ErrOrStderr(), o.client(), a.Reals); err != nil {
					return err
				}
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), a)
			}
			word := "draining"
			if wait {
				word = "drained"
			}
			for _, r := range a.Reals {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", word, r)
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&deadline, "deadline", 0, "cut what is left after this time (default: never)")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until no connection is left")
	return cmd
}

func newReadyCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:     "ready REAL",
		Short:   "Put a drained real server back into service",
		Long:    `Put the real server REAL, ADDRESS:PORT or ADDRESS for all its ports, back into service after batuta drain. It serves if its checks succeed.`,
		Example: "  batuta ready 10.0.0.11:80",
		Args:    positional(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := o.client().PutBack(cmd.Context(), api.DrainRequest{Real: args[0]})
			if err != nil {
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), a)
			}
			for _, r := range a.Reals {
				fmt.Fprintf(cmd.OutOrStdout(), "back in service: %s\n", r)
			}
			return nil
		},
	}
}

// waitDrained waits until none of the real servers has a connection, or all
// are past their deadline, and says how many are left meanwhile.
func waitDrained(ctx context.Context, w io.Writer, c *api.Client, reals []string) error {
	look := time.NewTicker(drainLook)
	defer look.Stop()
	for said := -1; ; {
		st, err := c.Status(ctx)
		if err != nil {
			return err
		}
		left, open := drainsLeft(st, reals)
		if open == 0 {
			return nil
		}
		if left != said {
			fmt.Fprintf(w, "%d connections are left\n", left)
			said = left
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return fmt.Errorf("no longer waiting: %w; the draining goes on", ctx.Err())
		}
	}
}

// drainsLeft counts the connections of drained real servers, and those of the
// servers that are not drained yet.
func drainsLeft(st api.Status, reals []string) (left, open int) {
	for _, s := range st.Services {
		for _, r := range s.Reals {
			if r.Drain == nil || r.Drain.Out || !slices.Contains(reals, s.Key.String()+" "+r.Addr) {
				continue
			}
			left += max(r.Drain.Remaining, 0)
			if r.Drain.Remaining != 0 {
				open++
			}
		}
	}
	return left, open
}
