package config

import (
	"encoding/binary"
	"errors"
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

// nativeLower makes a model.Director of a native file.
type nativeLower struct {
	*problems
	*resolver
	stat     func(name string) (fs.FileInfo, error)
	defaults *rawBlock // nil for none

	agreement func(model.Agreement) error // Reader.Agreement
}

// scope is where an attribute is looked for, one block after the other. Blocks
// may be nil.
type scope []*rawBlock

func (s scope) find(name string) (rawValue, bool) {
	for _, b := range s {
		if b != nil {
			if v, ok := b.values[name]; ok {
				return v, true
			}
		}
	}
	return rawValue{}, false
}

// into is the scope of a block inside.
func (s scope) into(name string) scope {
	out := make(scope, len(s))
	for i, b := range s {
		out[i] = b.one(name)
	}
	return out
}

func (s scope) text(name, otherwise string) string {
	if v, ok := s.find(name); ok {
		return v.text
	}
	return otherwise
}

func (s scope) number(name string, otherwise int) int {
	if v, ok := s.find(name); ok {
		return v.number
	}
	return otherwise
}

func (s scope) flag(name string, otherwise bool) bool {
	if v, ok := s.find(name); ok {
		return v.flag
	}
	return otherwise
}

func (s scope) duration(name string, otherwise time.Duration) time.Duration {
	if v, ok := s.find(name); ok {
		return v.duration
	}
	return otherwise
}

func (s scope) list(name string, otherwise ...string) []string {
	v, ok := s.find(name)
	if !ok {
		return otherwise
	}
	out := make([]string, len(v.list))
	for i, w := range v.list {
		out[i] = w.text
	}
	return out
}

// given tells whether the scope has a block at all.
func (s scope) given() bool {
	return slices.ContainsFunc(s, func(b *rawBlock) bool { return b != nil })
}

// lowerNative resolves and completes what was parsed.
func lowerNative(p *problems, root *rawBlock, r *resolver, stat func(string) (fs.FileInfo, error), agreement func(model.Agreement) error) *model.Director {
	l := &nativeLower{problems: p, resolver: r, stat: stat, defaults: root.one("defaults"), agreement: agreement}
	own := scope{root.one("director")}
	d := &model.Director{
		AutoReload:     own.flag("auto_reload", false),
		Callback:       own.text("callback", ""),
		LogFile:        own.text("log_file", defaultLogFile),
		Supervised:     own.flag("supervised", false),
		Execute:        own.list("execute"),
		MaintenanceDir: own.text("maintenance_dir", ""),
	}
	if v, given := own.find("log_file"); given && strings.HasPrefix(v.text, "/") {
		l.writable(v.pos, "log_file", v.text)
	}
	if v, given := own.find("maintenance_dir"); given {
		if i, err := l.stat(v.text); err != nil || !i.IsDir() {
			l.warn(v.pos, "maintenance_dir: there is no directory "+clip(v.text), "create it, or no server can be taken out by a file in it")
		}
	}
	for _, f := range l.defaults.all("fallback") {
		l.fallbackServer(f, fallbackFamily(f), 0)
	}
	lines := map[model.ServiceKey]int{}
	for _, b := range root.all("service") {
		s, ok := l.service(b)
		if !ok {
			continue
		}
		if first, twice := lines[s.Virtual.Key]; twice {
			l.error(b.label.pos, fmt.Sprintf("service %s is already on line %d", s.Virtual.Key, first), "join the two, or give them different addresses, ports or transports")
			continue
		}
		lines[s.Virtual.Key] = b.line
		d.Services = append(d.Services, s)
	}
	once := map[Problem]bool{} // what is wrong in the defaults is found in each service
	p.list = slices.DeleteFunc(p.list, func(x Problem) bool {
		again := once[x]
		once[x] = true
		return again
	})
	return d
}

// writable looks whether a file can be created, as far as a look can tell.
func (l *nativeLower) writable(at pos, what, name string) {
	dir := path.Dir(name)
	if i, err := l.stat(dir); err != nil || !i.IsDir() {
		l.error(at, fmt.Sprintf("%s: cannot write %s: there is no directory %s", what, clip(name), clip(dir)), "create the directory, or name another file")
	} else if i, err := l.stat(name); err == nil && i.IsDir() {
		l.error(at, fmt.Sprintf("%s: %s is a directory", what, clip(name)), "name a file")
	}
}

// service lowers one block, or reports why there is none.
func (l *nativeLower) service(b *rawBlock) (model.Service, bool) {
	key, ok := l.key(b.label)
	in := scope{b, l.defaults}
	checks, pace, alert := in.into("check"), in.into("check"), in.into("alert")
	s := model.Service{
		Virtual: model.VirtualService{
			Key:        key,
			Scheduler:  in.text("scheduler", defaultScheduler),
			SchedFlags: in.text("scheduler_flags", ""),
			OnePacket:  in.flag("one_packet", false) && key.Proto == model.UDP,
		},
		FallbackCommand: in.text("fallback_command", ""),
		Quiescent:       in.flag("quiescent", false),
		ReaddQuiescent:  in.flag("readd_quiescent", false),
		CleanStop:       in.flag("clean_stop", true),
		FailureCount:    pace.number("fall", 1),
		SuccessCount:    pace.number("rise", 0),
		CheckInterval:   l.positive(pace, "interval", defaultCheckInterval),
		CheckJitter:     pace.duration("jitter", 0),
		DrainDeadline:   in.duration("drain_deadline", 0),
		Care:            l.care(in),
		MonitorFile:     in.text("monitor_file", ""),
		Alert: model.EmailAlert{
			To:       alert.text("to", ""),
			From:     alert.text("from", ""),
			Relay:    alert.text("relay", ""),
			Repeat:   alert.duration("repeat", 0),
			Statuses: alert.list("states", "all"),
		},
		ServiceName: in.text("name", ""),
		Comment:     in.text("comment", ""),
	}
	s.Virtual.Persistence = l.persistence(in, key.Family())
	s.Agreed = l.agreed(in.into("sla"))
	s.Marks = l.marks(b, key)
	if v, given := in.find("scheduler"); given && !slices.Contains(schedulers, v.text) {
		l.warn(v.pos, fmt.Sprintf("scheduler: there is no %q; the kernel will refuse this service", clip(v.text)), didYouMean(v.text, schedulers))
	}
	if v, given := b.values["one_packet"]; given && v.flag && ok && !s.Virtual.OnePacket {
		l.warn(v.pos, "one_packet has no effect: one-packet scheduling is for udp", `remove it, or write "udp" before the address`)
	}
	if v, given := b.values["monitor_file"]; given {
		l.writable(v.pos, "monitor_file", v.text)
	}
	if s.CheckJitter > s.CheckInterval/2 {
		v, _ := pace.find("jitter")
		l.error(v.pos, "jitter is more than half of interval", "a tenth of it is usual")
	}
	if !ok { // its checks are looked at all the same
		for _, c := range append([]*rawBlock{b}, b.all("real_server")...) {
			_, _ = l.checks(c, append(scope{c.one("check")}, checks...), key)
		}
		return s, false
	}
	s.Reals = l.reals(b, key, checks, in.text("forward", "masq"))
	s.Fallback = l.fallback(b, key)
	if len(b.all("real_server")) == 0 {
		l.warn(b.pos, "the service has no real server", `add real_server "ADDRESS:PORT" {}`)
	}
	return s, true
}

// positive reads a time above 0.
func (l *nativeLower) positive(s scope, name string, otherwise time.Duration) time.Duration {
	d := s.duration(name, otherwise)
	if d <= 0 {
		v, _ := s.find(name)
		l.error(v.pos, name+" must be above 0", "")
		return otherwise
	}
	return d
}

// agreed is what was promised; nil for nothing.
func (l *nativeLower) agreed(in scope) *model.Agreement {
	if !in.given() {
		return nil
	}
	a := model.Agreement{Target: in.text("target", ""), Hours: in.text("hours", ""), Zone: in.text("tz", "")}
	for _, one := range []struct {
		name string
		only model.Agreement
	}{{"target", model.Agreement{Target: a.Target}}, {"tz", model.Agreement{Zone: a.Zone}}, {"hours", model.Agreement{Hours: a.Hours}}} {
		v, given := in.find(one.name)
		if !given || l.agreement == nil {
			continue
		}
		if err := l.agreement(one.only); err != nil {
			l.error(v.pos, one.name+": "+err.Error(), "")
		}
	}
	return &a
}

func (l *nativeLower) care(in scope) model.Care {
	c := model.Care{Panic: in.number("panic_threshold", 0)}
	if slow := in.into("slow_start"); slow.given() {
		c.SlowStart = slow.duration("window", 0)
		c.SlowFirst = float64(slow.number("min_weight_percent", 0)) / 100
		c.Aggression = float64(slow.number("aggression", 0))
	}
	if flap := in.into("flap_damping"); flap.given() {
		c.Flaps = flap.number("downs", 3)
		c.FlapWindow = l.positive(flap, "window", 5*time.Minute)
		c.FlapHold = l.positive(flap, "hold", time.Minute)
	}
	return c
}

func (l *nativeLower) persistence(in scope, f model.Family) model.Persistence {
	timeout, ok := in.find("persistence")
	mask, masked := in.find("persistence_netmask")
	if !ok {
		if masked {
			l.warn(mask.pos, "persistence_netmask has no effect without persistence", `add persistence = "5m", or remove the line`)
		}
		return model.Persistence{}
	}
	p := model.Persistence{Enabled: true, Timeout: timeout.duration}
	if p.Timeout%time.Second != 0 {
		l.error(timeout.pos, "persistence must be whole seconds: the kernel counts no smaller ones", "")
	}
	if !masked {
		return p
	}
	n, small := number(strings.TrimPrefix(mask.text, "/"))
	a, err := netip.ParseAddr(mask.text)
	switch {
	case f == model.IPv6 && small && n >= 1 && n <= 128:
		p.Netmask = prefixMask(n, 128)
	case f == model.IPv4 && small && n >= 1 && n <= 32:
		p.Netmask = prefixMask(n, 32)
	case f == model.IPv4 && err == nil && a.Is4():
		p.Netmask = a
	case f == model.FamilyNone: // the service's address is wrong, and that is reported
	default:
		l.error(mask.pos, fmt.Sprintf("persistence_netmask: %q is no %s mask", clip(mask.text), f), `write a prefix length, as "24", or four numbers, as "255.255.255.0"`)
	}
	return p
}

// keyForm is how a service is named.
const keyForm = `write service "tcp ADDRESS:PORT", "udp ADDRESS:PORT", "sctp ADDRESS:PORT", "fwm MARK" or "fwm6 MARK"`

// key reads a service's label. Without a transport it is tcp.
func (l *nativeLower) key(label word) (model.ServiceKey, bool) {
	words := fields(label, "")
	if len(words) == 1 && strings.Contains(words[0].text, ":") {
		words = append([]word{{label.pos, "tcp"}}, words...)
	}
	if len(words) != 2 {
		l.error(label.pos, fmt.Sprintf("%q is no service", clip(label.text)), keyForm)
		return model.ServiceKey{}, false
	}
	k := model.ServiceKey{Proto: model.TCP}
	switch words[0].text {
	case "fwm", "fwm6":
		n, err := strconv.ParseUint(words[1].text, 10, 32)
		if err != nil || n == 0 {
			l.error(words[1].pos, fmt.Sprintf("%q is no firewall mark", clip(words[1].text)), "a mark is a number from 1 to 4294967295")
			return k, false
		}
		k = model.ServiceKey{Mark: uint32(n), MarkFamily: model.IPv4}
		if words[0].text == "fwm6" {
			k.MarkFamily = model.IPv6
		}
		return k, true
	case "tcp":
	case "udp":
		k.Proto = model.UDP
	case "sctp":
		k.Proto = model.SCTP
	default:
		l.error(words[0].pos, fmt.Sprintf("unknown transport %q", clip(words[0].text)), orElse(didYouMean(words[0].text, []string{"tcp", "udp", "sctp", "fwm", "fwm6"}), keyForm))
		return k, false
	}
	host, port, err := hostPort(words[1])
	if err == nil && port.text == "" {
		err = errors.New("the service has no port")
	}
	if err != nil {
		l.error(words[1].pos, "service: "+err.Error(), keyForm)
		return k, false
	}
	f := model.IPv4
	if strings.HasPrefix(host.text, "[") {
		f = model.IPv6
	}
	a, ok := l.address("service", host, f)
	p, okPort := l.portNumber("service", port, k.Proto)
	k.Addr = netip.AddrPortFrom(a, p)
	return k, ok && okPort
}

// hostPort takes HOST[:PORT] apart. An IPv6 address stands in brackets.
func hostPort(w word) (host, port word, err error) {
	n := strings.LastIndexByte(w.text, ':')
	if end := strings.IndexByte(w.text, ']'); n < end {
		n = -1
	}
	host = w
	if n >= 0 {
		host, port = word{w.pos, w.text[:n]}, word{w.after(n + 1), w.text[n+1:]}
		if port.text == "" {
			return host, port, fmt.Errorf("%q has nothing behind its colon", clip(w.text))
		}
	}
	bracketed := strings.HasPrefix(host.text, "[") && strings.HasSuffix(host.text, "]")
	switch {
	case host.text == "":
		return host, port, fmt.Errorf("%q has no address", clip(w.text))
	case !bracketed && strings.Contains(host.text, ":"):
		return host, port, fmt.Errorf("%q: an IPv6 address needs brackets", clip(w.text))
	case !bracketed && hostLen(host.text) != len(host.text):
		return host, port, fmt.Errorf("%q is no address or host name", clip(host.text))
	}
	return host, port, nil
}

// address resolves a host.
func (l *nativeLower) address(what string, host word, f model.Family) (netip.Addr, bool) {
	a, short, err := l.addr(host.text, f)
	if err != nil {
		l.error(host.pos, what+": "+err.Error(), addressHint(f == model.IPv6))
		return a, false
	}
	if short {
		l.warn(host.pos, fmt.Sprintf("%s is read as %s", clip(host.text), a), "write the address in full")
	}
	return a, true
}

// portNumber resolves a port, for the transport first.
func (l *nativeLower) portNumber(what string, port word, proto model.Protocol) (uint16, bool) {
	network := "tcp"
	if proto == model.UDP {
		network = "udp"
	}
	p, err := l.port(port.text, network, otherNetwork(network))
	if err != nil {
		l.error(port.pos, what+": "+err.Error(), "write a port number below 65536")
	}
	return p, err == nil
}

// fallback is the service's own, or that of its family in the defaults.
func (l *nativeLower) fallback(b *rawBlock, key model.ServiceKey) *model.RealServer {
	if own := b.one("fallback"); own != nil {
		if own.label.text == "none" {
			return nil
		}
		return l.fallbackServer(own, key.Family(), key.Addr.Port())
	}
	for _, f := range l.defaults.all("fallback") {
		if fallbackFamily(f) == key.Family() {
			before := len(l.list)
			r := l.fallbackServer(f, key.Family(), key.Addr.Port())
			l.list = l.list[:before] // its problems were reported once
			return r
		}
	}
	return nil
}

// fallbackFamily is for which services a fallback of the defaults is.
func fallbackFamily(f *rawBlock) model.Family {
	if strings.HasPrefix(f.label.text, "[") {
		return model.IPv6
	}
	return model.IPv4
}

// fallbackServer resolves a fallback; port is used where it names none.
func (l *nativeLower) fallbackServer(b *rawBlock, f model.Family, port uint16) *model.RealServer {
	host, text, err := hostPort(b.label)
	if err != nil {
		l.error(b.label.pos, "fallback: "+err.Error(), `write fallback "ADDRESS:PORT" {}`)
		return nil
	}
	a, ok := l.address("fallback", host, f)
	if text.text != "" {
		var okPort bool
		port, okPort = l.portNumber("fallback", text, model.TCP)
		ok = ok && okPort
	}
	if !ok {
		return nil
	}
	method, _ := model.ParseForward(scope{b}.text("forward", "gate")) // one of the words
	return &model.RealServer{Addr: netip.AddrPortFrom(a, port), Forward: method, Weight: 1}
}

// addressRange resolves the host of a real server: one address, or both ends
// of FIRST-LAST.
func (l *nativeLower) addressRange(host word, f model.Family) (first, last netip.Addr, ok bool) {
	from, to, found := strings.Cut(host.text, "-")
	a, _, isFirst := inetAddr(from)
	b, _, isLast := inetAddr(to)
	if !found || !isFirst || !isLast {
		first, ok = l.address("real server", host, f)
		return first, first, ok
	}
	low, high := a.As4(), b.As4()
	switch n := int64(binary.BigEndian.Uint32(high[:])) - int64(binary.BigEndian.Uint32(low[:])); {
	case f != model.IPv4:
		l.error(host.pos, "real server: a range of IPv4 addresses in a service that is not IPv4", "")
	case n < 0:
		l.error(host.pos, fmt.Sprintf("the range begins at %s, above its end %s", a, b), "write the lower address first")
	case n >= longestRange:
		l.error(host.pos, fmt.Sprintf("the range has %d addresses", n+1), fmt.Sprintf("at most %d in one block", longestRange))
	default:
		return a, b, true
	}
	return a, b, false
}
