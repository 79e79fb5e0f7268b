package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/batuta-ha/batuta/internal/model"
)

// reals lowers the real servers of a service. checks is the scope of its check.
func (l *nativeLower) reals(b *rawBlock, key model.ServiceKey, checks scope, forward string) []model.CheckedReal {
	common, ok := l.checks(b, checks, key)
	var out []model.CheckedReal
	lines := map[netip.AddrPort]int{}
	for _, r := range b.all("real_server") {
		c, okCheck := common, ok
		if own := r.one("check"); own != nil {
			c, okCheck = l.checks(r, append(scope{own}, checks...), key)
		}
		host, text, err := hostPort(r.label)
		if err != nil {
			l.error(r.label.pos, "real server: "+err.Error(), `write real_server "ADDRESS:PORT" {}`)
			continue
		}
		first, last, okAddr := l.addressRange(host, key.Family())
		port, okPort := key.Addr.Port(), true
		if text.text != "" {
			port, okPort = l.portNumber("real server", text, key.Proto)
		}
		in := scope{r}
		method, _ := model.ParseForward(in.text("forward", forward)) // one of the words
		if !okAddr || !okPort || !okCheck || !l.rightWay(r, c, key, method) {
			continue
		}
		if !key.IsMark() && method != model.Masq && port != 0 && port != key.Addr.Port() {
			l.warn(text.pos, fmt.Sprintf("a %s real server is reached on port %d of the service, and port %d is for checks only", method, key.Addr.Port(), port),
				"use masq to change the port, or port in its check")
		}
		for a := first; ; a = a.Next() {
			at := netip.AddrPortFrom(a, port)
			if line, twice := lines[at]; twice {
				l.error(r.label.pos, fmt.Sprintf("real server %s is already on line %d", at, line), "remove one of them")
				break
			}
			lines[at] = r.line
			out = append(out, model.CheckedReal{
				RealServer: model.RealServer{
					Addr: at, Forward: method, Weight: in.number("weight", 1),
					Upper: uint32(in.number("upper_threshold", 0)), Lower: uint32(in.number("lower_threshold", 0)),
				},
				Target: c.of(key, at, method),
			})
			if a == last {
				break
			}
		}
	}
	return out
}

// nativeChecks makes the targets of a service or of one real server.
type nativeChecks struct {
	checks
	own bool // the request is the real server's own
	via rawValue
}

// of is the check of one real server.
func (c *nativeChecks) of(key model.ServiceKey, real netip.AddrPort, method model.Forward) model.Target {
	r := rawReal{}
	if c.own {
		r.request, r.receive.text = c.request, c.receive
	}
	t := c.target(r, real)
	if c.via.text == "vip" {
		t.VirtualAddr, t.Via = key.Addr, model.ViaVirtual
		if method == model.IPIP {
			t.Via = model.ViaTunnel
		}
	}
	return t
}

// rightWay reports a way of the check that this real server cannot be reached by.
func (l *nativeLower) rightWay(r *rawBlock, c nativeChecks, key model.ServiceKey, method model.Forward) bool {
	if c.via.text != "vip" {
		return true
	}
	switch {
	case key.IsMark():
		l.error(c.via.pos, `via = "vip": a firewall mark has no virtual address`, `write via = "real"`)
	case method == model.Masq:
		l.error(c.via.pos, fmt.Sprintf(`via = "vip" is for gate and ipip: the real server on line %d does not see the virtual address`, r.line), `write via = "real"`)
	case !slices.Contains([]model.CheckType{model.CheckConnect, model.CheckNegotiate, model.CheckCombined}, c.kind) || key.Proto == model.UDP && c.kind == model.CheckConnect:
		l.error(c.via.pos, `via = "vip" is for checks by TCP or UDP`, "choose another type, or write via = \"real\"")
	default:
		return true
	}
	return false
}

// checks reads how to check; at is the service or the real server.
func (l *nativeLower) checks(at *rawBlock, in scope, key model.ServiceKey) (nativeChecks, bool) {
	before := len(l.list)
	timeout := l.positive(in, "timeout", defaultCheckTimeout)
	c := nativeChecks{checks: checks{
		virtual:          key,
		proto:            key.Proto,
		port:             uint16(in.number("port", 0)),
		negotiateTimeout: timeout,
		checkTimeout:     l.positive(in, "connect_timeout", timeout),
		tries:            in.number("tries", 1),
		connects:         in.number("connects", 0),
		command:          in.text("command", defaultCheckCommand),
		request:          withSlash(in.text("request", "/")),
		receive:          in.text("receive", ""),
		method:           in.text("method", "GET"),
		virtualHost:      in.text("host", ""),
		login:            in.text("login", ""),
		password:         in.text("password", ""),
		database:         in.text("database", ""),
		secret:           in.text("secret", ""),
	}}
	c.via, _ = in.find("via")
	_, c.own = in[0].lookup("request")
	c.own = c.own && at.spec.name == "real_server"
	c.kind, c.application = nativeType(in, key)
	switch {
	case c.kind != model.CheckNegotiate:
		c.connects = 0
	case c.connects > 0:
		c.kind = model.CheckCombined
	}
	l.anonymous(&c.checks, in)
	l.pattern(in, c)
	l.needs(at, in, c)
	l.unused(in[0], c)
	beyond := l.beyond(at, in, c)
	c.beyond = func(t *model.Target) { beyond.put(t) }
	return c, !Failed(l.list[before:])
}

