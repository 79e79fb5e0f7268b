package ebpf

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

// The shares add up, what is said to move is what the program really sends
// elsewhere, and open connections are counted.
func TestExplain(t *testing.T) {
	requireRoot(t)
	p := open(t, testOptions())
	to := vip(0, 53)
	key := model.ServiceKey{Proto: model.UDP, Addr: to}
	changes := []model.Change{addService(model.UDP, to, "mh")}
	for i, w := range []int{1, 1, 2} {
		changes = append(changes, addReal(model.UDP, to, fmt.Sprintf("10.240.0.20:%d", 5300+i), w))
	}
	apply(t, p, changes...)
	const clients = 60
	visits := 0
	visit := func() (at []netip.AddrPort) {
		visits++
		for i := range clients {
			in, err := parsePacket(fmt.Sprintf("udp 10.1.0.%d:%d > %s", 60+i, 4000+visits, to))
			if err != nil {
				t.Fatal(err)
			}
			testRun(t, p, "ingress", "outside", in.ip(), 1)
		}
		flows, err := p.Flows(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		at = make([]netip.AddrPort, clients)
		for _, f := range flows {
			if int(f.Client.Port()) == 4000+visits {
				at[f.Client.Addr().As4()[3]-60] = f.Real
			}
		}
		return at
	}
	before := visit()
	for _, c := range []RingChange{
		{Real: netip.MustParseAddrPort("10.240.0.20:5301"), Weight: 0},
		{Real: netip.MustParseAddrPort("10.240.0.20:5302"), Weight: 1},
		{Real: netip.MustParseAddrPort("10.240.0.20:5300"), Without: true},
	} {
		t.Run(c.String(), func(t *testing.T) {
			e, err := ExplainTable(p.o.Dir, key, c)
			if err != nil {
				t.Fatal(err)
			}
			sum, after, connections := 0.0, 0.0, 0
			for _, s := range e.Shares {
				sum, after, connections = sum+s.Percent, after+s.After, connections+s.Connections
			}
			if e.Turns == 0 || sum < 99.9 || sum > 100.1 || after < 99.9 || after > 100.1 || e.Clients != clients || connections != visits*clients {
				t.Errorf("%+v: shares of %f and %f percent, %d connections", e, sum, after, connections)
			}
			change := addReal(model.UDP, to, c.Real.String(), c.Weight)
			was := change.Real
			for _, r := range changes[1:] {
				if r.Real.Addr == c.Real {
					was = r.Real
				}
			}
			if c.Without {
				change.Op = model.RealDelete
			}
			apply(t, p, change)
			defer apply(t, p, model.Change{Op: model.RealAdd, Service: change.Service, Real: was})
			moved := 0
			for i, at := range visit() {
				if at != before[i] {
					moved++
				}
			}
			if moved != e.Elsewhere || moved == 0 {
				t.Errorf("%d clients went elsewhere, explained were %d", moved, e.Elsewhere)
			}
		})
	}
	if _, err := ExplainTable(p.o.Dir, key, RingChange{Real: netip.MustParseAddrPort("10.9.9.9:1")}); err == nil || !strings.Contains(err.Error(), "no real server 10.9.9.9:1") {
		t.Errorf("a stranger: %v", err)
	}
}

func TestExplanationText(t *testing.T) {
	e := Explanation{Service: "tcp 10.1.0.100:80", Scheduler: "mh", How: "by the client", Turns: 251, Change: "without 10.240.0.20:80", Moved: 50.2, Clients: 10, Elsewhere: 5, Ended: 4,
		Shares: []Share{{netip.MustParseAddrPort("10.240.0.20:80"), 1, 49.8, 0, 4}, {netip.MustParseAddrPort("10.240.0.21:80"), 1, 50.2, 100, 6}}}
	want := `tcp 10.1.0.100:80 mh, 251 turns: by the client
  10.240.0.20:80           weight 1      49.80 % ->   0.00 %  4 connections
  10.240.0.21:80           weight 1      50.20 % -> 100.00 %  6 connections
without 10.240.0.20:80:
  50.20 % of the ring lead elsewhere
  4 open connections end; with weight 0 they would go on
  of 10 clients with open connections 5 go elsewhere with their next one
`
	if d := cmp.Diff(want, e.String()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
