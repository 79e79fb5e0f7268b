package cli

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/model"
)

// The text forms of ipvsadm(8), version 1.31, byte for byte.

// listing is how a table is listed. The zero value is ipvsadm -L -n.
type listing struct {
	form  form
	exact bool              // counters are never shortened
	names names             // nil: numbers
	only  *model.ServiceKey // list one service, without the version
}

// form is which of ipvsadm's listings it is.
type form uint8

// Listings, by their options.
const (
	formList form = iota
	formStats
	formRate
	formThresholds
	formPersistent
	formTunnels
)

// names finds names for addresses and ports, where numbers are not wanted.
type names interface {
	host(a netip.Addr) string
	port(p model.Protocol, port uint16) string
}

// address writes an address and a port of a transport.
func (l listing) address(p model.Protocol, a netip.AddrPort) string {
	if l.names == nil {
		return a.String()
	}
	host := l.names.host(a.Addr())
	if a.Addr().Is6() {
		host = "[" + host + "]"
	}
	return host + ":" + l.names.port(p, a.Port())
}

// write lists a table.
func (l listing) write(w io.Writer, t api.Table) error {
	services := asListed(t.Services)
	if l.only != nil {
		i := slices.IndexFunc(services, func(v model.VirtualService) bool { return v.Key == *l.only })
		if i < 0 {
			return errNoService
		}
		services = services[i : i+1]
	} else {
		fmt.Fprintf(w, "IP Virtual Server version 1.2.1 (size=%d)\n", t.Plane.Size)
	}
	if l.form == formStats || l.form == formRate {
		l.writeCounters(w, t, services)
		return nil
	}
	fmt.Fprintln(w, map[form]string{
		formList:       "Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn",
		formTunnels:    "Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port           Forward TunnelInfo    Weight ActiveConn InActConn",
		formThresholds: "Prot LocalAddress:Port            Uthreshold Lthreshold ActiveConn InActConn \n  -> RemoteAddress:Port",
		formPersistent: "Prot LocalAddress:Port            Weight    PersistConn ActiveConn InActConn \n  -> RemoteAddress:Port",
	}[l.form])
	counters := indexCounters(t.Counters)
	for _, s := range services {
		fmt.Fprintf(w, "%s %s\n", l.serviceName(s.Key), schedulerText(s))
		for _, r := range s.Reals {
			c := counters.real(s.Key, r)
			fmt.Fprintf(w, "  -> %-28s ", l.address(s.Key.Proto, r.Addr))
			switch l.form {
			case formThresholds:
				fmt.Fprintf(w, "%-10d %-10d %-10d %-10d\n", r.Upper, r.Lower, c.Active, c.Inactive)
			case formPersistent:
				fmt.Fprintf(w, "%-9d %-11d %-10d %-10d\n", r.Weight, c.Persistent, c.Active, c.Inactive)
			case formTunnels:
				fmt.Fprintf(w, "%-7s %-13s %-6d %-10d %-10d\n", forwardWord(r.Forward), tunnelWord(r), r.Weight, c.Active, c.Inactive)
			default:
				fmt.Fprintf(w, "%-7s %-6d %-10d %-10d\n", forwardWord(r.Forward), r.Weight, c.Active, c.Inactive)
			}
		}
	}
	return nil
}

var errNoService = errors.New("No such service") //nolint:staticcheck // ipvsadm's words

func (l listing) writeCounters(w io.Writer, t api.Table, services []model.VirtualService) {
	head, counters := [5]string{"Conns", "InPkts", "OutPkts", "InBytes", "OutBytes"}, t.Counters
	if l.form == formRate {
		head, counters = [5]string{"CPS", "InPPS", "OutPPS", "InBPS", "OutBPS"}, t.Rates
	}
	line := func(name string, cols ...string) {
		fmt.Fprintf(w, "%-33s", name)
		for _, c := range cols {
			fmt.Fprintf(w, " %8s", c)
		}
		fmt.Fprintln(w)
	}
	count := scaled
	if l.exact {
		count = func(n uint64) string { return strconv.FormatUint(n, 10) }
	}
	row := func(name string, c model.Counters) {
		line(name, count(c.Connections), count(c.PacketsIn), count(c.PacketsOut), count(c.BytesIn), count(c.BytesOut))
	}
	line("Prot LocalAddress:Port", head[:]...)
	fmt.Fprintln(w, "  -> RemoteAddress:Port")
	byKey := indexCounters(counters)
	for _, s := range services {
		row(l.serviceName(s.Key), byKey.service(s.Key))
		for _, r := range s.Reals {
			row("  -> "+l.address(s.Key.Proto, r.Addr), byKey.real(s.Key, r).Counters)
		}
	}
}

