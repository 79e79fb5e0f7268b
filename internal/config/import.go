package config

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/zclconf/go-cty/cty"

	"github.com/batuta-ha/batuta/internal/model"
)

// Import is an ldirectord.cf as a native file, and what became of its lines.
type Import struct {
	Text  string   `json:"text"` // HCL
	Lines []Became `json:"lines"`
}

// Became tells what became of one line.
type Became struct {
	Line int    `json:"line"`
	Was  string `json:"was"` // its directive; secrets are not shown
	Now  string `json:"now"` // attribute or block of the native file, or why there is none
}

// String is the canonical text: "3: quiescent=yes -> defaults: quiescent = true".
func (b Became) String() string { return strconv.Itoa(b.Line) + ": " + b.Was + " -> " + b.Now }

// Import makes a native file of an ldirectord.cf. Both mean the same; names of
// hosts stay names, and ranges stay ranges. With errors among the problems
// there is none.
func (r Reader) Import(name string) (*Import, []Problem) {
	p := r.problems(name)
	data, ok := r.read(p, "give the path of an ldirectord.cf")
	if !ok {
		return nil, p.list
	}
	raw, res := parseLdirectord(p, data), newResolver(r.host())
	d := lowerDirector(p, raw, res, r.stat)
	if Failed(p.list) {
		return nil, p.sorted()
	}
	im := &importer{
		cfLower: &cfLower{&problems{file: name}, res, raw, r.stat, map[string]bool{}},
		lines:   splitLines(&problems{}, data),
		report:  p,
	}
	out := im.run(d)
	if Failed(p.list) {
		return nil, p.sorted()
	}
	return out, p.sorted()
}

// importer writes a native file. Its own problems repeat what reading has
// reported, and are dropped.
type importer struct {
	*cfLower
	lines  []string
	report *problems
}

// draft is a block of the native file that is being written: attributes by
// their path, as "check.interval", each with its expression.
type draft struct {
	raw      *rawVirtual
	label    string
	texts    map[string]string
	fallback string // block, "" for none
	family   model.Family
	reals    []string // blocks
}

func (im *importer) run(d *model.Director) *Import {
	director := map[string]string{}
	im.set(director, "auto_reload", d.AutoReload, false)
	im.set(director, "callback", d.Callback, "")
	im.set(director, "log_file", d.LogFile, defaultLogFile)
	im.set(director, "supervised", d.Supervised, false)
	im.set(director, "execute", d.Execute, []string(nil))
	im.set(director, "maintenance_dir", d.MaintenanceDir, "")
	var drafts []*draft
	for _, v := range im.raw.virtuals {
		if key, ok := im.key(v); ok {
			i := slices.IndexFunc(d.Services, func(s model.Service) bool { return s.Virtual.Key == key })
			drafts = append(drafts, im.service(v, &d.Services[i]))
		}
	}
	common := shared(drafts)
	var b strings.Builder
	b.WriteString("# From " + oneLine(im.file) + ", by batuta import.\n")
	writeBlock(&b, "director", nativeFile.block("director"), director, nil)
	writeBlock(&b, "defaults", nativeFile.block("defaults"), common.texts, compact(common.fallback))
	for _, s := range drafts {
		b.WriteByte('\n')
		for _, c := range im.commentsAbove(s.raw) {
			b.WriteString(c + "\n")
		}
		var further []string
		if s.fallback != "" {
			further = append(further, s.fallback)
		}
		writeBody(&b, "service "+quote(s.label), nativeFile.block("service"), s.texts, append(further, s.reals...))
	}
	return &Import{Text: b.String(), Lines: im.became(director, common, drafts)}
}

// commentsAbove are the lines of comment right above a virtual line.
func (im *importer) commentsAbove(v *rawVirtual) []string {
	i := v.line - 1
	for i > 0 && strings.HasPrefix(strings.TrimSpace(im.lines[i-1]), "#") {
		i--
	}
	var out []string
	for _, l := range im.lines[i : v.line-1] {
		out = append(out, strings.ToValidUTF8(strings.TrimSpace(l), "?"))
	}
	return out
}

