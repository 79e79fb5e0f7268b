package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// rawHaCf is an ha.cf as written, its values already understood one by one.
type rawHaCf struct {
	settings map[string]haLine // of repeated directives the last
	all      []haLine          // in file order
	nodes    []word
	media    []rawMedium
}

// haLine is one directive with its values.
type haLine struct {
	pos
	word string
	args []word
	rest word   // the values as one text
	form string // of the values, for messages
}

// last is the value that counts where a directive takes one and has several.
func (h haLine) last() word { return h.args[len(h.args)-1] }

// rawMedium is one heartbeat path as written. Its port is that of the last
// udpport line above it.
type rawMedium struct {
	kind model.MediumKind
	word string // the directive
	at   pos
	args []word
	port int // 0: the default
	baud int // 0: the default
}

// haParser reads one ha.cf.
type haParser struct {
	*problems
	raw  rawHaCf
	port int // of the last udpport line
	baud int
}

// longestHaLine is what Heartbeat reads of a line, in bytes.
const longestHaLine = 5119

// parseHaCf reads an ha.cf. Every bad line is an error, as it is for
// Heartbeat.
func parseHaCf(p *problems, data []byte) *rawHaCf {
	h := &haParser{problems: p, raw: rawHaCf{settings: map[string]haLine{}}}
	for i, line := range splitLines(p, data) {
		if len(line) > longestHaLine {
			p.error(pos{i + 1, longestHaLine + 1}, "the line is too long", fmt.Sprintf("at most %d bytes", longestHaLine))
			continue
		}
		line, _, _ = strings.Cut(line, "#")
		text, indent := trimLeft(line)
		if text == "" {
			continue
		}
		h.line(word{pos{i + 1, indent + 1}, strings.TrimRight(text, " \t")})
	}
	return &h.raw
}

func (h *haParser) line(w word) {
	name := w.text
	if i := strings.IndexAny(name, " \t"); i >= 0 {
		name = name[:i]
	}
	d, known := haDirectives[name]
	if !known {
		hint := didYouMean(name, haDirectiveWords)
		if name == "normalpoll" {
			hint = "remove the line: no Heartbeat of today has it"
		}
		h.error(w.pos, fmt.Sprintf("unknown directive %q", clip(name)), hint)
		return
	}
	rest, blanks := trimLeft(w.text[len(name):])
	l := haLine{pos: w.pos, word: name, form: d.form, rest: word{w.after(len(name) + blanks), rest}}
	separators := ","
	if d.wholeLine {
		separators = ""
	}
	l.args = fields(l.rest, separators)
	if len(l.args) == 0 {
		h.error(w.pos, name+" has no value", "write "+name+" "+d.form)
		return
	}
	if !d.read(h, l) {
		return
	}
	if _, twice := h.raw.settings[name]; twice && d.once {
		h.error(w.pos, name+" may be given once only", "remove one of the lines")
		return
	}
	h.raw.settings[name] = l
	h.raw.all = append(h.raw.all, l)
}

// haDirective is how the values of a directive are read.
type haDirective struct {
	form      string // of its values, for messages
	wholeLine bool   // commas do not separate values
	once      bool
	read      func(h *haParser, l haLine) bool
}

