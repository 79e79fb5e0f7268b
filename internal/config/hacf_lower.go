package config

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// Defaults and limits of Heartbeat 3.0.6.
const (
	defaultKeepalive      = time.Second
	defaultDeadTime       = 30 * time.Second
	defaultMaxRexmitDelay = 250 * time.Millisecond
	defaultUDPPort        = 694
	maxNodes              = 100
	maxMedia              = 64
)

// haLower makes a model.Heartbeat of a rawHaCf.
type haLower struct {
	*problems
	*resolver
	raw *rawHaCf
}

// lowerHaCf resolves and completes what was parsed. Keys stays empty: they
// come from authkeys.
func lowerHaCf(p *problems, raw *rawHaCf, r *resolver, self model.NodeName) *model.Heartbeat {
	l := &haLower{p, r, raw}
	h := &model.Heartbeat{
		Self:           model.NodeName(strings.ToLower(string(self))),
		HopFudge:       l.number("hopfudge", 1),
		MaxRexmitDelay: time.Duration(l.number("max_rexmit_delay", int(defaultMaxRexmitDelay/time.Millisecond))) * time.Millisecond,
		InnerAuth:      l.text("msgfmt", "classic") == "classic",
		LogFile:        l.text("logfile", ""),
		DebugFile:      l.text("debugfile", ""),
		LogFacility:    l.text("logfacility", ""),
		SyslogFormat:   l.truth("syslogmsgfmt"),
		LogBadPackets:  l.truth("log_badpack"),
		GenerationTime: l.text("hbgenmethod", "file") == "time",
		Debug:          l.number("debug", 0),
		LockMemory:     l.truth("realtime"),
		Priority:       l.number("rtprio", 1),
		Watchdog:       l.text("watchdog", ""),
	}
	if _, ok := raw.settings["coredumps"]; ok {
		h.CoreDumps = model.ChoiceNo
		if l.truth("coredumps") {
			h.CoreDumps = model.ChoiceYes
		}
	}
	l.programs(h)
	l.fencing(h)
	l.nodes(h)
	l.times(h)
	l.failback(h)
	l.media(h)
	for _, d := range raw.all {
		h.Recorded = append(h.Recorded, model.Setting{Name: d.word, Value: d.rest.text})
		if e, ok := withoutHaCf[d.word]; ok {
			e.report(p, d.pos, d.word, d.last().text)
		}
	}
	return h
}

// strangers are programs that need Heartbeat's client interface.
var strangers = []string{"dopd", "ccm", "pingd", "apphbd", "cib", "crmd", "lrmd", "stonithd", "attrd", "mgmtd", "hbagent", "cl_respawn"}

// programs notes what runs beside the daemon.
func (l *haLower) programs(h *model.Heartbeat) {
	for _, d := range l.raw.all {
		if d.word != "respawn" && d.word != "failfast" {
			continue
		}
		p := model.Program{User: d.args[0].text, Failfast: d.word == "failfast"}
		for _, a := range d.args[1:] {
			p.Command = append(p.Command, a.text)
		}
		name := path.Base(p.Command[0])
		if name == "ipfail" {
			continue // built in
		}
		if slices.Contains(strangers, name) {
			l.warn(d.args[1].pos, fmt.Sprintf("%s is not started: %s talks to Heartbeat's client interface, which is not here", d.word, name), "remove the line when no original Heartbeat reads the file")
			continue
		}
		h.Programs = append(h.Programs, p)
	}
}

// fencing notes the device that resets the other node. The last line counts;
// lines for other hosts do not.
func (l *haLower) fencing(h *model.Heartbeat) {
	for _, d := range l.raw.all {
		switch d.word {
		case "stonith":
			h.Fence = model.FenceDevice{Type: d.args[0].text, File: d.args[1].text}
		case "stonith_host":
			if host := d.args[0].text; host != "*" && !strings.EqualFold(host, string(h.Self)) {
				continue
			}
			h.Fence = model.FenceDevice{Type: d.args[1].text}
			for _, a := range d.args[2:] {
				h.Fence.Parameters = append(h.Fence.Parameters, a.text)
			}
		}
	}
}

func (l *haLower) text(name, otherwise string) string {
	if s, ok := l.raw.settings[name]; ok {
		return s.last().text
	}
	return otherwise
}

func (l *haLower) number(name string, otherwise int) int {
	if s, ok := l.raw.settings[name]; ok {
		n, _ := number(s.last().text)
		return n
	}
	return otherwise
}

