package heartbeat

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// Config is what a Core needs to know. All members but Load, Wall, Boot, Floors, Margins and Random are required.
type Config struct {
	Heartbeat  model.Heartbeat
	Generation uint32     // of this life; see NextGeneration
	UUID       [16]byte   // of this node
	Rand       *rand.Rand // acknowledgment residues and request delays
	// Random fills in bytes that nobody can have seen (crypto/rand.Read): the
	// nonces of encrypted packets. Needed where a key encrypts.
	Random func([]byte)
	// Load returns the text of the ld field, the line of /proc/loadavg; nil
	// leaves it at zeros.
	Load func() string
	// Wall turns a time that Step was given into what the wall clock showed;
	// nil: they are the same.
	Wall func(now time.Time) time.Time
	// Boot names this run of the machine, if its kernel answers for it when
	// the daemon does not (Run.String); else "".
	Boot string
	// Floors is what an earlier life has heard of the others; see Heard.
	Floors map[model.NodeName]Floor
	// Margins is what an earlier life has learnt of the others; see Core.Margins.
	Margins map[model.NodeName]Margin
}

// Input is one thing that happens to a Core: Start, which comes first; Datagram, Submit, Running,
// Excuse or Tick.
type Input interface{ isInput() }

// Start begins the node's life: the others have initdead from now.
type Start struct{}

// Datagram is one packet that came in by a link.
type Datagram struct {
	Link string
	Data []byte
	At   time.Time // when the kernel received it
}

// Submit asks to send a message reliably to all nodes (Message.To only says
// whom it is meant for).
type Submit struct{ Message model.Message }

// Running says that start-up is over: nodes are judged by their own dead time.
type Running struct{}

// Excuse says that this node was not running from From until now.
type Excuse struct{ From time.Time }

// Tick says that time has passed; due at Next.
type Tick struct{}

// Rekey replaces the keys (authkeys). No packet is lost over it as long as
// each side lists the key that the other signs with.
type Rekey struct{ Keys model.Keyring }

func (Start) isInput()    {}
func (Rekey) isInput()    {}
func (Datagram) isInput() {}
func (Submit) isInput()   {}
func (Running) isInput()  {}
func (Excuse) isInput()   {}
func (Tick) isInput()     {}

// Effect is one thing that a Core wants done: Send, Probe, Deliver, Sighted or Note.
type Effect interface{ isEffect() }

// Send asks to send these bytes on all links. They are not changed unless the
// effect is given back; see Reuse.
type Send struct {
	Data []byte
	room []byte // for the next packet
}

// Deliver hands over a new message of another node that is meant for this
// one, each once. Status messages are Sighted instead.
type Deliver struct{ Message model.Message }

// Sighted is a finding of the failure detector.
type Sighted struct{ model.Sighting }

// Note is worth logging.
type Note struct{ model.Event }

// Renewed says that this node has begun a new life, because another one knew
// its generation already (the stored one was lost): the new generation must be
// stored, and what was said before was heard by nobody.
type Renewed struct{ Generation uint32 }

func (*Send) isEffect()    {}
func (Heard) isEffect()    {}
func (Renewed) isEffect()  {}
func (Deliver) isEffect()  {}
func (*Sighted) isEffect() {}
func (Note) isEffect()     {}

// Counters are totals since the Core was made.
type Counters struct {
	Sent          uint64 `json:"sent"`          // reliable messages, each once
	Received      uint64 `json:"received"`      // authenticated packets of other nodes
	Duplicates    uint64 `json:"duplicates"`    // of them, heard before; normal with two links
	Bad           uint64 `json:"bad"`           // dropped: malformed, or the signature is wrong
	Unknown       uint64 `json:"unknown"`       // dropped: authenticated, from a node that is not configured
	Replayed      uint64 `json:"replayed"`      // dropped: an earlier life or an old number
	Unproven      uint64 `json:"unproven"`      // dropped: perhaps a recording of what an earlier life of this node heard
	Excess        uint64 `json:"excess"`        // dropped: more than a node may send
	Dropped       uint64 `json:"dropped"`       // dropped unseen, in a flood: by the kernel, or the same bytes again
	Lost          uint64 `json:"lost"`          // messages found missing
	Requests      uint64 `json:"requests"`      // retransmissions asked for
	Retransmitted uint64 `json:"retransmitted"` // messages sent again for others
	Questions     uint64 `json:"questions"`     // to kernels of other nodes
	Answers       uint64 `json:"answers"`       // of those kernels
}

