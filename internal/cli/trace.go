package cli

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane/ebpf"
)

func newTraceCommand(o *options) *cobra.Command {
	var udp, sctp, known, follow bool
	var dir string
	var reasons []string
	var every, count int
	cmd := &cobra.Command{
		Use:   "trace CLIENT VIP:PORT | --follow [CLIENT [VIP:PORT]]",
		Short: "What would happen to a client's packet on the eBPF plane, and why",
		Long: `Give a client's packet to the program that balances, on the table in force, and
tell what it would do: to which real server the packet would go and why to that
one, by which interface, or why it would not. Nothing is sent and no connection
or counter is changed. CLIENT is an address, or ADDRESS:PORT to ask about a
connection that exists.

With --follow, tell what happens instead, until Ctrl-C: packets that are dropped
or left to the director's own stack, each with its reason, and those that open
connections; all, or those of a client (an address or a network) and a virtual
address (with its port, or of all ports). Packets of open connections that go
their way are not told. While nobody listens this costs nothing. With --json,
one object a line. The reasons are explained in docs/reference/packets.md.`,
		Example: "  batuta trace 192.0.2.7 10.1.0.100:80\n  batuta trace --udp [2001:db8::7]:40000 [2001:db8::100]:53\n" +
			"  batuta trace --follow --reason no-real-server,table-full\n  batuta trace --follow 192.0.2.0/24 10.1.0.100:80 --every 100",
		Args: positional(cobra.MaximumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if follow {
				w := ebpf.Wanted{Every: every}
				if udp {
					w.Proto = model.UDP
				} else if sctp {
					w.Proto = model.SCTP
				}
				if err := wanted(&w, args, reasons); err != nil {
					return usageError(cmd, err)
				}
				return o.followPackets(cmd, dir, w, count)
			}
			if len(args) != 2 {
				return usageError(cmd, fmt.Errorf("want a client and a virtual address with its port"))
			}
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
	f.BoolVar(&follow, "follow", false, "tell of packets as they come, until Ctrl-C")
	f.StringSliceVar(&reasons, "reason", nil, "with --follow: only these `REASONS`; opened is a new connection")
	f.IntVar(&every, "every", 1, "with --follow: one packet of `N`, chosen by chance")
	f.IntVar(&count, "count", 0, "with --follow: end after `N`; 0 is never")
	f.StringVar(&dir, "pins", ebpf.DefaultDir, "where the table is pinned")
	cmd.MarkFlagsMutuallyExclusive("udp", "sctp")
	cmd.MarkFlagsMutuallyExclusive("follow", "established")
	return cmd
}

// wanted reads what --follow is to tell of.
func wanted(w *ebpf.Wanted, args, reasons []string) error {
	if len(args) > 0 {
		var err error
		if w.Client, err = netip.ParsePrefix(args[0]); err != nil {
			a, err := netip.ParseAddr(args[0])
			if err != nil {
				return fmt.Errorf("client %q: want an address, or a network as 192.0.2.0/24", args[0])
			}
			w.Client = netip.PrefixFrom(a, a.BitLen())
		}
	}
	if len(args) > 1 {
		v, err := netip.ParseAddrPort(args[1])
		if err != nil {
			a, err := netip.ParseAddr(args[1])
			if err != nil {
				return fmt.Errorf("virtual address %q: want ADDRESS or ADDRESS:PORT", args[1])
			}
			v = netip.AddrPortFrom(a, 0)
		}
		w.Virtual, w.Port = v.Addr(), v.Port()
	}
	for _, s := range reasons {
		r, err := ebpf.ParseReason(s)
		if err != nil {
			return err
		}
		w.Reasons = append(w.Reasons, r)
	}
	return nil
}

// packetLine is the JSON form of a packet.
type packetLine struct {
	Version int `json:"version"`
	ebpf.Packet
}

var errEnough = errors.New("enough")

func (o *options) followPackets(cmd *cobra.Command, dir string, w ebpf.Wanted, count int) error {
	told := 0
	lost, err := ebpf.Listen(cmd.Context(), dir, w, func(p ebpf.Packet) (err error) {
		if o.json {
			err = printJSON(cmd.OutOrStdout(), packetLine{api.Version, p})
		} else {
			_, err = fmt.Fprintln(cmd.OutOrStdout(), p)
		}
		if told++; err == nil && told == count {
			return errEnough
		}
		return err
	})
	if lost > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "%d more came faster than they could be told; --every N tells one of N\n", lost)
	}
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}