// set notes an attribute unless it is the default.
func (im *importer) set(to map[string]string, path string, value, otherwise any) {
	if fmt.Sprint(value) == fmt.Sprint(otherwise) {
		return
	}
	switch v := value.(type) {
	case string:
		if cty.StringVal(v).AsString() != v || !utf8Text(v) {
			im.report.error(im.place(v), fmt.Sprintf("%s: the value cannot be written in a native file, which is UTF-8 in normal form", path), "save the file as UTF-8")
			return
		}
		to[path] = quote(v)
	case time.Duration:
		to[path] = quote(durationText(v))
	case []string:
		items := make([]string, len(v))
		for i := range v {
			im.set(to, path, v[i], nil) // for the report of what cannot be written
			items[i] = quote(v[i])
		}
		to[path] = "[" + strings.Join(items, ", ") + "]"
	default:
		to[path] = fmt.Sprint(v)
	}
}

func utf8Text(s string) bool { return strings.ToValidUTF8(s, "") == s }

// place is the first line that has a text.
func (im *importer) place(text string) pos {
	for i, l := range im.lines {
		if at := strings.Index(l, text); at >= 0 && text != "" {
			return pos{i + 1, at + 1}
		}
	}
	return top
}

// quote writes a text as HCL does, so that nothing in it is a template.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	last := rune(0)
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteRune(c)
		case c == '\n':
			b.WriteString(`\n`)
		case c == '\r':
			b.WriteString(`\r`)
		case c == '\t':
			b.WriteString(`\t`)
		case c < ' ' || c == 0x7f || c == '{' && (last == '$' || last == '%'):
			fmt.Fprintf(&b, `\u%04x`, c)
		default:
			b.WriteRune(c)
		}
		last = c
	}
	b.WriteByte('"')
	return b.String()
}

// service drafts one block.
func (im *importer) service(v *rawVirtual, s *model.Service) *draft {
	d := &draft{raw: v, texts: map[string]string{}, label: im.label(v, s.Virtual.Key), family: v.family()}
	set := func(path string, value, otherwise any) { im.set(d.texts, path, value, otherwise) }
	set("name", s.ServiceName, "")
	set("comment", s.Comment, "")
	set("scheduler", s.Virtual.Scheduler, defaultScheduler)
	set("scheduler_flags", s.Virtual.SchedFlags, "")
	if p := s.Virtual.Persistence; p.Enabled {
		set("persistence", p.Timeout, nil)
		set("persistence_netmask", p.MaskText(), "")
	}
	set("one_packet", s.Virtual.OnePacket, false)
	set("quiescent", s.Quiescent, false)
	set("readd_quiescent", s.ReaddQuiescent, false)
	set("clean_stop", s.CleanStop, true)
	set("fallback_command", s.FallbackCommand, "")
	set("monitor_file", s.MonitorFile, "")
	set("alert.to", s.Alert.To, "")
	set("alert.from", s.Alert.From, "")
	set("alert.relay", s.Alert.Relay, "")
	set("alert.repeat", s.Alert.Repeat, time.Duration(0))
	set("alert.states", s.Alert.Statuses, []string{"all"})
	set("check.interval", s.CheckInterval, defaultCheckInterval)
	set("check.fall", s.FailureCount, 1)
	im.check(d.texts, im.checks(v, s.Virtual.Key))
	forward := model.Masq
	if len(s.Reals) > 0 {
		forward = s.Reals[0].Forward
	}
	set("forward", forward.String(), model.Masq.String())
	d.fallback = im.fallbackBlock(v, s)
	d.reals = im.realBlocks(v, s, forward)
	return d
}

// label is the service as it is named in the file.
func (im *importer) label(v *rawVirtual, key model.ServiceKey) string {
	_, short, _ := inetAddr(v.host)
	if key.IsMark() || short || v.six && !strings.HasPrefix(v.host, "[") {
		return key.String()
	}
	return key.Proto.String() + " " + v.host + ":" + v.port
}