// Core is one node's end of the protocol. It is a step machine for one
// caller: equal inputs give equal effects.
type Core struct {
	cfg   Config
	hb    *model.Heartbeat
	self  model.NodeName
	auth  *Authenticator
	send  int      // key index in use; see follow
	enc   Encoding // in use; see follow
	ttl   string
	uuid  string        // own one, 16 bytes
	gen   string        // own generation as the wire has it
	worst time.Duration // by how much the loop was late, since the latest status
	life  string        // tells this life from another that has the same generation
	echo  string        // lives of the others that are heard; see listen
	out   outbox
	peers map[model.NodeName]*peer
	names []model.NodeName // sorted keys of peers
	det   *Detector
	pings []pingNode
	// pingDet watches the ping nodes, by their own dead time.
	pingDet *Detector
	count   Counters
	voucher Voucher

	questionKeys map[uint8]QuestionKey
	asked        uint32 // questions so far

	renewed     time.Time // when the latest life began by another's word
	lastBad     time.Time // when the latest complaint about a bad packet was made
	badSince    uint64    // bad packets since then
	lastUnknown time.Time
	lastDouble  time.Time

	fields  []Field  // room for the message being sent
	effects []Effect // of the step in progress
	spare   spare
}

// peer is another node.
type peer struct {
	name   model.NodeName
	in     inbox
	held   []held // messages that came before one that is missing
	key    int    // that its latest beat was signed with
	acked  uint32 // highest of our numbers that it has acknowledged
	uuid   string // 16 bytes, "" while not known
	batuta bool
	state  model.NodeState
	links  []*path // sorted by name

	patterns [2]pattern // of its status messages and acknowledgments

	lastReplay time.Time // when the latest complaint about an old generation was made
	lastTold   time.Time // when it was last told so
	remembered time.Time // when its floor was last given out
	ahead      uint32    // the end of that floor's range
	doubted    time.Time // since when it has not proved that it hears us

	fresh, control, answers, asks bucket    // what it may still cost
	lastExcess                    time.Time // when the latest complaint about that was made

	keepalive time.Duration // between its beats; 0 while not known
	kernel    kernel
	margin    Margin
}

// path is one link to a peer.
type path struct {
	name string
	up   bool
	last time.Time
}

// complaintPeriod spaces events about packets that anybody can send.
const complaintPeriod = time.Minute

// New makes a Core, whose life begins with Start.
func New(cfg Config) (*Core, error) {
	hb := &cfg.Heartbeat
	auth, err := cfg.authenticator(hb.Keys)
	switch {
	case err != nil:
		return nil, err
	case !slices.Contains(hb.Nodes, hb.Self):
		return nil, fmt.Errorf("heartbeat: node %q is not among the configured nodes %v", hb.Self, hb.Nodes)
	case cfg.Generation == 0:
		return nil, errors.New("heartbeat: generation 0 would be refused by every peer; use NextGeneration")
	case cfg.Rand == nil:
		return nil, errors.New("heartbeat: a source of chance is missing")
	}
	c := &Core{cfg: cfg, hb: hb, self: hb.Self, auth: auth, send: hb.Keys.Send, enc: Netstring,
		gen: hex32(cfg.Generation), uuid: string(cfg.UUID[:]), questionKeys: QuestionKeys(hb.Keys), life: hex32(cfg.Rand.Uint32()), fields: make([]Field, 0, 32), peers: map[model.NodeName]*peer{}}
	for _, n := range hb.Nodes {
		if n == c.self || c.peers[n] != nil {
			continue
		}
		p := &peer{name: n, state: model.NodeInit}
		p.in.forget(cfg.Rand)
		p.in.recall(cfg.Floors[n])
		p.margin = cfg.Margins[n]
		c.peers[n] = p
		c.names = append(c.names, n)
	}
	slices.Sort(c.names)
	c.listen()
	c.pings = pingNodes(hb.Media)
	c.ttl = fmt.Sprint(1 + len(c.names) + len(c.pings) + hb.HopFudge)
	c.watch(time.Time{})
	return c, nil
}

