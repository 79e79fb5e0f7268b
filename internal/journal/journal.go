package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

// Instant is a point in time by two clocks.
type Instant struct {
	Wall   time.Time
	Uptime time.Duration // since the boot of the machine, suspended time included
}

// Now reads both clocks.
func Now() Instant {
	var ts unix.Timespec
	// Fails for an unknown clock only; Linux has this one since 2.6.39.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return Instant{time.Now(), time.Duration(ts.Nano())}
}

// Options say where and how much to keep. Zero values mean the defaults.
type Options struct {
	Dir          string // made where needed
	Node         model.NodeName
	MaxBytes     int64         // of all files (256 MB)
	MaxAge       time.Duration // files last written before are removed (400 days)
	SegmentBytes int64         // a file that is longer is followed by the next (4 MB)
	Queue        int           // events that may wait for the disk (8192)
	Sync         time.Duration // what a power failure may cost (1 s)
	Report       model.Sink    // hears of the journal's own troubles, once each; must not lead back here

	// For tests.
	clock    func() Instant
	boot     string
	openFile func(name string, flag int) (file, error)
	retry    time.Duration
}

// file is what the writer needs of a file.
type file interface {
	Write([]byte) (int, error)
	WriteAt([]byte, int64) (int, error)
	Truncate(int64) error
	Sync() error
	Close() error
}

// stepTolerance is the difference of the clocks that counts as a step: a
// clock that is only slewed drags the uptime along.
const stepTolerance = 20 * time.Millisecond

// Journal is the journal of a running node. All methods may be called from any
// goroutine and none waits for the disk, but Close.
type Journal struct {
	o    Options
	wake chan struct{}
	quit chan struct{}
	done chan struct{}
	asks chan func() // done by the goroutine; of tests

	mu     sync.Mutex
	queue  []Record
	events int              // of queue
	lost   uint64           // events that the queue did not take
	late   map[Thing]Change // states that the queue did not take: the latest of each thing
	missed map[Thing]missed // how many that were
	closed bool

	before Before
	w      writer // of the goroutine
}

// Begin continues the journal in a directory, or begins one. One process at a
// time: the caller holds the lock of the node.
func Begin(o Options) (*Journal, error) {
	o.MaxBytes = defaultTo(o.MaxBytes, 256<<20)
	o.MaxAge = defaultTo(o.MaxAge, 400*24*time.Hour)
	o.SegmentBytes = min(defaultTo(o.SegmentBytes, 4<<20), o.MaxBytes/8)
	o.Queue = defaultTo(o.Queue, 8192)
	o.Sync = defaultTo(o.Sync, time.Second)
	o.retry = defaultTo(o.retry, 10*time.Second)
	if o.Report == nil {
		o.Report = func(model.Event) {}
	}
	if o.clock == nil {
		o.clock = Now
	}
	if o.boot == "" {
		o.boot = bootID()
	}
	if o.openFile == nil {
		o.openFile = func(name string, flag int) (file, error) { return os.OpenFile(name, flag, 0o640) }
	}
	if err := os.MkdirAll(o.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("make the directory of the journal: %w", err)
	}
	j := &Journal{o: o, wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{}),
		asks: make(chan func()), late: map[Thing]Change{}, missed: map[Thing]missed{}}
	if err := j.w.begin(o); err != nil {
		return nil, err
	}
	j.before = j.w.before
	go j.write()
	return j, nil
}

func defaultTo[T comparable](v, d T) T {
	var zero T
	if v == zero {
		return d
	}
	return v
}

// bootID tells two boots of the machine apart.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown-" + strconv.FormatInt(time.Now().UnixNano(), 36) // no two boots are taken for one
	}
	return strings.TrimSpace(string(b))
}

// Event records an event. It is a model.Sink.
func (j *Journal) Event(e model.Event) {
	now := j.o.clock()
	r := Record{At: now.Wall, Uptime: now.Uptime, Kind: KindEvent}
	if !e.At.IsZero() {
		// Who knows the instant better than the caller of a sink: the event.
		if before := now.Wall.Sub(e.At); before > 0 && before < time.Minute {
			r.At, r.Uptime = now.Wall.Add(-before), now.Uptime-before
		}
	}
	e.At = time.Time{} // is in the record
	r.Event = &e
	j.mu.Lock()
	switch {
	case j.closed:
	case j.events >= j.o.Queue:
		j.lost++
	default:
		j.events++
		j.queue = append(j.queue, r)
	}
	j.mu.Unlock()
	j.signal()
}

// States records changes, as the Tracker found them. None is ever lost: where
// the disk does not keep up, the latest state of each thing is.
func (j *Journal) States(changes []Change) {
	if len(changes) == 0 {
		return
	}
	now := j.o.clock()
	j.mu.Lock()
	for _, c := range changes {
		if j.closed {
			break
		}
		if len(j.queue) >= 8*j.o.Queue || len(j.late) > 0 {
			j.late[c.Thing] = c
			j.missed[c.Thing] = j.missed[c.Thing].add(c)
			continue
		}
		j.queue = append(j.queue, Record{At: now.Wall, Uptime: now.Uptime, Kind: KindState, State: &c})
	}
	j.mu.Unlock()
	j.signal()
}

func (j *Journal) signal() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// Close writes what waits and ends the journal in good order.
func (j *Journal) Close() error {
	j.mu.Lock()
	already := j.closed
	j.closed = true
	j.mu.Unlock()
	if !already {
		close(j.quit)
	}
	<-j.done
	return j.w.end
}

// take empties the queue.
func (j *Journal) take() []Record {
	j.mu.Lock()
	defer j.mu.Unlock()
	q := j.queue
	j.queue, j.events = nil, 0
	if j.lost > 0 || len(j.late) > 0 {
		now := j.o.clock()
		q = append(q, Record{At: now.Wall, Uptime: now.Uptime, Kind: KindGap, Lost: j.lost + uint64(len(j.late)),
			Text: "more happened than the journal could write"})
		for _, c := range j.late {
			q = append(q, j.missed[c.Thing].unknown(c.Thing, now)...)
			q = append(q, Record{At: now.Wall, Uptime: now.Uptime, Kind: KindState, State: &c})
		}
		j.lost = 0
		clear(j.late)
		clear(j.missed)
	}
	return q
}

// write is the goroutine that touches the disk.
func (j *Journal) write() {
	defer close(j.done)
	tick := time.NewTicker(j.o.Sync)
	defer tick.Stop()
	for {
		select {
		case <-j.wake:
			j.w.records(j.take())
		case <-tick.C:
			j.w.records(j.take())
			j.w.tick()
		case f := <-j.asks:
			f()
		case <-j.quit:
			j.w.records(j.take())
			j.w.close()
			return
		}
	}
}

// Dir is where a node keeps its journal.
func Dir(stateDir string) string { return filepath.Join(stateDir, "journal") }

func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
