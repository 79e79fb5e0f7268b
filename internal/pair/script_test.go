package pair

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/story"
)

// TestScripts plays stories of two nodes. Each file is a list of commands, a
// line of dashes, and what happened:
//
//	failback on|off|legacy auto_failback of both, before they start
//	network SEED LOSS      delays, reordering and loss from here on
//	real|batuta NODE...    NODE is a Heartbeat, not a Batuta node | is one again
//	start|stop|kill|crash|bounce NODE...   (crash: the daemon dies alone; bounce: and is back at once)
//	cut|join NODE...       nothing that NODE sends arrives | it does again
//	standby|takeover NODE SET
//	badstart|badstop NODE SET        starts|stops of SET fail there from now on
//	fencing                both reset the other, before they start
//	badfence|goodfence NODE...       its fencing device fails | works again
//	fencetime DURATION     how long a reset takes; a second at first
//	ipfail                 both give up when they see fewer ping nodes, before they start
//	pings NODE N           from now on NODE sees N ping nodes
//	run DURATION           what happened meanwhile follows
//	where                  state of both; time that sets ran twice or nowhere
func TestScripts(t *testing.T) {
	story.Play(t, "testdata/*.txt", func(t *testing.T) func(string) string {
		w := newWorld(false)
		return func(command string) string {
			w.log.Reset()
			if err := w.command(strings.Fields(command)); err != nil {
				t.Fatalf("%s: %v", command, err)
			}
			return w.log.String()
		}
	})
}

func (w *world) command(f []string) error {
	each := func(do func(*machine)) error {
		for _, n := range f[1:] {
			do(w.node(n))
		}
		return nil
	}
	set := func() Set {
		s, _ := ParseSet(f[len(f)-1])
		return s
	}
	switch f[0] {
	case "failback":
		for _, m := range w.nodes {
			m.failback, m.legacy = f[1] == "on", f[1] == "legacy"
		}
	case "network":
		seed, _ := strconv.ParseUint(f[1], 10, 64)
		w.loss, _ = strconv.ParseFloat(f[2], 64)
		w.rng = rand.New(rand.NewPCG(seed, 0))
	case "real", "batuta":
		return each(func(m *machine) { w.real[m.index] = f[0] == "real" })
	case "start":
		return each((*machine).start)
	case "stop":
		return each(func(m *machine) { m.step(Stop{}) })
	case "kill":
		return each((*machine).kill)
	case "crash":
		return each((*machine).end)
	case "bounce":
		return each(func(m *machine) { m.end(); m.start() })
	case "cut", "join":
		return each(func(m *machine) { w.cut[m.index] = f[0] == "cut" })
	case "standby":
		w.node(f[1]).step(Standby{set()})
	case "takeover":
		w.node(f[1]).step(Takeover{set()})
	case "badstart":
		w.node(f[1]).badStart = set()
	case "badstop":
		w.node(f[1]).badStop = set()
	case "fencing":
		for _, m := range w.nodes {
			m.fencing = true
		}
	case "badfence", "goodfence":
		return each(func(m *machine) { m.badFence = f[0] == "badfence" })
	case "fencetime":
		d, err := time.ParseDuration(f[1])
		w.fenceFor = d
		return err
	case "ipfail":
		for _, m := range w.nodes {
			m.ipfail = time.Second
		}
	case "pings":
		n, err := strconv.Atoi(f[2])
		w.node(f[1]).see(n)
		return err
	case "run":
		d, err := time.ParseDuration(f[1])
		if err != nil {
			return err
		}
		w.run(d)
	case "where":
		w.log.WriteString(w.state())
		for i, m := range w.nodes {
			fmt.Fprintf(&w.log, "the set of %s ran twice for %v, nowhere for %v\n", m.name, w.double[i], w.none[i])
		}
		w.double, w.none = [2]time.Duration{}, [2]time.Duration{}
	default:
		return fmt.Errorf("no such command")
	}
	return nil
}