// scaled prints a count in eight columns, in thousands, millions or billions
// where it is too long (ipvsadm(8), --exact).
func scaled(n uint64) string {
	for _, unit := range []string{"", "K", "M", "G"} {
		if n < 100_000_000 || unit == "G" {
			return fmt.Sprintf("%d%s", n, unit)
		}
		n /= 1000
	}
	return ""
}

// writeFlows is ipvsadm -L -c, in the plane's order; with engines it has
// --persistent-conn.
func (l listing) writeFlows(w io.Writer, flows []model.Flow) {
	engines := l.form == formPersistent
	fmt.Fprintln(w, "IPVS connection entries")
	fmt.Fprint(w, "pro expire state       source             virtual            destination")
	if engines {
		fmt.Fprint(w, "        pe name          pe_data")
	}
	fmt.Fprintln(w)
	for _, f := range flows {
		left := int(f.Expires / time.Second)
		proto := "IP" // a template of persistence for a mark
		if f.Proto != model.ProtocolNone {
			proto = strings.ToUpper(f.Proto.String())
		}
		real := l.address(f.Proto, f.Real)
		if engines && f.Engine != "" {
			real = fmt.Sprintf("%-16s %-18s %s", real, f.Engine, f.EngineData)
		}
		fmt.Fprintf(w, "%-3s %-6s %-11s %-18s %-18s %s\n", proto, fmt.Sprintf("%02d:%02d", left/60, left%60), f.State,
			l.address(f.Proto, f.Client), l.address(f.Proto, f.Virtual), real)
	}
}

// writeSave is ipvsadm -S: the commands that make the table. Like those of
// ipvsadm they leave out thresholds.
func (l listing) writeSave(w io.Writer, t api.Table) {
	for _, s := range asListed(t.Services) {
		key := l.serviceOption(s.Key)
		line := "-A " + key + " -s " + s.Scheduler
		if p := s.Persistence; p.Enabled {
			line += fmt.Sprintf(" -p %d", int(p.Timeout/time.Second))
			if m := p.MaskText(); m != "" {
				line += " -M " + m
			}
			if p.Engine != "" {
				line += " --pe " + p.Engine
			}
		}
		if s.OnePacket {
			line += " -o"
		}
		if s.SchedFlags != "" {
			line += " -b " + s.SchedFlags
		}
		fmt.Fprintln(w, line)
		for _, r := range s.Reals {
			word := map[model.Forward]string{model.Masq: "-m", model.Gate: "-g", model.IPIP: "-i"}[r.Forward]
			line := fmt.Sprintf("-a %s -r %s %s -w %d", key, l.address(s.Key.Proto, r.Addr), word, r.Weight)
			if r.Forward == model.IPIP {
				line += " --tun-type " + r.Tunnel.Kind.String()
				if r.Tunnel.Kind == model.TunnelGUE {
					line += fmt.Sprintf(" --tun-port %d", r.Tunnel.Port)
				}
				if r.Tunnel.Kind != model.TunnelIPIP {
					line += map[model.TunnelChecksum]string{model.TunnelNoChecksum: " --tun-nocsum", model.TunnelSum: " --tun-csum",
						model.TunnelRemoteChecksum: " --tun-remcsum"}[r.Tunnel.Checksum]
				}
			}
			fmt.Fprintln(w, line)
		}
	}
}

// writeTimeouts is ipvsadm -L --timeout.
func writeTimeouts(w io.Writer, t model.Timeouts) {
	fmt.Fprintf(w, "Timeout (tcp tcpfin udp): %d %d %d\n", t.TCP/time.Second, t.TCPFin/time.Second, t.UDP/time.Second)
}

// writeDaemons is ipvsadm -L --daemon.
func writeDaemons(w io.Writer, list []model.SyncDaemon) {
	for _, d := range list {
		fmt.Fprintln(w, d)
	}
}

// asListed puts services and real servers into ipvsadm's order. It takes the
// difference of addresses, and of marks, for a signed number of 32 bits, so
// that 192.168.0.1 comes before 10.0.0.1.
func asListed(services []model.VirtualService) []model.VirtualService {
	out := model.Table{Services: services}.Clone().Services
	slices.SortStableFunc(out, func(a, b model.VirtualService) int {
		return cmp.Or(
			signed(a.Key.Mark, b.Key.Mark), // 0 for address services
			cmp.Compare(a.Key.Family(), b.Key.Family()),
			cmp.Compare(a.Key.Proto, b.Key.Proto),
			compareListed(a.Key.Addr, b.Key.Addr))
	})
	for _, s := range out {
		slices.SortStableFunc(s.Reals, func(a, b model.RealServer) int { return compareListed(a.Addr, b.Addr) })
	}
	return out
}

