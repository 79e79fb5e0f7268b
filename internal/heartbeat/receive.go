package heartbeat

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// transport names the fields that belong to delivery, not to the message.
var transport = []string{"t", "src", "srcuuid", "dest", "destuuid", "seq", "hg", "ts", "ld", "ttl", "auth"}

// receive takes one datagram from the wire to its meaning.
func (c *Core) receive(now time.Time, d Datagram) {
	if d.At.IsZero() || d.At.After(now) {
		d.At = now
	}
	if isAnswer(d.Data) {
		c.answered(now, d.Data)
		return
	}
	if len(d.Data) > maxMessage {
		c.bad(now, d.Link, fmt.Errorf("%w: %d bytes are more than any message has (%d)", ErrMalformed, len(d.Data), maxMessage))
		return
	}
	if c.out.latest(d.Data) { // our own, come back
		c.voucher.Merit = Heeded
		return
	}
	if p, s := c.again(d.Data); p != nil {
		c.heard(now, d, p, &s, nil)
		return
	}
	pkt, err := Parse(d.Data)
	if err != nil {
		c.bad(now, d.Link, err)
		return
	}
	index, err := c.auth.Verify(&pkt)
	if err != nil {
		c.bad(now, d.Link, err)
		return
	}
	src := model.NodeName(strings.ToLower(pkt.Get("src")))
	if src == c.self {
		c.own(now, d.Link, &pkt)
		return
	}
	if c.isPing(src) {
		c.pong(now, d, src, &pkt)
		return
	}
	p := c.peers[src]
	if p == nil {
		c.unknown(now, d.Link, src)
		return
	}
	s := c.says(&pkt, index)
	switch s.typ {
	case typeStatus:
		p.patterns[0].learn(&pkt, s)
	case typeAck:
		p.patterns[1].learn(&pkt, s)
	}
	c.heard(now, d, p, &s, &pkt)
}

// heard takes an authentic packet of another node to its meaning. There may be
// no pkt to a status message or an acknowledgment; see again.
func (c *Core) heard(now time.Time, d Datagram, p *peer, s *said, pkt *Packet) {
	if s.typ == "" || !s.timed {
		c.bad(now, d.Link, fmt.Errorf("%w: from %s without type or time", ErrMalformed, p.name))
		return
	}
	c.count.Received++
	if p.in.known && s.gen < p.in.generation || p.in.doubled(s) {
		c.replayed(now, p, s.gen)
		if s.life != "" {
			c.outlived(now, p)
		}
		return
	}
	if c.doubtful(now, p, s) || c.excessive(now, p, s) {
		return
	}
	c.touch(now, p, d)
	if s.uuid != "" {
		p.uuid = s.uuid
	}
	if strings.HasPrefix(s.typ, "NS_") {
		c.voucher.Merit = Heeded
		if s.forUs {
			c.control(now, p, s, pkt)
		}
		return
	}
	if !s.hasSeq || s.seq == 0 {
		c.bad(now, d.Link, fmt.Errorf("%w: %s from %s without a sequence number", ErrMalformed, s.typ, p.name))
		return
	}
	if s.typ == typeStatus {
		c.status(now, d, p, s)
		return
	}
	// Only a status message begins a new life or ends a silence; what comes
	// before it is lost and will not be missed (§6.1, §7.5).
	if p.in.known && (s.gen > p.in.generation || p.state == model.NodeDead) {
		return
	}
	p.in.known, p.in.generation = true, s.gen
	if c.enter(now, p, s.seq) && s.forUs {
		p.hold(s.seq, message(p.name, s.typ, s.seq, pkt), len(d.Data))
	}
	c.release(p, !p.batuta)
	c.relieve(now, p)
}

// message strips the transport fields.
func message(from model.NodeName, typ string, seq uint32, pkt *Packet) model.Message {
	m := model.Message{Type: typ, From: from, Number: seq, To: model.NodeName(pkt.Get("dest"))}
	for _, f := range pkt.Fields {
		if !slices.Contains(transport, f.Name) {
			m.Fields = append(m.Fields, model.Field{Name: f.Name, Value: f.Value})
		}
	}
	return m
}

// enter accounts for a reliable message and tells whether it is new.
func (c *Core) enter(now time.Time, p *peer, seq uint32) bool {
	before := p.in.last
	v, lost := p.in.accept(seq, now, func() time.Duration { return c.askDelay(p) })
	c.vouch(p, v, seq)
	if lost > 0 {
		c.count.Lost += uint64(lost)
		c.note(now, model.LevelWarning, "packets-lost", string(p.name), "%d lost packet(s) for [%s] [%d:%d]", lost, p.name, before, seq)
	}
	switch v {
	case repeat, refuse: // with two links, what is old mostly took the slower one
		c.count.Duplicates++
		return false
	case late:
		c.closed(now, p)
	case restart:
		c.note(now, model.LevelWarning, "tracking-reset", string(p.name),
			"%d messages of %s are missing, too many to ask for: going on from number %d", lost, p.name, seq)
	case fresh:
	}
	c.acknowledge(now, p, seq)
	return true
}

