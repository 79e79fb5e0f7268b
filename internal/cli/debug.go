package cli

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/config"
	"github.com/batuta-ha/batuta/internal/node"
)

func newDebugCommand(_ *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "debug",
		Short: "Look inside",
		Args:  positional(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newDecodeCommand())
	return cmd
}

func newDecodeCommand() *cobra.Command {
	var keysFile string
	cmd := &cobra.Command{
		Use:   "decode --authkeys FILE PCAP",
		Short: "Print the Heartbeat messages of a packet capture",
		Long: `Print one JSON object for each Heartbeat message of a capture (pcap or pcapng),
on any UDP port, in capture order: n, time, src, dst, encoding, auth_ok, auth,
type, fields. Other packets are counted on standard error.`,
		Example: "  tcpdump -i eth1 -w hb.pcap udp port 694\n  batuta debug decode --authkeys /etc/ha.d/authkeys hb.pcap",
		Args:    positional(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if keysFile == "" {
				return usageError(cmd, errors.New("--authkeys is needed: without keys nothing can be verified"))
			}
			reader, err := node.Reader("")
			if err != nil {
				return err
			}
			keys, problems := reader.Authkeys(keysFile)
			for _, p := range problems {
				fmt.Fprintln(cmd.ErrOrStderr(), p)
			}
			if config.Failed(problems) {
				return &exitError{code: exitBadConfig}
			}
			f, err := os.Open(args[0])
			if err != nil {
				return fmt.Errorf("open the capture: %w", err)
			}
			defer f.Close()
			return DebugDecode(cmd.OutOrStdout(), cmd.ErrOrStderr(), f, keys)
		},
	}
	cmd.Flags().StringVar(&keysFile, "authkeys", "", "the authkeys file of the cluster")
	return cmd
}
