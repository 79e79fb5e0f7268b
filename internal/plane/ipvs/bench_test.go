package ipvs

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/balance"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane/planetest"
)

// hugeTable is a table of a large site: 2,277 services, 37,205 real servers.
func hugeTable() model.Table {
	const services, reals = 2277, 37205
	var t model.Table
	for i := range services {
		v := model.VirtualService{Key: model.ServiceKey{Proto: model.TCP,
			Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 80)}, Scheduler: "wlc"}
		for j := range reals*(i+1)/services - reals*i/services {
			v.Reals = append(v.Reals, model.RealServer{Forward: model.Masq, Weight: 1,
				Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 240, byte(j), byte(i)}), uint16(8000+i>>8))})
		}
		t.Services = append(t.Services, v)
	}
	t.Sort()
	return t
}

// rulesOf is the table for ipvsadm -R.
func rulesOf(t model.Table) string {
	var b strings.Builder
	for _, v := range t.Services {
		fmt.Fprintf(&b, "-A -t %s -s %s\n", v.Key.Addr, v.Scheduler)
		for _, r := range v.Reals {
			fmt.Fprintf(&b, "-a -t %s -r %s -m -w %d\n", v.Key.Addr, r.Addr, r.Weight)
		}
	}
	return b.String()
}

// TestBenchReconcile measures the plane beside ipvsadm in the same kernel.
// `make bench-ipvs` runs it in one that has both.
func TestBenchReconcile(t *testing.T) {
	requireKernel(t)
	if os.Getenv("BATUTA_BENCH") != "ipvs" {
		t.Skip("a measurement: make bench-ipvs")
	}
	p, err := Open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close() //nolint:errcheck // a measurement
	want := hugeTable()
	reals := 0
	for _, v := range want.Services {
		reals += len(v.Reals)
	}
	rules := t.TempDir() + "/rules"
	if err := os.WriteFile(rules, []byte(rulesOf(want)), 0o600); err != nil {
		t.Fatal(err)
	}
	clock := func(what func() error) time.Duration {
		t.Helper()
		start := time.Now()
		if err := what(); err != nil {
			t.Fatal(err)
		}
		return time.Since(start).Round(10 * time.Microsecond)
	}
	command := func(args string) func() error {
		return func() error {
			out, err := exec.Command("sh", "-c", args).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%s: %w\n%s", args, err, out)
			}
			return nil
		}
	}
	reconcile := func() error {
		have, err := p.Read(t.Context())
		if err != nil {
			return err
		}
		return p.Apply(t.Context(), balance.Diff(have, want))
	}
	t.Logf("%d services, %d real servers", len(want.Services), reals)
	for range 3 {
		if err := command("ipvsadm -C")(); err != nil {
			t.Fatal(err)
		}
		theirs := clock(command("ipvsadm -R <" + rules))
		save := clock(command("ipvsadm -S -n >/dev/null"))
		if err := command("ipvsadm -C")(); err != nil {
			t.Fatal(err)
		}
		empty := clock(reconcile)
		unchanged := clock(reconcile)
		r := &want.Services[1000].Reals[3]
		r.Weight++
		known, err := p.Read(t.Context()) // what the director has in its hands
		if err != nil {
			t.Fatal(err)
		}
		one := clock(func() error { return p.Apply(t.Context(), balance.Diff(known, want)) })
		r.Weight++
		whole := clock(reconcile)
		t.Logf("to an empty table: batuta %v, ipvsadm -R %v; unchanged: batuta reads and compares in %v, ipvsadm -S %v; one change: %v to find and make it, %v with reading the table before",
			empty, theirs, unchanged, save, one, whole)
		if have, err := p.Read(t.Context()); err != nil || len(balance.Diff(have, want)) > 0 {
			t.Fatalf("the table is not as it was wanted: %v", err)
		}
	}
	if err := command("ipvsadm -C")(); err != nil {
		t.Fatal(err)
	}
}

// TestBenchList measures how long the kernel's one list of connections takes, by
// how many there are.
func TestBenchList(t *testing.T) {
	requireKernel(t)
	if os.Getenv("BATUTA_BENCH") != "ipvs" {
		t.Skip("a measurement: make bench-ipvs")
	}
	b := newBench(false)(t, planetest.Options{}).(*bench)
	service := model.VirtualService{Key: model.ServiceKey{Proto: model.UDP, Addr: b.Virtual(0)}, Scheduler: "rr"}
	if err := b.plane.Apply(t.Context(), []model.Change{{Op: model.ServiceAdd, Service: service}, {Op: model.RealAdd, Service: service,
		Real: model.RealServer{Addr: b.Real(model.UDP, 0), Forward: model.Masq, Weight: 1}}}); err != nil {
		t.Fatal(err)
	}
	for host := range 4 {
		b.client.Address(t, "eth0", fmt.Sprintf("10.1.0.%d/24", 200+host))
	}
	to, have := net.UDPAddrFromAddrPort(b.Virtual(0)), 0
	for _, want := range []int{1000, 10_000, 50_000, 100_000, 200_000} {
		b.client.Do(t, func() {
			for ; have < want; have++ {
				from := &net.UDPAddr{IP: net.IPv4(10, 1, 0, byte(200+have/50_000)), Port: 10_000 + have%50_000}
				c, err := net.DialUDP("udp4", from, to)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = c.Write([]byte("a"))
				_ = c.Close()
			}
		})
		begin := time.Now()
		all, err := b.plane.Search(t.Context(), isTemplate)
		if took := time.Since(begin); err != nil || len(all) > 0 {
			t.Errorf("%d templates, %v", len(all), err)
		} else {
			counters, err := b.plane.Counters(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d connections are listed in %v", counters[0].Reals[0].Inactive, took.Round(time.Millisecond))
		}
	}
}
