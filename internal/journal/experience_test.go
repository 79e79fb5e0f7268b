package journal

import (
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/sla"
)

// The survivor's journal knows of three failures of lvs01: one while it held
// the address, which was taken over; one while it held it that nobody handled;
// one while it held nothing. A fourth silence was an end in good order.
func TestNodesExperience(t *testing.T) {
	c := newClocks()
	node, other := Thing{ThingNode, "lvs01"}, Thing{ThingNode, "lvs02"}
	two := start(t, Options{clock: c.read, boot: "b", Node: "lvs02"})
	began := c.read().Uptime
	at := func(s int) time.Duration { return began + time.Duration(s)*time.Second }
	state := func(thing Thing, s int, state sla.State, where string) {
		two.States([]Change{{Thing: thing, State: state, Since: at(s), Where: where}})
	}
	state(node, 0, sla.Up, "")
	state(other, 0, sla.Up, "")
	state(vip, 0, sla.Up, "lvs01")
	// It dies at 100 and is back at 160; the address runs here from 107 on.
	state(node, 100, sla.Down, "")
	state(node, 130, sla.Down, "said again: one failure all the same")
	state(vip, 100, sla.Down, "")
	state(vip, 107, sla.Up, "lvs02")
	state(node, 160, sla.Up, "")
	// It dies at 200 with nothing on it, until 220.
	state(node, 200, sla.Down, "")
	state(node, 220, sla.Up, "")
	// The address moves back, and nobody takes over at 400.
	state(vip, 300, sla.Up, "lvs01")
	state(node, 400, sla.Down, "")
	state(vip, 400, sla.Down, "")
	state(node, 440, sla.Up, "")
	state(vip, 440, sla.Up, "lvs01")
	// At 500 it is stopped.
	c.pass(490 * time.Second)
	one := start(t, Options{clock: c.read, boot: "a"})
	c.pass(10 * time.Second)
	if err := one.Close(); err != nil {
		t.Fatal(err)
	}
	state(vip, 499, sla.Up, "lvs02")
	state(node, 500, sla.Down, "")
	c.pass(100 * time.Second)
	state(node, 600, sla.Up, "")
	c.pass(400 * time.Second)
	if err := two.Close(); err != nil {
		t.Fatal(err)
	}
	e, err := read(t, two.o.Dir, one.o.Dir).NodesExperience()
	if err != nil {
		t.Fatal(err)
	}
	const up1, up2 = 1000 - 60 - 20 - 40 - 100, 1000
	same(t, sla.Experience{Parts: 2, Operating: up1 + up2, Down: 60 + 20 + 40, Failures: 3, Tried: 2, Handled: 1, Failover: 7}, e)
	if _, known, err := read(t, two.o.Dir).Known("10.1.0.100", 1); !known || err != nil {
		t.Errorf("the address: %v %v", known, err)
	}
}
