package cli

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/model"
)

// The text forms of ipvsadm(8), version 1.31, byte for byte.

const versionLine = "IP Virtual Server version 1.2.1 (size=%d)\n"

// writeList is ipvsadm -L -n.
func writeList(w io.Writer, t api.Table) {
	fmt.Fprintf(w, versionLine, t.Plane.Size)
	fmt.Fprintln(w, "Prot LocalAddress:Port Scheduler Flags")
	fmt.Fprintln(w, "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn")
	counters := indexCounters(t.Counters)
	for _, s := range asListed(t.Services) {
		fmt.Fprintf(w, "%s %s\n", serviceName(s.Key), schedulerText(s))
		for _, r := range s.Reals {
			c := counters.real(s.Key, r)
			fmt.Fprintf(w, "  -> %-28s %-7s %-6d %-10d %-10d\n", r.Addr, forwardWord(r.Forward), r.Weight, c.Active, c.Inactive)
		}
	}
}

// writeCounters is ipvsadm -L -n --stats, and with per == "PS" --rate.
func writeCounters(w io.Writer, t api.Table, counters []model.ServiceCounters, head [5]string) {
	fmt.Fprintf(w, versionLine, t.Plane.Size)
	line := func(name string, cols ...string) {
		fmt.Fprintf(w, "%-33s", name)
		for _, c := range cols {
			fmt.Fprintf(w, " %8s", c)
		}
		fmt.Fprintln(w)
	}
	row := func(name string, c model.Counters) {
		line(name, scaled(c.Connections), scaled(c.PacketsIn), scaled(c.PacketsOut), scaled(c.BytesIn), scaled(c.BytesOut))
	}
	line("Prot LocalAddress:Port", head[:]...)
	fmt.Fprintln(w, "  -> RemoteAddress:Port")
	byKey := indexCounters(counters)
	for _, s := range asListed(t.Services) {
		row(serviceName(s.Key), byKey.service(s.Key))
		for _, r := range s.Reals {
			row("  -> "+r.Addr.String(), byKey.real(s.Key, r).Counters)
		}
	}
}

var (
	statsHead = [5]string{"Conns", "InPkts", "OutPkts", "InBytes", "OutBytes"}
	rateHead  = [5]string{"CPS", "InPPS", "OutPPS", "InBPS", "OutBPS"}
)

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

// writeFlows is ipvsadm -L -n -c.
func writeFlows(w io.Writer, flows []model.Flow) {
	fmt.Fprintln(w, "IPVS connection entries")
	fmt.Fprintln(w, "pro expire state       source             virtual            destination")
	slices.SortFunc(flows, func(a, b model.Flow) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), a.Client.Compare(b.Client), a.Virtual.Compare(b.Virtual))
	})
	for _, f := range flows {
		left := int(f.Expires / time.Second)
		fmt.Fprintf(w, "%-3s %02d:%02d  %-11s %-18s %-18s %s\n", strings.ToUpper(f.Proto.String()), left/60, left%60,
			f.State, f.Client, f.Virtual, f.Real)
	}
}

// writeSave is ipvsadm -S -n: the commands that make the table.
func writeSave(w io.Writer, t api.Table) {
	for _, s := range asListed(t.Services) {
		key := serviceOption(s.Key)
		line := "-A " + key + " -s " + s.Scheduler
		if p := s.Persistence; p.Enabled {
			line += fmt.Sprintf(" -p %d", int(p.Timeout/time.Second))
			if m := p.MaskText(); m != "" {
				line += " -M " + m
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
			line := fmt.Sprintf("-a %s -r %s %s -w %d", key, r.Addr, word, r.Weight)
			if r.Forward == model.IPIP {
				line += " --tun-type ipip"
			}
			fmt.Fprintln(w, line)
		}
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
func serviceName(k model.ServiceKey) string {
	if !k.IsMark() {
		return fmt.Sprintf("%-4s %s", strings.ToUpper(k.Proto.String()), k.Addr)
	}
	if k.MarkFamily == model.IPv6 {
		return fmt.Sprintf("FWM  %d IPv6", int32(k.Mark)) // signed, as ipvsadm has it
	}
	return fmt.Sprintf("FWM  %d", int32(k.Mark))
}

func serviceOption(k model.ServiceKey) string {
	switch {
	case k.IsMark() && k.MarkFamily == model.IPv6:
		return fmt.Sprintf("-f %d -6", k.Mark)
	case k.IsMark():
		return fmt.Sprintf("-f %d", k.Mark)
	case k.Proto == model.UDP:
		return "-u " + k.Addr.String()
	case k.Proto == model.SCTP:
		return "--sctp-service " + k.Addr.String()
	}
	return "-t " + k.Addr.String()
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
	}
	if s.OnePacket {
		text += " ops"
	}
	return text
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