func (c *Core) closed(now time.Time, p *peer) {
	if len(p.in.missing) == 0 {
		c.note(now, model.LevelInfo, "packets-complete", string(p.name), "No pkts missing from %s!", p.name)
	}
}

func (c *Core) acknowledge(now time.Time, p *peer, seq uint32) {
	n, ok := p.in.ack(seq)
	if !ok {
		return
	}
	f := append(c.fields[:0], Field{Name: "t", Value: typeAck}, Field{Name: "dest", Value: string(p.name)}, Field{Name: "ackseq", Hex: true, Number: n})
	if p.batuta {
		f = append(f, Field{Name: ackGeneration, Hex: true, Number: p.in.generation})
	}
	c.sendControl(now, p, f...)
}

// status takes a heartbeat: it may begin a life, end a silence or do neither.
func (c *Core) status(now time.Time, d Datagram, p *peer, s *said) {
	gen, seq := s.gen, s.seq
	kind := model.SightingBeat
	switch {
	case !c.det.HeardOnce(p.name):
		kind = model.SightingJoined
	case gen > p.in.generation && p.state == model.NodeDead:
		kind = model.SightingJoined
	case gen > p.in.generation:
		kind = model.SightingRestarted
	case p.state == model.NodeDead:
		kind = model.SightingReturned
	}
	if gen > p.in.generation || !p.in.known {
		if p.in.known {
			c.release(p, true)
			p.in.forget(c.cfg.Rand)
			p.acked = 0
		}
		p.in.known, p.in.generation, p.in.statusSeq, p.in.floor = true, gen, 0, 0
		p.in.doubt = 0
		p.in.life, p.remembered = "", time.Time{}
	}
	if p.in.life == "" {
		p.in.life = s.life
		c.listen()
	}
	if kind == model.SightingReturned && seq <= p.in.statusSeq {
		c.count.Replayed++ // an old packet does not raise the dead (§7.5)
		return
	}
	// A first status that was overtaken by another first message counts, though
	// its number lies below what was heard.
	c.enter(now, p, seq)
	c.release(p, !p.batuta)
	if seq <= p.in.statusSeq {
		return // known already, or newer ones came first
	}
	p.in.statusSeq = seq
	p.key = s.index
	p.batuta = s.batuta
	c.follow(now, p, s)
	if s.state != model.NodeUnknown {
		p.state = s.state
	}
	p.keepalive = s.keepalive
	c.remember(now, p)
	suspect := c.det.Suspect(p.name)
	silence := c.det.Heard(p.name, d.At, s.dead)
	p.margin.Pace(p.keepalive)
	if kind == model.SightingBeat && silence > 0 {
		p.margin.Add(now, silence)
	}
	if suspect {
		c.note(now, model.LevelNotice, "node-unsuspected", string(p.name),
			"node %s: is no longer suspect: its daemon is heard again after %v of silence; nothing was taken over", p.name, silence.Round(time.Millisecond))
	}
	c.promised(now, p, d.At, s.run)
	if kind == model.SightingBeat && c.hb.WarnTime > 0 && silence > c.hb.WarnTime {
		c.note(now, model.LevelWarning, "late-heartbeat", string(p.name), "Late heartbeat: Node %s: interval %d ms", p.name, silence.Milliseconds())
	}
	c.sight(model.Sighting{Kind: kind, Node: p.name, At: d.At, State: p.state, Generation: gen,
		DeadTime: c.det.nodes[p.name].dead, Batuta: p.batuta,
		Delay: s.delay, Margin: p.margin.Could(now), Key: model.KeyUse{Number: s.index, Method: c.auth.Method(s.index)}, Kernel: p.kernel.proved})
}

// control handles the messages of delivery itself, which are not reliable.
func (c *Core) control(now time.Time, p *peer, s *said, pkt *Packet) {
	switch s.typ {
	case typeOutlived:
		c.renew(now, p, pkt)
	case typeAck:
		if s.ackGen != "" && s.ackGen != c.gen {
			return // what an earlier life of ours has sent
		}
		if s.ack > p.acked && s.ack <= c.out.seq {
			p.acked = s.ack
		}
	case "NS_nak_rexmit":
		// The peer no longer has it: stop asking (§6.5).
		if n, ok := hexField(pkt, "firstseq"); ok && p.in.fill(n) {
			c.note(now, model.LevelWarning, "packet-gone", string(p.name), "node %s cannot send message %d again: %s", p.name, n, clip(pkt.Get("info")))
			c.closed(now, p)
			c.acknowledge(now, p, n)
			c.release(p, !p.batuta)
		}
	case "NS_rexmit":
		first, e1 := strconv.ParseUint(pkt.Get("firstseq"), 10, 32)
		last, e2 := strconv.ParseUint(pkt.Get("lastseq"), 10, 32)
		if e1 == nil && e2 == nil && first > 0 {
			c.resend(now, p, first, min(last, uint64(c.out.seq)))
		}
	}
}

