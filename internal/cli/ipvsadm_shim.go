package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/node"
)

func newIpvsadmCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "ipvsadm -L|-S [OPTION...]",
		Short: "ipvsadm's listings, for any plane (also as the name of a link to this program)",
		Long: `Print what ipvsadm prints: -L (or -l) with -n, -t, -u, --sctp-service or -f ADDRESS,
--stats, --rate, -c, --exact, --thresholds, --persistent-conn, --tun-info,
--timeout, --daemon, --sort; and -S.

The table is that of the running daemon, whatever carries the packets; where
no daemon runs, that of the kernel's IPVS. It is only read: commands that change
it are refused, since the daemon would change it back.`,
		Example:            "  batuta ipvsadm -L -n\n  batuta ipvsadm -S -n",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && (args[0] == "-h" || args[0] == "--help") {
				return cmd.Help()
			}
			w, err := parseWish(o.takeOwn(args), newMachineNames(cmd.Context()))
			if err != nil {
				return &exitError{exitUsage, "ipvsadm: " + err.Error()}
			}
			return w.answer(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
}

// takeOwn takes the options that are this program's, and no ipvsadm's, out of
// the arguments: which daemon to ask.
func (o *options) takeOwn(args []string) (rest []string) {
	for i := 0; i < len(args); i++ {
		name, value, joined := strings.Cut(args[i], "=")
		to := map[string]*string{"--run-dir": &o.runDir, "--socket": &o.socket}[name]
		switch {
		case to == nil:
			rest = append(rest, args[i])
		case joined:
			*to = value
		case i+1 < len(args):
			i++
			*to = args[i]
		}
	}
	return rest
}

// wish is what a call of ipvsadm wants to see.
type wish struct {
	listing
	what string // list, save, connections, timeout, daemon
}

// changing are ipvsadm's commands that are not for looking.
var changing = []string{"--clear", "-C", "--restore", "-R", "--zero", "-Z", "--set", "--start-daemon", "--stop-daemon"}

// parseWish reads the options of a listing as ipvsadm does: short ones may
// stand together.
func parseWish(args []string, names interface {
	names
	lookup
}) (wish, error) {
	w := wish{listing: listing{names: names}}
	if len(args) == 0 {
		w.what, w.names = "list", nil // ipvsadm alone lists numbers
		return w, nil
	}
	c := command{names: names}
	var words []string
	for _, a := range args {
		if len(a) > 2 && a[0] == '-' && a[1] != '-' {
			for _, letter := range a[1:] {
				words = append(words, "-"+string(letter))
			}
			continue
		}
		words = append(words, a)
	}
	if _, changes := ops[words[0]]; changes || slices.Contains(changing, words[0]) {
		return w, fmt.Errorf("%s changes the table, which batuta keeps as its configuration says: this ipvsadm only lists (-L, -S)", words[0])
	}
	switch words[0] {
	case "-L", "-l", "--list":
		w.what = "list"
	case "-S", "--save":
		w.what = "save"
	default:
		return w, fmt.Errorf("%s: want -L or -S first", words[0])
	}
	set := func(what string, f form) error {
		if what != "" {
			if w.what != "list" || w.only != nil || w.form == formStats || w.form == formRate {
				return errors.New("options conflict in the list command")
			}
			w.what = what
		}
		if f != formList && (w.form == formList || f == formStats) { // --stats --rate is --stats
			w.form = f
		}
		return nil
	}
	for words = words[1:]; len(words) > 0; words = words[1:] {
		var err error
		option := words[0]
		if w.what == "save" && option != "-n" && option != "--numeric" {
			return w, fmt.Errorf("%s does not go with -S", option)
		}
		switch option {
		case "-n", "--numeric":
			w.names = nil
		case "--exact":
			w.exact = true
		case "--sort", "--nosort":
		case "--stats":
			err = set("", formStats)
		case "--rate":
			err = set("", formRate)
		case "--thresholds":
			err = set("", formThresholds)
		case "--persistent-conn":
			err = set("", formPersistent)
		case "--tun-info":
			err = set("", formTunnels)
		case "-c", "--connection":
			err = set("connections", formList)
		case "--timeout":
			err = set("timeout", formList)
		case "--daemon":
			err = set("daemon", formList)
		case "-6", "--ipv6":
			c.six = true
		case "-t", "--tcp-service", "-u", "--udp-service", "--sctp-service", "-f", "--fwmark-service":
			if len(words) < 2 {
				return w, fmt.Errorf("%s: missing argument", option)
			}
			value := words[1]
			words = words[1:]
			if w.what != "list" {
				return w, errors.New("options conflict in the list command")
			}
			if err = c.service(option, value); err == nil {
				w.only = &c.change.Service.Key
			}
		default:
			err = fmt.Errorf("%s: no option of -L", option)
		}
		if err != nil {
			return w, err
		}
	}
	if w.only != nil && w.only.IsMark() && c.six {
		w.only.MarkFamily = model.IPv6
	}
	if w.what != "list" && (w.form == formStats || w.form == formRate) {
		return w, errors.New("options conflict in the list command")
	}
	return w, nil
}

// tables is who knows a table.
type tables interface {
	Table(ctx context.Context) (api.Table, error)
	Flows(ctx context.Context) (api.Flows, error)
}

// answer asks the daemon, or the kernel where none runs.
func (w wish) answer(ctx context.Context, o *options, out io.Writer) error {
	err := w.print(ctx, o.client(), out)
	if !errors.Is(err, api.ErrNotRunning) && !errors.Is(err, api.ErrDied) {
		return err
	}
	kernel, kerr := node.OpenKernel()
	if kerr != nil {
		return fmt.Errorf("%w; and of the kernel: %w", err, kerr)
	}
	defer kernel.Close() //nolint:errcheck // nothing was written
	return w.print(ctx, kernel, out)
}

func (w wish) print(ctx context.Context, source tables, out io.Writer) error {
	if w.what == "connections" {
		flows, err := source.Flows(ctx)
		if err == nil {
			w.writeFlows(out, flows.Flows)
		}
		return err
	}
	t, err := source.Table(ctx)
	if err != nil {
		return err
	}
	switch w.what {
	case "timeout":
		writeTimeouts(out, t.Timeouts)
	case "daemon":
		writeDaemons(out, t.Sync)
	case "save":
		w.writeSave(out, t)
	default:
		if err := w.write(out, t); err != nil {
			return &exitError{exitFailed, strings.TrimSpace(err.Error())}
		}
	}
	return nil
}
