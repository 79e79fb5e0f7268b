package node

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/rig"
)

// The deciding process goes before ordinary ones; what it starts does not.
func TestUrgency(t *testing.T) {
	rig.RequireRoot(t, "a nice value below 0")
	defer func() {
		if err := setNice(0); err != nil {
			t.Error(err)
		}
	}()
	ctx, end := context.WithCancel(t.Context())
	u := newUrgency(func(e model.Event) { t.Error(e.Text) })
	done := make(chan error)
	go func() { done <- u.Run(ctx) }()
	<-u.Ready()
	priority, err := unix.Getpriority(unix.PRIO_PROCESS, os.Getpid()) // of the first thread, as the kernel returns it: 20 - nice
	if err != nil || 20-priority != urgentNice {
		t.Errorf("nice value %d, %v, want %d", 20-priority, err, urgentNice)
	}
	if threads, err := os.ReadDir("/proc/self/task"); err != nil || len(threads) < urgentThreads {
		t.Errorf("%d threads, %v, want %d that have it", len(threads), err, urgentThreads)
	}
	out, err := exec.CommandContext(t.Context(), "nice").Output()
	if nice, _ := strconv.Atoi(strings.TrimSpace(string(out))); err != nil || nice < 0 {
		t.Errorf("a command has the nice value %q, %v", out, err)
	}
	end()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
