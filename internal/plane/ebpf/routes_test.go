package ebpf

import (
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// within waits until something is so.
func within(t *testing.T, what string, is func() bool) {
	t.Helper()
	eventually(t, func() string {
		if is() {
			return ""
		}
		return what + ": not yet"
	})
}

// told makes a plane with these rows and a story to send packets to it.
func told(t *testing.T, rows ...string) *story {
	t.Helper()
	s := &story{t: t, plane: open(t, testOptions()), before: map[Reason]uint64{}}
	for _, row := range rows {
		if out := s.run(row); out != "" {
			t.Fatal(out)
		}
	}
	return s
}

// While somebody listens to what changes routes they are remembered; when nobody
// does any more, packets have them asked for again, and rules are not relied on.
func TestRoutesWhereNobodyListens(t *testing.T) {
	requireRoot(t)
	neighbors(t)
	s := told(t, "service tcp 10.1.0.100:80 rr", "real 10.240.0.20:8000 masq 1")
	c := s.plane.t.control
	for _, p := range []string{"tcp 10.1.0.50:40000 > 10.1.0.100:80 S", "tcp 10.240.0.20:8000 > 10.1.0.50:40000 SA", "tcp 10.1.0.50:40000 > 10.1.0.100:80 A"} {
		s.send("ingress", "outside", p)
	}
	within(t, "the daemon listens", func() bool { return atomic.LoadUint32(&c.PlainRoutes) == 1 })
	if left := int32(atomic.LoadUint32(&c.RoutesUntil) - ticksNow()); left <= 0 {
		t.Errorf("routes are remembered for %d ticks more though somebody listens", left)
	}
	// The loop says each second that it listens; so this may take more than once.
	within(t, "a packet has routes asked for again", func() bool {
		before := atomic.LoadUint32(&c.RouteEpoch)
		atomic.StoreUint32(&c.RoutesUntil, ticksNow())
		time.Sleep(20 * time.Millisecond) // the programs' clock goes by jiffies
		if got := s.send("ingress", "outside", "tcp 10.1.0.50:40000 > 10.1.0.100:80 A"); !strings.HasPrefix(got, "redirect ") {
			t.Fatal(got)
		}
		return atomic.LoadUint32(&c.RouteEpoch) != before && atomic.LoadUint32(&c.PlainRoutes) == 0
	})
	if left := atomic.LoadUint32(&c.RoutesUntil) - ticksNow(); left > 1<<15 {
		t.Errorf("the next time is in %d ticks, want at most %d", left, 1<<15)
	}
}

// A policy rule for some clients holds for their new connections, though others'
// with the same real server go another way.
func TestPolicyRules(t *testing.T) {
	requireRoot(t)
	neighbors(t)
	s := told(t, "service tcp 10.1.0.100:80 rr", "real 10.240.0.20:8000 masq 1")
	plain := func(want uint32) func() bool {
		return func() bool { return atomic.LoadUint32(&s.plane.t.control.PlainRoutes) == want }
	}
	opens := func(from, want string) {
		t.Helper()
		if got := s.send("ingress", "outside", "tcp "+from+" > 10.1.0.100:80 S"); !strings.HasPrefix(got, want) {
			t.Errorf("from %s: %s, want %q", from, got, want)
		}
	}
	within(t, "no rules", plain(1))
	opens("10.1.0.50:40000", "redirect tcp ")
	opens("10.1.0.50:40001", "redirect tcp ")

	const table = 100
	nowhere := &netlink.Route{Table: table, Type: unix.RTN_BLACKHOLE, Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}}
	if err := director.RouteAdd(nowhere); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = director.RouteDel(nowhere) })
	rule := netlink.NewRule()
	rule.Family, rule.Table, rule.Priority = unix.AF_INET, table, 1000
	rule.Src = &net.IPNet{IP: net.IPv4(10, 1, 0, 51), Mask: net.CIDRMask(32, 32)}
	if err := director.RuleAdd(rule); err != nil {
		t.Fatal(err)
	}
	gone := false
	t.Cleanup(func() {
		if !gone {
			_ = director.RuleDel(rule)
		}
	})
	within(t, "a rule", plain(0))
	opens("10.1.0.50:40002", "redirect tcp ")
	opens("10.1.0.51:40000", "pass (no-route) tcp ")
	opens("10.1.0.50:40003", "redirect tcp ")

	if err := director.RuleDel(rule); err != nil {
		t.Fatal(err)
	}
	gone = true
	within(t, "no rules again", plain(1))
	opens("10.1.0.51:40001", "redirect tcp ")
}

