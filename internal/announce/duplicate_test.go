package announce

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

// stranger is a machine at the far end of a cable. It says what it is told to.
type stranger struct {
	*testing.T
	wire wire
	at   place
}

func (s *stranger) says(frame []byte) {
	s.Helper()
	must(s.T, s.wire.transmit(s.at, binary.BigEndian.Uint16(frame[12:]), frame))
}

// Another machine that has the address is told of whether it was there before
// the address came or turns up later, and announced against.
func TestDuplicates(t *testing.T) {
	for name, addr := range map[string]string{"ARP": "10.1.2.100", "neighbor discovery": "2001:db8::100"} {
		t.Run(name, func(t *testing.T) {
			cable(t, "eth0", "far0")
			must(t, os.WriteFile("/proc/sys/net/ipv6/conf/eth0/accept_dad", []byte("0"), 0))
			far, err := net.InterfaceByName("far0")
			must(t, err)
			s := &stranger{T: t, at: place{index: far.Index, name: "far0"}}
			defer func() { must(t, s.wire.close()) }()
			a, mac := netip.MustParseAddr(addr), net.HardwareAddr{2, 9, 9, 9, 9, 9}
			words := arp(2, mac, a)
			kind, bits := unix.ETH_P_ARP, "/24"
			if a.Is6() {
				words, kind, bits = advertisement(mac, a), unix.ETH_P_IPV6, "/64"
			}

			events := make(chan model.Event, 100)
			n := New(Options{Sink: func(e model.Event) {
				if strings.HasPrefix(e.Kind, "address-duplicate") {
					events <- e
				}
			}})
			defer func() { must(t, n.Close()) }()
			agent := "IPaddr2::"
			if a.Is6() {
				agent = "IPv6addr::"
			}
			r := address(t, n, agent+addr+bits+"/eth0")
			expect(t, r, model.ResourceStopped)

			must(t, r.Start(t.Context()))
			r.network.mu.Lock()
			r.since = time.Now().Add(time.Hour) // the answer comes in time, however slow this machine is
			r.network.mu.Unlock()
			s.says(words)
			hears(t, events, "address "+addr+" is on two machines: 02:09:09:09:09:09 on eth0 had it before this node took it, and has it still; clients")
			if diff := cmp.Diff(1, len(n.Duplicates())); diff != "" {
				t.Errorf("known duplicates (-want +got):\n%s", diff)
			}

			must(t, r.Stop(t.Context()))
			must(t, r.Start(t.Context()))
			r.network.mu.Lock()
			r.since = time.Now().Add(-time.Hour)
			r.network.mu.Unlock()
			heard := listen(t, "far0", kind)
			s.says(words)
			hears(t, events, "02:09:09:09:09:09 on eth0 claims it, too; clients")
			heard(1) // its own word against the other's

			n.Reannounce() // after a split: whoever had it has released it
			for deadline := time.Now().Add(30 * time.Second); len(n.Duplicates()) > 0; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the duplicate is not forgotten")
				}
			}
			must(t, r.Stop(t.Context()))
			s.says(words)
			if d := n.Duplicates(); len(d) > 0 {
				t.Errorf("an address that is not here has duplicates: %v", d)
			}
		})
	}
}

func hears(t *testing.T, events <-chan model.Event, want string) {
	t.Helper()
	select {
	case e := <-events:
		if !strings.Contains(e.Text, want) || e.Level != model.LevelError {
			t.Errorf("got  %v\nwant %s", e, want)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("nobody said %q", want)
	}
}

// A machine with many addresses, and one with more than a filter can name,
// hears of each.
func TestFilters(t *testing.T) {
	needRoot(t)
	for _, count := range []int{0, 1, most, 3 * most} {
		for _, six := range []bool{false, true} {
			known := map[netip.Addr]bool{}
			for i := range count {
				a := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
				if six {
					a = netip.AddrFrom16([16]byte{0x20, 1, 14: byte(i >> 8), 15: byte(i)})
				}
				known[a] = true
			}
			f, err := openEar(six, known)
			must(t, err)
			must(t, f.Close())
		}
	}
}

func FuzzClaim(f *testing.F) {
	mac := net.HardwareAddr{2, 1, 1, 1, 1, 1}
	f.Add(arp(1, mac, netip.MustParseAddr("10.1.2.3")), false)
	f.Add(advertisement(mac, netip.MustParseAddr("2001:db8::1")), true)
	f.Fuzz(func(t *testing.T, frame []byte, six bool) {
		got, ok := readClaim(frame, six)
		if ok && (len(got.mac) != 6 || got.addr.Is6() != six) {
			t.Errorf("%+v", got)
		}
	})
}
