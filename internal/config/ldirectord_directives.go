package config

import (
	"fmt"
	"slices"
	"strings"
)

// reading makes the plain value of a directive, or reports why there is none
// and returns false. b is nil for a global line. It also returns false where
// nothing is left to store because b already has it.
type reading func(c *cfParser, b *rawVirtual, s *setting) bool

// directive is how a word is read in each context; nil: not allowed there.
type directive struct{ global, virtual reading }

// directives is the whole vocabulary of ldirectord.cf.
var directives = map[string]directive{
	"virtual":  {},
	"virtual6": {},

	"real":      {virtual: realServer},
	"real6":     {virtual: realServer},
	"fallback":  {global: fallback, virtual: fallback},
	"fallback6": {global: fallback, virtual: fallback},

	"checktimeout":     {global: positive, virtual: positive},
	"negotiatetimeout": {global: positive, virtual: positive},
	"checkinterval":    {global: positive, virtual: positive},
	"checkcount":       {global: deprecatedCount, virtual: deprecatedCount},
	"failurecount":     {global: positive, virtual: positive},
	"connecttimeout":   {global: successor, virtual: successor},
	"timeout":          {global: successor},

	"checktype":    {virtual: checkType},
	"checkcommand": {virtual: quotedOrRest},
	"checkport":    {virtual: checkPort},
	"service":      {virtual: service},
	"request":      {virtual: request},
	"receive":      {virtual: quoted},
	"httpmethod":   {virtual: httpMethod},
	"virtualhost":  {virtual: virtualHost},
	"login":        {virtual: quoted},
	"passwd":       {virtual: quoted},
	"database":     {virtual: quoted},
	"secret":       {virtual: quoted},
	"load":         {virtual: load},

	"scheduler":  {virtual: scheduler},
	"persistent": {virtual: persistent},
	"netmask":    {virtual: netmask},
	"schedflags": {virtual: firstWord},
	"protocol":   {virtual: protocol},
	"ops":        {virtual: yesNo},

	"quiescent":       {global: yesNo, virtual: yesNo},
	"cleanstop":       {global: yesNo, virtual: yesNo},
	"readdquiescent":  {global: yesNo},
	"autoreload":      {global: yesNo},
	"supervised":      {global: yesNo},
	"fork":            {global: yesNo},
	"fallbackcommand": {global: restOfLine, virtual: quotedOrRest},
	"callback":        {global: quoted},
	"logfile":         {global: quoted},
	"execute":         {global: execute},
	"maintenancedir":  {global: restOfLine},
	"monitorfile":     {virtual: quotedOrRest},

	"emailalert":       {global: emailAlert, virtual: emailAlert},
	"emailalertfrom":   {global: restOfLine},
	"emailalertfreq":   {global: emailAlertFreq, virtual: emailAlertFreq},
	"emailalertstatus": {global: emailAlertStatus, virtual: emailAlertStatus},
	"smtp":             {global: smtpHost, virtual: smtpHost},
	"servicename":      {virtual: restOfLine},
	"comment":          {virtual: restOfLine},
}

// directiveWords are its words in order, for "did you mean".
var directiveWords = sortedKeys(directives)

// bare is the value without blanks at its end and, in a global line, without
// a comment: ldirectord keeps both there, and then refuses most of them.
func bare(b *rawVirtual, s *setting) string {
	v := s.value.text
	if b == nil {
		for i := range len(v) {
			if v[i] == '#' && (i == 0 || blank(v[i-1])) {
				v = v[:i]
				break
			}
		}
	}
	return strings.TrimRight(v, " \t")
}

// digitsOf finds the number of a value as ldirectord does: the first run of
// digits, whatever else is there.
func (c *cfParser) digitsOf(b *rawVirtual, s *setting) (text string, n int, ok bool) {
	v := bare(b, s)
	text, ok = firstNumber(v)
	if !ok {
		c.error(s.value.pos, fmt.Sprintf("%s: %q is not a number", s.word, clip(v)), "write a whole number without a unit")
		return "", 0, false
	}
	if n, ok = number(text); !ok {
		c.error(s.value.pos, fmt.Sprintf("%s: %s is too large", s.word, clip(text)), fmt.Sprintf("at most %d", maxNumber))
		return "", 0, false
	}
	if v != text {
		unit := ""
		if slices.Contains(inSeconds, s.word) {
			unit = " seconds"
		}
		c.warn(s.value.pos, fmt.Sprintf("%s: %q is read as %d%s", s.word, clip(v), n, unit), "write the digits only: units and fractions are not understood")
	}
	return text, n, true
}

