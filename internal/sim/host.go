package sim

import (
	"strconv"
	"time"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/pair"
)

// host is one machine: its disk, its kernel, what runs on it, and the daemon
// while that runs.
type host struct {
	w      *world
	index  int
	name   model.NodeName
	up     bool
	off    bool          // for good
	paused time.Time     // its daemon does not run until then
	frozen time.Time     // nothing of it runs until then
	clock  time.Duration // by how much its wall clock is wrong

	stored uint32                             // generation on disk; 0: none
	floors map[model.NodeName]heartbeat.Floor // on disk, too
	runs   map[string]bool                    // resources
	stuck  map[string]bool                    // of them, those that failed to stop

	badStart, badStop map[string]int // sets, in this node's terms: how many faults
	slow              int

	daemon  *daemon
	boots   int // runs of the machine
	booted  time.Time
	answers map[uint8]heartbeat.QuestionKey // the keys under which its kernel answers; nil: it does not
	since   time.Time                       // it does since then
	thawed  time.Time                       // when it was frozen last, or will be no longer
	absent  []span                          // when the daemon could not run although it was there
}

// span is a stretch of time.
type span struct {
	from, to time.Time
	noticed  bool // something was due meanwhile
}

func newHost(w *world, index int) *host {
	h := &host{w: w, index: index, name: nodeNames[index], floors: map[model.NodeName]heartbeat.Floor{}, runs: map[string]bool{}, stuck: map[string]bool{},
		badStart: map[string]int{}, badStop: map[string]int{}}
	return h
}

var nodeNames = [2]model.NodeName{"a", "b"}

func (h *host) peer() *host { return h.w.hosts[1-h.index] }

// run is this run of the machine.
func (h *host) run() heartbeat.Run { return heartbeat.RunOf(string(h.name), strconv.Itoa(h.boots)) }

// answer has the kernel answer from now on, until the daemon has stopped as it
// was told to, or the machine ends.
func (h *host) answer() {
	if h.answers == nil {
		h.answers, h.since = heartbeat.QuestionKeys(h.w.keys()), h.w.now
	}
}

// answered tells that the kernel has answered without a break since then.
func (h *host) answered(since time.Time) bool { return h.answers != nil && !h.since.After(since) }

// reply is what the host's kernel answers; nil: nothing.
func (h *host) reply(question []byte) []byte {
	if !h.up || h.w.now.Before(h.frozen) {
		return nil
	}
	answer, err := heartbeat.Reply(question, h.answers, h.name, h.run())
	if err != nil {
		return nil
	}
	return answer
}

func (h *host) wall(now time.Time) time.Time { return now.Add(h.clock) }

// wake switches the machine on.
func (h *host) wake() {
	if !h.up {
		h.up, h.booted = true, h.w.now
		h.boots++
	}
	if h.w.cfg.SuspectTime > 0 {
		h.answer()
	}
}

// boot switches the machine on and starts its daemon.
func (h *host) boot() {
	if !h.off {
		h.wake()
		h.start()
	}
}

// start begins a life of the daemon.
func (h *host) start() {
	if !h.up || h.daemon != nil {
		return
	}
	h.stored = heartbeat.NextGeneration(h.stored, h.wall(h.w.now))
	h.w.say("%s: starts, generation %d", h.name, h.stored)
	d, err := newDaemon(h, h.stored)
	if err != nil {
		h.w.check.broken("%s does not start: %v", h.name, err)
		return
	}
	h.daemon = d
	d.begin()
}

// kill ends the daemon at once. Its scripts die with it, its resources live on.
func (h *host) kill() {
	if h.daemon == nil {
		return
	}
	d := h.daemon
	h.daemon, h.paused = nil, time.Time{}
	h.absent = nil
	d.end()
}

// reset ends the machine at once.
func (h *host) reset() {
	h.kill()
	h.up, h.frozen, h.answers = false, time.Time{}, nil
	for _, name := range sorted(h.runs) {
		h.set(name, false)
	}
	clear(h.stuck)
}

// set starts or stops a resource.
func (h *host) set(name string, on bool) {
	if h.runs[name] == on {
		return
	}
	if on {
		h.runs[name] = true
	} else {
		delete(h.runs, name)
		delete(h.stuck, name)
	}
	h.w.say("%s: %s runs: %v", h.name, name, on)
	h.w.check.changed(name)
}

// halted is until when nothing of the machine runs.
func (h *host) halted() time.Time { return h.frozen }

// idle is until when its daemon does not run.
func (h *host) idle() time.Time {
	if h.paused.After(h.frozen) {
		return h.paused
	}
	return h.frozen
}

// arrive takes a datagram off the wire, into the socket of the daemon.
func (h *host) arrive(p packet) {
	if !h.up || h.w.now.Before(h.frozen) || h.daemon == nil {
		return
	}
	h.daemon.arrive(p)
}

// away stops the daemon, or the whole machine, for a while.
func (h *host) away(until *time.Time, d time.Duration) {
	if end := h.w.now.Add(d); h.daemon != nil && end.After(*until) {
		*until = end
		if until == &h.frozen {
			h.thawed = end
		}
		due := h.daemon.msgr.Next().Add(h.w.cfg.Keepalive / 4)
		h.absent = append(h.absent, span{h.w.now, end, end.After(due)})
	}
}

// present is how much of the time since then the daemon was able to run, as
// far as it can know: an absence that ends before a quarter of a keepalive
// after the next beat is due is not noticed.
func (h *host) present(since time.Time) time.Duration {
	d, from := h.w.now.Sub(since), since
	for _, s := range h.absent { // in order of their beginning
		if s.from.After(from) {
			from = s.from
		}
		to := s.to
		if to.After(h.w.now) {
			to = h.w.now
		}
		if to.After(from) {
			if s.noticed {
				d -= to.Sub(from)
			}
			from = to
		}
	}
	return d
}

// ran tells that the kernel has run without a break since then.
func (h *host) ran(since time.Time) bool {
	return h.booted.Before(since) && h.thawed.Before(since) && !h.w.now.Before(h.frozen)
}

// fail makes the scripts of a set fail, or work again.
func (h *host) fail(which map[string]int, set string, by int) {
	for _, s := range []string{"local", "foreign"} {
		if set == s || set == "all" {
			which[s] += by
		}
	}
}

// wish tells the daemon what the operator wants.
func (h *host) wish(in pair.Input) {
	if h.daemon != nil {
		h.daemon.wish(in)
	}
}