// truth is a directive that is on unless somebody says otherwise.
func (l *haLower) truth(name string) bool {
	if s, ok := l.raw.settings[name]; ok {
		b, _ := boolean(s.last().text)
		return b
	}
	return true
}

func (l *haLower) time(name string, otherwise time.Duration) time.Duration {
	if s, ok := l.raw.settings[name]; ok {
		d, _ := duration(s.last().text)
		return d
	}
	return otherwise
}

// at is where a directive's value stands, or the top of the file.
func (l *haLower) at(name string) pos {
	if s, ok := l.raw.settings[name]; ok {
		return s.last().pos
	}
	return top
}

// crm tells whether a cluster manager takes the place of haresources.
func (raw *rawHaCf) crm() bool {
	for _, w := range []string{"crm", "pacemaker"} {
		if s, ok := raw.settings[w]; ok && !isFalse(s.last().text) {
			return true
		}
	}
	return false
}

func (l *haLower) nodes(h *model.Heartbeat) {
	seen := map[model.NodeName]bool{}
	third := top
	for _, n := range l.raw.nodes {
		name := model.NodeName(strings.ToLower(n.text))
		if seen[name] {
			l.warn(n.pos, fmt.Sprintf("node %s is named twice", name), "remove one of them")
			continue
		}
		seen[name] = true
		h.Nodes = append(h.Nodes, name)
		if len(h.Nodes) == 3 {
			third = n.pos
		}
	}
	list := make([]string, len(h.Nodes))
	for i, n := range h.Nodes {
		list[i] = string(n)
	}
	switch {
	case len(h.Nodes) == 0:
		l.error(top, "no node is named", "add a line: node NAME1 NAME2")
	case len(h.Nodes) > maxNodes:
		l.error(l.raw.nodes[0].pos, fmt.Sprintf("%d nodes are named", len(h.Nodes)), fmt.Sprintf("at most %d", maxNodes))
	case h.Self == "":
		l.here(l.raw.nodes[0].pos, "the name of this node is not known", "give it with --node, or in the file nodeinfo beside ha.cf")
	case !slices.Contains(h.Nodes, h.Self):
		l.here(l.raw.nodes[0].pos, fmt.Sprintf("this node, %s, is not among the nodes %s", h.Self, strings.Join(list, ", ")),
			"name it as `uname -n` does, or give the name to use with --node or in the file nodeinfo beside ha.cf")
	}
	if len(h.Nodes) > 2 && !l.raw.crm() {
		// The protocol has words for two sets only, one's own and the other's.
		l.error(third, fmt.Sprintf("%d nodes are named, but haresources is for two: when one died, each of the others would take all of its resources", len(h.Nodes)),
			"name two nodes, and make each further pair a cluster of its own, with its own keys and udpport")
	}
	if s, ok := l.raw.settings["autojoin"]; ok && s.last().text != "none" && !l.raw.crm() {
		l.error(s.last().pos, "autojoin cannot be used with haresources", "write autojoin none")
	}
}

// A node that fails defaultFlaps times within flapWindow is given nothing back
// until it has been well for flapHold (quarantine).
const (
	defaultFlaps = 5
	flapWindow   = 10 * time.Minute
	flapHold     = 5 * time.Minute
)