// inSeconds are the numbers that are times.
var inSeconds = []string{"checktimeout", "negotiatetimeout", "checkinterval", "persistent", "emailalertfreq"}

// positive reads a number above 0. In a virtual service "00" passes, and
// counts as not given.
func positive(c *cfParser, b *rawVirtual, s *setting) bool {
	text, n, ok := c.digitsOf(b, s)
	if !ok {
		return false
	}
	if n == 0 {
		if b != nil && len(text) > 1 {
			c.warn(s.value.pos, fmt.Sprintf("%s: %q is no value, and the global one is used", s.word, text), "write a number above 0")
			return false
		}
		c.error(s.value.pos, s.word+" must be above 0", "write a whole number of at least 1")
		return false
	}
	s.value.text = text
	return true
}

func deprecatedCount(c *cfParser, b *rawVirtual, s *setting) bool {
	c.warn(s.pos, s.word+" is deprecated and counts for checktype=ping only", "see failurecount")
	return positive(c, b, s)
}

// successor refuses the names of an older ldirectord.
func successor(c *cfParser, _ *rawVirtual, s *setting) bool {
	c.error(s.pos, s.word+" is no longer a directive", "write negotiatetimeout for whole answers, checktimeout for the rest")
	return false
}

// yesNo reads yes or no. Blanks behind it, a comment, capitals and quotes are
// taken as meant.
func yesNo(c *cfParser, b *rawVirtual, s *setting) bool {
	v := s.value.text
	if v == "yes" || v == "no" {
		return true
	}
	meant := strings.ToLower(strings.Trim(bare(b, s), `"`))
	if meant != "yes" && meant != "no" {
		c.error(s.value.pos, fmt.Sprintf("%s must be yes or no, not %q", s.word, clip(v)), "")
		return false
	}
	c.warn(s.value.pos, fmt.Sprintf("%s: %q is taken as %s", s.word, v, meant),
		"write "+s.word+"="+meant+" with nothing behind it: ldirectord refuses the line")
	s.value.text = meant
	return true
}

// between is what stands between the first and the last double quote.
func between(v string) (s string, quotes int) {
	quotes = strings.Count(v, `"`)
	if quotes < 2 {
		return "", quotes
	}
	return v[strings.IndexByte(v, '"')+1 : strings.LastIndexByte(v, '"')], quotes
}

// quoted reads a string in quotes that is not empty.
func quoted(c *cfParser, b *rawVirtual, s *setting) bool {
	v, quotes := between(s.value.text)
	switch quotes {
	case 0:
		if v = bare(b, s); v == "" {
			break
		}
		c.warn(s.value.pos, "the value of "+s.word+" has no quotes around it, and is taken up to the end of the line",
			"write "+s.word+`="...": ldirectord refuses it without`)
	case 1:
		c.error(s.value.pos, s.word+" lacks a double quote", "write "+s.word+`="..."`)
		return false
	}
	if v == "" {
		c.error(s.value.pos, s.word+" is empty", "write "+s.word+`="...", or remove the line`)
		return false
	}
	s.value.text = v
	return true
}

func load(c *cfParser, b *rawVirtual, s *setting) bool {
	if !quoted(c, b, s) {
		return false
	}
	if !strings.ContainsFunc(s.value.text, func(r rune) bool { return r < 128 && wordByte(byte(r)) && r != '_' && r != '-' }) {
		c.error(s.value.pos, "load must contain a letter or a digit", "remove the line: its value has no effect")
		return false
	}
	c.note(s.pos, "load has no effect, as in ldirectord", "remove the line")
	return true
}

// quotedOrRest reads a string in quotes, or else the rest of the line.
func quotedOrRest(c *cfParser, b *rawVirtual, s *setting) bool {
	v, quotes := between(s.value.text)
	if quotes < 2 {
		v = bare(b, s)
	}
	s.value.text = v
	return c.notEmpty(s)
}

func restOfLine(c *cfParser, _ *rawVirtual, s *setting) bool {
	s.value.text = strings.TrimRight(s.value.text, " \t")
	return c.notEmpty(s)
}

func (c *cfParser) notEmpty(s *setting) bool {
	if s.value.text == "" {
		c.warn(s.pos, s.word+" has no value and is ignored", "remove the line")
	}
	return s.value.text != ""
}

func firstWord(c *cfParser, _ *rawVirtual, s *setting) bool {
	s.value.text = firstField(s.value.text)
	return c.notEmpty(s)
}

