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

// newest is when the last correct answer came that was reported.
func (a *account) newest() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.good) == 0 {
		return time.Time{}
	}
	return a.good[len(a.good)-1]
}

// gap is the longest time without a correct answer within the span from the
// cause until `until`, counted from the last answer before the cause. ok is
// false when none came after the cause.
func (a *account) gap(cause, until time.Time) (longest time.Duration, ok bool) {
	a.mu.Lock()
	good := slices.Clone(a.good)
	a.mu.Unlock()
	slices.SortFunc(good, time.Time.Compare)
	last := cause
	for _, t := range good {
		if t.After(until) {
			break
		}
		if t.After(cause) {
			longest, ok = max(longest, t.Sub(last)), true
		}
		last = t
	}
	return max(longest, until.Sub(last)), ok
}
