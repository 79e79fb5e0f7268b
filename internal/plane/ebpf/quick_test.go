package ebpf

import (
	"bytes"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

// Verdicts of XDP programs (linux/bpf.h).
const (
	xdpDrop     = 1
	xdpPass     = 2
	xdpRedirect = 4
)

// quickRuns is how many packets the program at XDP has redirected in test-runs.
var quickRuns int

// xdpContext is struct xdp_md of linux/bpf.h.
type xdpContext struct{ Data, DataEnd, DataMeta, IngressIfindex, RxQueueIndex, EgressIfindex uint32 }

// runQuick gives a frame to the program at XDP. What it passes on must be as it came.
func runQuick(t testing.TB, p *Plane, l *netlink.LinkAttrs, frame []byte) (verdict uint32, out []byte) {
	t.Helper()
	o := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256),
		Context: xdpContext{DataEnd: uint32(len(frame)), IngressIfindex: uint32(l.Index)}}
	verdict, err := p.hooks.quick.prog.Run(o)
	if err != nil {
		t.Fatalf("test-run of %d bytes at XDP: %v", len(frame), err)
	}
	switch verdict {
	case xdpRedirect:
		quickRuns++
		for _, mac := range [][]byte{o.DataOut[:6], o.DataOut[6:12]} {
			if [6]byte(mac) == ([6]byte{}) {
				t.Fatalf("redirected with hardware addresses % x", o.DataOut[:12])
			}
		}
		want := []byte{0x08, 0}
		if o.DataOut[14]>>4 == 6 {
			want = []byte{0x86, 0xdd}
		}
		if got := o.DataOut[12:14]; !bytes.Equal(want, got) {
			t.Fatalf("type of the frame (-want +got):\n%s", cmp.Diff(want, got))
		}
	case xdpPass:
		if !bytes.Equal(frame, o.DataOut) { // a difference is slow to tell, and this is done millions of times
			t.Fatalf("passed on, but changed (-came +went):\n%s", cmp.Diff(frame, o.DataOut))
		}
	case xdpDrop:
	default:
		t.Fatalf("verdict %d at XDP", verdict)
	}
	return verdict, o.DataOut
}

// known makes the director's neighbors known to it, and the other ends of its
// links take packets from XDP, until the test ends: else XDP leaves all to tc.
func known(t *testing.T) {
	t.Helper()
	neighbors(t)
	for _, h := range []*host{client, rack0, rack1} {
		h.offload(t, "eth0", receiveMerge, true)
	}
	router.offload(t, "up", receiveMerge, true)
}

// neighbors makes the director's neighbors known to it until the test ends.
func neighbors(t *testing.T) {
	t.Helper()
	for dev, to := range map[string]struct {
		h     *host
		name  string
		addrs []string
	}{
		"outside": {client, "eth0", []string{"10.1.0.50"}},
		"inside0": {rack0, "eth0", []string{"10.240.0.20", "10.240.0.21"}},
		"inside1": {rack1, "eth0", []string{"10.241.0.20", "10.241.0.21"}},
		"inside2": {router, "up", []string{"10.242.0.2"}},
	} {
		peer, err := to.h.LinkByName(to.name)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range to.addrs {
			for _, ip := range []string{a, six(a)} {
				n := &netlink.Neigh{LinkIndex: linkOf(t, dev).Index, IP: net.ParseIP(ip), State: netlink.NUD_PERMANENT, HardwareAddr: peer.Attrs().HardwareAddr}
				if err := director.NeighSet(n); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = director.NeighDel(n) })
			}
		}
	}
}

// openXDP opens a plane that carries packets at XDP, too. An earlier one's
// program leaves its interfaces a moment after the plane.
func openXDP(t testing.TB, o Options) *Plane {
	t.Helper()
	eventually(t, func() string {
		all, err := director.LinkList()
		if err != nil {
			return err.Error()
		}
		for _, l := range all {
			if a := l.Attrs(); a.Xdp != nil && a.Xdp.Attached {
				return a.Name + " still has another program at XDP"
			}
		}
		return ""
	})
	o.XDP = XDPOn
	p := open(t, o)
	if why := contains(p.Info().Detail, "; XDP on inside0, inside1, inside2, outside"); why != "" {
		t.Fatal(why)
	}
	return p
}

// The same stories with the same ends where packets come to XDP first.
func TestGoldenPacketsXDP(t *testing.T) {
	requireRoot(t)
	known(t)
	o, before := testOptions(), quickRuns
	o.XDP = XDPOn
	golden(t, o, false)
	if quickRuns == before {
		t.Error("no packet was carried at XDP")
	}
	t.Logf("%d packets were carried at XDP", quickRuns-before)
}

