package demo

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"
)

// account gathers what the probes report.
type account struct {
	mu     sync.Mutex
	total  int
	failed int
	by     map[string]int // correct answers for each real server
	good   []time.Time    // when correct answers came, ascending but for neighbors
}

func newAccount() *account { return &account{by: map[string]int{}} }

// read takes the lines that Load writes until they end.
func (a *account) read(r io.Reader) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		var ns int64
		var server string
		if _, err := fmt.Sscan(lines.Text(), &ns, &server); err != nil {
			return fmt.Errorf("the load generator wrote %q: %w", lines.Text(), err)
		}
		a.add(time.Unix(0, ns), server)
	}
	return lines.Err()
}

func (a *account) add(at time.Time, server string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.total++
	if server == "-" {
		a.failed++
		return
	}
	a.by[server]++
	a.good = append(a.good, at)
}

// snapshot returns the answers so far for each real server.
func (a *account) snapshot() map[string]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.by)
}

// answeredSince tells whether a correct answer came after t.
func (a *account) answeredSince(t time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.good) > 0 && a.good[len(a.good)-1].After(t)
}

// gap is the longest time without a correct answer that overlaps the span
// from the cause until `until`. When no answer came after the cause it is the
// whole rest, and ok is false.
func (a *account) gap(cause, until time.Time) (longest time.Duration, ok bool) {
	a.mu.Lock()
	good := slices.Clone(a.good)
	a.mu.Unlock()
	slices.SortFunc(good, time.Time.Compare)
	last := cause
	for i, t := range good {
		if !t.After(cause) {
			last = t
			continue
		}
		if i > 0 && good[i-1].After(until) {
			break
		}
		longest = max(longest, t.Sub(last))
		last = t
		ok = true
	}
	if !ok {
		return until.Sub(last), false
	}
	return longest, true
}
