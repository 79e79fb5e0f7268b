package heartbeat

import (
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// A node whose stored generation was lost begins with the current time. If it
// had counted past that, or its clock is wrong, all others drop what it says,
// for ever: the original needs an administrator then. Batuta nodes tell it:
//
//	NS_batuta_gen highest=GENERATION heard=WORD
//
// says which life of the addressee the sender has heard last, and the addressee
// goes on with the next generation. The word tells two lives apart that have
// the same generation. A replayed message of this kind does nothing: it names
// no generation that the addressee has not passed.
const typeOutlived = "NS_batuta_gen"

// tellPeriod spaces these messages, renewPeriod the new lives that they cause:
// each is stored before anything else is sent.
const (
	tellPeriod  = 500 * time.Millisecond
	renewPeriod = 10 * tellPeriod
)

// doubled tells that a status message is of another life with the generation
// that is known.
func (in *inbox) doubled(s *said) bool {
	return in.known && s.gen == in.generation && s.life != "" && in.life != "" && s.life != in.life
}

// outlived tells a node that a later life of it has been heard.
func (c *Core) outlived(now time.Time, p *peer) {
	if !p.lastTold.IsZero() && now.Sub(p.lastTold) < tellPeriod {
		return
	}
	p.lastTold = now
	// By name alone: a node that lost its generation has lost its uuid, too.
	c.sendControl(now, &peer{}, Field{Name: "t", Value: typeOutlived}, Field{Name: "dest", Value: string(p.name)},
		Field{Name: "highest", Value: hex32(p.in.generation)}, Field{Name: "heard", Value: p.in.life})
}

// renew begins a new life if the one that was heard is not over yet.
func (c *Core) renew(now time.Time, p *peer, pkt *Packet) {
	highest, ok := hexField(pkt, "highest")
	if !ok || highest < c.cfg.Generation || highest == ^uint32(0) || highest == c.cfg.Generation && pkt.Get("heard") == c.life {
		return
	}
	if !c.renewed.IsZero() && now.Sub(c.renewed) < renewPeriod {
		return // it will be said again
	}
	c.renewed = now
	c.note(now, model.LevelWarning, "generation-lost", string(c.self),
		"node %s has heard generation %d of this node, which began with %d: the stored one was lost; going on with %d", p.name, highest, c.cfg.Generation, highest+1)
	c.cfg.Generation = highest + 1
	c.gen, c.life = hex32(c.cfg.Generation), hex32(c.cfg.Rand.Uint32())
	c.out = outbox{}
	for _, other := range c.peers {
		other.acked = 0
		other.patterns = [2]pattern{} // they know whether they prove that the life before was heard
	}
	c.effects = append(c.effects, Renewed{c.cfg.Generation})
}