// check drafts what is checked, as far as its kind looks at it.
func (im *importer) check(texts map[string]string, c checks) {
	set := func(name string, value, otherwise any) { im.set(texts, "check."+name, value, otherwise) }
	set("type", typeName(&model.Target{Kind: c.kind, Application: c.application}), "")
	set("port", c.port, 0)
	switch c.kind {
	case model.CheckPing, model.CheckConnect:
		set("timeout", c.checkTimeout, defaultCheckTimeout)
		set("tries", c.tries, 1)
	case model.CheckExternal, model.CheckExternalPerl:
		set("timeout", c.checkTimeout, defaultCheckTimeout)
		set("command", c.command, defaultCheckCommand)
	case model.CheckNegotiate, model.CheckCombined:
		set("timeout", c.negotiateTimeout, defaultCheckTimeout)
		set("connect_timeout", c.checkTimeout, c.negotiateTimeout)
		set("connects", c.connects, 0)
		set("request", requestText(c.application, c.request), "")
		set("receive", c.receive, "")
		set("method", c.method, "GET")
		set("host", c.virtualHost, "")
		usual := checks{application: c.application}
		(&nativeLower{resolver: im.resolver}).anonymous(&usual, nil)
		set("login", c.login, usual.login)
		set("password", c.password, usual.password)
		set("database", c.database, "")
		set("secret", c.secret, "")
	case model.CheckNone, model.CheckOn, model.CheckOff:
	}
}

// requestText is a request as people write it: without the slash that every
// one gets, unless it is part of a URL.
func requestText(application, request string) string {
	bare := strings.TrimPrefix(request, "/")
	if withSlash(bare) != request || bare != "" && (application == "http" || application == "https") {
		return request
	}
	return bare
}

func (im *importer) fallbackBlock(v *rawVirtual, s *model.Service) string {
	if s.Fallback == nil {
		return ""
	}
	label := s.Fallback.Addr.String()
	name := "fallback"
	if v.six {
		name = "fallback6"
	}
	if w, ok := im.find(v, name); ok {
		f := w.fallback
		if _, _, number := inetAddr(f.host.text); !number && !v.six && (f.port.text == "" || digits(f.port.text)) {
			label = f.host.text // a name stays one
			if f.port.text != "" {
				label += ":" + f.port.text
			}
		}
	}
	block := "fallback " + quote(label)
	if s.Fallback.Forward == model.Gate {
		return block + " {}\n"
	}
	return block + " {\n  forward = " + quote(s.Fallback.Forward.String()) + "\n}\n"
}

// realBlocks writes the real servers: as the file names them, unless lines
// replace each other.
func (im *importer) realBlocks(v *rawVirtual, s *model.Service, forward model.Forward) []string {
	var out []string
	own := map[netip.AddrPort]rawReal{} // the line that counts
	expanded := 0
	for _, r := range v.reals {
		first, last, _ := im.cfLower.addresses(v, r)
		port := im.portOf(r, s.Virtual.Key)
		for a := first; ; a = a.Next() {
			own[netip.AddrPortFrom(a, port)] = r
			expanded++
			if a == last {
				break
			}
		}
	}
	write := func(label string, r rawReal, row model.RealServer) {
		texts := map[string]string{}
		if row.Forward != forward {
			texts["forward"] = quote(row.Forward.String())
		}
		im.set(texts, "weight", row.Weight, 1)
		im.set(texts, "upper_threshold", row.Upper, 0)
		im.set(texts, "lower_threshold", row.Lower, 0)
		if r.request != "" {
			im.set(texts, "check.request", r.request, nil)
			im.set(texts, "check.receive", r.receive.text, nil)
		}
		var b strings.Builder
		writeBody(&b, "real_server "+quote(label), realSpec, texts, nil)
		out = append(out, b.String())
	}
	if expanded != len(own) {
		for _, c := range s.Reals {
			write(c.Addr.String(), own[c.Addr], c.RealServer)
		}
		return out
	}
	at := 0
	for _, r := range v.reals {
		row := s.Reals[at].RealServer
		first, last, _ := im.cfLower.addresses(v, r)
		host := r.host.text
		if _, short, _ := inetAddr(host); short || looksLikeRange(host) {
			host = first.String()
		}
		for a := first; ; a = a.Next() {
			at++
			if a == last {
				break
			}
		}
		if r.last.text != "" {
			host = first.String() + "-" + last.String()
		}
		switch {
		case r.port.text != "":
			host += ":" + r.port.text
		case !s.Virtual.Key.IsMark():
			host += ":0"
		}
		write(host, r, row)
	}
	return out
}

