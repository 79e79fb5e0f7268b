package api

import (
	"flag"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/model"
)

var update = flag.Bool("update", false, "rewrite testdata/metrics.txt")

func TestMetrics(t *testing.T) {
	web := model.ServiceKey{Proto: model.TCP, Addr: netip.MustParseAddrPort("10.1.0.100:80")}
	mark := model.ServiceKey{Mark: 4, MarkFamily: model.IPv4}
	at := time.Date(2026, 1, 2, 3, 4, 5, 600e6, time.UTC)
	up := model.RealView{Addr: "10.240.0.20:80", Status: model.Up, Last: model.Up, Checked: at, Took: 1500 * time.Microsecond}
	failing := model.RealView{Addr: "10.240.0.21:80", Status: model.Up, Last: model.Down, Failures: 1, Checked: at, Took: 3 * time.Second, Refused: "no"}
	fresh := model.RealView{Addr: "[2001:db8::1]:0"}
	row := func(a string, weight int) model.RealServer {
		return model.RealServer{Addr: netip.MustParseAddrPort(a), Forward: model.Masq, Weight: weight}
	}
	st := Status{
		Node: "lvs01", State: "active", Plane: "ebpf", Mode: "classic", BadPackets: 3, Sentences: []string{"mend this"},
		Peers:       []Peer{{Name: "lvs01", State: "active", Self: true}, {Name: `odd"\` + "\nname", State: "dead", Links: []model.LinkView{{Name: "eth1"}}}},
		Resources:   []model.ResourceView{{Name: "10.1.0.100", Group: "g"}},
		Packets:     heartbeat.Counters{Sent: 10, Received: 9, Duplicates: 1, Bad: 3, Replayed: 4, Unproven: 5, Excess: 6, Dropped: 700},
		LinkPackets: []model.LinkPackets{{Name: "eth1", Flooded: true, Kernel: 500, Again: 200, Bad: 2}, {Name: "eth2"}},
		Services: []model.ServiceView{
			{Key: web, Reals: []model.RealView{up, failing, up}}, // the same one twice is one sample
			{Key: mark, Fallback: true, Refused: "no", Reals: []model.RealView{fresh}},
		},
	}
	table := Table{
		Services: []model.VirtualService{{Key: web, Reals: []model.RealServer{row("10.240.0.20:80", 5), row("10.240.0.21:80", 0)}}},
		Counters: []model.ServiceCounters{{Key: web, Counters: model.Counters{Connections: 7, PacketsIn: 70, PacketsOut: 60, BytesIn: 1 << 40, BytesOut: 5},
			Reals: []model.RealCounters{{Addr: netip.MustParseAddrPort("10.240.0.20:80"), Active: 2, Inactive: 1}}}},
	}
	var b strings.Builder
	WriteMetrics(&b, st, table)
	const golden = "testdata/metrics.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), b.String()); d != "" {
		t.Errorf("%s (-want +got; -update rewrites)\n%s", golden, d)
	}

	// The exposition format, version 0.0.4, as its description has it.
	label := `[a-zA-Z_][a-zA-Z0-9_]*="([^"\\\n]|\\\\|\\"|\\n)*"`
	sample := regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{` + label + `(,` + label + `)*\})? -?[0-9.e+]+$`)
	family, seen := "", map[string]bool{}
	for line := range strings.Lines(b.String()) {
		line = strings.TrimSuffix(line, "\n")
		if rest, ok := strings.CutPrefix(line, "# HELP "); ok {
			family, _, _ = strings.Cut(rest, " ")
			continue
		}
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			if name, kind, _ := strings.Cut(rest, " "); name != family || kind != "gauge" && kind != "counter" {
				t.Errorf("%q after the help of %s", line, family)
			}
			continue
		}
		m := sample.FindStringSubmatch(line)
		key := line[:strings.LastIndexByte(line, ' ')]
		if m == nil || m[1] != family || seen[key] {
			t.Errorf("%q is no sample of %s, or is there twice", line, family)
		}
		seen[key] = true
	}
}
