package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

const (
	// urgentNice is the nice value of the deciding process. A hand-over passes
	// four processes; with this one, measured, its gap is 2 ms instead of 3.
	urgentNice = -19
	// urgentEvery is how often threads that are new are given it.
	urgentEvery = 10 * time.Second
	// urgentThreads are made before it is given, so that hardly any is new: the
	// runtime uses those that idle, and ends none. A hand-over that met one with
	// an ordinary priority waited for 15 ms and more on a busy machine.
	urgentThreads = 16
)

// urgency is the task that keeps this process ahead of ordinary ones: what the
// beat process has heard in time is to be decided in time. It is no real-time
// priority, as checks and the control socket run here, too.
type urgency struct {
	sink  model.Sink
	ready chan struct{}
}

func newUrgency(sink model.Sink) *urgency { return &urgency{sink: sink, ready: make(chan struct{})} }

func (*urgency) String() string { return "priority" }

func (u *urgency) Ready() <-chan struct{} { return u.ready }

func (u *urgency) Run(ctx context.Context) error {
	makeThreads(urgentThreads)
	err := setNice(urgentNice)
	close(u.ready)
	if err != nil { // the beat process says what follows, and how to mend it
		u.sink(model.Event{At: time.Now(), Level: model.LevelDebug, Source: "node", Kind: "priority-ordinary", Text: fmt.Sprintf("this process has an ordinary priority: %v", err)})
		<-ctx.Done()
		return nil
	}
	every := time.NewTicker(urgentEvery)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-every.C:
			_ = setNice(urgentNice) // it went well before
		}
	}
}

// makeThreads has the runtime make so many threads, which idle then.
func makeThreads(n int) {
	var made, ended sync.WaitGroup
	leave := make(chan struct{})
	made.Add(n)
	for range n {
		ended.Go(func() {
			runtime.LockOSThread() // a goroutine that waits so has a thread wait with it
			defer runtime.UnlockOSThread()
			made.Done()
			<-leave
		})
	}
	made.Wait()
	close(leave)
	ended.Wait()
}

// setNice gives every thread of this process a nice value that what they start
// does not inherit: scripts do not, and new threads do not either (sched(7), the
// reset-on-fork flag).
func setNice(nice int) error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: int32(nice), Flags: unix.SCHED_FLAG_RESET_ON_FORK}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		if err := unix.SchedSetAttr(tid, &attr, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("sched_setattr: %w", err)
		}
	}
	return nil
}
