package config

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// longestRange is the number of real servers that one line may name.
const longestRange = 65536

// reals lowers the real lines of a block. Without a usable key they are only
// checked.
func (l *cfLower) reals(v *rawVirtual, key model.ServiceKey, usable bool) []model.CheckedReal {
	network := "tcp"
	if key.Proto == model.UDP {
		network = "udp"
	}
	checks := l.checks(v, key)
	l.patterns(v, checks, usable)
	if usable {
		l.lacking(v, checks)
	}
	var out []model.CheckedReal
	index := map[netip.AddrPort]int{}
	lines := make([]int, 0, len(v.reals))
	for _, r := range v.reals {
		first, last, ok := l.addresses(v, r)
		port := uint16(0)
		if r.port.text != "" {
			p, err := l.port(r.port.text, network, otherNetwork(network))
			if err != nil {
				l.error(r.port.pos, "real server: "+err.Error(), "write a port number below 65536")
				ok = false
			}
			port = p
		}
		if !ok || !usable {
			continue
		}
		l.samePort(r, key, port)
		for a := first; ; a = a.Next() {
			at := netip.AddrPortFrom(a, port)
			c := model.CheckedReal{
				RealServer: model.RealServer{Addr: at, Forward: r.forward, Weight: r.weight, Upper: r.upper, Lower: r.lower},
				Target:     checks.target(r, at),
			}
			if i, twice := index[at]; twice {
				l.warn(r.pos, fmt.Sprintf("real server %s is already on line %d, which this line replaces", at, lines[i]), "remove one of them")
				out[i], lines[i] = c, r.line
			} else {
				index[at] = len(out)
				out, lines = append(out, c), append(lines, r.line)
			}
			if a == last {
				break
			}
		}
	}
	return out
}

func otherNetwork(n string) string {
	if n == "tcp" {
		return "udp"
	}
	return "tcp"
}

// addresses resolves a real line: one address, or both ends of a range.
func (l *cfLower) addresses(v *rawVirtual, r rawReal) (first, last netip.Addr, ok bool) {
	resolve := func(w word) (netip.Addr, bool) {
		a, short, err := l.addr(w.text, v.family())
		if err != nil {
			l.error(w.pos, "real server: "+err.Error(), addressHint(v.six))
			return a, false
		}
		if short {
			l.warn(w.pos, fmt.Sprintf("%s is read as %s", w.text, a), "write the address in full")
		}
		return a, true
	}
	if first, ok = resolve(r.host); r.last.text == "" {
		return first, first, ok
	}
	last, okLast := resolve(r.last)
	if !ok || !okLast {
		return first, last, false
	}
	a, b := first.As4(), last.As4()
	from, to := binary.BigEndian.Uint32(a[:]), binary.BigEndian.Uint32(b[:])
	switch {
	case from > to:
		l.error(r.host.pos, fmt.Sprintf("the range begins at %s, above its end %s", first, last), "write the lower address first")
		return first, last, false
	case to-from >= longestRange:
		l.error(r.host.pos, fmt.Sprintf("the range has %d addresses", uint64(to-from)+1), fmt.Sprintf("at most %d in one line", longestRange))
		return first, last, false
	}
	return first, last, true
}

// samePort warns of ports that do not mean what they seem to. The kernel keeps
// rows of gate and ipip under the service's port, as such packets are not
// rewritten: the configured port is then for checks only.
func (l *cfLower) samePort(r rawReal, key model.ServiceKey, port uint16) {
	switch {
	case key.IsMark():
	case r.forward == model.Masq && port == 0:
		l.warn(r.host.pos, "real server: without a port packets are sent to port 0", "write real=ADDRESS:PORT")
	case r.forward != model.Masq && port != 0 && port != key.Addr.Port():
		l.warn(r.port.pos, fmt.Sprintf("a %s real server is reached on port %d of the virtual service, and port %d is for checks only", r.forward, key.Addr.Port(), port),
			"use masq to change the port, or checkport for the check")
	}
}

// checks makes the targets of one virtual service.
type checks struct {
	kind        model.CheckType
	connects    int
	application string
	virtual     model.ServiceKey
	port        uint16 // checkport, 0 for none
	proto       model.Protocol

	checkTimeout, negotiateTimeout time.Duration
	tries                          int
	command                        string

	request, receive, method, virtualHost string
	login, password, database, secret     string

	beyond func(*model.Target) // adds what ldirectord.cf has no words for; nil: nothing
}

// applications are the protocols that a virtual service's port implies where
// `service` is not given.
var applications = map[uint16]string{
	21: "ftp", 25: "smtp", 53: "dns", 80: "http", 110: "pop", 119: "nntp", 143: "imap", 389: "ldap", 443: "https",
	587: "submission", 636: "ldaps", 993: "imaps", 995: "pops", 1521: "oracle", 1812: "radius", 3128: "http_proxy",
	3306: "mysql", 5060: "sip", 5432: "pgsql",
}

