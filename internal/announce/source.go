package announce

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Source is an address that this machine sends from (IPsrcaddr): the default
// route prefers it as its source, and so does the route to the network it is
// in. It has the methods of an agent. The address itself is another resource,
// and stands before this one.
type Source struct {
	addr netip.Addr
	text string
	here *picture
}

// Source parses an IPsrcaddr resource. Nothing is touched yet.
func (n *Network) Source(res model.Resource) (*Source, error) {
	text := strings.Join(res.Args, "::")
	text, _, _ = strings.Cut(text, "/")
	a, err := netip.ParseAddr(text)
	if err != nil || !a.Is4() || a.IsLoopback() {
		return nil, fmt.Errorf("resource %s: %q is no IPv4 address to send from; write IPsrcaddr::10.1.0.100 behind the resource that holds it", res.Text, text)
	}
	return &Source{a, res.Text, &n.here}, nil
}

// Start makes the address the source. There must be a default route.
func (s *Source) Start(context.Context) error {
	routes, err := s.routes()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(routes, isDefault) {
		return fmt.Errorf("resource %s: there is no default route in the main table: nothing to prefer a source for; add one (ip route add default via ROUTER)", s.text)
	}
	return s.prefer(routes, s.addr)
}

// Stop makes the interface's own address of the same network the source again.
func (s *Source) Stop(context.Context) error {
	routes, err := s.routes()
	if err != nil {
		return err
	}
	routes = slices.DeleteFunc(routes, func(r netlink.Route) bool { return !r.Src.Equal(s.addr.AsSlice()) })
	if len(routes) == 0 {
		return nil
	}
	first, err := s.here.primary(s.addr, routes[0].LinkIndex)
	if err != nil {
		return fmt.Errorf("resource %s: %w", s.text, err)
	}
	return s.prefer(routes, first)
}

// Status tells whether the default route prefers the address.
func (s *Source) Status(context.Context) (model.ResourceState, error) {
	routes, err := s.routes()
	if err != nil {
		return model.ResourceUnknown, err
	}
	if slices.ContainsFunc(routes, func(r netlink.Route) bool { return isDefault(r) && r.Src.Equal(s.addr.AsSlice()) }) {
		return model.ResourceRunning, nil
	}
	return model.ResourceStopped, nil
}

// routes are those that decide on the source: the default routes, and those to
// the network that the address is in.
func (s *Source) routes() ([]netlink.Route, error) {
	all, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("resource %s: list the routes: %w", s.text, err)
	}
	return slices.DeleteFunc(all, func(r netlink.Route) bool {
		here := r.Dst != nil && r.Gw == nil && r.Scope == netlink.SCOPE_LINK && r.Dst.Contains(s.addr.AsSlice())
		return r.Type != unix.RTN_UNICAST || !isDefault(r) && !here
	}), nil
}

// prefer gives routes a source; the zero address for none.
func (s *Source) prefer(routes []netlink.Route, source netip.Addr) error {
	for _, r := range routes {
		if r.Src = nil; source.IsValid() {
			r.Src = net.IP(source.AsSlice())
		}
		if err := netlink.RouteReplace(&r); err != nil {
			return fmt.Errorf("resource %s: let %v send from %v: %w", s.text, r, source, explain(err))
		}
	}
	return nil
}

func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0 && r.Dst.IP.IsUnspecified()
}
