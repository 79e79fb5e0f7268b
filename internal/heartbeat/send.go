package heartbeat

import (
	"slices"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// longMessage is room for most messages, signed and encrypted.
const longMessage = 512

// submit numbers, signs, keeps and sends a reliable message. Fields go out in
// the original's order (§5).
func (c *Core) submit(now time.Time, m model.Message) {
	c.out.seq++
	c.count.Sent++
	f := c.fields[:0]
	dest := Field{Name: "dest", Value: string(m.To)}
	if m.To != "" && m.Type == "repnodes" {
		f = append(f, dest, Field{Name: "t", Value: m.Type})
	} else {
		f = append(f, Field{Name: "t", Value: m.Type})
		if m.To != "" {
			f = append(f, dest)
		}
	}
	for _, x := range m.Fields {
		f = append(f, Field{Name: x.Name, Value: x.Value})
	}
	if m.Type == "status" {
		f = c.announce(f)
	}
	f = c.address(f, m.To)
	f = append(f, Field{Name: "seq", Hex: true, Number: c.out.seq})
	f = c.date(f, now)
	f = append(f, Field{Name: "ld", Value: c.load()}, Field{Name: "ttl", Value: c.ttl})
	var room []byte
	if c.spare.used {
		room = c.out.room()
	}
	data := c.auth.Seal(slices.Grow(room, longMessage), c.enc, f, c.hb.InnerAuth, c.send)
	c.fields = f
	c.out.keep(data, c.send)
	e := c.spare.send()
	e.Data = data
	c.effects = append(c.effects, e)
	if m.Type == "status" {
		c.probe(now)
	}
}

// sendControl sends one message of delivery itself: no number, no history.
func (c *Core) sendControl(now time.Time, to *peer, own ...Field) {
	f := append(c.fields[:0], own...)
	f = c.address(f, to.name)
	f = c.date(f, now)
	f = append(f, Field{Name: "ttl", Value: c.ttl})
	e := c.spare.send()
	e.room = c.auth.Seal(slices.Grow(e.room[:0], longMessage), c.enc, f, c.hb.InnerAuth, c.send)
	e.Data = e.room
	c.effects = append(c.effects, e)
	c.fields = f
}

// address appends who it is for, if the uuid is known, and who it is from.
func (c *Core) address(f []Field, to model.NodeName) []Field {
	switch p := c.peers[to]; {
	case p != nil && p.uuid != "":
		f = append(f, Field{Name: "destuuid", Value: p.uuid, Type: FieldBinary})
	case to == c.self:
		f = append(f, Field{Name: "destuuid", Value: c.uuid, Type: FieldBinary})
	}
	return append(f, Field{Name: "src", Value: string(c.self)},
		Field{Name: "srcuuid", Value: c.uuid, Type: FieldBinary})
}

// date appends the generation and the wall clock.
func (c *Core) date(f []Field, now time.Time) []Field {
	return append(f, Field{Name: "hg", Value: c.gen}, c.stamp(now))
}

// stamp is the ts field.
func (c *Core) stamp(now time.Time) Field {
	return Field{Name: "ts", Hex: true, Number: uint32(c.wall(now).Unix())}
}

// wall is what the wall clock shows.
func (c *Core) wall(now time.Time) time.Time {
	if c.cfg.Wall != nil {
		return c.cfg.Wall(now)
	}
	return now
}

func (c *Core) load() string {
	if c.cfg.Load == nil {
		return "0.00 0.00 0.00 1/1 1"
	}
	return c.cfg.Load()
}