// authenticator makes one that can also encrypt.
func (cfg *Config) authenticator(ring model.Keyring) (*Authenticator, error) {
	if encrypts(ring) && cfg.Random == nil {
		return nil, errors.New("heartbeat: a key encrypts, and a source of nonces is missing")
	}
	a, err := NewAuthenticator(ring)
	if err == nil {
		a.random = cfg.Random
	}
	return a, err
}

// watch begins to watch everybody.
func (c *Core) watch(start time.Time) {
	c.det = NewDetector(start, c.names, c.hb.DeadTime, c.hb.InitDead)
	c.det.Suspects(c.hb.SuspectTime)
	c.pingDet = NewDetector(start, pingNames(c.pings), c.hb.DeadPing, c.hb.InitDead)
}

// Unread says that what the links received in this last while has not been
// read yet, so that nobody is declared dead for it. It counts until the next call.
func (c *Core) Unread(last time.Duration) {
	c.det.Unread(last)
	c.pingDet.Unread(last)
}

// Counters returns the totals so far.
func (c *Core) Counters() Counters { return c.count }

// Margins returns what was learnt of the gaps between the others' beats, which
// a later life goes on with.
func (c *Core) Margins() map[model.NodeName]Margin {
	out := make(map[model.NodeName]Margin, len(c.names))
	for _, n := range c.names {
		out[n] = c.peers[n].margin
	}
	return out
}

// Step takes one input and returns what is to be done, in order.
func (c *Core) Step(now time.Time, in Input) []Effect {
	c.effects, c.voucher = c.spare.list(), Voucher{}
	switch in := in.(type) {
	case Start:
		c.watch(now)
	case Datagram:
		c.receive(now, in)
	case Submit:
		c.submit(now, in.Message)
	case Late:
		c.worst = max(c.worst, in.By)
	case Rekey:
		c.rekey(now, in.Keys)
	case Running:
		c.det.Running()
		c.pingDet.Running()
	case Excuse:
		c.det.Excuse(in.From, now)
		c.pingDet.Excuse(in.From, now)
		if late := now.Sub(in.From); late > c.hb.WarnTime {
			c.note(now, model.LevelWarning, "own-delay", string(c.self),
				"this node was not running for %v; the silence of others during that time does not count", late.Round(time.Millisecond))
		}
	case Tick:
		c.tick(now)
		c.tickKernels(now)
		c.tickPings(now)
	}
	return c.effects
}

// Next returns when Tick is due; the zero time if never.
func (c *Core) Next() time.Time {
	next := earlier(c.det.Next(), c.pingDet.Next())
	for _, n := range c.names {
		p := c.peers[n]
		next = earlier(next, p.kernel.askAt)
		if p.listens() {
			for i := range p.in.missing {
				next = earlier(next, p.in.missing[i].due)
			}
		}
		for _, l := range p.links {
			if l.up {
				next = earlier(next, c.linkDeadline(p, l))
			}
		}
	}
	return next
}

func (c *Core) linkDeadline(p *peer, l *path) time.Time {
	w := c.det.nodes[p.name]
	return l.last.Add(c.det.DeadTime(p.name) + w.excuse + settle)
}

