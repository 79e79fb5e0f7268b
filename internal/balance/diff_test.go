package balance

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/batuta-ha/batuta/internal/model"
)

var sameTable = cmp.Options{cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})}

// table reads the text form of tables, as far as these tests use it.
func table(t testing.TB, text string) model.Table {
	t.Helper()
	var out model.Table
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0:
		case f[0] == "tcp" || f[0] == "udp" || f[0] == "fwm":
			k, err := model.ParseServiceKey(f[0] + " " + f[1])
			if err != nil {
				t.Fatal(err)
			}
			out.Services = append(out.Services, model.VirtualService{Key: k, Scheduler: f[2]})
		default:
			r := model.RealServer{Addr: netip.MustParseAddrPort(f[0])}
			r.Forward, _ = model.ParseForward(f[1])
			if _, err := fmt.Sscanf(strings.Join(f[2:], " "), "weight %d upper %d lower %d", &r.Weight, &r.Upper, &r.Lower); err != nil && len(f) > 4 {
				t.Fatal(err)
			}
			s := &out.Services[len(out.Services)-1]
			s.Reals = append(s.Reals, r)
		}
	}
	return out
}

func printChanges(changes []model.Change) string {
	var b strings.Builder
	for _, c := range changes {
		b.WriteString(c.String() + "\n")
	}
	return b.String()
}

func TestDiff(t *testing.T) {
	for _, tc := range []struct{ name, have, want, changes string }{
		{"nothing to nothing", "", "", ""},
		{"a new service comes before its rows", "", `
			tcp 10.1.0.100:80 rr
			  10.240.0.20:80 masq weight 1
			  10.240.0.30:80 masq weight 2`, `
			service-add tcp 10.1.0.100:80 rr
			real-add tcp 10.1.0.100:80 10.240.0.20:80 masq weight 1
			real-add tcp 10.1.0.100:80 10.240.0.30:80 masq weight 2`},
		{"a service that goes takes its rows with it", `
			tcp 10.1.0.100:80 rr
			  10.240.0.20:80 masq weight 1`, "", `
			service-del tcp 10.1.0.100:80`},
		{"the fallback comes before the last real server goes", `
			tcp 10.1.0.100:80 rr
			  10.240.0.20:80 masq weight 1`, `
			tcp 10.1.0.100:80 rr
			  127.0.0.1:80 gate weight 1`, `
			real-add tcp 10.1.0.100:80 127.0.0.1:80 gate weight 1
			real-del tcp 10.1.0.100:80 10.240.0.20:80`},
		{"a quiesced row gets its weight before another loses it", `
			tcp 10.1.0.100:80 rr
			  10.240.0.20:80 masq weight 1
			  10.240.0.30:80 masq weight 0`, `
			tcp 10.1.0.100:80 rr
			  10.240.0.20:80 masq weight 0
			  10.240.0.30:80 masq weight 1`, `
			real-edit tcp 10.1.0.100:80 10.240.0.30:80 masq weight 1
			real-edit tcp 10.1.0.100:80 10.240.0.20:80 masq weight 0`},
		{"parameters change without the rows", `
			tcp 10.1.0.100:80 rr
			  10.240.0.20:80 masq weight 1`, `
			tcp 10.1.0.100:80 wlc
			  10.240.0.20:80 masq weight 1`, `
			service-edit tcp 10.1.0.100:80 wlc`},
		{"an old service goes after the new one came", `
			tcp 10.1.0.100:80 rr`, `
			fwm 5 rr`, `
			service-add fwm 5 rr
			service-del tcp 10.1.0.100:80`},
		{"thresholds are part of a row", `
			tcp 10.1.0.100:80 rr
			  10.240.0.20:80 masq weight 1 upper 100 lower 50`, `
			tcp 10.1.0.100:80 rr
			  10.240.0.20:80 masq weight 1`, `
			real-edit tcp 10.1.0.100:80 10.240.0.20:80 masq weight 1`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := printChanges(Diff(table(t, tc.have), table(t, tc.want)))
			want := strings.TrimPrefix(strings.ReplaceAll(tc.changes, "\t", ""), "\n")
			if want != "" {
				want += "\n"
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

// drawTable makes tables small enough that two of them have much in common.
func drawTable(t *rapid.T, label string) model.Table {
	var out model.Table
	for port := range 3 {
		if !rapid.Bool().Draw(t, label+" service") {
			continue
		}
		v := model.VirtualService{
			Key:       model.ServiceKey{Proto: model.TCP, Addr: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(80+port))},
			Scheduler: rapid.SampledFrom([]string{"rr", "wrr"}).Draw(t, label+" scheduler"),
		}
		for host := range 4 {
			weight := rapid.IntRange(-1, 2).Draw(t, label+" weight")
			if weight < 0 {
				continue
			}
			v.Reals = append(v.Reals, model.RealServer{
				Addr:    netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 1, byte(host)}), 80),
				Forward: rapid.SampledFrom([]model.Forward{model.Masq, model.Gate}).Draw(t, label+" forward"),
				Weight:  weight,
			})
		}
		out.Services = append(out.Services, v)
	}
	return out
}