func compareListed(a, b netip.AddrPort) int {
	x, y := a.Addr().AsSlice(), b.Addr().AsSlice()
	if len(x) != len(y) {
		return cmp.Compare(len(x), len(y))
	}
	for i := 0; i < len(x); i += 4 {
		if c := signed(binary.BigEndian.Uint32(x[i:]), binary.BigEndian.Uint32(y[i:])); c != 0 {
			return c
		}
	}
	return cmp.Compare(a.Port(), b.Port())
}

func signed(a, b uint32) int { return cmp.Compare(int32(a-b), 0) }

// serviceName is how listings call a service: "TCP  10.1.0.100:80", "FWM  5 IPv6".
func (l listing) serviceName(k model.ServiceKey) string {
	if !k.IsMark() {
		return fmt.Sprintf("%-4s %s", strings.ToUpper(k.Proto.String()), l.address(k.Proto, k.Addr))
	}
	if k.MarkFamily == model.IPv6 {
		return fmt.Sprintf("FWM  %d IPv6", int32(k.Mark)) // signed, as ipvsadm has it
	}
	return fmt.Sprintf("FWM  %d", int32(k.Mark))
}

func (l listing) serviceOption(k model.ServiceKey) string {
	switch {
	case k.IsMark() && k.MarkFamily == model.IPv6:
		return fmt.Sprintf("-f %d -6", k.Mark)
	case k.IsMark():
		return fmt.Sprintf("-f %d", k.Mark)
	case k.Proto == model.UDP:
		return "-u " + l.address(k.Proto, k.Addr)
	case k.Proto == model.SCTP:
		return "--sctp-service " + l.address(k.Proto, k.Addr)
	}
	return "-t " + l.address(k.Proto, k.Addr)
}

func schedulerText(s model.VirtualService) string {
	text := s.Scheduler
	if s.SchedFlags != "" {
		text += " (" + s.SchedFlags + ")"
	}
	if p := s.Persistence; p.Enabled {
		text += fmt.Sprintf(" persistent %d", int(p.Timeout/time.Second))
		if m := p.MaskText(); m != "" {
			text += " mask " + m
		}
		if p.Engine != "" {
			text += " pe " + p.Engine
		}
	}
	if s.OnePacket {
		text += " ops"
	}
	return text
}

// tunnelWord is a tunnel in ipvsadm -L --tun-info: "gue:6080:r+c", "n/a".
func tunnelWord(r model.RealServer) string {
	if r.Forward != model.IPIP {
		return "n/a"
	}
	sum := map[model.TunnelChecksum]string{model.TunnelNoChecksum: "-c", model.TunnelSum: "+c", model.TunnelRemoteChecksum: "r+c"}[r.Tunnel.Checksum]
	switch r.Tunnel.Kind {
	case model.TunnelGUE:
		return fmt.Sprintf("gue:%d:%s", r.Tunnel.Port, sum)
	case model.TunnelGRE:
		return "gre:" + sum
	case model.TunnelIPIP:
	}
	return "ipip"
}

// forwardWord is the word of ipvsadm's listing for a forwarding method.
func forwardWord(f model.Forward) string {
	switch f {
	case model.Masq:
		return "Masq"
	case model.Gate:
		return "Route"
	case model.IPIP:
		return "Tunnel"
	case model.ForwardNone:
	}
	return "?"
}

// counterIndex finds counters by service and real server.
type counterIndex map[model.ServiceKey]model.ServiceCounters

func indexCounters(list []model.ServiceCounters) counterIndex {
	m := make(counterIndex, len(list))
	for _, c := range list {
		m[c.Key] = c
	}
	return m
}

func (m counterIndex) service(k model.ServiceKey) model.Counters { return m[k].Counters }

func (m counterIndex) real(k model.ServiceKey, r model.RealServer) model.RealCounters {
	reals := m[k].Reals
	i, ok := slices.BinarySearchFunc(reals, r, func(c model.RealCounters, r model.RealServer) int { return c.Addr.Compare(r.Addr) })
	if !ok {
		return model.RealCounters{Addr: r.Addr}
	}
	return reals[i]
}