// usualPort is the reverse of applications.
func usualPort(application string) uint16 {
	for port, a := range applications {
		if a == application {
			return port
		}
	}
	return 0
}

func (l *cfLower) checks(v *rawVirtual, key model.ServiceKey) checks {
	c := checks{
		kind:             model.CheckNegotiate,
		application:      "none",
		virtual:          key,
		proto:            key.Proto,
		port:             uint16(l.number(v, "checkport", 0)),
		checkTimeout:     l.timeout(v, "checktimeout", "negotiatetimeout", defaultCheckTimeout),
		negotiateTimeout: l.timeout(v, "negotiatetimeout", "checktimeout", defaultNegotiateTimeout),
		tries:            l.number(v, "checkcount", 1),
		command:          l.text(v, "checkcommand", defaultCheckCommand),
		request:          l.text(v, "request", "/"),
		receive:          l.text(v, "receive", ""),
		method:           l.text(v, "httpmethod", "GET"),
		virtualHost:      l.text(v, "virtualhost", ""),
		login:            l.text(v, "login", ""),
		password:         l.text(v, "passwd", ""),
		database:         l.text(v, "database", ""),
		secret:           l.text(v, "secret", ""),
	}
	if a, ok := applications[key.Addr.Port()]; ok && !key.IsMark() {
		c.application = a
	}
	if s, ok := v.settings["service"]; ok {
		c.application = s.value.text
		l.anonymous(&c)
	}
	s, ok := v.settings["checktype"]
	if !ok {
		return c
	}
	switch s.value.text {
	case "connect":
		c.kind = model.CheckConnect
	case "external":
		c.kind = model.CheckExternal
	case "external-perl":
		c.kind = model.CheckExternalPerl
	case "off":
		c.kind = model.CheckOff
	case "on":
		c.kind = model.CheckOn
	case "ping":
		c.kind = model.CheckPing
	case "negotiate":
	default:
		c.kind = model.CheckCombined
		c.connects, _ = number(s.value.text)
		if c.connects == 0 {
			l.warn(s.value.pos, "checktype=0 means a negotiate check each time", "write checktype=negotiate")
			c.kind = model.CheckNegotiate
		}
	}
	return c
}

// anonymous fills in login and passwd, which ldirectord does where `service`
// is written and not where the port implies it.
func (l *cfLower) anonymous(c *checks) {
	at := "ldirectord@" + string(l.host.NodeName)
	switch c.application {
	case "ftp":
		c.login, c.password = orElse(c.login, "anonymous"), orElse(c.password, at)
	case "sip":
		c.login = orElse(c.login, at)
	}
}

// target is the check of one real server. It has only what its kind of check
// looks at, so that equal checks of several services are one.
func (c *checks) target(r rawReal, real netip.AddrPort) model.Target {
	t := model.Target{Kind: c.kind, Proto: c.proto, Addr: real}
	switch {
	case c.port != 0:
		t.Addr = netip.AddrPortFrom(real.Addr(), c.port)
	case real.Port() == 0:
		t.Addr = netip.AddrPortFrom(real.Addr(), usualPort(c.application))
	}
	switch c.kind {
	case model.CheckConnect:
		t.CheckTimeout, t.Tries = c.checkTimeout, c.tries
	case model.CheckPing:
		t.CheckTimeout, t.Tries = c.checkTimeout, c.tries
		t.Proto, t.Addr = model.ProtocolNone, netip.AddrPortFrom(real.Addr(), 0)
	case model.CheckExternal, model.CheckExternalPerl:
		t.CheckTimeout, t.Command = c.checkTimeout, c.command
		t.VirtualAddr, t.Mark, t.RealPort = c.virtual.Addr, c.virtual.Mark, real.Port()
	case model.CheckNegotiate, model.CheckCombined:
		t.Application, t.Connects = c.application, c.connects
		t.CheckTimeout, t.NegotiateTimeout = c.checkTimeout, c.negotiateTimeout
		t.Request, t.Receive, t.Method, t.VirtualHost = c.request, c.receive, c.method, c.virtualHost
		t.Login, t.Password, t.Database, t.Secret = c.login, c.password, c.database, c.secret
		if r.request != "" {
			t.Request, t.Receive = r.request, r.receive.text
			t.RequestURL = absoluteURL(c.application, r.request)
		}
	case model.CheckNone, model.CheckOn, model.CheckOff:
	}
	if c.beyond != nil {
		c.beyond(&t)
	}
	return t
}

// absoluteURL is the URL inside a per-real request that has one: it is asked
// for as it is, wherever it points.
func absoluteURL(application, request string) string {
	if application != "http" && application != "https" {
		return ""
	}
	if i := strings.Index(request, application+"://"); i >= 0 {
		return request[i:]
	}
	return ""
}
