package lab_test

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"
)

// probe asks an address each millisecond and keeps when answers came.
type probe struct {
	mu      sync.Mutex
	answers []time.Time
}

// probe starts one on the gate; it ends with the lab.
func (d *duet) probe(address string) *probe {
	d.Helper()
	p := &probe{}
	r, w := io.Pipe()
	cmd := d.Node("gate").Command(d.Context(), "ping", "-n", "-D", "-i", "0.001", "-W", "0.1", address)
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		d.Fatal(err)
	}
	go func() {
		in := bufio.NewScanner(r)
		for in.Scan() {
			stamp, _, ok := strings.Cut(strings.TrimPrefix(in.Text(), "["), "] 64 bytes")
			seconds, err := strconv.ParseFloat(stamp, 64)
			if !ok || err != nil {
				continue
			}
			p.mu.Lock()
			p.answers = append(p.answers, time.UnixMicro(int64(seconds*1e6)))
			p.mu.Unlock()
		}
	}()
	d.Cleanup(func() { _ = w.Close() })
	return p
}

// gap is the longest time without an answer since then.
func (p *probe) gap(since time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	var longest time.Duration
	for i := 1; i < len(p.answers); i++ {
		if p.answers[i].After(since) {
			longest = max(longest, p.answers[i].Sub(p.answers[i-1]))
		}
	}
	return longest
}

// answered counts the answers since then.
func (p *probe) answered(since time.Time) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, at := range p.answers {
		if at.After(since) {
			n++
		}
	}
	return n
}

// migrate makes a running pair of real Heartbeats a pair of Batuta nodes, one
// node after the other, and lets one of them go back. A client that asks for
// the service address each millisecond tells what each step costs it;
// docs/guide/migrate-from-heartbeat.md is written from the log of this story.
func migrate(d *duet) {
	d.use(ours, "heartbeat") // at first
	d.coldStart()
	client := d.probe("10.77.0.101")
	var report strings.Builder
	step := func(what string, do func()) {
		begin := time.Now()
		do()
		d.agree()
		end := time.Now()
		d.eventually("the address answers after: "+what, func() string {
			if n := client.answered(end); n < 100 {
				return fmt.Sprintf("%d answers", n)
			}
			return ""
		})
		fmt.Fprintf(&report, "%-55s longest silence %6.1f ms\n", what, client.gap(begin).Seconds()*1000)
	}
	replace := func(node, by string) func() {
		return func() {
			d.stop(node)
			d.use(node, by)
			d.start(node)
		}
	}

	step("nothing happens", func() {})
	step("theirs (real) hands everything to ours (real)", func() { d.move(theirs, "hb_standby", "all", both, nothing) })
	step("theirs becomes Batuta", replace(theirs, "batuta"))
	d.settled("nothing has moved", both, nothing)
	step("ours (real) hands everything to theirs (Batuta)", func() { d.move(ours, "hb_standby", "all", nothing, both) })
	step("ours becomes Batuta", replace(ours, "batuta"))
	d.settled("nothing has moved", nothing, both)
	step("ours (Batuta) takes its own back from theirs (Batuta)", func() { d.move(ours, "hb_takeover", "local", ourSet, theySet) })
	step("ours hands everything to theirs, both Batuta", func() { d.move(ours, "hb_standby", "all", nothing, both) })
	step("the way back: ours becomes a real Heartbeat again", replace(ours, "heartbeat"))
	d.settled("nothing has moved", nothing, both)
	step("theirs (Batuta) hands everything to ours (real)", func() { d.move(theirs, "hb_standby", "all", both, nothing) })
	d.Logf("what a client saw that asks each millisecond:\n%s", report.String())
}
