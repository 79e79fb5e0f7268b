package cli

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/model"
)

// LSB's exit codes of a status query (Linux Standard Base, init script actions).
var statusExits = map[error]int{
	api.ErrDied:       1, // dead, and something of it remains
	api.ErrNotRunning: 3,
	api.ErrNotAllowed: 4, // unknown
}

func newStatusCommand(o *options) *cobra.Command {
	var f journalFlags
	var at string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "One screen: node, peers, resources, services",
		Long: `Print how the running daemon and its cluster are. Exit codes are those of an
init script's status: 0 it runs, 1 it died and left something behind, 3 it does
not run, 4 this user may not ask.`,
		Example: "  batuta status\n  batuta status --json",
		Args:    positional(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if at != "" {
				return statusAt(cmd, o, f, at)
			}
			st, err := o.client().Status(cmd.Context())
			for reason, code := range statusExits {
				if errors.Is(err, reason) {
					return &exitError{code, err.Error()}
				}
			}
			if err != nil {
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), st)
			}
			writeStatus(cmd.OutOrStdout(), st, time.Now())
			return nil
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&at, "at", "", "a moment of the past: 2026-11-22 14:30, 14:30:05, or 10m for ten minutes ago")
	return cmd
}

func writeStatus(w io.Writer, st api.Status, now time.Time) {
	fmt.Fprintf(w, "%s is %s", st.Node, st.State)
	if st.PlaneInfo.Name != "" {
		fmt.Fprintf(w, "; plane %s", st.PlaneInfo.Name)
	}
	fmt.Fprintln(w)
	for detail := range strings.SplitSeq(st.PlaneInfo.Detail, "; ") {
		if detail != "" {
			fmt.Fprintln(w, "  "+detail)
		}
	}
	for _, s := range st.Sentences {
		fmt.Fprintln(w, "! "+s)
	}
	if len(st.Peers) > 0 {
		fmt.Fprintf(w, "\nNodes (%s)\n", st.Mode)
		for _, p := range st.Peers {
			name := string(p.Name)
			if p.Self {
				name += " (this one)"
			}
			state := p.State
			if p.Suspect {
				state = "suspect"
			}
			about := linksText(p.Links)
			if p.Key != "" {
				about = strings.TrimPrefix(about+", signs with key "+p.Key, ", ")
			}
			fmt.Fprintf(w, "  %-20s %-7s %s\n", name, state, about)
			if m := p.Margin; m.DeadTime > 0 {
				fmt.Fprintf(w, "  %-20s         a deadtime of %d ms would have raised no false alarm %s\n", "", time.Duration(m.DeadTime).Milliseconds(), learntText(m.Since, now))
			}
		}
	}
	writePackets(w, st)
	if len(st.Resources) > 0 {
		fmt.Fprintln(w, "\nResources")
		for _, r := range st.Resources {
			where := string(r.Node)
			if where == "" {
				where = "nowhere"
			}
			fmt.Fprintf(w, "  %-28s %-9s on %s", r.Name, r.State, where)
			if r.Error != "" { // of this node, whoever has it now
				fmt.Fprintf(w, "; %s here: %s", r.Here, r.Error)
			}
			fmt.Fprintln(w)
		}
	}
	for _, s := range st.Services {
		fmt.Fprintf(w, "\nService %s %s", s.Key, s.Scheduler)
		if s.Fallback {
			fmt.Fprint(w, ", on its fallback")
		}
		if s.Refused != "" {
			fmt.Fprintf(w, ", refused by the data plane: %s", s.Refused)
		}
		fmt.Fprintln(w)
		for _, r := range s.Reals {
			fmt.Fprintf(w, "  %-22s %-5s weight %-4s %s\n", r.Addr, r.Status, weightText(r), checkText(r, now))
		}
	}
}

// writePackets tells what the heartbeats dropped, if they did.
func writePackets(w io.Writer, st api.Status) {
	p := st.Packets
	var dropped []string
	for _, c := range []struct {
		n    uint64
		text string
	}{
		{p.Bad, "not authentic"}, {p.Unknown, "of unknown nodes"}, {p.Replayed, "replayed"}, {p.Unproven, "unproven"},
		{p.Excess, "more than a node may send"}, {p.Dropped, "unseen"},
	} {
		if c.n > 0 {
			dropped = append(dropped, fmt.Sprintf("%d %s", c.n, c.text))
		}
	}
	if len(dropped) == 0 {
		return
	}
	fmt.Fprintf(w, "\nHeartbeat packets: %d sent, %d received; dropped: %s\n", p.Sent, p.Received, strings.Join(dropped, ", "))
	for _, l := range st.LinkPackets {
		if n := l.Kernel + l.Again + l.Bad; n > 0 {
			fmt.Fprintf(w, "  link %-15s %d dropped by the kernel, %d repeated, %d not authentic\n", l.Name, l.Kernel, l.Again, l.Bad)
		}
	}
}

// learntText says over what time a margin was learnt.
func learntText(since, now time.Time) string {
	const day = 24 * time.Hour
	switch span := now.Sub(since); {
	case span >= 7*day-time.Hour:
		return "in the last 7 days"
	case span >= 2*day:
		return fmt.Sprintf("in the last %d days", span/day)
	case span >= 2*time.Hour:
		return fmt.Sprintf("in the last %d hours", span/time.Hour)
	case span >= 2*time.Minute:
		return fmt.Sprintf("in the last %d minutes", span/time.Minute)
	default:
		return "since it was first heard, less than two minutes ago"
	}
}

func weightText(r model.RealView) string {
	if !r.InTable {
		return "-"
	}
	return fmt.Sprint(r.Weight)
}

func checkText(r model.RealView, now time.Time) string {
	if d := r.Drain; d != nil {
		return drainText(*d, now)
	}
	if r.Checked.IsZero() {
		return "not checked yet"
	}
	text := fmt.Sprintf("%s (%s%s, %s ago)", r.Reason, roundTime(r.Took), latencyText(r.Latency), now.Sub(r.Checked).Round(time.Second))
	if r.Load != "" {
		text += "; it reports " + r.Load
	}
	if r.Warning != "" {
		text += "; " + r.Warning
	}
	if r.Refused != "" {
		text += "; refused by the data plane: " + r.Refused
	}
	return text
}

// latencyText sums up how long the last checks took.
func latencyText(last []time.Duration) string {
	if len(last) < 2 {
		return ""
	}
	return fmt.Sprintf(", the last %d %s to %s", len(last), roundTime(slices.Min(last)), roundTime(slices.Max(last)))
}

func roundTime(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

// drainText tells how far a real server is that is taken out of service.
func drainText(d model.DrainView, now time.Time) string {
	switch {
	case d.Out:
		return "drained: its time was over"
	case d.Remaining == 0:
		return "drained: no connection is left"
	}
	text := "draining"
	if d.Remaining > 0 {
		text = fmt.Sprintf("draining: %d connections are left", d.Remaining)
	}
	if !d.Deadline.IsZero() {
		text += fmt.Sprintf(", cut in %s", d.Deadline.Sub(now).Round(time.Second))
	}
	return text
}

func linksText(links []model.LinkView) string {
	var b []string
	for _, l := range links {
		state := "dead"
		if l.Up {
			state = "up"
		}
		b = append(b, l.Name+" "+state)
	}
	return strings.Join(b, ", ")
}