// portOf is the port of a real line, 0 for none.
func (im *importer) portOf(r rawReal, key model.ServiceKey) uint16 {
	if r.port.text == "" {
		return 0
	}
	network := "tcp"
	if key.Proto == model.UDP {
		network = "udp"
	}
	p, _ := im.port(r.port.text, network, otherNetwork(network)) // it was resolved before
	return p
}

// looksLikeRange tells whether a native file would take a name for a range.
func looksLikeRange(host string) bool {
	from, to, found := strings.Cut(host, "-")
	_, _, first := inetAddr(from)
	_, _, last := inetAddr(to)
	return found && first && last
}

// shared takes out of the services what all of them say.
func shared(drafts []*draft) *draft {
	common := &draft{texts: map[string]string{}}
	if len(drafts) < 2 {
		return common
	}
	all := func(same func(*draft) bool) bool {
		return !slices.ContainsFunc(drafts, func(d *draft) bool { return !same(d) })
	}
	for path, text := range drafts[0].texts {
		if path != "name" && path != "comment" && all(func(d *draft) bool { return d.texts[path] == text }) {
			common.texts[path] = text
		}
	}
	if f := drafts[0].fallback; all(func(d *draft) bool { return d.fallback == f && d.family == drafts[0].family }) {
		common.fallback = f
	}
	for _, d := range drafts {
		for path := range common.texts {
			delete(d.texts, path)
		}
		if common.fallback != "" {
			d.fallback = ""
		}
	}
	return common
}

func compact(blocks ...string) []string {
	return slices.DeleteFunc(blocks, func(s string) bool { return s == "" })
}

// writeBlock writes a block that has something in it.
func writeBlock(b *strings.Builder, head string, spec *blockSpec, texts map[string]string, further []string) {
	if len(texts)+len(further) > 0 {
		b.WriteByte('\n')
		writeBody(b, head, spec, texts, further)
	}
}

// writeBody writes a block: attributes and blocks in the order of the grammar,
// then further blocks.
func writeBody(b *strings.Builder, head string, spec *blockSpec, texts map[string]string, further []string) {
	var inside strings.Builder
	width := 0
	for _, a := range spec.attributes {
		if _, ok := texts[a.name]; ok {
			width = max(width, len(a.name))
		}
	}
	for _, a := range spec.attributes {
		if t, ok := texts[a.name]; ok {
			fmt.Fprintf(&inside, "%-*s = %s\n", width, a.name, t)
		}
	}
	for _, c := range spec.blocks {
		part := map[string]string{}
		for path, t := range texts {
			if name, found := strings.CutPrefix(path, c.name+"."); found {
				part[name] = t
			}
		}
		if len(part) > 0 {
			if inside.Len() > 0 {
				inside.WriteByte('\n')
			}
			writeBody(&inside, c.name, c, part, nil)
		}
	}
	if len(further) > 0 && inside.Len() > 0 {
		inside.WriteByte('\n')
	}
	for _, f := range further {
		inside.WriteString(f)
	}
	if inside.Len() == 0 {
		b.WriteString(head + " {}\n")
		return
	}
	b.WriteString(head + " {\n")
	for line := range bytes.Lines([]byte(inside.String())) {
		if len(line) > 1 {
			b.WriteString("  ")
		}
		b.Write(line)
	}
	b.WriteString("}\n")
}
