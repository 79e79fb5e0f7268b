package cli

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/config"
	"github.com/batuta-ha/batuta/internal/model"
)

// recorded is what one call of a command of Heartbeat 3.0.6 printed.
type recorded struct {
	call string
	said string // as the file has it: standard output, "2: " before lines of standard error, [exit N]
}

func recordings(t *testing.T, name string) (list []recorded) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata/heartbeat-3.0.6", name))
	if err != nil {
		t.Fatal(err)
	}
	for part := range strings.SplitSeq("\n"+string(text), "\n$ ") {
		if call, said, ok := strings.Cut(part, "\n"); ok {
			list = append(list, recorded{call, strings.TrimRight(said, "\n")})
		}
	}
	return list
}

// otherwise are the calls that Batuta answers in another way than recorded.
var otherwise = map[string]struct{ why, running, stopped string }{
	"cl_status hbstatus -v": {why: "it tells its own version",
		running: "version:\t3.0.6 (batuta VERSION)\nmanaged by:\t\"haresources\"\n\nhb-b\tPEER\t(nodetype: normal)\n\teth0\tLINK\n\n" +
			"hb-a\tactive\t(nodetype: normal)\n\teth0\tup\n\n10.77.0.254\tping\t(nodetype: ping)\n\t10.77.0.254\tup\n[exit 0]"},
	"heartbeat -V":                           {why: "it tells its own version", stopped: "3.0.6 (batuta VERSION)\n[exit 0]"},
	"cl_status clientstatus hb-b ipfail 500": {why: "there are no clients on other nodes to wait for", running: "offline\n[exit 1]"},
	"cl_status parameter -p keepalive": {why: "the manual page has this name, and the program does not know it",
		running: "500ms\n[exit 0]", stopped: notRunning},
	"cl_status --help": {why: "everything has --help", running: helpText, stopped: helpText},
}

const (
	notRunning = "2: DATE hb-a cl_status: [PID]: ERROR: Cannot signon with heartbeat\n2: DATE hb-a cl_status: [PID]: ERROR: REASON: ...\n[exit 1]"
	helpText   = clUsageText + "[exit 0]"
)

// TestHeartbeatCommands holds the commands against recordings of Heartbeat's
// own: three states of a cluster of hb-a (this one), hb-b and a ping node.
func TestHeartbeatCommands(t *testing.T) {
	for _, state := range []struct {
		name, peer string
		link, runs bool
	}{{"running", "active", true, true}, {"peer-dead", "dead", false, true}, {"stopped", "", false, false}} {
		t.Run(state.name, func(t *testing.T) {
			run := t.TempDir()
			if state.runs {
				serve(t, run, cluster{recordedCluster(t, state.peer, state.link)})
			}
			for _, r := range recordings(t, state.name+".txt") {
				words := strings.Fields(r.call)
				if strings.HasPrefix(words[0], "/etc/init.d/") || r.call == "heartbeat -s" {
					continue // stories of their own
				}
				if !state.runs && (words[0] == "hb_standby" || words[0] == "hb_takeover") {
					continue // these end with 0 there, whatever becomes of it
				}
				want := r.said
				o := otherwise[r.call]
				if o.running != "" && state.runs {
					want = strings.NewReplacer("PEER", state.peer, "LINK", linkWord(model.LinkView{Up: state.link})).Replace(o.running)
				}
				if o.stopped != "" && !state.runs {
					want = o.stopped
				}
				var out, err bytes.Buffer
				args := append(Arguments(words[:1]), "--run-dir", run)
				code := Main(context.Background(), append(args, words[1:]...), nil, &out, &err)
				got := out.String()
				for line := range strings.Lines(err.String()) {
					got += "2: " + line
				}
				got += fmt.Sprintf("[exit %d]", code)
				if d := cmp.Diff(alike(want), alike(got)); d != "" {
					t.Errorf("%s (-recorded +got)\n%s", r.call, d)
				}
			}
		})
	}
}

// alike takes out of an output what differs from call to call, and reasons,
// which Batuta gives where Heartbeat says EINVAL or nothing.
func alike(s string) string {
	for _, r := range []struct{ pattern, word string }{
		{`[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d`, "DATE"},
		{`\S+ cl_status: \[[^]]*\]`, "hb-a cl_status: [PID]"},
		{`REASON:.*`, "REASON: ..."},
		{`(?m)^\((hb_api_signon|no daemon).*\)$`, "(...)"},
		{`\(batuta .*\)`, "(batuta VERSION)"},
	} {
		s = regexp.MustCompile(r.pattern).ReplaceAllString(s, r.word)
	}
	return s
}

// recordedCluster is the cluster of the recordings, with its own ha.cf.
func recordedCluster(t *testing.T, peer string, link bool) api.Heartbeat {
	h := api.Heartbeat{Version: api.Version, Self: "hb-a", Holding: "local", Clients: []string{}, Parameters: map[string]string{}}
	for _, n := range []api.HeartbeatNode{
		{Name: "hb-b", Type: "normal", Status: peer, Links: []model.LinkView{{Name: "eth0", Up: link}}},
		{Name: "hb-a", Type: "normal", Status: "active", Links: []model.LinkView{{Name: "eth0", Up: true}}},
		{Name: "10.77.0.254", Type: "ping", Status: "ping", Links: []model.LinkView{{Name: "10.77.0.254", Up: true}}},
	} {
		n.Weight = 100
		h.Nodes = append(h.Nodes, n)
	}
	for _, p := range config.Parameters(recordedConfig(t)) {
		h.Parameters[p.Name] = p.Value
	}
	h.Parameters["crm"] = h.Parameters["pacemaker"]
	return h
}

func recordedConfig(t *testing.T) *model.Heartbeat {
	t.Helper()
	reader := config.Reader{Files: os.DirFS("testdata/heartbeat-3.0.6"), Node: "hb-a", Host: model.Host{
		Interfaces: []model.Interface{{Name: "eth0", Broadcast: netip.MustParseAddr("10.77.0.255")}},
		LookupAddr: func(string) ([]netip.Addr, error) { return nil, os.ErrNotExist },
		LookupPort: func(string, string) (uint16, error) { return 0, os.ErrNotExist }}}
	c, problems := reader.Load("ha.cf")
	if config.Failed(problems) {
		t.Fatal(problems)
	}
	return c.Heartbeat
}

// The configuration as heartbeat -v prints it.
func TestHeartbeatPrintsItsConfiguration(t *testing.T) {
	want, err := os.ReadFile("testdata/heartbeat-3.0.6/configuration.txt")
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	writeHaConfig(&got, recordedConfig(t))
	if d := cmp.Diff(string(want), got.String()); d != "" {
		t.Errorf("(-recorded +got)\n%s", d)
	}
}

// cluster is a daemon that only tells of a cluster.
type cluster struct{ state api.Heartbeat }

func (c cluster) Status(context.Context) (api.Status, error)       { return api.Status{}, nil }
func (c cluster) Table(context.Context) (api.Table, error)         { return api.Table{}, nil }
func (c cluster) Flows(context.Context) (api.Flows, error)         { return api.Flows{}, nil }
func (c cluster) Heartbeat(context.Context) (api.Heartbeat, error) { return c.state, nil }

func serve(t *testing.T, run string, d api.Daemon) {
	t.Helper()
	s, err := api.Listen(filepath.Join(run, "batuta.sock"), d)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
