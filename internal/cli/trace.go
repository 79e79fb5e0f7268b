package cli

import (
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane/ebpf"
)

func newTraceCommand(o *options) *cobra.Command {
	var udp, sctp, known bool
	var dir string
	cmd := &cobra.Command{
		Use:   "trace CLIENT VIP:PORT",
		Short: "What would happen to a client's packet on the eBPF plane, and why",
		Long: `Give a client's packet to the program that balances, on the table in force, and
tell what it would do: to which real server the packet would go and why to that
one, by which interface, or why it would not. Nothing is sent and no connection
or counter is changed. CLIENT is an address, or ADDRESS:PORT to ask about a
connection that exists.`,
		Example: "  batuta trace 192.0.2.7 10.1.0.100:80\n  batuta trace --udp [2001:db8::7]:40000 [2001:db8::100]:53",
		Args:    positional(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := ebpf.Question{Proto: model.TCP, Opens: !known}
			if udp {
				q.Proto = model.UDP
			} else if sctp {
				q.Proto = model.SCTP
			}
			var err error
			if q.Client, err = netip.ParseAddrPort(args[0]); err != nil {
				a, err := netip.ParseAddr(args[0])
				if err != nil {
					return usageError(cmd, fmt.Errorf("client %q: want an address, or ADDRESS:PORT", args[0]))
				}
				q.Client = netip.AddrPortFrom(a, 0)
			}
			if q.Virtual, err = netip.ParseAddrPort(args[1]); err != nil {
				return usageError(cmd, fmt.Errorf("virtual address %q: want ADDRESS:PORT", args[1]))
			}
			t, err := ebpf.TraceTable(dir, q)
			if err != nil {
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), t)
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), t)
			return err
		},
	}
	f := cmd.Flags()
	f.BoolVar(&udp, "udp", false, "a UDP datagram")
	f.BoolVar(&sctp, "sctp", false, "an SCTP packet")
	f.BoolVar(&known, "established", false, "a packet within a connection, not one that opens it")
	f.StringVar(&dir, "pins", ebpf.DefaultDir, "where the table is pinned")
	cmd.MarkFlagsMutuallyExclusive("udp", "sctp")
	return cmd
}