// haDirectives is the whole vocabulary of ha.cf.
var haDirectives = map[string]haDirective{
	// Batuta's own.
	"suspecttime": {form: "SECONDS, or Nms; 0 for none", read: haTimeOrNone},
	"quarantine":  {form: "FAILURES", read: haNumber(0, 100)},

	"node": {form: "NAME...", read: func(h *haParser, l haLine) bool {
		h.raw.nodes = append(h.raw.nodes, l.args...)
		return true
	}},
	"keepalive": {form: "SECONDS, or Nms", read: haTime},
	"deadtime":  {form: "SECONDS, or Nms", read: haTime},
	"warntime":  {form: "SECONDS, or Nms", read: haTime},
	"initdead":  {form: "SECONDS, or Nms", read: haTime},
	"deadping":  {form: "SECONDS, or Nms", read: haTime},
	"hopfudge":  {form: "N", read: haNumber(0, 255)},
	"udpport": {form: "PORT", read: func(h *haParser, l haLine) bool {
		ok := haNumber(1, 65535)(h, l)
		if ok {
			h.port, _ = number(l.last().text)
		}
		return ok
	}},
	"baud": {form: "RATE", once: true, read: func(h *haParser, l haLine) bool {
		ok := haWord("9600", "19200", "38400", "57600", "115200", "230400", "460800")(h, l)
		if ok {
			h.baud, _ = number(l.last().text)
		}
		return ok
	}},

	"bcast":      {form: "INTERFACE...", read: medium(model.Broadcast, 1)},
	"udp":        {form: "INTERFACE...", read: medium(model.Broadcast, 1)},
	"ucast":      {form: "INTERFACE HOST", wholeLine: true, read: medium(model.Unicast, 2)},
	"ucast6":     {form: "INTERFACE ADDRESS", wholeLine: true, read: medium(model.Unicast, 2)},
	"mcast":      {form: "INTERFACE GROUP PORT TTL LOOP", wholeLine: true, read: medium(model.Multicast, 5)},
	"mcast6":     {form: "INTERFACE GROUP PORT HOPS LOOP", wholeLine: true, read: medium(model.Multicast, 5)},
	"serial":     {form: "DEVICE...", read: medium(model.Serial, 1)},
	"ping":       {form: "HOST...", read: medium(model.Ping, 1)},
	"ping6":      {form: "HOST...", read: medium(model.Ping, 1)},
	"ping_group": {form: "NAME HOST...", wholeLine: true, read: medium(model.PingGroup, 2)},
	"hbaping":    {form: "HOST...", wholeLine: true, read: medium(model.MediumNone, 1)},
	"rds":        {form: "INTERFACE HOST", wholeLine: true, read: medium(model.MediumNone, 1)},
	"tipc":       {form: "...", wholeLine: true, read: medium(model.MediumNone, 1)},

	"auto_failback": {form: "on|off|legacy", read: haWord("on", "off", "legacy")},
	"nice_failback": {form: "on|off", read: haBoolean},

	"stonith":      {form: "TYPE FILE", wholeLine: true, read: atLeast(2)},
	"stonith_host": {form: "HOST TYPE PARAMETERS...", wholeLine: true, read: atLeast(2)},
	"watchdog":     {form: "DEVICE", once: true, read: atLeast(1)},
	"respawn":      {form: "USER COMMAND...", wholeLine: true, read: haCommand},
	"failfast":     {form: "USER COMMAND...", wholeLine: true, read: haCommand},
	"apiauth":      {form: "NAME uid=USERS gid=GROUPS", wholeLine: true, read: haAPIAuth},
	"env":          {form: "NAME=VALUE", read: haEnv},

	"logfile":        {form: "PATH", read: atLeast(1)},
	"debugfile":      {form: "PATH", read: atLeast(1)},
	"logfacility":    {form: "FACILITY", read: haWord(facilities...)},
	"use_logd":       {form: "on|off", read: haBoolean},
	"conn_logd_time": {form: "SECONDS, or Nms", read: haTime},
	"syslogmsgfmt":   {form: "on|off", read: haBoolean},
	"debug":          {form: "LEVEL", read: haNumber(0, 255)},
	"log_badpack":    {form: "on|off", read: haBoolean},

	"realtime":   {form: "on|off", read: haBoolean},
	"rtprio":     {form: "N", read: haNumber(1, 99)},
	"memreserve": {form: "KILOBYTES", read: haNumber(1, maxNumber)},
	"coredumps":  {form: "on|off", read: haBoolean},
	"coreroot":   {form: "DIRECTORY", read: atLeast(1)},

	"msgfmt":                  {form: "classic|netstring", read: haWord("classic", "netstring")},
	"compression":             {form: "zlib|bz2", read: haWord("zlib", "bz2")},
	"compression_threshold":   {form: "KILOBYTES", read: haNumber(1, maxNumber)},
	"traditional_compression": {form: "on|off", read: haBoolean},
	"max_rexmit_delay":        {form: "MILLISECONDS", read: haNumber(1, maxNumber)},
	"hbgenmethod":             {form: "file|time", read: haWord("file", "time")},
	"uuidfrom":                {form: "file|nodename", read: haWord("file", "nodename")},
	"autojoin":                {form: "none|other|any", read: haWord("none", "other", "any")},
	"cluster":                 {form: "NAME", read: atLeast(1)},
	"use_apphbd":              {form: "on|off", read: haBoolean},
	"quorum_server":           {form: "HOST", read: atLeast(1)},

	"crm":                   {form: "on|off|respawn|manual", once: true, read: haCRM},
	"pacemaker":             {form: "on|off|respawn|manual", once: true, read: haCRM},
	"crm_daemon_dir":        {form: "DIRECTORY", read: atLeast(1)},
	"crmd_spawns_pengine":   {form: "on|off", read: haBoolean},
	"record_config_changes": {form: "on|off", read: haBoolean},
	"record_pengine_inputs": {form: "on|off", read: haBoolean},
	"enable_config_writes":  {form: "on|off", read: haBoolean},
}