// lookup finds a value in this block alone.
func (b *rawBlock) lookup(name string) (rawValue, bool) { return scope{b}.find(name) }

// nativeType is what to check: what is written, or what the port implies.
func nativeType(in scope, key model.ServiceKey) (model.CheckType, string) {
	implied, ok := applications[key.Addr.Port()]
	switch {
	case key.IsMark() || !ok && key.Proto != model.UDP:
		implied = "connect"
	case !ok:
		implied = "ping"
	}
	switch t := in.text("type", implied); t {
	case "connect":
		return model.CheckConnect, ""
	case "ping":
		return model.CheckPing, ""
	case "external":
		return model.CheckExternal, ""
	case "external-perl":
		return model.CheckExternalPerl, ""
	case "on":
		return model.CheckOn, ""
	case "off":
		return model.CheckOff, ""
	default:
		return model.CheckNegotiate, t
	}
}

// typeName is the reverse of nativeType.
func typeName(t *model.Target) string {
	if t.Kind == model.CheckNegotiate || t.Kind == model.CheckCombined {
		return t.Application
	}
	return t.Kind.String()
}

// anonymous fills in who logs in where nothing is written.
func (l *nativeLower) anonymous(c *checks, in scope) {
	at := "ldirectord@" + string(l.host.NodeName)
	if _, given := in.find("login"); !given {
		c.login = map[string]string{"ftp": "anonymous", "sip": at}[c.application]
	}
	if _, given := in.find("password"); !given && c.application == "ftp" {
		c.password = at
	}
}

// pattern looks at the regular expression.
func (l *nativeLower) pattern(in scope, c nativeChecks) {
	v, given := in.find("receive")
	if !given || v.text == "" || !slices.Contains(matching, c.application) {
		return
	}
	if text, hint := badPattern(v.text); text != "" {
		l.error(v.pos, text, hint)
	}
}

// needs warns of what a type cannot succeed without.
func (l *nativeLower) needs(at *rawBlock, in scope, c nativeChecks) {
	place := at.pos
	if v, given := in.find("type"); given {
		place = v.pos
	}
	for _, name := range map[string][]string{
		"dns": {"request", "receive"}, "mysql": {"login", "request"}, "pgsql": {"login", "request"}, "oracle": {"login"},
		"radius": {"secret"}, "http_proxy": {"request"},
	}[c.application] {
		if _, given := in.find(name); !given && !l.eachHas(at, name) {
			l.warn(place, fmt.Sprintf("a check of type %s without %s: its real servers are never up", c.application, name), "add "+name+` = "..."`)
		}
	}
}

// eachHas tells whether all real servers of a service have an attribute in a
// check of their own.
func (l *nativeLower) eachHas(b *rawBlock, name string) bool {
	reals := b.all("real_server")
	return len(reals) > 0 && !slices.ContainsFunc(reals, func(r *rawBlock) bool {
		_, given := scope{r.one("check")}.find(name)
		return !given
	})
}

// unused warns of what a check block says and its type does not look at.
func (l *nativeLower) unused(own *rawBlock, c nativeChecks) {
	if own == nil {
		return
	}
	name := typeName(&model.Target{Kind: c.kind, Application: c.application})
	for _, a := range checkAttributes {
		if v, given := own.values[a.name]; given && a.types != nil && !slices.Contains(a.types, name) {
			l.warn(v.pos, fmt.Sprintf("a check of type %s does not look at %s", name, a.name), "it is for "+oneOf(a.types...))
		}
	}
	if t := own.one("tls"); t != nil && !slices.Contains(tlsTypes, name) {
		l.warn(t.pos, fmt.Sprintf("a check of type %s does not use TLS", name), "tls is for "+oneOf(tlsTypes...))
	}
	if t := own.one("step"); t != nil && name != "dialogue" {
		l.warn(t.pos, fmt.Sprintf("a check of type %s does not look at step", name), "it is for dialogue")
	}
}

// beyond is what only the native file can say of a target.
type beyond struct {
	model.Target // only what put copies
}

// put adds it to a target.
func (b *beyond) put(t *model.Target) {
	switch t.Kind {
	case model.CheckOn, model.CheckOff, model.CheckNone:
		return
	case model.CheckNegotiate, model.CheckCombined, model.CheckConnect, model.CheckPing, model.CheckExternal, model.CheckExternalPerl:
	}
	if b.AgentPort != 0 {
		t.AgentPort = b.AgentPort
	}
	if t.Kind != model.CheckNegotiate && t.Kind != model.CheckCombined {
		return
	}
	if slices.Contains(httpTypes, t.Application) {
		t.Headers, t.StatusCodes, t.HTTP2, t.WeightHeader = b.Headers, b.StatusCodes, b.HTTP2, b.WeightHeader
	}
	if slices.Contains(tlsTypes, t.Application) {
		t.TLSVerify, t.ServerName, t.CAFile, t.ExpiryWarning = b.TLSVerify, b.ServerName, b.CAFile, b.ExpiryWarning
	}
	switch t.Application {
	case "dns":
		t.RecordType = b.RecordType
	case "dialogue":
		t.Steps, t.TLS = b.Steps, b.TLS
		t.Request, t.Receive, t.Method, t.VirtualHost = "", "", "", ""
	}
}

