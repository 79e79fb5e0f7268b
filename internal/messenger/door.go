package messenger

import (
	"fmt"
	"hash/maphash"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/link"
	"github.com/batuta-ha/batuta/internal/model"
)

// A flood on the heartbeat port is stopped in three places, each of which costs
// less than the next: the socket's filter in the kernel, which knows what a
// message begins with and, in a flood, the addresses that messages come from
// and the numbers that they can have (link.Guarded); the door, on the goroutine that reads the link, which knows
// the keys and what was here a moment ago; the core, which knows everything.

const (
	twinPeriod   = 100 * time.Millisecond // the same bytes are not looked at twice within it
	badPeriod    = 100 * time.Millisecond // one packet in it that fails authentication goes on, to be complained of
	floodWindow  = 100 * time.Millisecond // useless packets are counted over it
	floodLimit   = 100                    // so many are a flood
	floodPace    = time.Millisecond       // a link is then read so often; packets bear the time when the kernel got them
	mostUnread   = 500 * time.Millisecond // what a socket holds is read within it
	floodRelease = 10 * time.Second       // it is over when there was none for so long
	mostKnown    = 16                     // senders that are remembered

	floodNotePeriod = time.Minute // between two notes that a flood begins on a link
)

// door is one link's. admit is for the link's reader, learn for the loop.
type door struct {
	name string
	link link.Guarded      // nil where the kernel cannot help
	say  func(model.Event) // takes a note, on the loop's goroutine
	keys *atomic.Pointer[model.Keyring]

	ring *model.Keyring // that auth was made of
	auth *heartbeat.Authenticator
	seed maphash.Seed
	seen [1024]seen // by hash

	passed  time.Time                      // when the latest bad packet was let through
	window  time.Time                      // since when useless packets are counted
	useless int                            // of them in the window
	strange int                            // those of strangers
	crowded time.Time                      // when useless packets were many the last time; zero: the link is read at will
	flooded time.Time                      // when the kernel was told of a flood; zero: none is on
	shut    bool                           // strangers are shut out, too
	since   struct{ useless, strange int } // the same as above, since the kernel was told
	noted   flood                          // the latest flood that was worth a note

	vain, strangeVain atomic.Int64 // what the loop found useless, and those of strangers
	sifting           atomic.Bool  // flooded is set

	old atomic.Pointer[oldPackets] // what is of no use any more; nil before the first flood

	bad, twins atomic.Uint64

	age  atomic.Int64 // of the latest packet when it was read, if a flood made it wait
	read atomic.Int64 // when that was, in nanoseconds since the epoch

	mu    sync.Mutex // guards known
	known []sender   // the newest first; those that never brought what others had not, last
}

// sender is where messages come from.
type sender struct {
	link.Sender
	node   model.NodeName
	shared bool // several nodes send from there: their numbers cannot be told apart
}

// flood is one that has been noted.
type flood struct {
	began  time.Time
	before uint64 // packets dropped until then
	goes   bool   // its end is to be noted, too
}

// oldPackets are hashes of packets whose bytes will never be of use: recordings
// of minutes, which cost no more than being read when they are played again.
// Where the kernel cannot look at numbers (in encrypted messages, without eBPF)
// it is all that helps against them.
type oldPackets [1 << 16]atomic.Uint64

func (o *oldPackets) at(hash uint64) *atomic.Uint64 { return &o[hash%uint64(len(o))] }

type seen struct {
	hash uint64
	at   time.Time
}

func newDoor(k link.Link, keys *atomic.Pointer[model.Keyring], say func(model.Event)) *door {
	d := &door{name: k.Name(), say: say, keys: keys, seed: maphash.MakeSeed()}
	d.link, _ = k.(link.Guarded)
	return d
}

// admit tells whether a packet is worth the core's time.
func (d *door) admit(now time.Time, p link.Packet) bool {
	if vain := d.vain.Load(); vain > 0 {
		d.vain.Add(-vain)
		d.refuse(now, int(vain), int(d.strangeVain.Swap(0)))
	}
	if d.calm(now); !d.crowded.IsZero() {
		d.age.Store(int64(now.Sub(p.At)))
		d.read.Store(now.UnixNano())
	}
	hash := maphash.Bytes(d.seed, p.Data)
	s := &d.seen[hash%uint64(len(d.seen))]
	old := d.old.Load()
	if s.hash == hash && now.Sub(s.at) < twinPeriod || old != nil && old.at(hash).Load() == hash {
		d.twins.Add(1)
		d.refuse(now, 1, d.stranger(p.From.Addr()))
		return false
	}
	*s = seen{hash, now}
	if ring := d.keys.Load(); ring != d.ring {
		auth, err := heartbeat.NewAuthenticator(*ring)
		if err == nil { // the core says what is wrong with it
			d.auth = auth
		}
		d.ring = ring
	}
	if d.auth == nil || d.auth.Admits(p.Data) {
		return true
	}
	d.refuse(now, 1, d.stranger(p.From.Addr()))
	if now.Sub(d.passed) >= badPeriod {
		d.passed = now
		return true
	}
	d.bad.Add(1)
	return false
}

