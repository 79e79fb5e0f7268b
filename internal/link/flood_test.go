package link

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/model"
)

// In a flood the kernel admits the preferred sender, and few others; what is
// longer than any message it never admits. All it drops is counted.
func TestPreferredSenders(t *testing.T) {
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), freePort(t, "127.0.0.1"))
	k, err := Open(model.Medium{Kind: model.Unicast, Interface: "lo", Name: "lo", Peer: at}, Options{Source: netip.MustParseAddr("127.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	socket := func(from string) *net.UDPConn {
		c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(from)}, net.UDPAddrFromAddrPort(at))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	peer, stranger := socket("127.0.0.2"), socket("127.0.0.3")
	say := func(c *net.UDPConn, text string) {
		if _, err := c.Write([]byte("###\n" + text)); err != nil {
			t.Fatal(err)
		}
	}
	// heard are the packets up to one that says end, by sender.
	heard := func() map[string]int {
		say(peer, "end")
		got := map[string]int{}
		for {
			p, err := k.Receive()
			if err != nil {
				t.Fatal(err)
			}
			if string(p.Data) == "###\nend" {
				return got
			}
			got[p.From.Addr().String()]++
		}
	}
	const packets = 1000
	flood := func() map[string]int {
		for i := range packets {
			say(stranger, fmt.Sprint(i))
			if i%100 == 0 {
				say(peer, "beat")
			}
		}
		return heard()
	}
	g := k.(Guarded)
	g.Sift([]Sender{{Addr: netip.MustParseAddr("10.9.8.7")}, {Addr: netip.MustParseAddr("127.0.0.2")}, {Addr: netip.MustParseAddr("fd00::1")}}, true)
	before := g.Dropped()
	got := flood()
	if got["127.0.0.2"] != 10 || got["127.0.0.3"] > packets/4 {
		t.Errorf("heard %v of %d packets of a stranger and 10 of the peer", got, packets)
	}
	if n := g.Dropped() - before; n != uint64(packets-got["127.0.0.3"]) {
		t.Errorf("%d are counted as dropped, heard %v", n, got)
	}
	g.Sift(nil, false)
	say(stranger, strings.Repeat("x", maxMessage)) // four more than fit
	say(stranger, strings.Repeat("x", maxMessage-4))
	if got := heard(); got["127.0.0.3"] != 1 {
		t.Errorf("heard %v of one message that is too long and one that is not", got)
	}
}

// Of a preferred sender whose numbers are known the kernel drops recordings,
// and goes on as more of it is heard.
func TestSiftedNumbers(t *testing.T) {
	requireRoot(t)
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), freePort(t, "127.0.0.1"))
	k, err := Open(model.Medium{Kind: model.Unicast, Interface: "lo", Name: "lo", Peer: at}, Options{Source: netip.MustParseAddr("127.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP("127.0.0.2")}, net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	say := func(number int) {
		if _, err := c.Write(message(t, heartbeat.Netstring, beat("7", fmt.Sprintf("%x", number)))); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) { // the filter gets ready beside
		u := k.(*udp)
		u.mu.Lock()
		ready := u.sieve != nil
		u.mu.Unlock()
		if ready {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the filter does not get ready")
		}
	}
	g := k.(Guarded)
	peer := Sender{Addr: netip.MustParseAddr("127.0.0.2"), Generation: 7, Number: 500}
	g.Sift([]Sender{peer}, false)
	for range 1000 {
		say(500)
	}
	say(501)
	peer.Number = 501
	g.Expect(peer)
	for range 1000 {
		say(501)
	}
	say(502)
	heard := map[int]int{}
	for heard[502] == 0 {
		p, err := k.Receive()
		if err != nil {
			t.Fatal(err)
		}
		packet, err := heartbeat.Parse(p.Data)
		if err != nil {
			t.Fatal(err)
		}
		n, _ := strconv.ParseInt(packet.Get("seq"), 16, 0)
		heard[int(n)]++
	}
	if heard[500] > 100 || heard[501] < 1 || heard[501] > 100 {
		t.Errorf("heard, by number: %v", heard)
	}
}
