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
type Floor struct {
	Generation uint32
	Seq        uint32 // of the newest status message of that generation
	Life       string // the word of that life; "" for an original
}

// Heard gives out a node's floor, to be stored: at each new life, and now and
// then. What was heard after the latest one could be played to the next life
// of this node, if that begins before the sender has said more: no more than
// floorPeriod of it.
type Heard struct {
	Node model.NodeName
	Floor
}

// floorPeriod is how often a node's floor is given out.
const floorPeriod = 5 * time.Second

// recall takes what an earlier life of this node has heard.
func (in *inbox) recall(f Floor) {
	if f.Generation == 0 {
		return
	}
	in.known, in.generation, in.life = true, f.Generation, f.Life
	in.statusSeq, in.floor = f.Seq, f.Seq
}

func (c *Core) remember(now time.Time, p *peer) {
	if !p.remembered.IsZero() && now.Sub(p.remembered) < floorPeriod {
		return
	}
	p.remembered = now
	c.effects = append(c.effects, Heard{p.name, Floor{p.in.generation, p.in.statusSeq, p.in.life}})
}

// FormatFloor is the line of a file of floors: "NODE GENERATION SEQ LIFE", all
// decimal, "-" for no life.
func FormatFloor(n model.NodeName, f Floor) string {
	life := f.Life
	if life == "" {
		life = "-"
	}
	return fmt.Sprintf("%s %d %d %s\n", n, f.Generation, f.Seq, life)
}

// ParseFloors reads such lines.
func ParseFloors(text string) (map[model.NodeName]Floor, error) {
	floors := map[model.NodeName]Floor{}
	for line := range strings.Lines(text) {
		w := strings.Fields(line)
		if len(w) != 4 {
			return nil, fmt.Errorf("%.60q is not NODE GENERATION SEQ LIFE", line)
		}
		g, e1 := strconv.ParseUint(w[1], 10, 32)
		q, e2 := strconv.ParseUint(w[2], 10, 32)
		if e1 != nil || e2 != nil {
			return nil, fmt.Errorf("%.60q: generation and number are decimal, up to 4294967295", line)
		}
		f := Floor{Generation: uint32(g), Seq: uint32(q), Life: w[3]}
		if f.Life == "-" {
			f.Life = ""
		}
		floors[model.NodeName(w[0])] = f
	}
	return floors, nil
}
