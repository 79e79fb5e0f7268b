package cli

import (
	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/beat"
)

// newBeatProcessCommand is no verb for people: batuta run starts it.
func newBeatProcessCommand() *cobra.Command {
	return &cobra.Command{
		Use:    beat.Verb,
		Short:  "The process of the heartbeats, started by batuta run",
		Hidden: true,
		Args:   positional(cobra.NoArgs),
		RunE:   func(*cobra.Command, []string) error { return beat.Main() },
	}
}