// resend answers a request: the identical bytes, a refusal for what is no
// longer kept, silence for what was never sent (§6.4, §6.5).
func (c *Core) resend(now time.Time, p *peer, first, last uint64) {
	for n, budget := first, maxResend; n <= last && budget > 0; n++ {
		if uint32(n) <= p.acked {
			n = min(uint64(p.acked), last) // skip the acknowledged ones in one go
			continue
		}
		budget--
		s := c.out.find(uint32(n))
		if s != nil && !s.resent.IsZero() && now.Sub(s.resent) < c.hb.MaxRexmitDelay-resendMargin {
			continue
		}
		if !p.answers.take(now, answerPerSecond) {
			return
		}
		if s == nil {
			info := "seqno not found"
			if n+historySize <= uint64(c.out.seq) {
				info = "seqno too low"
			}
			c.sendControl(now, p, Field{Name: "t", Value: "NS_nak_rexmit"}, Field{Name: "firstseq", Value: hex32(uint32(n))},
				Field{Name: "dest", Value: string(p.name)}, Field{Name: "info", Value: info})
			continue
		}
		s.resent = now
		c.count.Retransmitted++
		if s.key != c.send {
			c.resign(c.auth, s)
		}
		e := c.spare.send()
		e.room = append(e.room[:0], s.data...) // its place may be given to another one
		e.Data = e.room
		c.effects = append(c.effects, e)
	}
}

// forUs tells whether a packet is meant for this node: by uuid if it names
// one, else by name, else for everyone (§4).
func (c *Core) forUs(pkt *Packet) bool {
	if u := pkt.Get("destuuid"); len(u) == 16 && strings.Trim(u, "\x00") != "" {
		return u == c.uuid
	}
	dest, ok := pkt.Lookup("dest")
	return !ok || dest == string(c.self)
}

// own looks at a packet that bears our own name: mostly our own broadcast
// come back. With a later generation, or our generation and a number that we
// have not used, it is somebody else's.
func (c *Core) own(now time.Time, link string, pkt *Packet) {
	gen, _ := hexField(pkt, "hg")
	seq, _ := hexField(pkt, "seq")
	if gen < c.cfg.Generation || gen == c.cfg.Generation && seq <= c.out.seq {
		if gen == c.cfg.Generation && seq+recent > c.out.seq {
			c.voucher.Merit = Heeded
		}
		return
	}
	if !c.lastDouble.IsZero() && now.Sub(c.lastDouble) < complaintPeriod {
		return
	}
	c.lastDouble = now
	c.note(now, model.LevelError, "name-used-twice", string(c.self),
		"another node on link %s calls itself %s (generation %d, ours is %d): give each node its own name", link, c.self, gen, c.cfg.Generation)
}

// bad counts a packet that is no packet or not from a key holder, and says so
// once in a while.
func (c *Core) bad(now time.Time, link string, err error) {
	c.count.Bad++
	c.badSince++
	if !c.hb.LogBadPackets || !c.lastBad.IsZero() && now.Sub(c.lastBad) < complaintPeriod {
		return
	}
	c.note(now, model.LevelError, "bad-packet", link,
		"dropped %d packet(s) on link %s that fail authentication, the latest: %v; check that authkeys is the same on all nodes", c.badSince, link, err)
	c.lastBad, c.badSince = now, 0
}

// replayed counts a packet of an earlier life. Stragglers are normal after a
// restart; a peer that lost its stored generation is refused until it has one
// above what was heard, and somebody has to be told.
func (c *Core) replayed(now time.Time, p *peer, gen uint32) {
	c.count.Replayed++
	if gen < p.in.generation {
		c.voucher.Merit = Old
	}
	if !p.lastReplay.IsZero() && now.Sub(p.lastReplay) < complaintPeriod {
		return
	}
	p.lastReplay = now
	c.note(now, model.LevelWarning, "old-generation", string(p.name),
		"dropped a packet of node %s with generation %d, %d was heard before: a straggler, a replay, or a node whose stored generation was lost (write one above %d into its hb_generation)",
		p.name, gen, p.in.generation, p.in.generation)
}

func (c *Core) unknown(now time.Time, link string, src model.NodeName) {
	c.count.Unknown++
	if !c.lastUnknown.IsZero() && now.Sub(c.lastUnknown) < complaintPeriod {
		return
	}
	c.lastUnknown = now
	c.note(now, model.LevelError, "unknown-node", clip(string(src)),
		"dropped a packet of %q on link %s, which is not in ha.cf; add a node line, or give that cluster its own port or key", clip(string(src)), link)
}

// hexField reads a lower-case hexadecimal number.
func hexField(p *Packet, name string) (uint32, bool) {
	v, ok := p.Lookup(name)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(v, 16, 32)
	return uint32(n), err == nil
}

// millisField reads a duration in milliseconds; 0 where there is none.
func millisField(p *Packet, name string) time.Duration {
	ms, _ := hexField(p, name)
	return time.Duration(ms) * time.Millisecond
}

func hex32(n uint32) string { return strconv.FormatUint(uint64(n), 16) }
