package cli

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/config"
	"github.com/batuta-ha/batuta/internal/node"
)

func newImportCommand(o *options) *cobra.Command {
	var to string
	var quiet bool
	cmd := &cobra.Command{
		Use:   "import ldirectord.cf",
		Short: "Write an ldirectord.cf as a native file, with a report of what became of each line",
		Long: `Read an ldirectord.cf and print a batuta.hcl that means the same. What became of
each line goes to standard error. The old file is not touched, and goes on
working: import it when you want what only the native file can say.`,
		Example: "  batuta import /etc/ha.d/ldirectord.cf > /etc/batuta/batuta.hcl",
		Args:    positional(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			reader, err := node.Reader("")
			if err != nil {
				return err
			}
			if i, err := os.Stat(args[0]); err == nil && i.IsDir() {
				return notImported(args[0])
			}
			switch config.KindOf(args[0]) {
			case config.KindHaCf, config.KindAuthkeys, config.KindHaresources:
				return notImported(args[0])
			case config.KindNative:
				return errors.New(args[0] + " is a native file already")
			case config.KindUnknown, config.KindLdirectord, config.KindDirectory:
			}
			im, problems := reader.Import(args[0])
			for _, p := range problems {
				fmt.Fprintln(cmd.ErrOrStderr(), p)
			}
			if im == nil {
				return &exitError{exitBadConfig, "nothing was imported: mend the errors above first"}
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), map[string]any{"version": 1, "import": im})
			}
			if !quiet {
				for _, l := range im.Lines {
					fmt.Fprintln(cmd.ErrOrStderr(), args[0]+":"+l.String())
				}
			}
			if to == "" {
				_, err := fmt.Fprint(cmd.OutOrStdout(), im.Text)
				return err
			}
			return writeNew(to, im.Text)
		},
	}
	cmd.Flags().StringVarP(&to, "output", "o", "", "write to this new file instead of standard output")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "no report")
	return cmd
}

// notImported is the answer to files of the cluster.
func notImported(name string) error {
	return fmt.Errorf("%s: ha.cf, authkeys and haresources are not imported yet, because the native file has no blocks for a cluster yet; "+
		"they work as they are: batuta run --ha.d DIR", name)
}

// writeNew writes a file that was not there. It may have passwords in it.
func writeNew(name, text string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s is there already: remove it, or name another file", name)
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
