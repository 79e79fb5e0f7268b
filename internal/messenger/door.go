package messenger

import (
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
// (link.Guarded); the door, on the goroutine that reads the link, which knows
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
)

// door is one link's. admit is for the link's reader, vouch for the loop.
type door struct {
	link link.Guarded // nil where the kernel cannot help
	keys *atomic.Pointer[model.Keyring]

	ring *model.Keyring // that auth was made of
	auth *heartbeat.Authenticator
	seed maphash.Seed
	seen [1024]seen // by hash

	passed  time.Time // when the latest bad packet was let through
	window  time.Time // since when useless packets are counted
	useless int       // of them in the window
	strange int       // those of strangers
	sampled int       // the same since the flood was noticed
	crowded time.Time // when useless packets were many the last time; zero: the link is read at will
	flooded time.Time // when a flood of strangers was noticed; zero: none is on

	bad, twins atomic.Uint64

	age  atomic.Int64 // of the latest packet when it was read, if a flood made it wait
	read atomic.Int64 // when that was, in nanoseconds since the epoch

	mu    sync.Mutex
	known []netip.Addr // newest first
}

type seen struct {
	hash uint64
	at   time.Time
}

func newDoor(k link.Link, keys *atomic.Pointer[model.Keyring]) *door {
	d := &door{keys: keys, seed: maphash.MakeSeed()}
	d.link, _ = k.(link.Guarded)
	return d
}

// admit tells whether a packet is worth the core's time.
func (d *door) admit(now time.Time, p link.Packet) bool {
	if d.calm(now); !d.crowded.IsZero() {
		d.age.Store(int64(now.Sub(p.At)))
		d.read.Store(now.UnixNano())
	}
	hash := maphash.Bytes(d.seed, p.Data)
	s := &d.seen[hash%uint64(len(d.seen))]
	if s.hash == hash && now.Sub(s.at) < twinPeriod {
		d.twins.Add(1)
		d.refuse(now, p.From.Addr())
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
	d.refuse(now, p.From.Addr())
	if now.Sub(d.passed) >= badPeriod {
		d.passed = now
		return true
	}
	d.bad.Add(1)
	return false
}

// refuse counts a useless packet. If there are many, the link is read at a
// measured pace; if they are of strangers, the kernel is told to stop them.
func (d *door) refuse(now time.Time, from netip.Addr) {
	if d.link == nil {
		return
	}
	if now.Sub(d.window) >= floodWindow {
		d.window, d.useless, d.strange = now, 0, 0
	}
	if d.useless++; d.useless >= floodLimit {
		if d.crowded.IsZero() {
			d.link.Pace(floodPace)
		}
		d.crowded = now
	}
	if d.knows(from) {
		return
	}
	d.strange++
	if d.sampled++; d.flooded.IsZero() && d.strange >= floodLimit {
		d.flooded, d.sampled = now, 0
		d.link.Prefer(d.senders())
	}
}

// calm ends the pace when there were few useless packets for a while, and the
// preference when of the share of strangers' that still comes few were useless.
func (d *door) calm(now time.Time) {
	if !d.crowded.IsZero() && now.Sub(d.crowded) > 2*floodWindow {
		d.crowded = time.Time{}
		d.link.Pace(0)
	}
	if d.flooded.IsZero() || now.Sub(d.flooded) < floodRelease {
		return
	}
	if d.sampled > floodLimit {
		d.flooded, d.sampled = now, 0
		d.link.Prefer(d.senders()) // there may be new ones
		return
	}
	d.flooded = time.Time{}
	d.link.Prefer(nil)
}

// unread is how old what is being read is in a flood: beats that came since
// are there and not read yet.
func (d *door) unread(now time.Time) time.Duration {
	if now.Sub(time.Unix(0, d.read.Load())) > floodWindow {
		return 0
	}
	return max(0, min(time.Duration(d.age.Load()), mostUnread))
}

// vouch says that messages come from that address.
func (d *door) vouch(from netip.Addr) {
	if d.link == nil || !from.IsValid() {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.known) > 0 && d.known[0] == from {
		return
	}
	d.known = slices.DeleteFunc(d.known, func(a netip.Addr) bool { return a == from })
	d.known = slices.Insert(d.known, 0, from)
	d.known = d.known[:min(len(d.known), mostKnown)]
}

func (d *door) knows(from netip.Addr) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Contains(d.known, from)
}

// senders are the known ones; empty, not nil, if there are none.
func (d *door) senders() []netip.Addr {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]netip.Addr{}, d.known...)
}

// dropped counts what was dropped unseen.
func (d *door) dropped() uint64 {
	n := d.twins.Load()
	if d.link != nil {
		n += d.link.Dropped()
	}
	return n
}
