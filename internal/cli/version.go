package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func newVersionCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Say which Batuta this is",
		Example: "  batuta version --json",
		Args:    positional(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := version()
			if o.json {
				return printJSON(cmd.OutOrStdout(), map[string]string{"version": v, "go": runtime.Version()})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "batuta %s (%s)\n", v, runtime.Version())
			return nil
		},
	}
}

// version is the module's version, with the commit where the build recorded it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return info.Main.Version + " " + s.Value[:12]
		}
	}
	return info.Main.Version
}