// tick declares deaths, links that fell silent, and asks for what is missing.
func (c *Core) tick(now time.Time) {
	for _, d := range c.det.Expired(now) {
		p := c.peers[d.Node]
		c.note(now, model.LevelWarning, "node-dead", string(d.Node), "node %s: is dead%s", d.Node, c.cause(d))
		c.release(p, true)
		p.in.forget(c.cfg.Rand)
		p.acked = 0
		p.state = model.NodeDead
		c.sight(model.Sighting{Kind: model.SightingSilent, Node: d.Node, At: d.At})
	}
	for _, n := range c.names {
		p := c.peers[n]
		for _, l := range p.links {
			if l.up && !now.Before(c.linkDeadline(p, l)) {
				l.up = false
				c.note(now, model.LevelWarning, "link-dead", string(n)+":"+l.name, "Link %s:%s dead.", n, l.name)
				c.sight(model.Sighting{Kind: model.SightingLinkDown, Node: n, At: now, Link: l.name})
			}
		}
		if !p.listens() {
			continue
		}
		for i := range p.in.missing {
			if g := &p.in.missing[i]; !now.Before(g.due) {
				g.due = now.Add(c.hb.MaxRexmitDelay)
				if !p.asks.take(now, askPerSecond) {
					continue
				}
				c.count.Requests++
				seq := fmt.Sprint(g.seq) // decimal, unlike everything else (§4)
				c.sendControl(now, p, Field{Name: "t", Value: "NS_rexmit"}, Field{Name: "dest", Value: string(n)},
					Field{Name: "firstseq", Value: seq}, Field{Name: "lastseq", Value: seq})
			}
		}
	}
}

// listens tells whether the peer answers requests (§6.4).
func (p *peer) listens() bool { return p.state == model.NodeUp || p.state == model.NodeActive }

// askDelay is the time until a missing number is asked for. The original
// sends neighboring numbers in reversed order as a matter of course, so some
// patience is due; Batuta does not.
func (c *Core) askDelay(p *peer) time.Duration {
	lo, hi := 50*time.Millisecond, c.hb.MaxRexmitDelay
	switch {
	case p.batuta:
		lo, hi = time.Millisecond, min(hi, 20*time.Millisecond)
	case hi < 100*time.Millisecond:
		lo = 0
	}
	if hi <= lo {
		return lo
	}
	return lo + time.Duration(c.cfg.Rand.Int64N(int64(hi-lo)))
}

// touch marks a link to a peer as up.
func (c *Core) touch(now time.Time, p *peer, d Datagram) {
	i, found := slices.BinarySearchFunc(p.links, d.Link, func(l *path, name string) int { return strings.Compare(l.name, name) })
	if !found {
		p.links = slices.Insert(p.links, i, &path{name: d.Link})
	}
	l := p.links[i]
	if d.At.After(l.last) {
		l.last = d.At
	}
	// A packet so old that the link would be dead again at once says nothing.
	if !l.up && now.Before(c.linkDeadline(p, l)) {
		l.up = true
		c.note(now, model.LevelInfo, "link-up", string(p.name)+":"+d.Link, "Link %s:%s up.", p.name, d.Link)
		c.sight(model.Sighting{Kind: model.SightingLinkUp, Node: p.name, At: d.At, Link: d.Link})
	}
}

// follow adapts to an original peer. It verifies netstring packets with the
// key that it sends with itself, whatever our index says (§3.4), and an old
// one may speak text only (§2). Batuta peers need neither, and crc, which
// proves nothing, is never followed.
func (c *Core) follow(now time.Time, p *peer, s *said) {
	if p.batuta {
		c.enc, c.send = Netstring, c.hb.Keys.Send
		return
	}
	index := s.index
	c.enc = s.enc
	if index == c.send || c.auth.Method(index) == model.AuthCRC {
		return
	}
	c.send = index
	if index == c.hb.Keys.Send {
		return
	}
	if c.auth.Method(c.hb.Keys.Send).Encrypts() {
		c.note(now, model.LevelWarning, "key-followed", string(p.name),
			"node %s is an original Heartbeat, which cannot read what is encrypted: sending in clear, signed with key %d, while it is there (authkeys selects %d; without key %d in the file it would not hear this node)",
			p.name, index, c.hb.Keys.Send, index)
		return
	}
	c.note(now, model.LevelNotice, "key-followed", string(p.name),
		"node %s signs with key %d and can verify nothing else: sending with key %d (authkeys selects %d)", p.name, index, index, c.hb.Keys.Send)
}

func (c *Core) sight(s model.Sighting) {
	e := c.spare.sighted()
	e.Sighting = s
	c.effects = append(c.effects, e)
}

func (c *Core) note(now time.Time, level model.Level, kind, subject, format string, args ...any) {
	c.effects = append(c.effects, Note{model.Event{At: now, Level: level, Source: "heartbeat", Kind: kind,
		Subject: subject, Text: fmt.Sprintf(format, args...)}})
}