// Real sockets over native XDP, both ways: what arrives whole was carried there,
// as a program that counts before the plane's at tc says, which sees few of the
// packets. (One of each next hop and second goes by tc, to ask the kernel.) The
// ends make their checksums themselves, and look at those that come: what a
// sender leaves to a device is tc's.
func TestXDPCarriesStreamsAndDatagrams(t *testing.T) {
	requireRoot(t)
	withoutOffload(t)
	known(t)
	p := openXDP(t, testOptions())
	atTC := countAtTC(t, p)
	for _, family := range []func(string) string{func(a string) string { return a }, six} {
		tcp, udp := netip.MustParseAddrPort(family("10.1.0.100:80")), netip.MustParseAddrPort(family("10.1.0.100:53"))
		tcpReal, udpReal := family("10.240.0.20:8000"), family("10.241.0.20:5300")
		apply(t, p, addService(model.TCP, tcp, "rr"), addReal(model.TCP, tcp, tcpReal, 1),
			addService(model.UDP, udp, "rr"), addReal(model.UDP, udp, udpReal, 1))
		t.Run("TCP "+tcp.String(), func(t *testing.T) {
			echoStream(t, rack0, tcpReal, tcp, 4<<20)
		})
		t.Run("UDP "+udp.String(), func(t *testing.T) {
			u := udpBetween(t, p, 0, udp, udpReal, rack1)
			for _, size := range []int{0, 1, 2, 3, 100, 1400, 1452} { // the last is all that a frame of IPv6 holds
				u.exchange(size)
			}
		})
	}
	counters, err := p.Counters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := uint64(0)
	for _, c := range counters {
		all += c.Counters.PacketsIn + c.Counters.PacketsOut
	}
	if seen := atTC(); all < 4000 || seen > all/4 {
		t.Errorf("%d of %d packets went by tc", seen, all)
	} else {
		t.Logf("%d of %d packets went by tc", seen, all)
	}
}

// countAtTC counts TCP and UDP before the plane's programs at tc's ingress.
func countAtTC(t *testing.T, p *Plane) func() uint64 {
	t.Helper()
	if !p.hooks.tcx {
		t.Skip("without tcx (before Linux 6.6) no program is put before another at tc")
	}
	seen, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = seen.Close() })
	prog := program(t, ebpf.SchedCLS, asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadAbs(12, asm.Half), // type of the frame
		asm.JEq.Imm(asm.R0, unix.ETH_P_IP, "v4"),
		asm.JNE.Imm(asm.R0, unix.ETH_P_IPV6, "next"),
		asm.LoadAbs(14+6, asm.Byte), // next header
		asm.Ja.Label("protocol"),
		asm.LoadAbs(14+9, asm.Byte).WithSymbol("v4"),
		asm.JEq.Imm(asm.R0, unix.IPPROTO_TCP, "count").WithSymbol("protocol"),
		asm.JNE.Imm(asm.R0, unix.IPPROTO_UDP, "next"),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word).WithSymbol("count"),
		asm.LoadMapPtr(asm.R1, seen.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4), asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "next"),
		asm.Mov.Imm(asm.R1, 1), asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("next"), // TCX_NEXT
		asm.Return(),
	})
	for _, dev := range []string{"outside", "inside0", "inside1"} {
		director.do(func() {
			l, err := link.AttachTCX(link.TCXOptions{Interface: linkOf(t, dev).Index, Program: prog, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
			if err != nil {
				t.Errorf("count at tc of %s: %v", dev, err)
				return
			}
			t.Cleanup(func() { _ = l.Close() })
		})
	}
	return func() (n uint64) {
		if err := seen.Lookup(uint32(0), &n); err != nil {
			t.Error(err)
		}
		return n
	}
}

// Where it is and where not, and why, is told.
func TestXDPSaysWhereItIs(t *testing.T) {
	o := testOptions()
	auto := open(t, o).Info().Detail
	on := openXDP(t, testOptions()).Info().Detail
	o = testOptions()
	o.XDP = XDPOff
	off := open(t, o).Info().Detail
	for want, got := range map[string]string{
		"; no XDP on inside0, inside1, inside2, outside: virtual (veth)": auto,
		"; XDP on inside0, inside1, inside2, outside":                    on,
		"; no XDP: switched off":                                         off,
	} {
		if !strings.Contains(got+"; ", want+"; ") {
			t.Errorf("%q lacks %q", got, want)
		}
	}
}

// Who asked for XDP is told of the interface that cannot have it, and why, once.
func TestXDPThatWasAskedForIsMissed(t *testing.T) {
	var said []string
	q := newQuick(Options{Dir: t.TempDir(), XDP: XDPOn, Sink: func(e model.Event) { said = append(said, e.Kind+": "+e.Text) }}, nil)
	trunk := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "trunk", Index: 7}}
	tagged := &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "tagged", Index: 8, ParentIndex: 7}}
	for range 2 { // another look finds the same, and says nothing
		if err := q.scan([]netlink.Link{trunk}, []netlink.Link{trunk, tagged}); err != nil {
			t.Fatal(err)
		}
	}
	const why = "carries VLANs, whose tags a card may take off"
	if got, want := q.String(), "no XDP on trunk: "+why; got != want {
		t.Errorf("it is %q, want %q", got, want)
	}
	want := []string{"no-xdp: XDP was asked for, but trunk has none: " + why + "; its packets go by tc, which does the same more slowly"}
	if d := cmp.Diff(want, said); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
}

func TestUnfit(t *testing.T) {
	card := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "card", Index: 7}}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "pair", Index: 9}}
	can := map[uint32]uint64{7: xdpRedirects}
	for _, c := range []struct {
		name     string
		l        netlink.Link
		mode     XDPMode
		features map[uint32]uint64
		want     string
	}{
		{"a card that redirects", card, XDPAuto, can, ""},
		{"a card that does not", card, XDPAuto, map[uint32]uint64{7: 1}, "its driver does not do it"},
		{"a kernel that does not tell", card, XDPAuto, nil, "the kernel does not tell what drivers can do (6.3 and later do)"},
		{"the same, asked for", card, XDPOn, nil, ""},
		{"a virtual one", pair, XDPAuto, can, "virtual (veth)"},
		{"a virtual one, asked for", pair, XDPOn, can, ""},
	} {
		if got := unfit(c.l, []netlink.Link{card, pair}, c.mode, c.features); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
