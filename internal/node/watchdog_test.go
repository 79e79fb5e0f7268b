package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// The device is fed while the decision loop answers, not while it hangs, and is
// told when the end is meant. A file stands for it.
func TestWatchdog(t *testing.T) {
	device := filepath.Join(t.TempDir(), "watchdog")
	if openWatchdog(device, nil, (&memo{}).hear) != nil {
		t.Error("a device that is missing was opened")
	}
	if _, err := os.Stat(device); err == nil {
		t.Fatal("a device that is missing was made")
	}
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fed := func() string { b, _ := os.ReadFile(device); return string(b) }
	var hangs atomic.Bool
	said := &memo{}
	w := openWatchdog(device, func(context.Context) error {
		if hangs.Load() {
			return errors.New("the decision loop does not answer")
		}
		return nil
	}, said.hear)
	w.every = time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	until(t, "fed", func() bool { return len(fed()) > 3 })

	hangs.Store(true)
	until(t, "hungry", func() bool { return said.count("watchdog-hungry") == 1 })
	before := fed()
	time.Sleep(20 * time.Millisecond)
	if fed() != before {
		t.Error("it was fed although nobody decides")
	}
	hangs.Store(false)
	until(t, "fed again", func() bool { return len(fed()) > len(before)+3 })

	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := fed(); !strings.HasSuffix(got, "wV") || strings.Count(got, "V") != 1 {
		t.Errorf("it ends with %q", got[max(0, len(got)-4):])
	}
}