func (l *haLower) times(h *model.Heartbeat) {
	h.Keepalive = l.time("keepalive", defaultKeepalive)
	h.DeadTime = l.time("deadtime", defaultDeadTime)
	h.WarnTime = l.time("warntime", h.DeadTime/2)
	h.DeadPing = l.time("deadping", h.DeadTime)
	h.SuspectTime = l.time("suspecttime", max(3*h.DeadTime, time.Second))
	h.Flaps, h.FlapWindow, h.FlapHold = defaultFlaps, flapWindow, flapHold
	if s, own := l.raw.settings["quarantine"]; own {
		h.Flaps, _ = number(s.last().text)
	}
	switch {
	case h.DeadTime > 10*time.Second:
		h.InitDead = h.DeadTime
	case h.DeadTime < 6*time.Second:
		h.InitDead = 12 * time.Second
	default:
		h.InitDead = 2 * h.DeadTime
	}
	h.InitDead = l.time("initdead", h.InitDead)

	if h.DeadTime <= 2*h.Keepalive {
		at := l.at("deadtime")
		if at == top {
			at = l.at("keepalive")
		}
		l.error(at, fmt.Sprintf("deadtime %s is not more than twice the keepalive %s: a node would be dead after one lost heartbeat", h.DeadTime, h.Keepalive),
			fmt.Sprintf("write a deadtime above %s", 2*h.Keepalive))
	}
	if _, own := l.raw.settings["deadping"]; own && h.DeadPing <= 2*h.Keepalive {
		l.error(l.at("deadping"), fmt.Sprintf("deadping %s is not more than twice the keepalive %s", h.DeadPing, h.Keepalive), fmt.Sprintf("write a deadping above %s", 2*h.Keepalive))
	}
	if _, own := l.raw.settings["suspecttime"]; own && h.SuspectTime != 0 && h.SuspectTime < h.DeadTime {
		l.error(l.at("suspecttime"), fmt.Sprintf("suspecttime %s is shorter than deadtime %s: a node would be dead before it is suspect", h.SuspectTime, h.DeadTime), fmt.Sprintf("write at least %s, better three times as much", h.DeadTime))
	}
	if _, own := l.raw.settings["initdead"]; own {
		switch {
		case h.InitDead < h.DeadTime:
			l.error(l.at("initdead"), fmt.Sprintf("initdead %s is shorter than deadtime %s", h.InitDead, h.DeadTime), fmt.Sprintf("write at least %s", h.DeadTime))
		case h.InitDead < 10*time.Second:
			l.warn(l.at("initdead"), fmt.Sprintf("initdead %s is short: a peer whose network comes up late is declared dead at boot", h.InitDead), "write at least 10 seconds")
		}
	}
	if _, own := l.raw.settings["warntime"]; own && h.WarnTime >= h.DeadTime {
		l.warn(l.at("warntime"), fmt.Sprintf("warntime %s is not below deadtime %s: there is never a warning before a death", h.WarnTime, h.DeadTime), "")
	}
}

func (l *haLower) failback(h *model.Heartbeat) {
	if s, ok := l.raw.settings["nice_failback"]; ok {
		l.warn(s.pos, "nice_failback is obsolete", "write auto_failback on or off")
	}
	s, ok := l.raw.settings["auto_failback"]
	if !ok {
		h.Failback = model.FailbackLegacy
		l.warn(top, "auto_failback is not given: legacy is meant, where a node that comes back takes its own at once and no hand-over is possible", "write auto_failback on or off")
		return
	}
	h.Failback = map[string]model.FailbackMode{"on": model.FailbackOn, "off": model.FailbackOff, "legacy": model.FailbackLegacy}[s.last().text]
}

// media resolves the heartbeat paths and the ping nodes. What is not yet in
// force is checked and left out.
func (l *haLower) media(h *model.Heartbeat) {
	port := uint16(defaultUDPPort)
	if p, err := l.port("ha-cluster", "udp"); err == nil {
		port = p
	}
	paths := 0
	for _, m := range l.raw.media {
		if m.port == 0 {
			m.port = int(port)
		}
		out, ok := l.medium(m)
		switch {
		case m.kind == model.MediumNone: // not yet in force
			continue
		case m.kind != model.Ping && m.kind != model.PingGroup:
			paths++
		}
		if ok {
			h.Media = append(h.Media, out)
		}
		// A serial line carries the text encoding, and that needs its own signature.
		h.InnerAuth = h.InnerAuth || m.kind == model.Serial
	}
	switch {
	case len(l.raw.media) == 0:
		l.error(top, "no heartbeat path is given: the nodes could not hear each other", "add a line: bcast INTERFACE, or ucast INTERFACE PEER")
	case len(l.raw.media) > maxMedia:
		l.error(l.raw.media[maxMedia].at, fmt.Sprintf("%d heartbeat paths are given", len(l.raw.media)), fmt.Sprintf("at most %d", maxMedia))
	case paths == 0:
		l.error(l.raw.media[0].at, fmt.Sprintf("%s is no path between the nodes: they could not hear each other", l.raw.media[0].word), "add a line: bcast INTERFACE, or ucast INTERFACE PEER")
	}
}

