package link

import (
	"net/netip"
	"testing"

	"github.com/batuta-ha/batuta/internal/model"
)

// A host sends back what it is sent; a group answers as long as one of its
// hosts does.
func TestPing(t *testing.T) {
	namespace(t)
	addresses6(t)
	host := netip.MustParseAddr
	nobody := host("10.9.0.99")
	for _, m := range []model.Medium{
		{Kind: model.Ping, Name: "four", Hosts: []netip.Addr{host("10.9.0.2")}},
		{Kind: model.Ping, Name: "six", Hosts: []netip.Addr{host("fd00::2")}},
		{Kind: model.PingGroup, Name: "group", Hosts: []netip.Addr{nobody, host("10.9.0.2"), host("fd00::1")}},
	} {
		l := mustOpen(t, m, Options{})
		p := exchange(t, l, l, "a signed message")
		if p.From.Addr() == nobody || !p.From.IsValid() {
			t.Errorf("%s: from %v", m.Name, p.From)
		}
	}
}

// A host that is not there is no reason to stop asking.
func TestPingNobody(t *testing.T) {
	namespace(t)
	l := mustOpen(t, model.Medium{Kind: model.Ping, Name: "nobody", Hosts: []netip.Addr{netip.MustParseAddr("10.9.0.99")}}, Options{})
	for range 3 {
		if err := l.Send([]byte("hello?")); err != nil {
			t.Error(err)
		}
	}
	other := mustOpen(t, model.Medium{Kind: model.Ping, Name: "else", Hosts: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}, Options{})
	if err := other.Send([]byte("hello?")); err == nil {
		t.Error("a host without a route was asked")
	}
}
