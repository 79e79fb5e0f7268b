package heartbeat

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// Floor is how far a node has been heard: whatever lies at or below it is a
// recording. A receiver of the original forgets that when it restarts, and
// can be shown a dead node alive by playing its old packets.
//
// A floor is stored now and then, not with each beat. So what was heard after
// the latest one is unknown to the next life; but no more than up to Ahead,
// for a floor is stored before the sender gets there. What a Batuta node says
// in this range counts when it proves that it was said to the present life: in
// its echo, the words of the lives that it hears (life), is ours. It is there
// one beat after our first message. A node that does not hear us proves
// nothing and is believed from Ahead on; until it may have come there it is
// not declared dead, for it may well live.
//
// An original has no echo: up to floorPeriod of its newest messages could be
// played to a node that restarts.
type Floor struct {
	Generation uint32
	Seq        uint32 // of the newest status message of that generation
	Life       string // the word of that life; "" for an original
	Ahead      uint32 // numbers that may have been heard, too, when this is read; Seq for an original
}

// Heard gives out a node's floor, to be stored: at each new life, now and
// then, and when the node has come half the way to Ahead.
type Heard struct {
	Node model.NodeName
	Floor
}

// Bounds of floors. A floor is given out when half of its reserve is used up,
// so that a slow disk has the time of the other half.
const (
	floorPeriod = 5 * time.Second
	minReserve  = 8 // numbers from Seq to Ahead; more for a node that beats more often
)

// reserve is how many numbers a node may use in two periods.
func (p *peer) reserve() uint32 {
	if p.keepalive <= 0 {
		return minReserve
	}
	return max(minReserve, uint32(2*floorPeriod/p.keepalive))
}

// remember gives out how far a node has been heard, if it is time.
func (c *Core) remember(now time.Time, p *peer) {
	reserve := p.reserve()
	if !p.remembered.IsZero() && now.Sub(p.remembered) < floorPeriod && (p.in.life == "" || p.in.statusSeq+reserve/2 < p.ahead) {
		return
	}
	p.remembered, p.ahead = now, p.in.statusSeq
	if p.in.life != "" {
		p.ahead += reserve
	}
	c.effects = append(c.effects, Heard{p.name, Floor{p.in.generation, p.in.statusSeq, p.in.life, p.ahead}})
}

// recall takes what an earlier life of this node has heard.
func (in *inbox) recall(f Floor) {
	if f.Generation == 0 {
		return
	}
	in.known, in.generation, in.life = true, f.Generation, f.Life
	in.statusSeq, in.floor = f.Seq, f.Seq
	if f.Ahead > f.Seq {
		in.doubt = f.Ahead
	}
}

// doubtful tells of a packet that may be a recording of what an earlier life
// of this node has heard.
func (c *Core) doubtful(now time.Time, p *peer, s *said) bool {
	if p.in.doubt == 0 || s.gen != p.in.generation {
		return false
	}
	if s.hasSeq && s.seq > p.in.doubt || s.proven {
		p.in.doubt = 0
		return false
	}
	c.count.Unproven++
	beat := min(s.keepalive, c.hb.DeadTime)
	wait := max(2*floorPeriod, minReserve*beat) + c.det.DeadTime(p.name)
	c.det.Await(p.name, c.det.start.Add(wait))
	// One that wakes at the end of that proves itself with its next beat but
	// one. Recordings must not keep a dead one alive for ever.
	if now.Before(c.det.start.Add(2 * wait)) {
		c.det.Await(p.name, now.Add(3*beat))
	}
	switch {
	case p.doubted.IsZero():
		p.doubted = now
	case now.Sub(p.doubted) > floorPeriod && (p.lastReplay.IsZero() || now.Sub(p.lastReplay) >= complaintPeriod):
		p.lastReplay = now
		c.note(now, model.LevelWarning, "node-unproven", string(p.name),
			"what comes from node %s does not show that it hears this node, and could be a recording: not believed before number %d; if the node lives, look why it does not hear this one",
			p.name, p.in.doubt+1)
	}
	return true
}

// listen keeps the words of the lives that this node hears, which go out with
// each beat.
func (c *Core) listen() {
	var words []string
	for _, n := range c.names {
		if life := c.peers[n].in.life; life != "" {
			words = append(words, life)
		}
	}
	c.echo = strings.Join(words, " ")
}

// FormatFloor is the line of a file of floors: "NODE GENERATION SEQ LIFE
// AHEAD", numbers in decimal, "-" for no life.
func FormatFloor(n model.NodeName, f Floor) string {
	life := f.Life
	if life == "" {
		life = "-"
	}
	return fmt.Sprintf("%s %d %d %s %d\n", n, f.Generation, f.Seq, life, f.Ahead)
}

// ParseFloors reads such lines, and those of an earlier version, which have no
// AHEAD.
func ParseFloors(text string) (map[model.NodeName]Floor, error) {
	floors := map[model.NodeName]Floor{}
	for line := range strings.Lines(text) {
		w := strings.Fields(line)
		if len(w) == 4 {
			w = append(w, "0")
		}
		if len(w) != 5 {
			return nil, fmt.Errorf("%.60q is not NODE GENERATION SEQ LIFE AHEAD", line)
		}
		var n [3]uint32
		for i, word := range []string{w[1], w[2], w[4]} {
			x, err := strconv.ParseUint(word, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("%.60q: generation and numbers are decimal, up to 4294967295", line)
			}
			n[i] = uint32(x)
		}
		f := Floor{Generation: n[0], Seq: n[1], Life: w[3], Ahead: n[2]}
		if f.Life == "-" {
			f.Life = ""
		}
		floors[model.NodeName(w[0])] = f
	}
	return floors, nil
}
