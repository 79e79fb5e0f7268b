package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

const (
	// How often a watchdog is fed; the least time-out that a driver takes is a second.
	watchdogEvery = 500 * time.Millisecond
	// How long the decision loop may take to answer before it counts as hung.
	watchdogPatience = 5 * time.Second
)

// watchdog is the watchdog directive as a task: the device resets the machine
// unless it is written to (Linux, Documentation/watchdog/watchdog-api.rst). It
// is fed only while the loops that decide answer: a daemon that hangs must not
// keep its addresses.
type watchdog struct {
	device *os.File
	alive  func(context.Context) error // the decision loop's answer
	sink   model.Sink
	ready  chan struct{}
	every  time.Duration
}

// openWatchdog opens the device. As with Heartbeat a device that is missing is
// reported, and the node starts without.
func openWatchdog(path string, alive func(context.Context) error, sink model.Sink) *watchdog {
	if path == "" {
		return nil
	}
	// No O_CREAT: a regular file in the place of a device would look like one that works.
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		sink(model.Event{At: time.Now(), Level: model.LevelError, Source: "watchdog", Kind: "watchdog-failed", Subject: path,
			Text: fmt.Sprintf("watchdog %s: %v; a hung machine is not reset: load its driver, or modprobe softdog", path, err)})
		return nil
	}
	return &watchdog{device: f, alive: alive, sink: sink, ready: make(chan struct{}), every: watchdogEvery}
}

func (w *watchdog) String() string         { return "watchdog " + w.device.Name() }
func (w *watchdog) Ready() <-chan struct{} { return w.ready }

// Run feeds the device until ctx ends, and then tells it that the end is meant
// (the magic close of the kernel's interface).
func (w *watchdog) Run(ctx context.Context) error {
	close(w.ready)
	w.say(model.LevelInfo, "watchdog", "%s is fed while the decision loop answers", w)
	defer w.device.Close()
	hungry := false
	for {
		err := w.feed(ctx)
		switch {
		case ctx.Err() != nil:
			_, err := w.device.WriteString("V")
			return err
		case err != nil && !hungry:
			w.say(model.LevelCritical, "watchdog-hungry", "%s is not fed: %v; it will reset this machine", w, err)
		case err == nil && hungry:
			w.say(model.LevelNotice, "watchdog", "%s is fed again", w)
		}
		hungry = err != nil
		rest(ctx, w.every)
	}
}

// feed writes to the device if those who decide answer.
func (w *watchdog) feed(ctx context.Context) error {
	asked, cancel := context.WithTimeoutCause(ctx, watchdogPatience, errors.New("the decision loop does not answer"))
	defer cancel()
	if err := w.alive(asked); err != nil {
		return err
	}
	_, err := w.device.WriteString("w")
	return err
}

func (w *watchdog) say(l model.Level, kind, format string, args ...any) {
	w.sink(model.Event{At: time.Now(), Level: l, Source: "watchdog", Kind: kind, Subject: w.device.Name(), Text: fmt.Sprintf(format, args...)})
}