const narrowWay = "icmp 10.242.0.2 > 10.242.0.1 type=3 code=4 mtu=%d about tunnel 10.242.0.1 > 10.243.0.20 df about tcp 10.1.0.50:41000 > 10.1.0.102:80 A len=1440 df"

// Who forges errors, each about a narrower path, does not have routes asked for
// again as often as he likes.
func TestForgedNarrowPaths(t *testing.T) {
	requireRoot(t)
	s := told(t, "service tcp 10.1.0.102:80 rr", "real 10.243.0.20:80 ipip 1")
	s.send("ingress", "outside", "tcp 10.1.0.50:41000 > 10.1.0.102:80 S")
	const errs = 500
	c := s.plane.t.control
	before, began := atomic.LoadUint32(&c.RouteEpoch), ticksNow()
	for n := range errs {
		p := strings.Replace(narrowWay, "%d", strconv.Itoa(1399-n), 1)
		in, err := parsePacket(p)
		if err != nil {
			t.Fatal(err)
		}
		ip := in.ip()
		frame := append(ethernet(make([]byte, 6), ip), ip...)
		if _, err := s.plane.in.Run(&ebpf.RunOptions{Data: frame}); err != nil {
			t.Fatal(err)
		}
	}
	took, times := ticksNow()-began, atomic.LoadUint32(&c.RouteEpoch)-before
	if most := took/8 + 2; times == 0 || times > most {
		t.Errorf("%d errors in %d ticks had routes asked for again %d times, want 1 to %d", errs, took, times, most)
	}
}

// What an error has said of a path is believed for ten minutes, and no longer:
// neither before a sweep comes by, nor when ticks have come around.
func TestNarrowPathExpires(t *testing.T) {
	requireRoot(t)
	s := told(t, "service tcp 10.1.0.102:80 rr", "real 10.243.0.20:80 ipip 1")
	far := wireAddr(netip.MustParseAddr("10.243.0.20"))
	const large = "tcp 10.1.0.50:41000 > 10.1.0.102:80 A len=1400 df"
	s.send("ingress", "outside", "tcp 10.1.0.50:41000 > 10.1.0.102:80 S")
	for _, c := range []struct {
		name    string
		expires uint32
		want    string
	}{
		{"for a minute more", toTicks(time.Minute), "redirect (oversize) icmp "},
		{"just expired", 1<<32 - 1, "redirect tunnel "},
		{"expired two minutes ago", -toTicks(2 * time.Minute), "redirect tunnel "},
		{"expired 26 days ago", -toTicks(26 * 24 * time.Hour), "redirect tunnel "},
	} {
		if err := s.plane.t.Paths.Put(far, tcPath{Mtu: 1300, Expires: ticksNow() + c.expires}); err != nil {
			t.Fatal(err)
		}
		s.plane.t.changed()
		if got := s.send("ingress", "outside", large); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %s, want %q", c.name, got, c.want)
		}
	}
	before := atomic.LoadUint32(&s.plane.t.control.RouteEpoch)
	for range 16 { // one of them looks at paths
		s.plane.sweepOnce()
	}
	var left tcPath
	if err := s.plane.t.Paths.Lookup(far, &left); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Errorf("after sixteen sweeps: %+v, %v; want it gone", left, err)
	}
	if atomic.LoadUint32(&s.plane.t.control.RouteEpoch) == before {
		t.Error("connections were not told that the path is as wide as before")
	}
}