func (l *nativeLower) beyond(at *rawBlock, in scope, c nativeChecks) *beyond {
	b := &beyond{}
	b.AgentPort = uint16(in.number("agent_port", 0))
	b.HTTP2 = in.flag("http2", false)
	b.WeightHeader = in.text("weight_header", "")
	b.RecordType = in.text("record", "")
	b.Headers = l.headers(in)
	b.StatusCodes = l.statusCodes(in)
	tls := in.into("tls")
	b.TLSVerify = map[string]model.TLSVerify{"none": model.VerifyNothing, "chain": model.VerifyChain, "name": model.VerifyName}[tls.text("verify", "")]
	b.ServerName = tls.text("server_name", "")
	b.CAFile = tls.text("ca_file", "")
	b.ExpiryWarning = tls.duration("expiry_warning", 0)
	if v, given := tls.find("ca_file"); given {
		if !strings.HasPrefix(v.text, "/") {
			l.error(v.pos, "ca_file: "+clip(v.text)+" is no absolute path", "begin it with /")
		} else if _, err := l.stat(v.text); err != nil {
			l.here(v.pos, "ca_file: "+clip(v.text)+": "+reason(err), "until it can be read the check has no result")
		}
	}
	if c.application == "dialogue" {
		steps := l.steps(at, in)
		b.Steps = model.StepsText(steps)
		b.TLS = tls.given() && !slices.ContainsFunc(steps, func(s model.Step) bool { return s.Kind == model.StepStartTLS })
	}
	return b
}

// headers reads further request headers.
func (l *nativeLower) headers(in scope) string {
	v, _ := in.find("headers")
	var b strings.Builder
	for _, p := range v.pairs {
		switch {
		case !httpguts.ValidHeaderFieldName(p.word) || !httpguts.ValidHeaderFieldValue(p.value.text):
			l.error(p.pos, fmt.Sprintf("headers: %q with this value is no header", clip(p.word)), "a name has letters, digits and -, and a value no control character")
		case slices.Contains([]string{"host", "connection", "te", "user-agent", "content-length", "transfer-encoding"}, strings.ToLower(p.word)):
			l.error(p.pos, fmt.Sprintf("headers: %s is sent by the check itself", clip(p.word)), "for the Host header write host")
		default:
			b.WriteString(p.word + ": " + strings.TrimSpace(p.value.text) + "\n")
		}
	}
	return b.String()
}

// statusCodes reads numbers and ranges.
func (l *nativeLower) statusCodes(in scope) string {
	v, _ := in.find("status")
	var out []string
	for _, w := range v.list {
		first, last, found := strings.Cut(w.text, "-")
		if !found {
			last = first
		}
		a, ok1 := number(first)
		b, ok2 := number(last)
		if !ok1 || !ok2 || a < 100 || b > 599 || a > b {
			l.error(w.pos, fmt.Sprintf("status: %q is no status code", clip(w.text)), `write numbers from 100 to 599, and ranges, as ["200-299", "404"]`)
			continue
		}
		out = append(out, w.text)
	}
	return strings.Join(out, ",")
}

// steps reads the dialogue: of the innermost check block that has one.
func (l *nativeLower) steps(at *rawBlock, in scope) []model.Step {
	var out []model.Step
	for _, b := range in {
		for _, s := range b.all("step") {
			out = append(out, l.step(s))
		}
		if len(out) > 0 {
			return out
		}
	}
	l.error(at.pos, "a check of type dialogue without a step", `add step { expect = "..." } or step { send = "..." }`)
	return nil
}

func (l *nativeLower) step(b *rawBlock) model.Step {
	s, things := model.Step{}, 0
	for kind := model.StepSend; kind <= model.StepClose; kind++ {
		name := strings.ReplaceAll(kind.String(), "-", "_")
		v, given := b.values[name]
		if !given || (kind == model.StepStartTLS || kind == model.StepClose) && !v.flag {
			continue
		}
		things++
		s.Kind, s.Text = kind, v.text
		if kind == model.StepExpect || kind == model.StepExpectNot {
			if text, hint := badPattern(v.text); text != "" {
				l.error(v.pos, strings.Replace(text, "receive", name, 1), hint)
			}
		}
	}
	if things != 1 {
		l.error(b.pos, "a step does exactly one thing", "give it one of send, expect, expect_not, starttls = true and close = true")
	}
	if v, given := b.values["timeout"]; given {
		s.Timeout = v.duration
	}
	return s
}
