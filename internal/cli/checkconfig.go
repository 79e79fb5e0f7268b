package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/config"
	"github.com/batuta-ha/batuta/internal/node"
)

func newCheckConfigCommand(o *options) *cobra.Command {
	var kind string
	var schema bool
	cmd := &cobra.Command{
		Use:   "check-config FILE...",
		Short: "Report every problem of configuration files at once",
		Long: `Read configuration files and print every problem with its place:

  path:line:col: error|warning|note: text

The kind of a file follows from its name (ldirectord.cf or *.cf, batuta.hcl or *.hcl,
*.hcl.json, ha.cf, authkeys, haresources) or from --kind. A directory is read as an ha.d directory, with
checks across its files. Exit code 0 without errors, 78 with any.`,
		Example: "  batuta check-config /etc/ha.d\n  batuta check-config --kind ldirectord draft.txt",
		Args: positional(func(cmd *cobra.Command, args []string) error {
			if schema {
				return cobra.NoArgs(cmd, args)
			}
			return cobra.MinimumNArgs(1)(cmd, args)
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			if schema {
				_, err := cmd.OutOrStdout().Write(config.NativeSchema())
				return err
			}
			k := config.KindUnknown
			if kind != "" {
				var err error
				if k, err = config.ParseKind(kind); err != nil {
					return usageError(cmd, fmt.Errorf("--kind: %w", err))
				}
			}
			reader, err := node.Reader("")
			if err != nil {
				return err
			}
			all := []config.Problem{}
			for _, path := range args {
				all = append(all, reader.Check(path, k)...)
			}
			if o.json {
				err = printJSON(cmd.OutOrStdout(), map[string]any{"version": 1, "problems": all})
			} else {
				for _, p := range all {
					fmt.Fprintln(cmd.OutOrStdout(), p)
				}
			}
			if err == nil && config.Failed(all) {
				return &exitError{code: exitBadConfig}
			}
			return err
		},
	}
	cmd.Flags().StringVar(&kind, "kind", "", "ldirectord, hcl, ha.cf, authkeys or haresources, whatever the name")
	cmd.Flags().BoolVar(&schema, "schema", false, "print the JSON Schema of batuta.hcl.json instead")
	return cmd
}