// haDirectiveWords are its words in order, for "did you mean".
var haDirectiveWords = sortedKeys(haDirectives)

var facilities = []string{"none", "auth", "authpriv", "cron", "daemon", "ftp", "kern", "lpr", "mail", "news", "syslog", "user", "uucp",
	"local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7"}

// duration reads a number with an optional fraction: of seconds, or with ms,
// us or usec behind it.
func duration(s string) (time.Duration, bool) {
	unit := time.Second
	for _, u := range []struct {
		suffix string
		unit   time.Duration
	}{{"ms", time.Millisecond}, {"usec", time.Microsecond}, {"us", time.Microsecond}} {
		if n, found := strings.CutSuffix(s, u.suffix); found {
			s, unit = n, u.unit
			break
		}
	}
	whole, fraction, dot := strings.Cut(s, ".")
	if !digits(whole) || dot && fraction != "" && !digits(fraction) {
		return 0, false
	}
	n, ok := number(whole)
	if !ok {
		return 0, false
	}
	d := time.Duration(n) * unit
	if fraction != "" {
		f, err := strconv.ParseFloat("0."+fraction, 64)
		if err != nil {
			return 0, false
		}
		d += time.Duration(f * float64(unit))
	}
	return d, true
}

// boolean reads Heartbeat's words for yes and no, in any case.
func boolean(s string) (value, ok bool) {
	switch strings.ToLower(s) {
	case "true", "on", "yes", "y", "1":
		return true, true
	case "false", "off", "no", "n", "0":
		return false, true
	}
	return false, false
}

// haTimeOrNone is haTime where 0 is allowed.
func haTimeOrNone(h *haParser, l haLine) bool {
	if len(l.args) == 1 {
		if d, good := duration(l.args[0].text); good && d == 0 {
			return true
		}
	}
	return haTime(h, l)
}

func haTime(h *haParser, l haLine) bool {
	ok := true
	for _, a := range l.args {
		d, good := duration(a.text)
		switch {
		case !good:
			h.error(a.pos, fmt.Sprintf("%s: %q is not a time", l.word, clip(a.text)), "write seconds without a unit, or milliseconds as 500ms")
		case d <= 0:
			h.error(a.pos, l.word+" must be above 0", "write seconds, or milliseconds as 500ms")
		}
		ok = ok && good && d > 0
	}
	return ok
}

