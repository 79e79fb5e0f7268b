package pair

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var rewrite = flag.Bool("rewrite", false, "write what happened into testdata/*.txt")

// TestScripts plays stories of two nodes. Each file is a list of commands, a
// line of dashes, and what happened:
//
//	failback on|off|legacy auto_failback of both, before they start
//	network SEED LOSS      delays, reordering and loss from here on
//	real NODE              NODE is a Heartbeat, not a Batuta node
//	start|stop|kill|crash|bounce NODE...   (crash: the daemon dies alone; bounce: and is back at once)
//	cut|join NODE...       nothing that NODE sends arrives | it does again
//	standby|takeover NODE SET
//	badstart|badstop NODE SET        starts|stops of SET fail there from now on
//	run DURATION           what happened meanwhile follows
//	where                  state of both; time that sets ran twice or nowhere
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(b))
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if d := cmp.Diff(strings.Split(string(b), "\n"), strings.Split(got, "\n")); d != "" && !*rewrite {
				t.Errorf("%s (-want +got; review, then go test -rewrite):\n%s", file, d)
			}
		})
	}
}

// play runs one script and returns it with what happened filled in.
func play(t *testing.T, script string) string {
	t.Helper()
	w := newWorld(false)
	var out strings.Builder
	for block := range strings.SplitSeq(strings.TrimSpace(script), "\n\n") {
		commands, _, hasOutput := strings.Cut(block, "\n----")
		out.WriteString(commands)
		if !hasOutput && strings.HasPrefix(commands, "#") {
			out.WriteString("\n\n")
			continue
		}
		w.log.Reset()
		for line := range strings.Lines(commands) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				if err := w.command(strings.Fields(line)); err != nil {
					t.Fatalf("%s: %v", line, err)
				}
			}
		}
		out.WriteString("\n----\n" + w.log.String() + "\n")
	}
	return strings.TrimSuffix(out.String(), "\n")
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
