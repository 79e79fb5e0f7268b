package config

import (
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// Defaults of ldirectord 4.12.
const (
	defaultCheckInterval    = 10 * time.Second
	defaultCheckTimeout     = 5 * time.Second
	defaultNegotiateTimeout = 30 * time.Second
	defaultScheduler        = "wrr"
	defaultLogFile          = "/var/log/ldirectord.log"
	defaultCheckCommand     = "/bin/true"
)

// cfLower makes a model.Director of a rawDirector.
type cfLower struct {
	*problems
	*resolver
	raw  *rawDirector
	stat func(name string) (fs.FileInfo, error)

	goodPatterns map[string]bool // receive strings that have been looked at
}

// lowerDirector resolves and completes what was parsed. stat looks at files
// that the configuration names.
func lowerDirector(p *problems, raw *rawDirector, r *resolver, stat func(string) (fs.FileInfo, error)) *model.Director {
	l := &cfLower{p, r, raw, stat, map[string]bool{}}
	d := &model.Director{
		AutoReload:     l.yes(nil, "autoreload", false),
		Callback:       l.text(nil, "callback", ""),
		LogFile:        l.text(nil, "logfile", defaultLogFile),
		Supervised:     l.yes(nil, "supervised", false),
		Fork:           l.yes(nil, "fork", false),
		MaintenanceDir: l.text(nil, "maintenancedir", ""),
	}
	for _, e := range raw.execute {
		d.Execute = append(d.Execute, e.value.text)
	}
	l.files(d)
	for _, w := range []string{"fallback", "fallback6"} {
		l.globalFallback(w)
	}
	lines := map[model.ServiceKey]int{}
	for _, v := range raw.virtuals {
		s, ok := l.service(v)
		if !ok {
			continue
		}
		if first, twice := lines[s.Virtual.Key]; twice {
			l.error(v.pos, fmt.Sprintf("virtual service %s is already on line %d", s.Virtual.Key, first), "join the two, or give them different addresses, ports or protocols")
			continue
		}
		lines[s.Virtual.Key] = v.line
		d.Services = append(d.Services, s)
	}
	return d
}

// files checks what the original opens when it reads its configuration.
func (l *cfLower) files(d *model.Director) {
	if s, given := l.raw.settings["logfile"]; given && strings.HasPrefix(d.LogFile, "/") {
		l.writable(s, d.LogFile)
	}
	if s, given := l.raw.settings["maintenancedir"]; given {
		if i, err := l.stat(d.MaintenanceDir); err != nil || !i.IsDir() {
			l.warn(s.value.pos, fmt.Sprintf("maintenancedir: there is no directory %s", d.MaintenanceDir), "create it, or no server can be taken out by a file in it")
		}
	}
}

// writable looks whether a file can be created, as far as a look can tell.
func (l *cfLower) writable(s setting, name string) {
	dir := path.Dir(name)
	if i, err := l.stat(dir); err != nil || !i.IsDir() {
		l.error(s.value.pos, fmt.Sprintf("%s: cannot write %s: there is no directory %s", s.word, name, dir), "create the directory, or name another file")
	}
	if i, err := l.stat(name); err == nil && i.IsDir() {
		l.error(s.value.pos, fmt.Sprintf("%s: %s is a directory", s.word, name), "name a file")
	}
}

// find looks a directive up in the block and, where that does not have it,
// among the global ones.
func (l *cfLower) find(v *rawVirtual, name string) (setting, bool) {
	if v != nil {
		if s, ok := v.settings[name]; ok {
			return s, true
		}
	}
	s, ok := l.raw.settings[name]
	return s, ok
}

func (l *cfLower) text(v *rawVirtual, name, otherwise string) string {
	if s, ok := l.find(v, name); ok {
		return s.value.text
	}
	return otherwise
}

func (l *cfLower) yes(v *rawVirtual, name string, otherwise bool) bool {
	if s, ok := l.find(v, name); ok {
		return s.value.text == "yes"
	}
	return otherwise
}

func (l *cfLower) number(v *rawVirtual, name string, otherwise int) int {
	if s, ok := l.find(v, name); ok {
		n, _ := number(s.value.text)
		return n
	}
	return otherwise
}

// timeout is the first that is set of: the virtual service's own, its other
// one, the global one, the global other one. The own other time-out comes
// before the global one of the right kind: ldirectord's order.
func (l *cfLower) timeout(v *rawVirtual, name, other string, otherwise time.Duration) time.Duration {
	for _, settings := range []map[string]setting{v.settings, l.raw.settings} {
		for _, w := range []string{name, other} {
			if s, ok := settings[w]; ok {
				n, _ := number(s.value.text)
				return time.Duration(n) * time.Second
			}
		}
	}
	return otherwise
}

// service lowers one block, or reports why there is none.
func (l *cfLower) service(v *rawVirtual) (model.Service, bool) {
	key, ok := l.key(v)
	s := model.Service{
		Virtual: model.VirtualService{
			Key:         key,
			Scheduler:   l.text(v, "scheduler", defaultScheduler),
			SchedFlags:  l.text(v, "schedflags", ""),
			Persistence: l.persistence(v),
			OnePacket:   l.yes(v, "ops", false),
		},
		FallbackCommand: l.text(v, "fallbackcommand", ""),
		Quiescent:       l.yes(v, "quiescent", false),
		ReaddQuiescent:  l.yes(nil, "readdquiescent", false),
		CleanStop:       l.yes(v, "cleanstop", true),
		FailureCount:    l.number(v, "failurecount", 1),
		CheckInterval:   l.checkInterval(v),
		MonitorFile:     l.text(v, "monitorfile", ""),
		Alert: model.EmailAlert{
			To:       l.text(v, "emailalert", ""),
			From:     l.text(nil, "emailalertfrom", ""),
			Relay:    l.text(v, "smtp", ""),
			Repeat:   time.Duration(l.number(v, "emailalertfreq", 0)) * time.Second,
			Statuses: strings.Split(l.text(v, "emailalertstatus", "all"), ","),
		},
		ServiceName: l.text(v, "servicename", ""),
		Comment:     l.text(v, "comment", ""),
	}
	if m, given := v.settings["monitorfile"]; given {
		l.writable(m, s.MonitorFile)
	}
	if o, given := v.settings["ops"]; given && s.Virtual.OnePacket && ok && key.Proto != model.UDP {
		l.warn(o.pos, "ops=yes has no effect: one-packet scheduling is for udp", "remove it, or write protocol=udp")
		s.Virtual.OnePacket = false
	}
	reals := l.reals(v, key, ok)
	if len(v.reals)+v.badReals == 0 && !v.bad {
		l.warn(v.pos, "the virtual service has no real server", "add a line below it: real=ADDRESS:PORT masq")
	}
	if !ok {
		return s, false
	}
	s.Reals = reals
	s.Fallback = l.fallback(v, key)
	return s, true
}

// checkInterval of a virtual service counts with fork=yes only.
func (l *cfLower) checkInterval(v *rawVirtual) time.Duration {
	n := l.number(nil, "checkinterval", int(defaultCheckInterval/time.Second))
	if s, own := v.settings["checkinterval"]; own {
		if l.yes(nil, "fork", false) {
			n = l.number(v, "checkinterval", n)
		} else {
			l.warn(s.pos, fmt.Sprintf("checkinterval of a virtual service counts with fork=yes only; %d is used", n), "write fork=yes in column 1 above the virtual services, or remove the line")
		}
	}
	return time.Duration(n) * time.Second
}

func (l *cfLower) persistence(v *rawVirtual) model.Persistence {
	mask, masked := v.settings["netmask"]
	if _, ok := v.settings["persistent"]; !ok {
		if masked {
			l.warn(mask.pos, "netmask has no effect without persistent", "add persistent=SECONDS, or remove the line")
		}
		return model.Persistence{}
	}
	p := model.Persistence{Enabled: true, Timeout: time.Duration(l.number(v, "persistent", 0)) * time.Second}
	if masked {
		p.Netmask, _ = netip.ParseAddr(mask.value.text)
	}
	return p
}

// key resolves the virtual line. Names are looked up for the block's protocol,
// which is udp by default where the port is written 53 or domain.
func (l *cfLower) key(v *rawVirtual) (model.ServiceKey, bool) {
	if v.bad {
		return model.ServiceKey{}, false
	}
	if v.isMark() {
		n, err := strconv.ParseUint(v.mark, 10, 32)
		switch {
		case err != nil:
			l.error(v.value.pos, fmt.Sprintf("firewall mark %s is too large", clip(v.mark)), "a mark is a number from 1 to 4294967295")
		case n == 0:
			l.warn(v.value.pos, "firewall mark 0 means no mark: the virtual service is left out", "a mark is a number from 1 to 4294967295")
		}
		return model.ServiceKey{Mark: uint32(n), MarkFamily: v.family()}, err == nil && n != 0
	}
	proto, network := model.TCP, "tcp"
	otherwise := "tcp"
	if v.port == "53" || v.port == "domain" {
		otherwise = "udp"
	}
	if p, ok := v.settings["protocol"]; ok && p.value.text == "udp" || !ok && otherwise == "udp" {
		proto, network = model.UDP, "udp"
	}
	a, short, err := l.addr(v.host, v.family())
	ok := err == nil
	if err != nil {
		l.error(v.value.pos, "virtual service: "+err.Error(), addressHint(v.six))
	}
	if short {
		l.warn(v.value.pos, fmt.Sprintf("%s is read as %s", v.host, a), "write the address in full")
	}
	port, err := l.port(v.port, network)
	if err != nil {
		l.error(v.value.after(len(v.host)+1), "virtual service: "+err.Error(), "write a port number below 65536")
		ok = false
	}
	if _, persistent := v.settings["persistent"]; port == 0 && err == nil && !persistent {
		l.warn(v.value.after(len(v.host)+1), "port 0 means all ports, and the kernel takes it with persistent only", "add persistent=SECONDS, or write the port")
	}
	return model.ServiceKey{Proto: proto, Addr: netip.AddrPortFrom(a, port)}, ok
}

func addressHint(six bool) string {
	if six {
		return "write an IPv6 address in brackets, or a name that has one"
	}
	return "write an IPv4 address, or a name that has one"
}

// globalFallback reports a global fallback that cannot be resolved, once.
func (l *cfLower) globalFallback(name string) {
	s, ok := l.raw.settings[name]
	if !ok || s.fallback.unusable {
		return
	}
	f := model.IPv4
	if name == "fallback6" {
		f = model.IPv6
	}
	_, _ = l.fallbackServer(s, f, "tcp", 0) // only its problems matter here
}

// fallback is the virtual service's own or the global one of its family. A
// missing port means the virtual service's, 0 for marks.
func (l *cfLower) fallback(v *rawVirtual, key model.ServiceKey) *model.RealServer {
	name := "fallback"
	if v.six {
		name = "fallback6"
	}
	s, ok := l.find(v, name)
	if !ok || s.fallback.unusable {
		return nil
	}
	_, own := v.settings[name]
	network := "tcp"
	if key.Proto == model.UDP {
		network = "udp"
	}
	before := len(l.list)
	a, err := l.fallbackServer(s, v.family(), network, key.Addr.Port())
	if !own {
		l.list = l.list[:before] // globalFallback has reported it
	}
	if err != nil {
		return nil
	}
	if own && !key.IsMark() && s.fallback.forward != model.Masq && a.Port() != key.Addr.Port() {
		l.warn(s.value.pos, fmt.Sprintf("a %s fallback is reached on port %d of the virtual service, and port %d has no effect", s.fallback.forward, key.Addr.Port(), a.Port()),
			"remove the port, or use masq")
	}
	return &model.RealServer{Addr: a, Forward: s.fallback.forward, Weight: 1}
}

func (l *cfLower) fallbackServer(s setting, f model.Family, network string, port uint16) (netip.AddrPort, error) {
	a, short, err := l.addr(s.fallback.host.text, f)
	if err != nil {
		l.error(s.fallback.host.pos, s.word+": "+err.Error(), addressHint(f == model.IPv6))
		return netip.AddrPort{}, err
	}
	if short {
		l.warn(s.fallback.host.pos, fmt.Sprintf("%s is read as %s", s.fallback.host.text, a), "write the address in full")
	}
	if s.fallback.port.text != "" {
		networks := slices.Compact([]string{network, "tcp"})
		if port, err = l.port(s.fallback.port.text, append(networks, "udp")...); err != nil {
			l.error(s.fallback.port.pos, s.word+": "+err.Error(), "write a port number below 65536")
			return netip.AddrPort{}, err
		}
	}
	return netip.AddrPortFrom(a, port), nil
}
