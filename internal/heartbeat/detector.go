package heartbeat

import (
	"cmp"
	"slices"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// settle is how long a death waits after its deadline for packets that the
// kernel had already received but that were not read yet. They carry the time
// of reception, so a beat that came in time counts as one.
const settle = 2 * time.Millisecond

// Detector knows when each node was last heard and until when its silence is
// tolerated: exactly, not in steps of a polling period. Only accepted status
// messages are beats (§7.4). A node is judged by the dead time that it
// announced itself; while the cluster starts, by the initial dead time.
//
// Time during which this node itself was not running is no silence of others:
// see Excuse.
//
// A node whose kernel answers when it is asked (Answered) is not dead at its
// dead time but suspect: its daemon hangs, was stopped, or is being restarted,
// and its machine still has what it had. It is dead when its kernel, too, has
// been silent for the dead time, or when the suspect time is over.
type Detector struct {
	deadTime time.Duration // of nodes that have not announced theirs
	suspect  time.Duration // silence that means death in spite of answers; 0: none is waited for
	initDead time.Duration // while starting
	starting bool
	start    time.Time
	nodes    map[model.NodeName]*watch
	sorted   []*watch      // the same, by name
	unread   time.Duration // see Unread
	pause    span          // the latest time when this node was not running
}

// watch is what is known of one node's beats.
type watch struct {
	name   model.NodeName
	last   time.Time     // latest beat; start of the detector while none was heard
	dead   time.Duration // announced by the node; 0 until it did
	excuse time.Duration // of the silence since last, what was our own absence
	heard  bool
	silent bool      // declared dead; until it is heard again
	await  time.Time // not declared dead before

	answer  time.Time // when its kernel answered last
	suspect bool      // said to be; until it is heard again
}

// span is a stretch of time.
type span struct{ from, to time.Time }

// after returns how much of the span lies after t.
func (s span) after(t time.Time) time.Duration {
	if t.Before(s.from) {
		t = s.from
	}
	return max(0, s.to.Sub(t))
}

// NewDetector watches the nodes from start on. Until Running, initDead
// applies to all of them.
func NewDetector(start time.Time, nodes []model.NodeName, deadTime, initDead time.Duration) *Detector {
	d := &Detector{deadTime: deadTime, initDead: initDead, starting: true, start: start, nodes: map[model.NodeName]*watch{}}
	for _, n := range nodes {
		w := &watch{name: n, last: start}
		d.nodes[n] = w
		d.sorted = append(d.sorted, w)
	}
	slices.SortFunc(d.sorted, func(a, b *watch) int { return cmp.Compare(a.name, b.name) })
	return d
}

// Running ends the starting phase: from now on each node's own dead time counts.
func (d *Detector) Running() { d.starting = false }

// Heard enters a beat of a watched node that was received at that time and
// announced that dead time. It returns how long the node had been silent, our
// own absence excluded; 0 for the first beat.
func (d *Detector) Heard(n model.NodeName, at time.Time, dead time.Duration) (silence time.Duration) {
	w := d.nodes[n]
	if w.heard {
		silence = max(0, at.Sub(w.last)-w.excuse)
	}
	w.heard, w.silent, w.suspect = true, false, false
	if dead > 0 {
		w.dead = dead
	}
	if at.After(w.last) {
		w.last = at
		w.excuse = d.pause.after(at)
	}
	return silence
}

// Excuse says that this node was not running (stopped, starved, suspended)
// from then until now. The deadlines of all nodes move by that time, or by the
// part of it that came after their latest beat: a pause of our own must never
// look like the death of others.
func (d *Detector) Excuse(from, to time.Time) {
	if d.pause.from.IsZero() || from.After(d.pause.to) {
		d.pause = span{from: from, to: to}
	} else {
		d.pause.to = to
	}
	for _, w := range d.nodes {
		w.excuse += span{from, to}.after(w.last)
		if !w.answer.IsZero() {
			w.answer = w.answer.Add(span{from, to}.after(w.answer)) // nobody asked meanwhile
		}
	}
}

// Silent tells whether the node is declared dead.
func (d *Detector) Silent(n model.NodeName) bool { return d.nodes[n].silent }

// HeardOnce tells whether the node has ever been heard.
func (d *Detector) HeardOnce(n model.NodeName) bool { return d.nodes[n].heard }

// DeadTime returns the silence that the node is allowed.
func (d *Detector) DeadTime(n model.NodeName) time.Duration { return d.allowed(d.nodes[n]) }

func (d *Detector) allowed(w *watch) time.Duration {
	switch {
	case d.starting:
		return d.initDead
	case w.dead > 0:
		return w.dead
	}
	return d.deadTime
}

// Await says that a node that was not heard yet is not to be declared dead
// before then, as it may be the one that something came from.
func (d *Detector) Await(n model.NodeName, until time.Time) {
	if w := d.nodes[n]; until.After(w.await) {
		w.await = until
	}
}

// Suspect tells whether the node's daemon is silent while its kernel answers.
func (d *Detector) Suspect(n model.NodeName) bool { return d.nodes[n].suspect && !d.nodes[n].silent }

// Unread says that what was received in this last while has not been read yet:
// nobody is judged by it.
func (d *Detector) Unread(last time.Duration) { d.unread = last }

// wait is how long a death waits after its deadline.
func (d *Detector) wait() time.Duration { return settle + d.unread }

// Suspects sets the silence that means death although the kernel answers.
func (d *Detector) Suspects(after time.Duration) { d.suspect = after }

// Answered says that the node's kernel was alive at that time. Our own absence
// since then is no silence of it.
func (d *Detector) Answered(n model.NodeName, at time.Time) {
	if at = at.Add(d.pause.after(at)); at.After(d.nodes[n].answer) {
		d.nodes[n].answer = at
	}
}

// Condemn declares dead a node that cannot have lived on, at the next Expired.
func (d *Detector) Condemn(n model.NodeName, now time.Time) {
	w := d.nodes[n]
	w.answer, w.excuse = time.Time{}, 0
	if dead := now.Add(-d.DeadTime(n) - settle); dead.Before(w.last) {
		w.last = dead
	}
}

// silence is the moment at which the daemon's silence is too long.
func (d *Detector) silence(w *watch) time.Time {
	at := w.last.Add(d.allowed(w) + w.excuse)
	if !w.heard && at.Before(w.await) {
		return w.await
	}
	return at
}

// deadline is the moment at which the node is dead: the same, but for a node
// whose kernel answers.
func (d *Detector) deadline(w *watch) time.Time {
	at := d.silence(w)
	if d.suspect == 0 || w.answer.IsZero() || d.starting {
		return at
	}
	last := w.last.Add(max(d.suspect, d.allowed(w)) + w.excuse)
	if alive := w.answer.Add(d.allowed(w)); alive.After(at) {
		at = alive
	}
	if at.After(last) {
		return last
	}
	return at
}

// Next returns the earliest moment at which Expired has something to say; the
// zero time if no node is alive.
func (d *Detector) Next() (next time.Time) {
	for _, w := range d.sorted {
		if w.silent {
			continue
		}
		next = earlier(next, d.deadline(w).Add(d.wait()))
		if !w.suspect {
			next = earlier(next, d.silence(w).Add(d.wait()))
		}
	}
	return next
}

// Expired declares dead whose deadline has passed, and returns them, sorted
// by name, with the time of the deadline. Each death is returned once.
func (d *Detector) Expired(now time.Time) []Death {
	var deaths []Death
	for _, w := range d.sorted {
		if !w.silent && !now.Before(d.deadline(w).Add(d.wait())) {
			w.silent = true
			deaths = append(deaths, Death{Node: w.name, At: d.deadline(w), Silence: now.Sub(w.last), Heard: w.heard, Answered: w.suspect, Answer: w.answer})
		}
	}
	return deaths
}

// Suspected returns those whose daemon has fallen silent while their kernel
// answers, sorted by name, each once in a silence.
func (d *Detector) Suspected(now time.Time) (names []model.NodeName) {
	for _, w := range d.sorted {
		if !w.silent && !w.suspect && !now.Before(d.silence(w).Add(d.wait())) && now.Before(d.deadline(w).Add(d.wait())) {
			w.suspect = true
			names = append(names, w.name)
		}
	}
	return names
}

// Death is one node that has been silent for too long.
type Death struct {
	Node    model.NodeName
	At      time.Time     // the deadline
	Silence time.Duration // since its latest beat, or since the start
	Heard   bool          // it had been heard before

	Answered bool      // it was suspect
	Answer   time.Time // then: when its kernel was alive last
}

// earlier returns the earlier of two times; the zero time means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