func execute(c *cfParser, b *rawVirtual, s *setting) bool {
	if restOfLine(c, b, s) {
		c.raw.execute = append(c.raw.execute, *s)
	}
	return false
}

// virtualHost reads the rest of the line: one leading quote is skipped, the
// next one ends it.
func virtualHost(c *cfParser, _ *rawVirtual, s *setting) bool {
	v, _, _ := strings.Cut(strings.TrimPrefix(s.value.text, `"`), `"`)
	s.value.text = strings.TrimRight(v, " \t")
	return c.notEmpty(s)
}

func request(c *cfParser, b *rawVirtual, s *setting) bool {
	ok := quoted(c, b, s)
	s.value.text = withSlash(s.value.text)
	return ok
}

// withSlash puts a slash in front, as ldirectord does for every service.
func withSlash(r string) string {
	if strings.HasPrefix(r, "/") {
		return r
	}
	return "/" + r
}

// checkTypes are the words of checktype. Anything that contains a digit is a
// combined check.
var checkTypes = []string{"connect", "external", "external-perl", "negotiate", "off", "on", "ping"}

func checkType(c *cfParser, b *rawVirtual, s *setting) bool {
	v := strings.Trim(bare(b, s), `"`)
	if n, found := firstNumber(v); found {
		if v != n {
			c.warn(s.value.pos, fmt.Sprintf("checktype %q contains a digit and is read as %s: one negotiate, then %s connects", clip(v), n, n), "write checktype="+n)
		}
		if _, ok := number(n); !ok {
			c.error(s.value.pos, "checktype: "+clip(n)+" is too large", "")
			return false
		}
		s.value.text = n
		return true
	}
	return c.known(s, strings.Trim(firstField(v), `"`), checkTypes)
}

// serviceWords are the protocols that a negotiate check may speak.
var serviceWords = []string{"dns", "ftp", "http", "http_proxy", "https", "imap", "imaps", "ldap", "ldaps", "mysql", "nntp",
	"none", "oracle", "pgsql", "pop", "pops", "radius", "simpletcp", "sip", "smtp", "submission"}

func service(c *cfParser, b *rawVirtual, s *setting) bool {
	return c.known(s, firstField(bare(b, s)), serviceWords)
}

// known accepts one of words; in capitals it is taken as meant.
func (c *cfParser) known(s *setting, v string, words []string) bool {
	meant := strings.ToLower(strings.Trim(v, `"`))
	if !slices.Contains(words, meant) {
		hint := didYouMean(v, words)
		if hint == "" {
			hint = "write " + oneOf(words...)
		}
		c.error(s.value.pos, fmt.Sprintf("unknown %s %q", s.word, clip(v)), hint)
		return false
	}
	if v != meant && s.word != "httpmethod" {
		c.warn(s.value.pos, fmt.Sprintf("%s: %s is taken as %s", s.word, clip(v), meant), "write "+s.word+"="+meant+": ldirectord refuses it like this")
	}
	s.value.text = meant
	return true
}

func httpMethod(c *cfParser, b *rawVirtual, s *setting) bool {
	ok := c.known(s, firstField(bare(b, s)), []string{"get", "head"})
	s.value.text = strings.ToUpper(s.value.text)
	return ok
}

func protocol(c *cfParser, b *rawVirtual, s *setting) bool {
	words := []string{"tcp", "udp"}
	why := "protocol must be tcp or udp where the virtual service is an address"
	if b.isMark() {
		words, why = []string{"fwm"}, "protocol must be fwm where the virtual service is a firewall mark"
	}
	first := firstField(bare(b, s))
	if !b.bad && !slices.Contains(words, strings.ToLower(first)) {
		hint := "remove the line"
		if b.isMark() {
			hint = "for an address write virtual=ADDRESS:PORT"
		}
		c.error(s.value.pos, why, hint)
		return false
	}
	return b.bad || c.known(s, first, words)
}

// schedulers are those of the Linux kernel.
var schedulers = []string{"dh", "fo", "lblc", "lblcr", "lc", "mh", "nq", "ovf", "rr", "sed", "sh", "twos", "wlc", "wrr"}