// refuse counts useless packets, and how many of them were of strangers. If
// there are many, the link is read at a measured pace, and the kernel is told to
// stop what cannot be new, and strangers if they are many.
func (d *door) refuse(now time.Time, useless, strange int) {
	if d.link == nil {
		return
	}
	if now.Sub(d.window) >= floodWindow {
		d.window, d.useless, d.strange = now, 0, 0
	}
	d.useless, d.strange = d.useless+useless, d.strange+strange
	d.since.useless, d.since.strange = d.since.useless+useless, d.since.strange+strange
	if d.useless < floodLimit {
		return
	}
	if d.crowded.IsZero() {
		d.link.Pace(floodPace)
	}
	d.crowded = now
	if shut := d.strange >= floodLimit; d.flooded.IsZero() || shut && !d.shut {
		if d.flooded.IsZero() && now.Sub(d.noted.began) >= floodNotePeriod {
			d.noted = flood{began: now, before: d.lost(), goes: true}
			d.note(now, model.LevelWarning, "flood", "link %s: a flood of packets that are not new, not authentic or no messages: the kernel is told to drop what cannot be new", d.name)
		}
		d.sift(now, d.shut || shut)
	}
}

func (d *door) note(now time.Time, level model.Level, kind, format string, args ...any) {
	d.say(model.Event{At: now, Level: level, Source: "heartbeat", Kind: kind, Subject: d.name, Text: fmt.Sprintf(format, args...)})
}

// sift tells the kernel what to drop from now on.
func (d *door) sift(now time.Time, shut bool) {
	d.flooded, d.shut, d.since.useless, d.since.strange = now, shut, 0, 0
	if d.old.Load() == nil {
		d.old.Store(&oldPackets{})
	}
	d.sifting.Store(true)
	d.link.Sift(d.senders(), shut)
}

// calm ends the pace when there were few useless packets for a while, and the
// sifting when few were useless of the share that still comes of what it drops.
func (d *door) calm(now time.Time) {
	if !d.crowded.IsZero() && now.Sub(d.crowded) > 2*floodWindow {
		d.crowded = time.Time{}
		d.link.Pace(0)
	}
	if d.flooded.IsZero() || now.Sub(d.flooded) < floodRelease {
		return
	}
	if d.since.useless > floodLimit {
		d.sift(now, d.since.strange > floodLimit) // there may be new senders
		return
	}
	d.flooded, d.shut = time.Time{}, false
	d.sifting.Store(false)
	d.link.Sift(nil, false)
	if d.noted.goes {
		d.noted.goes = false
		d.note(now, model.LevelNotice, "flood-over", "link %s: the flood is over after %v; %d packets were dropped", d.name,
			now.Sub(d.noted.began).Round(time.Second), d.lost()-d.noted.before)
	}
}

// unread is how old what is being read is in a flood: beats that came since
// are there and not read yet.
func (d *door) unread(now time.Time) time.Duration {
	if now.Sub(time.Unix(0, d.read.Load())) > floodWindow {
		return 0
	}
	return max(0, min(time.Duration(d.age.Load()), mostUnread))
}

// learn takes what became of a packet.
func (d *door) learn(p link.Packet, v heartbeat.Voucher) {
	from := p.From.Addr()
	if old := d.old.Load(); old != nil && v.Merit == heartbeat.Old {
		hash := maphash.Bytes(d.seed, p.Data)
		old.at(hash).Store(hash)
	}
	if d.link == nil || !from.IsValid() || v.Merit == heartbeat.Heeded {
		return
	}
	if news, vain := d.enter(from, v); vain {
		d.strangeVain.Add(int64(d.stranger(from)))
		d.vain.Add(1)
	} else if d.sifting.Load() {
		d.link.Expect(news)
	}
}

// enter enters a sender, or what is new of it. What came by another link
// before counts here, too, but not the same once more.
func (d *door) enter(from netip.Addr, v heartbeat.Voucher) (news link.Sender, vain bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := slices.IndexFunc(d.known, func(s sender) bool { return s.Addr == from })
	fresh := link.Sender{Addr: from, Generation: v.Generation, Number: v.Number}
	switch {
	case v.Merit == heartbeat.InVain || v.Merit == heartbeat.Old:
		return news, true
	case i < 0:
		s := sender{Sender: fresh, node: v.Node}
		if v.Merit == heartbeat.Original {
			d.known = slices.Insert(d.known, 0, s)
			d.known = d.known[:min(len(d.known), mostKnown)]
		} else if len(d.known) < mostKnown { // recordings must not displace anybody
			d.known = append(d.known, s)
		}
		return fresh, false
	}
	s := &d.known[i]
	switch {
	case s.node != v.Node:
		s.shared, s.Generation, s.Number = true, 0, 0
	case s.shared:
	case fresh.Generation == s.Generation && fresh.Number <= s.Number && v.Merit == heartbeat.Again:
		return news, true
	case fresh.Generation != s.Generation || fresh.Number > s.Number:
		s.Generation, s.Number = fresh.Generation, fresh.Number
	}
	news = s.Sender
	if v.Merit == heartbeat.Original && i > 0 {
		first := *s
		copy(d.known[1:i+1], d.known[:i])
		d.known[0] = first
	}
	return news, false
}

// stranger is 1 for an address that no message has come from, else 0.
func (d *door) stranger(from netip.Addr) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if slices.ContainsFunc(d.known, func(s sender) bool { return s.Addr == from }) {
		return 0
	}
	return 1
}

// senders are the known ones; empty, not nil, if there are none.
func (d *door) senders() []link.Sender {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]link.Sender, 0, len(d.known))
	for _, s := range d.known {
		all = append(all, s.Sender)
	}
	return all
}

// packets counts what was dropped here and before.
func (d *door) packets() model.LinkPackets {
	p := model.LinkPackets{Name: d.name, Flooded: d.sifting.Load(), Again: d.twins.Load(), Bad: d.bad.Load()}
	if d.link != nil {
		p.Kernel = d.link.Dropped()
	}
	return p
}

// lost is all of it.
func (d *door) lost() uint64 {
	p := d.packets()
	return p.Kernel + p.Again + p.Bad
}