func (l *haLower) medium(m rawMedium) (model.Medium, bool) {
	first := m.args[0]
	out := model.Medium{Kind: m.kind, Interface: first.text, Name: first.text}
	switch m.kind {
	case model.Broadcast:
		i, ok := l.networkInterface(first)
		if ok && !i.Broadcast.IsValid() {
			l.here(first.pos, fmt.Sprintf("interface %s has no IPv4 broadcast address", first.text), "give it an IPv4 address, or use ucast")
			return out, false
		}
		out.Peer = netip.AddrPortFrom(i.Broadcast, uint16(m.port))
		return out, ok
	case model.Unicast:
		_, ok := l.networkInterface(first)
		family := model.IPv4
		if m.word == "ucast6" {
			family = model.IPv6
		}
		a, good := l.hostAddr(m.args[1], family)
		out.Peer = netip.AddrPortFrom(a, uint16(m.port))
		return out, l.atMost(m, 2) && ok && good
	case model.Multicast:
		return l.multicast(m, out)
	case model.Serial:
		if out.Baud = m.baud; out.Baud == 0 {
			out.Baud = 19200
		}
		if !strings.HasPrefix(first.text, "/") {
			l.error(first.pos, fmt.Sprintf("serial: %q is no device", clip(first.text)), "write its path, as /dev/ttyS0")
			return out, false
		}
		return out, true
	case model.Ping, model.PingGroup:
		return l.pingNode(m, out)
	case model.MediumNone:
	}
	return out, true
}

// pingNode resolves the hosts of a ping node, whose name is as good as a
// node's: it must not be one.
func (l *haLower) pingNode(m rawMedium, out model.Medium) (model.Medium, bool) {
	out.Interface = ""
	hosts, family := m.args, model.IPv4
	if m.kind == model.PingGroup {
		hosts = hosts[1:]
	}
	if m.word == "ping6" {
		family = model.IPv6
	}
	ok := true
	for _, w := range hosts {
		a, good := l.hostAddr(w, family)
		out.Hosts = append(out.Hosts, a)
		ok = ok && good
	}
	if slices.ContainsFunc(l.raw.nodes, func(n word) bool { return strings.EqualFold(n.text, out.Name) }) {
		l.error(m.args[0].pos, fmt.Sprintf("%s: %s is a node of the cluster", m.word, clip(out.Name)), "name a host outside of it, such as the router")
		ok = false
	}
	return out, ok
}

func (l *haLower) atMost(m rawMedium, n int) bool {
	if len(m.args) > n {
		l.error(m.args[n].pos, fmt.Sprintf("%s: %q is too much", m.word, clip(m.args[n].text)), "write "+m.word+" "+haDirectives[m.word].form)
	}
	return len(m.args) <= n
}

func (l *haLower) hostAddr(w word, f model.Family) (netip.Addr, bool) {
	name := w.text
	if f == model.IPv6 {
		name = "[" + strings.Trim(name, "[]") + "]"
	}
	a, _, err := l.addr(name, f)
	if err != nil {
		l.error(w.pos, err.Error(), addressHint(f == model.IPv6))
	}
	return a, err == nil
}

func (l *haLower) networkInterface(w word) (model.Interface, bool) {
	names := make([]string, len(l.host.Interfaces))
	for i, n := range l.host.Interfaces {
		if n.Name == w.text {
			return n, true
		}
		names[i] = n.Name
	}
	hint := ""
	if len(names) > 0 {
		hint = "this machine has " + strings.Join(names, ", ")
	}
	l.here(w.pos, fmt.Sprintf("there is no network interface %q", clip(w.text)), hint)
	return model.Interface{}, false
}

func (l *haLower) multicast(m rawMedium, out model.Medium) (model.Medium, bool) {
	_, ok := l.networkInterface(m.args[0])
	groups := "write an address from 224.0.0.0 to 239.255.255.255"
	if m.word == "mcast6" {
		groups = "write an address of ff00::/8"
	}
	group, err := netip.ParseAddr(m.args[1].text)
	if err != nil || !group.IsMulticast() || group.Is4() != (m.word == "mcast") {
		l.error(m.args[1].pos, fmt.Sprintf("%s: %q is no multicast group", m.word, clip(m.args[1].text)), groups)
		ok = false
	}
	values := [3]int{}
	for i, limit := range []int{65535, 4, 1} {
		w := m.args[i+2]
		n, err := strconv.Atoi(w.text)
		if err != nil || n < 0 || n > limit || i == 0 && n == 0 {
			l.error(w.pos, fmt.Sprintf("%s: %q is not a %s up to %d", m.word, clip(w.text), []string{"port", "TTL", "LOOP"}[i], limit), "write "+m.word+" "+haDirectives[m.word].form)
			ok = false
		}
		values[i] = n
	}
	ok = l.atMost(m, 5) && ok
	if ok {
		out.Peer, out.TTL, out.Loop = netip.AddrPortFrom(group, uint16(values[0])), values[1], values[2] == 1
	}
	return out, ok
}