// slowDiff is the obvious answer: which rows differ, in no order.
func slowDiff(have, want model.Table) []string {
	var out []string
	for _, w := range want.Services {
		h := have.Find(w.Key)
		switch {
		case h == nil:
			out = append(out, model.Change{Op: model.ServiceAdd, Service: w}.String())
			h = &model.VirtualService{}
		case !h.SameParameters(w):
			out = append(out, model.Change{Op: model.ServiceEdit, Service: w}.String())
		}
		for _, r := range w.Reals {
			switch old := h.Find(r.Addr); {
			case old == nil:
				out = append(out, model.Change{Op: model.RealAdd, Service: w, Real: r}.String())
			case *old != r:
				out = append(out, model.Change{Op: model.RealEdit, Service: w, Real: r}.String())
			}
		}
		for _, r := range h.Reals {
			if w.Find(r.Addr) == nil {
				out = append(out, model.Change{Op: model.RealDelete, Service: w, Real: r}.String())
			}
		}
	}
	for _, h := range have.Services {
		if want.Find(h.Key) == nil {
			out = append(out, model.Change{Op: model.ServiceDelete, Service: h}.String())
		}
	}
	slices.Sort(out)
	return out
}

func TestDiffLeadsFromOneTableToTheOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		have, want := drawTable(t, "have"), drawTable(t, "want")
		changes := Diff(have, want)

		got := have.Clone()
		for _, c := range changes {
			if err := got.Perform(c); err != nil {
				t.Fatalf("%s: %v", c, err)
			}
			for _, v := range want.Services {
				before, now := have.Find(v.Key), got.Find(v.Key)
				if before != nil && serves(before.Reals) && serves(v.Reals) && !serves(now.Reals) {
					t.Fatalf("after %s the service has no real server:\n%s", c, got)
				}
			}
		}
		if d := cmp.Diff(want, got, sameTable); d != "" {
			t.Fatalf("applying the changes does not give the wanted table (-want +got)\n%s", d)
		}
		if again := Diff(got, want); len(again) != 0 {
			t.Fatalf("equal tables differ: %v", again)
		}
		var words []string
		for _, c := range changes {
			words = append(words, c.String())
		}
		slices.Sort(words)
		if d := cmp.Diff(slowDiff(have, want), words, cmpopts.EquateEmpty()); d != "" {
			t.Fatalf("not the obvious changes (-obvious +got)\n%s", d)
		}
	})
}

func TestDiffTakesTablesInAnyOrder(t *testing.T) {
	have := table(t, `
		tcp 10.0.0.2:80 rr
		tcp 10.0.0.1:80 rr
		  10.0.1.2:80 masq weight 1
		  10.0.1.1:80 masq weight 1`)
	want := have.Clone()
	want.Sort()
	if got := Diff(have, want); len(got) != 0 {
		t.Errorf("Diff = %v, want nothing", got)
	}
}

// TestRebase tells when somebody else's hand in the table is respected.
func TestRebase(t *testing.T) {
	const service = "tcp 10.0.0.1:80 rr\n"
	const up1, up2 = "10.0.1.1:80 masq weight 4\n", "10.0.1.2:80 masq weight 4\n"
	const quiet1 = "10.0.1.1:80 masq weight 0\n"
	for _, tc := range []struct {
		name                   string
		last, want, have, next string
		readd                  bool
	}{
		{name: "nothing new is wanted, so another's weight stays",
			last: service + up1, want: service + up1, have: service + "10.0.1.1:80 masq weight 2\n",
			next: service + "10.0.1.1:80 masq weight 2\n"},
		{name: "a row that another deleted stays away while its server stays down",
			last: service + quiet1 + up2, want: service + quiet1, have: service + up2,
			next: service},
		{name: "and comes back with the server",
			last: service + quiet1, want: service + up1, have: service,
			next: service + up1},
		{name: "a deleted row is not put back to be quiesced",
			last: service + up1, want: service + quiet1, have: service,
			next: service},
		{name: "except with readdquiescent", readd: true,
			last: service + up1, want: service + quiet1, have: service,
			next: service + quiet1},
		{name: "a deleted service comes back whole with the next change",
			last: service + up1 + up2, want: service + up2, have: "",
			next: service + up2},
		{name: "a foreign service stays",
			last: service + up1, want: service, have: service + up1 + "tcp 10.0.0.7:80 rr\n" + up2,
			next: service + "tcp 10.0.0.7:80 rr\n" + up2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k, _ := model.ParseServiceKey("tcp 10.0.0.1:80")
			got := Rebase(table(t, tc.last), table(t, tc.want), table(t, tc.have), map[model.ServiceKey]bool{k: tc.readd})
			if d := cmp.Diff(table(t, tc.next), got, sameTable); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

func serves(rows []model.RealServer) bool {
	return slices.ContainsFunc(rows, func(r model.RealServer) bool { return r.Weight > 0 })
}
