package ebpf

import (
	"bytes"
	"net"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

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

// Where it is and where not, and why, is told.
func TestXDPSaysWhereItIs(t *testing.T) {
	o := testOptions()
	auto := open(t, o).Info().Detail
	o = testOptions()
	o.XDP = XDPOn
	on := open(t, o).Info().Detail
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
