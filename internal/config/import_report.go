package config

import (
	"cmp"
	"slices"
	"strings"
)

// nativeNames are the attributes that a directive becomes, by path; of several
// those that were written. A leading "." stands for the block director.
var nativeNames = map[string][]string{
	"checktimeout":     {"check.timeout", "check.connect_timeout"},
	"negotiatetimeout": {"check.timeout"},
	"checkinterval":    {"check.interval"},
	"checkcount":       {"check.tries"},
	"failurecount":     {"check.fall"},
	"checktype":        {"check.type", "check.connects"},
	"service":          {"check.type"},
	"checkcommand":     {"check.command"},
	"checkport":        {"check.port"},
	"request":          {"check.request"},
	"receive":          {"check.receive"},
	"httpmethod":       {"check.method"},
	"virtualhost":      {"check.host"},
	"login":            {"check.login"},
	"passwd":           {"check.password"},
	"database":         {"check.database"},
	"secret":           {"check.secret"},
	"scheduler":        {"scheduler"},
	"schedflags":       {"scheduler_flags"},
	"persistent":       {"persistence"},
	"netmask":          {"persistence_netmask"},
	"ops":              {"one_packet"},
	"quiescent":        {"quiescent"},
	"readdquiescent":   {"readd_quiescent"},
	"cleanstop":        {"clean_stop"},
	"fallbackcommand":  {"fallback_command"},
	"monitorfile":      {"monitor_file"},
	"emailalert":       {"alert.to"},
	"emailalertfrom":   {"alert.from"},
	"emailalertfreq":   {"alert.repeat"},
	"emailalertstatus": {"alert.states"},
	"smtp":             {"alert.relay"},
	"servicename":      {"name"},
	"comment":          {"comment"},
	"autoreload":       {".auto_reload"},
	"callback":         {".callback"},
	"logfile":          {".log_file"},
	"supervised":       {".supervised"},
	"execute":          {".execute"},
	"maintenancedir":   {".maintenance_dir"},
}

// leftOut are the directives that become nothing, and why.
var leftOut = map[string]string{
	"fork": "nothing: checks always run beside each other, and each service may have its own check.interval",
	"load": "nothing: it has no effect",
}

// secretWords are the directives whose values are not shown.
var secretWords = []string{"passwd", "secret"}

// became tells what became of each line that says something.
func (im *importer) became(director map[string]string, common *draft, drafts []*draft) []Became {
	var out []Became
	add := func(s setting, now string) {
		was := s.word + "=" + clip(s.value.text)
		if slices.Contains(secretWords, s.word) {
			was = s.word + "=..."
		}
		out = append(out, Became{s.line, oneLine(was), oneLine(now)})
	}
	find := func(paths []string, d *draft) string {
		var found []string
		for _, path := range paths {
			name, own := strings.CutPrefix(path, ".")
			switch {
			case own && director[name] != "":
				found = append(found, "director: "+shown(name, director[name]))
			case own:
			case d != nil && d.texts[path] != "":
				found = append(found, shown(path, d.texts[path]))
			case common.texts[path] != "":
				found = append(found, "defaults: "+shown(path, common.texts[path]))
			case d == nil && slices.ContainsFunc(drafts, func(d *draft) bool { return d.texts[path] != "" }):
				found = append(found, path+" in each service that does not say otherwise")
			}
		}
		return strings.Join(found, ", ")
	}
	one := func(s setting, d *draft) {
		switch now, gone := leftOut[s.word]; {
		case gone:
			add(s, now)
		case s.word == "fallback" || s.word == "fallback6":
			add(s, "fallback, with the port of the service where none is written")
		case s.word == "protocol":
			add(s, "the transport in the service's label")
		default:
			add(s, orElse(find(nativeNames[s.word], d), "nothing: it is the default, or this type of check does not look at it"))
		}
	}
	for _, w := range sortedKeys(im.raw.settings) {
		one(im.raw.settings[w], nil)
	}
	for _, s := range im.raw.execute {
		one(s, nil)
	}
	written := map[*rawVirtual]*draft{}
	for _, d := range drafts {
		written[d.raw] = d
	}
	for _, v := range im.raw.virtuals {
		d := written[v]
		if d == nil {
			out = append(out, Became{v.line, v.keyword() + "=" + clip(v.value.text), "nothing: it is no service"})
			continue
		}
		out = append(out, Became{v.line, v.keyword() + "=" + oneLine(clip(v.value.text)), "service " + quote(d.label)})
		for _, w := range sortedKeys(v.settings) {
			one(v.settings[w], d)
		}
		for _, r := range v.reals {
			out = append(out, Became{r.line, "real=" + r.host.text, "real_server in service " + quote(d.label)})
		}
	}
	slices.SortStableFunc(out, func(a, b Became) int { return cmp.Compare(a.Line, b.Line) })
	return out
}

// shown is an attribute as written; secrets stay hidden.
func shown(path, text string) string {
	if slices.Contains(hidden, strings.TrimPrefix(path, "check.")) {
		text = `"..."`
	}
	return path + " = " + text
}