func haNumber(low, high int) func(*haParser, haLine) bool {
	return func(h *haParser, l haLine) bool {
		ok := true
		for _, a := range l.args {
			n, good := number(a.text)
			if !digits(a.text) || !good || n < low || n > high {
				h.error(a.pos, fmt.Sprintf("%s: %q is not a number from %d to %d", l.word, clip(a.text), low, high), "")
				ok = false
			}
		}
		return ok
	}
}

func haWord(words ...string) func(*haParser, haLine) bool {
	return func(h *haParser, l haLine) bool {
		ok := true
		for _, a := range l.args {
			if !slices.Contains(words, a.text) {
				h.error(a.pos, fmt.Sprintf("%s: unknown word %q", l.word, clip(a.text)), orElse(didYouMean(a.text, words), "write "+oneOf(words...)))
				ok = false
			}
		}
		return ok
	}
}

func haBoolean(h *haParser, l haLine) bool {
	for _, a := range l.args {
		if _, ok := boolean(a.text); !ok {
			h.error(a.pos, fmt.Sprintf("%s: %q is neither on nor off", l.word, clip(a.text)), "write on or off")
			return false
		}
	}
	return true
}

func haCRM(h *haParser, l haLine) bool {
	for _, a := range l.args {
		if _, ok := boolean(a.text); ok {
			continue
		}
		words := []string{"respawn", "manual", "minimal", "ccm-only", "valgrind"}
		if !slices.Contains(words, strings.ToLower(a.text)) {
			h.error(a.pos, fmt.Sprintf("%s: unknown word %q", l.word, clip(a.text)), orElse(didYouMean(a.text, words), "write off to use haresources"))
			return false
		}
	}
	return true
}

func atLeast(n int) func(*haParser, haLine) bool {
	return func(h *haParser, l haLine) bool {
		if len(l.args) < n {
			h.error(l.pos, l.word+" lacks a value", "write "+l.word+" "+l.form)
			return false
		}
		return true
	}
}

// haCommand reads a program that runs beside Heartbeat.
func haCommand(h *haParser, l haLine) bool {
	if !atLeast(2)(h, l) {
		return false
	}
	if !strings.HasPrefix(l.args[1].text, "/") {
		h.error(l.args[1].pos, fmt.Sprintf("%s: %q is not an absolute path", l.word, clip(l.args[1].text)), "write the whole path of the program")
		return false
	}
	return true
}

func haAPIAuth(h *haParser, l haLine) bool {
	for _, a := range l.args[1:] {
		if !strings.HasPrefix(a.text, "uid=") && !strings.HasPrefix(a.text, "gid=") {
			h.error(a.pos, fmt.Sprintf("apiauth: %q is neither uid=... nor gid=...", clip(a.text)), "write apiauth NAME uid=USER,USER gid=GROUP")
			return false
		}
	}
	return atLeast(2)(h, l)
}

func haEnv(h *haParser, l haLine) bool {
	ok := true
	for _, a := range l.args {
		if i := strings.IndexByte(a.text, '='); i < 1 {
			h.error(a.pos, fmt.Sprintf("env: %q is not NAME=VALUE", clip(a.text)), "")
			ok = false
		}
	}
	return ok
}

// medium notes a heartbeat path, to be resolved when the file is complete.
// Those that list interfaces or devices are one path each.
func medium(kind model.MediumKind, least int) func(*haParser, haLine) bool {
	return func(h *haParser, l haLine) bool {
		if !atLeast(least)(h, l) {
			return false
		}
		if l.word == "udp" {
			h.warn(l.pos, "udp is the old name of bcast", "write bcast")
		}
		m := rawMedium{kind: kind, word: l.word, at: l.pos, args: l.args, port: h.port, baud: h.baud}
		if kind == model.Broadcast || kind == model.Serial || kind == model.Ping {
			for i := range l.args {
				m.at, m.args = l.args[i].pos, l.args[i:i+1]
				h.raw.media = append(h.raw.media, m)
			}
			return true
		}
		h.raw.media = append(h.raw.media, m)
		return true
	}
}
