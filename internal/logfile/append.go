package logfile

import (
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

const (
	// A healthy disk takes a line well within this time; one that hangs holds
	// nobody up for longer, and only once until it has recovered.
	patience = 50 * time.Millisecond
	// Lines that wait for a disk that hangs; more are dropped.
	maxWaiting = 1000
)

// entry is one line: its stamp belongs to files only.
type entry struct {
	level       model.Level
	stamp, text string
}

// appender writes lines in order, on a goroutine that lives while there is
// something to write.
type appender struct {
	write  func(entry) error
	report func(error)

	mu      sync.Mutex
	waiting []waiting
	writing bool // the goroutine lives
	stuck   bool // it takes too long: nobody waits for it now
	failed  bool // reported
	dropped int
}

type waiting struct {
	entry
	done chan struct{}
}

// append queues one line, and waits for it to be written unless the disk hangs.
func (a *appender) append(e entry) {
	done, wait := a.queue(e)
	if !wait {
		return
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		a.mu.Lock()
		a.stuck = a.writing
		a.mu.Unlock()
	}
}

// queue queues one line. done is closed once it is written; wait tells whether
// that is to be expected soon.
func (a *appender) queue(e entry) (done <-chan struct{}, wait bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.waiting) >= maxWaiting {
		a.dropped++
		return nil, false
	}
	w := waiting{e, make(chan struct{})}
	a.waiting = append(a.waiting, w)
	if !a.writing {
		a.writing = true
		go a.drain()
	}
	return w.done, !a.stuck
}

// drain writes what waits, and ends.
func (a *appender) drain() {
	for {
		a.mu.Lock()
		if len(a.waiting) == 0 {
			a.writing, a.stuck, a.waiting = false, false, nil
			a.mu.Unlock()
			return
		}
		w := a.waiting[0]
		a.waiting = a.waiting[1:]
		dropped := a.dropped
		a.dropped = 0
		a.mu.Unlock()
		err := a.write(w.entry)
		if err == nil && dropped > 0 {
			err = fmt.Errorf("%d lines were lost while it could not be written", dropped)
		}
		a.mu.Lock()
		first := err != nil && !a.failed
		a.failed = err != nil
		a.mu.Unlock()
		if first {
			a.report(err)
		}
		close(w.done)
	}
}

// appendLine opens the file anew for each line, so that rotation needs no signal.
func appendLine(path, line string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line)
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}
