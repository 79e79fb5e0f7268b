package demo

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// What one probe may take before it counts as failed, and how many may be
// under way: while nobody answers, a probe a millisecond would pile up.
const (
	probeInterval = time.Millisecond
	probeTimeout  = 500 * time.Millisecond
	maxProbes     = 600
)

// Probes say what Load asks for.
type Probes struct {
	URL   string // of the page
	Want  string // text of a correct answer
	Count int    // probes in all; 0: until the context ends
}

// Load asks for a page each millisecond, over a fresh connection each time,
// and writes one line for every probe: when it ended (Unix nanoseconds), and
// the name of the real server that answered or "-".
//
// It runs as a process of its own inside the client's network.
func Load(ctx context.Context, p Probes, w io.Writer) error {
	out := bufio.NewWriter(w)
	client := &http.Client{
		Timeout: probeTimeout,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext:       (&net.Dialer{Timeout: probeTimeout}).DialContext,
		},
	}
	type result struct {
		at     time.Time
		server string
	}
	results := make(chan result, maxProbes)
	slots := make(chan struct{}, maxProbes)
	var probes sync.WaitGroup
	go func() {
		tick := time.NewTicker(probeInterval)
		defer tick.Stop()
		defer close(results)
		defer probes.Wait()
		for begun := 0; p.Count == 0 || begun < p.Count; begun++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			select {
			case slots <- struct{}{}:
			default:
				continue // all slots wait for a dead director: the gap is being measured
			}
			probes.Go(func() {
				server := ask(client, p)
				results <- result{time.Now(), server}
				<-slots
			})
		}
	}()
	flush := time.NewTicker(50 * time.Millisecond)
	defer flush.Stop()
	for {
		select {
		case r, more := <-results:
			if !more {
				return out.Flush()
			}
			if _, err := fmt.Fprintln(out, r.at.UnixNano(), r.server); err != nil {
				return fmt.Errorf("report a probe: %w", err)
			}
		case <-flush.C:
			if err := out.Flush(); err != nil {
				return fmt.Errorf("report probes: %w", err)
			}
		}
	}
}

// ask makes one request and returns who answered it correctly, else "-".
func ask(client *http.Client, p Probes) string {
	resp, err := client.Get(p.URL)
	if err != nil {
		return "-"
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), p.Want) {
		return "-"
	}
	if s := resp.Header.Get("X-Real-Server"); s != "" {
		return s
	}
	return "unnamed"
}
