package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/journal"
)

// pastReport is the JSON form of batuta status --at.
type pastReport struct {
	Version int                `json:"version"`
	At      time.Time          `json:"at"`
	Things  []journal.Standing `json:"things"`
}

// statusAt prints how everything was at a moment, as the journals have it.
func statusAt(cmd *cobra.Command, o *options, f journalFlags, at string) error {
	s, loc, err := f.read(cmd, o)
	if err != nil {
		return err
	}
	t, err := parseTime(at, time.Now().In(loc))
	if err != nil {
		return usageError(cmd, fmt.Errorf("--at: %w", err))
	}
	notes(cmd.ErrOrStderr(), s)
	r := pastReport{journalVersion, t, s.At(t)}
	if o.json {
		return printJSON(cmd.OutOrStdout(), r)
	}
	writePast(cmd.OutOrStdout(), r, loc)
	return nil
}

// plurals are the headings of status --at.
var plurals = map[string]string{
	journal.ThingNode: "Nodes", journal.ThingLink: "Links", journal.ThingResource: "Resources",
	journal.ThingAddress: "Addresses", journal.ThingService: "Services", journal.ThingReal: "Real servers",
}

func writePast(w io.Writer, r pastReport, loc *time.Location) {
	fmt.Fprintf(w, "How it was at %s\n", r.At.In(loc).Format(stamp))
	kind := ""
	for _, st := range r.Things {
		if st.Thing.Kind != kind {
			kind = st.Thing.Kind
			fmt.Fprintf(w, "\n%s\n", plurals[kind])
		}
		text := st.State.String()
		if !st.Since.IsZero() {
			text = fmt.Sprintf("%-8s since %s", text, st.Since.In(loc).Format(stamp))
		}
		if st.Where != "" {
			text += " on " + st.Where
		}
		if st.Why != "" {
			text += ": " + st.Why
		}
		fmt.Fprintf(w, "  %-34s %s\n", st.Thing.Name, text)
	}
}
