package sim

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "run the schedule of this seed alone and write what happens")
	fromFlag  = flag.Uint64("from", 1, "first seed of TestSchedules")
	countFlag = flag.Uint64("schedules", 0, "how many schedules TestSchedules runs (default 10000; 200 with the race detector)")
	stopFlag  = flag.Bool("stop", false, "TestSchedules ends with the first failure")
	keepFlag  = flag.String("keep", "", "write the schedule of -seed to testdata/NAME.json")
)

// TestSeed shows one schedule step by step.
func TestSeed(t *testing.T) {
	if *seedFlag == 0 {
		t.Skip("no -seed")
	}
	s := NewSchedule(*seedFlag)
	if *keepFlag != "" {
		b, err := json.MarshalIndent(s, "", "\t")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join("testdata", *keepFlag+".json"), append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%+v", s.Config)
	r := Run(s, os.Stdout)
	t.Logf("%+v", r.Seen)
	for _, b := range r.Broken {
		t.Error(b)
	}
}

// TestStories runs the schedules that once broke a promise. Each file has the
// name of what was wrong.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no stories", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			t.Parallel()
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var s Schedule
			if err := json.Unmarshal(b, &s); err != nil {
				t.Fatal(err)
			}
			var trace strings.Builder
			if r := Run(s, &trace); len(r.Broken) > 0 {
				t.Errorf("%s\n%s", strings.Join(r.Broken, "\n"), trace.String())
			}
		})
	}
}

// TestSchedules runs schedules drawn from consecutive seeds.
func TestSchedules(t *testing.T) {
	t.Parallel()
	count := *countFlag
	switch {
	case count > 0:
	case raceDetector || testing.Short():
		count = 200
	default:
		count = 10_000
	}
	var next atomic.Uint64
	next.Store(*fromFlag - 1)
	last := *fromFlag - 1 + count
	var mu sync.Mutex
	var sum Seen
	failed := 0
	began := time.Now()
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for seed := next.Add(1); seed <= last; seed = next.Add(1) {
				if *stopFlag && t.Failed() {
					return
				}
				s := NewSchedule(seed)
				r := Run(s, nil)
				mu.Lock()
				sum.add(r.Seen)
				if len(r.Broken) > 0 {
					if failed++; failed <= 10 {
						t.Errorf("seed %d: %s\n%s", seed, r.Broken[0], shrunk(s))
					}
				}
				if seed%100_000 == 0 {
					t.Logf("%v: %d schedules, %d failed", time.Since(began).Round(time.Second), seed+1-*fromFlag, failed)
				}
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	t.Logf("%d schedules from seed %d in %v: %d failed; %+v", count, *fromFlag, time.Since(began).Round(time.Second/10), failed, sum)
	if *stopFlag {
		return
	}
	if sum.Splits == 0 || sum.Doubled == 0 || sum.Takeovers == 0 || sum.Lost == 0 {
		t.Errorf("too few schedules to prove anything: %+v", sum)
	}
}

// shrunk is the failing schedule without what it fails without, too.
func shrunk(s Schedule) string {
	s = Shrink(s)
	out := fmt.Sprintf("go test ./internal/sim -run TestSeed -v -seed=%d shows it; without the faults that do not matter:\n%+v", s.Seed, s.Config)
	for _, f := range s.Faults {
		out += fmt.Sprintf("\n%9.4f %v", f.At.Seconds(), f)
	}
	return out
}

// Equal schedules give equal results, to the last line of the trace.
func TestExact(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= 20; seed++ {
		var a, b strings.Builder
		Run(NewSchedule(seed), &a)
		Run(NewSchedule(seed), &b)
		if a.String() != b.String() {
			t.Errorf("seed %d: two runs differ", seed)
		}
	}
}
