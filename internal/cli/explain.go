package cli

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane/ebpf"
)

func newExplainCommand(o *options) *cobra.Command {
	var udp, sctp bool
	var without, weight, dir string
	cmd := &cobra.Command{
		Use:   "explain VIP:PORT | \"fwm MARK\"",
		Short: "How a service of the eBPF plane chooses, and what a change would move",
		Long: `Tell how a virtual service of the eBPF plane chooses real servers, which share
of new connections each gets, and, with --without or --weight, what would
follow from taking a real server out or giving it another weight: how much of
the ring leads elsewhere, which open connections end, how many clients would go
elsewhere with their next one. Nothing is changed.`,
		Example: "  batuta explain 10.1.0.100:80\n  batuta explain 10.1.0.100:80 --without 10.240.0.20:80\n  batuta explain --udp 10.1.0.100:53 --weight 10.240.0.20:53=3",
		Args:    positional(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := model.ParseServiceKey(args[0])
			if err != nil {
				key = model.ServiceKey{Proto: model.TCP}
				if udp {
					key.Proto = model.UDP
				} else if sctp {
					key.Proto = model.SCTP
				}
				if key.Addr, err = netip.ParseAddrPort(args[0]); err != nil {
					return usageError(cmd, fmt.Errorf("service %q: want ADDRESS:PORT, or \"fwm MARK\"", args[0]))
				}
			}
			change, err := ringChange(without, weight)
			if err != nil {
				return usageError(cmd, err)
			}
			e, err := ebpf.ExplainTable(dir, key, change)
			if err != nil {
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), e)
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), e)
			return err
		},
	}
	f := cmd.Flags()
	f.BoolVar(&udp, "udp", false, "a UDP service")
	f.BoolVar(&sctp, "sctp", false, "an SCTP service")
	f.StringVar(&without, "without", "", "ask what follows without this real server, `ADDRESS:PORT`")
	f.StringVar(&weight, "weight", "", "ask what follows from another weight, `ADDRESS:PORT=WEIGHT`")
	f.StringVar(&dir, "pins", ebpf.DefaultDir, "where the table is pinned")
	cmd.MarkFlagsMutuallyExclusive("udp", "sctp")
	cmd.MarkFlagsMutuallyExclusive("without", "weight")
	return cmd
}

// ringChange reads the change that is asked about.
func ringChange(without, weight string) (c ebpf.RingChange, err error) {
	name := without
	switch {
	case without != "":
		c.Without = true
	case weight != "":
		var text string
		var ok bool
		if name, text, ok = strings.Cut(weight, "="); !ok {
			return c, errors.New("--weight: want ADDRESS:PORT=WEIGHT")
		}
		if c.Weight, err = strconv.Atoi(text); err != nil {
			return c, fmt.Errorf("--weight: %q is no number", text)
		}
	default:
		return c, nil
	}
	if c.Real, err = netip.ParseAddrPort(name); err != nil {
		return c, fmt.Errorf("real server %q: want ADDRESS:PORT", name)
	}
	return c, nil
}
