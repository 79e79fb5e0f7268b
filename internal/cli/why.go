package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/journal"
	"github.com/batuta-ha/batuta/internal/sla"
)

func newWhyCommand(o *options) *cobra.Command {
	var f journalFlags
	cmd := &cobra.Command{
		Use:   "why RESOURCE | EVENT",
		Short: "The chain behind a move or an outage: what was noticed, decided and done",
		Long: `Explain the last outage or move of an address, a resource, a service, a node or
a link, named by a part of its name, or the one that an event belongs to, named
by its number in batuta events; of a node also when it was suspect last, its
daemon silent and its kernel not: which silence or failure was noticed by whom,
what was decided, what was done, and how long each part took.

  detect   from the last sign that all was well until somebody knew
  decide   until it was settled what to do
  switch   until the address answered again
  verify   until it was known that everything runs`,
		Example: "  batuta why 10.1.0.100\n  batuta why lvs02:41\n  batuta why 10.1.0.100 --journal lvs01/journal --journal lvs02/journal",
		Args:    positional(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, loc, err := f.read(cmd, o)
			if err != nil {
				return err
			}
			notes(cmd.ErrOrStderr(), s)
			c, err := s.Why(args[0])
			if err != nil {
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), whyReport{journalVersion, c})
			}
			writeChain(cmd.OutOrStdout(), c, loc)
			return nil
		},
	}
	f.add(cmd)
	return cmd
}

// whyReport is the JSON form of batuta why.
type whyReport struct {
	Version int `json:"version"`
	journal.Chain
}

func writeChain(w io.Writer, c journal.Chain, loc *time.Location) {
	length := c.To.Sub(c.From).Round(time.Microsecond)
	at := c.From.In(loc).Format(stamp)
	switch {
	case c.Before != c.After && c.State != sla.Down && c.State != sla.Planned:
		fmt.Fprintf(w, "%s moved from %s to %s at %s\n", c.Thing, c.Before, c.After, at)
	case c.Open:
		fmt.Fprintf(w, "%s is %s since %s\n", c.Thing, c.State, at)
	case c.Before != "" && c.After != "" && c.Before != c.After:
		fmt.Fprintf(w, "%s was %s for %s from %s on, and moved from %s to %s\n", c.Thing, c.State, length, at, c.Before, c.After)
	default:
		fmt.Fprintf(w, "%s was %s for %s from %s on\n", c.Thing, c.State, length, at)
	}
	if c.Why != "" {
		fmt.Fprintln(w, "  because "+c.Why)
	}
	if c.Parts != (journal.Repair{}) {
		fmt.Fprintln(w)
		for _, p := range []struct {
			name   string
			length time.Duration
			means  string
		}{
			{"detect", c.Parts.Detect, "until somebody knew"},
			{"decide", c.Parts.Decide, "until it was settled what to do"},
			{"switch", c.Parts.Switch, "until the address answered again"},
			{"verify", c.Parts.Verify, "until it was known that everything runs"},
		} {
			fmt.Fprintf(w, "  %s %12s   %s\n", p.name, p.length.Round(time.Microsecond), p.means)
		}
	}
	if len(c.Steps) > 0 {
		fmt.Fprintln(w)
	}
	for _, st := range c.Steps {
		if text := entryText(st.Entry); text != "" {
			fmt.Fprintf(w, "  %+9.3fs  %-6s  %-10s %s\n", st.Offset.Seconds(), st.Part, st.ID, text)
		}
	}
}
