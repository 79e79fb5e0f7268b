package cli

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/journal"
)

// journalVersion is the version of the JSON forms of events, why and the rest.
const journalVersion = 1

// followEvery is how often --follow looks for more.
const followEvery = 200 * time.Millisecond

func newEventsCommand(o *options) *cobra.Command {
	var f journalFlags
	var since, until, word string
	var follow bool
	cmd := &cobra.Command{
		Use:   "events",
		Short: "What happened: the journal of this node, or of several together",
		Long: `Print what the journal has recorded: events of all parts, changes of state,
maintenance windows, starts and stops. Each line begins with its time and its
number, by which batuta why asks.

The journal is in the state directory and is read without the daemon. With
--json, one object a line.`,
		Example: "  batuta events --since 1h\n  batuta events --about 10.1.0.100 --since \"2026-11-22 14:00\"\n  batuta events --journal lvs01/journal --journal lvs02/journal",
		Args:    positional(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var tails []*journal.Tail // before all else is read, so that nothing falls between
			for _, dir := range f.paths(o) {
				if !follow {
					break
				}
				t, err := journal.NewTail(dir)
				if err != nil {
					return err
				}
				tails = append(tails, t)
			}
			s, loc, err := f.read(cmd, o)
			if err != nil {
				return err
			}
			now := time.Now().In(loc)
			from, to := time.Time{}, now.AddDate(100, 0, 0)
			if since != "" {
				if from, err = parseTime(since, now); err != nil {
					return usageError(cmd, fmt.Errorf("--since: %w", err))
				}
			}
			if until != "" {
				if to, err = parseTime(until, now); err != nil {
					return usageError(cmd, fmt.Errorf("--until: %w", err))
				}
			}
			out := cmd.OutOrStdout()
			show := func(e journal.Entry) error {
				if e.Time.Before(from) || e.Time.After(to) || !about(e, word) {
					return nil
				}
				if o.json {
					return printJSON(out, eventLine{journalVersion, e})
				}
				writeEntry(out, e, loc)
				return nil
			}
			told := map[string]bool{} // of what the tails will tell again
			if !follow || since != "" {
				var failed error
				err := s.Entries(from, to, func(e journal.Entry) bool {
					if follow && e.Time.After(now.Add(-time.Minute)) {
						told[e.ID] = true
					}
					failed = show(e)
					return failed == nil
				})
				notes(cmd.ErrOrStderr(), s)
				if err := errors.Join(failed, err); err != nil {
					return err
				}
			}
			if !follow {
				return nil
			}
			return followJournals(cmd, tails, told, show)
		},
	}
	f.add(cmd)
	fl := cmd.Flags()
	fl.StringVar(&since, "since", "", "from this time on: 2026-11-22 14:30, 14:30, or 10m for ten minutes ago")
	fl.StringVar(&until, "until", "", "up to this time")
	fl.StringVar(&word, "about", "", "only what has this text: an address, a node, a resource, a kind of event")
	fl.BoolVar(&follow, "follow", false, "print what happens from now on (or since --since), until Ctrl-C")
	return cmd
}

// eventLine is the JSON form of a line.
type eventLine struct {
	Version int `json:"version"`
	journal.Entry
}

// followJournals shows what is added, beyond what was told already, until the
// command is interrupted.
func followJournals(cmd *cobra.Command, tails []*journal.Tail, told map[string]bool, show func(journal.Entry) error) error {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		select {
		case <-cmd.Context().Done():
			return nil
		case <-tick.C:
		}
		for _, t := range tails {
			list, err := t.Next()
			if err != nil {
				return err
			}
			for _, e := range list {
				if told[e.ID] {
					continue
				}
				if err := show(e); err != nil {
					return err
				}
			}
		}
	}
}