// scheduler takes the first run of small letters, which need not be a
// scheduler that exists: a plane refuses the service then.
func scheduler(c *cfParser, b *rawVirtual, s *setting) bool {
	v := bare(b, s)
	small := func(r rune) bool { return r >= 'a' && r <= 'z' }
	name := ""
	if i := strings.IndexFunc(v, small); i >= 0 {
		name = v[i:]
		if j := strings.IndexFunc(name, func(r rune) bool { return !small(r) }); j >= 0 {
			name = name[:j]
		}
	}
	switch {
	case name == "" && slices.Contains(schedulers, strings.ToLower(v)):
		name = strings.ToLower(v)
		c.warn(s.value.pos, fmt.Sprintf("scheduler: %q is taken as %s", v, name), "write it in small letters: ldirectord refuses capitals")
	case name == "":
		c.error(s.value.pos, fmt.Sprintf("scheduler: %q is no scheduler", clip(v)), "write one of "+strings.Join(schedulers, " "))
		return false
	case !slices.Contains(schedulers, name):
		c.warn(s.value.pos, fmt.Sprintf("scheduler: there is no %q; the kernel will refuse this virtual service", clip(name)), didYouMean(name, schedulers))
	case v != name:
		c.warn(s.value.pos, fmt.Sprintf("scheduler: %q is read as %s", clip(v), name), "write scheduler="+name)
	}
	s.value.text = name
	return true
}

// persistent takes a number of seconds; 0 is allowed.
func persistent(c *cfParser, b *rawVirtual, s *setting) bool {
	text, _, ok := c.digitsOf(b, s)
	s.value.text = text
	return ok
}

func checkPort(c *cfParser, b *rawVirtual, s *setting) bool {
	v := bare(b, s)
	n, ok := number(v)
	if !digits(v) || !ok || n < 1 || n > 65535 {
		c.error(s.value.pos, fmt.Sprintf("checkport: %q is not a port number", clip(v)), "write a number from 1 to 65535: names are not looked up here")
		return false
	}
	s.value.text = v
	return true
}

// emailAlert reads addresses with optional quotes around all of it.
func emailAlert(c *cfParser, b *rawVirtual, s *setting) bool {
	v := bare(b, s)
	if len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"' {
		v = v[1 : len(v)-1]
	}
	if v == "" {
		c.error(s.pos, s.word+" has no address", "write emailalert=ADMIN@EXAMPLE.ORG, or remove the line")
		return false
	}
	s.value.text = v
	return true
}

func emailAlertFreq(c *cfParser, b *rawVirtual, s *setting) bool {
	if v := s.value.text; v == "" || v[0] < '0' || v[0] > '9' {
		c.error(s.value.pos, fmt.Sprintf("%s: %q is not a number of seconds", s.word, clip(v)), "write a whole number; 0 means no repetition")
		return false
	}
	return persistent(c, b, s)
}

var alertStates = []string{"all", "none", "starting", "running", "stopping", "reloading"}

func emailAlertStatus(c *cfParser, b *rawVirtual, s *setting) bool {
	list := fields(word{s.value.pos, bare(b, s)}, ",")
	if len(list) == 0 {
		c.error(s.pos, s.word+" is empty", "write a list of "+oneOf(alertStates...))
		return false
	}
	var out []string
	ok := true
	for _, w := range list {
		if !slices.Contains(alertStates, w.text) {
			c.error(w.pos, fmt.Sprintf("%s: unknown state %q", s.word, clip(w.text)), didYouMean(w.text, alertStates))
			ok = false
		}
		out = append(out, w.text)
	}
	if len(out) > 1 && slices.Contains(out, "none") {
		c.error(s.value.pos, s.word+": none cannot stand with others", "")
		ok = false
	}
	s.value.text = strings.Join(out, ",")
	return ok
}

// smtpHost takes a host name from the beginning of the value.
func smtpHost(c *cfParser, b *rawVirtual, s *setting) bool {
	v := bare(b, s)
	unquoted := strings.Trim(v, `"`)
	host := unquoted[:hostLen(unquoted)]
	switch {
	case host == "":
		c.error(s.value.pos, fmt.Sprintf("smtp: %q is not a host name", clip(v)), "write smtp=HOST")
		return false
	case v != unquoted:
		c.warn(s.value.pos, "smtp: the quotes are ignored", "write smtp="+host+": ldirectord refuses quotes here")
	case v != host:
		c.warn(s.value.after(len(host)), fmt.Sprintf("smtp: %q behind the host name is ignored", clip(v[len(host):])), "remove it")
	}
	s.value.text = host
	return true
}

// hostLen is the length of the host name that s begins with.
func hostLen(s string) int {
	i := 0
	for i < len(s) && (wordByte(s[i]) || s[i] == '.' || s[i] == '+') {
		i++
	}
	return i
}
