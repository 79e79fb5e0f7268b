package config

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
)

// rawReal is a `real` line.
type rawReal struct {
	pos
	host, last   word // last: end of a range, or ""
	port         word
	forward      model.Forward
	weight       int
	request      string // "" for that of the virtual service
	receive      word
	lower, upper uint32
}

// rawFallback is what a `fallback` line says.
type rawFallback struct {
	host, port word
	forward    model.Forward
	unusable   bool // accepted, but without a meaning
}

// virtualValue reads what stands behind virtual= or virtual6=. As in
// ldirectord only the beginning has to match, and a number that is followed
// by anything else is a firewall mark.
func (c *cfParser) virtualValue(b *rawVirtual) bool {
	v := b.value.text
	host := hostLen(v)
	rest := ""
	switch {
	case v == "":
		c.error(b.pos, "the virtual service has no address", "write virtual=ADDRESS:PORT or virtual=FIREWALLMARK")
		return false
	case b.six && !strings.HasPrefix(v, "[") && strings.Count(v, ":") > 1:
		c.error(b.value.pos, fmt.Sprintf("%q: an IPv6 address needs brackets", clip(v)), "write "+b.form())
		return false
	case !b.six && strings.HasPrefix(v, "["):
		c.error(b.value.pos, "an IPv6 address in virtual", "write virtual6="+clip(v)+", and real6 and fallback6 below it")
		return false
	case host > 0 && portAt(v[host:]) > 0:
		n := portAt(v[host:])
		b.host, b.port, rest = v[:host], v[host+1:host+n], v[host+n:]
	case v[0] >= '0' && v[0] <= '9':
		b.mark, _ = firstNumber(v)
		rest = v[len(b.mark):]
		if strings.HasPrefix(rest, ".") {
			c.warn(b.value.pos, fmt.Sprintf("%q has no port and is read as firewall mark %s", clip(v), b.mark), "write virtual="+clip(v)+":PORT")
			rest = ""
		}
	case v[0] == '[':
		end := strings.IndexByte(v, ']')
		if end < 0 || portAt(v[end+1:]) == 0 {
			c.error(b.value.pos, fmt.Sprintf("%q is not [ADDRESS]:PORT", clip(v)), "write "+b.form())
			return false
		}
		n := portAt(v[end+1:])
		b.host, b.port, rest = v[:end+1], v[end+2:end+1+n], v[end+1+n:]
	default:
		c.error(b.value.pos, fmt.Sprintf("%q is neither ADDRESS:PORT nor a firewall mark", clip(v)), "write "+b.form())
		return false
	}
	if junk := strings.TrimSpace(rest); junk != "" && junk[0] != '#' {
		c.warn(b.value.after(len(v)-len(strings.TrimLeft(rest, " \t"))), fmt.Sprintf("%q behind the virtual service is ignored", clip(junk)), "the protocol has a line of its own: protocol=udp")
	}
	return true
}

// portAt is the length of ":PORT" at the beginning of s, 0 where there is none.
func portAt(s string) int {
	if s == "" || s[0] != ':' {
		return 0
	}
	i := 1
	for i < len(s) && wordByte(s[i]) {
		i++
	}
	if i == 1 {
		return 0
	}
	return i
}

// forwards are the forwarding methods.
var forwards = []string{"gate", "masq", "ipip"}

// rightFamily refuses real and fallback in virtual6, and the reverse.
func (c *cfParser) rightFamily(b *rawVirtual, s *setting, word string) bool {
	want := word
	if b.six {
		want += "6"
	}
	if s.word == want {
		return true
	}
	c.error(s.pos, fmt.Sprintf("%s in a %s service", s.word, b.keyword()), "write "+want)
	return false
}

// hostAndPort cuts HOST[:PORT] off the beginning of w: an address in
// brackets for IPv6, else what may stand in a host name.
func hostAndPort(w word, six bool) (host, port word, rest word, ok bool) {
	n := 0
	if six {
		if !strings.HasPrefix(w.text, "[") {
			return host, port, w, false
		}
		n = strings.IndexByte(w.text, ']') + 1
	} else {
		n = hostLen(w.text)
	}
	if n == 0 {
		return host, port, w, false
	}
	host, rest = word{w.pos, w.text[:n]}, word{w.after(n), w.text[n:]}
	if p := portAt(rest.text); p > 0 {
		port, rest = word{rest.after(1), rest.text[1:p]}, word{rest.after(p), rest.text[p:]}
	}
	return host, port, rest, true
}

// realServer reads a real line into its block.
func realServer(c *cfParser, b *rawVirtual, s *setting) bool {
	if r, ok := c.realLine(b, s); ok {
		b.reals = append(b.reals, r)
	} else {
		b.badReals++
	}
	return false
}

func (c *cfParser) realLine(b *rawVirtual, s *setting) (r rawReal, ok bool) {
	if !c.rightFamily(b, s, "real") {
		return r, false
	}
	r = rawReal{pos: s.pos, weight: 1}
	const form = "write real=ADDRESS[->LAST][:PORT] gate|masq|ipip [WEIGHT] [\"REQUEST\", \"RECEIVE\"]"
	host, port, rest, found := hostAndPort(s.value, b.six)
	if !found {
		hint := form
		if b.six {
			hint = "write real6=[ADDRESS]:PORT: IPv6 needs brackets"
		}
		c.error(s.value.pos, fmt.Sprintf("%q has no address", clip(s.value.text)), hint)
		return r, false
	}
	r.host, r.port = host, port
	// wordByte takes the - of an arrow for a part of the name.
	if strings.HasPrefix(rest.text, ">") && strings.HasSuffix(host.text, "-") && port.text == "" {
		r.host.text = strings.TrimSuffix(host.text, "-")
		r.last, r.port, rest, found = hostAndPort(word{rest.after(1), rest.text[1:]}, b.six)
	}
	if b.six && strings.HasPrefix(rest.text, "->") {
		c.error(rest.pos, "a range of IPv6 addresses", "write one real6 line for each")
		return r, false
	}
	if !found || r.host.text == "" {
		c.error(rest.pos, "the range of addresses has no end", "write real=FIRST->LAST:PORT")
		return r, false
	}
	if !b.six {
		c.afterUnderscore(&r.host)
		c.afterUnderscore(&r.last)
	}
	if r.host.text == "" || rest.text != "" && !blank(rest.text[0]) {
		c.error(rest.pos, fmt.Sprintf("real server: %q is not understood", clip(rest.text)), form)
		return r, false
	}
	tokens, ok := c.tokens(rest)
	if !ok {
		return r, false
	}
	if len(tokens) == 0 {
		c.error(s.value.pos, "the real server has no forwarding method", "add masq, gate or ipip")
		return r, false
	}
	f, err := model.ParseForward(tokens[0].text)
	if err != nil || tokens[0].quoted {
		c.error(tokens[0].pos, fmt.Sprintf("unknown forwarding method %q", clip(tokens[0].text)), orElse(didYouMean(tokens[0].text, forwards), "write gate, masq or ipip"))
		return r, false
	}
	r.forward = f
	ok = c.realOptions(&r, tokens[1:])
	return r, ok
}

// afterUnderscore drops what ldirectord does not see of a name with an
// underscore: everything up to it.
func (c *cfParser) afterUnderscore(w *word) {
	i := strings.LastIndexByte(w.text, '_')
	if i < 0 {
		return
	}
	c.warn(w.pos, fmt.Sprintf("%q has an underscore, and is read as %q", clip(w.text), clip(w.text[i+1:])), "use a host name without underscores, or the address")
	*w = word{w.after(i + 1), w.text[i+1:]}
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// token is a word of a real line, or a string in quotes without them.
type token struct {
	word
	quoted bool
}

// tokens splits what follows the address at blanks; commas separate strings.
func (c *cfParser) tokens(w word) ([]token, bool) {
	var out []token
	s := w.text
	for i := 0; i < len(s); {
		switch {
		case blank(s[i]) || s[i] == ',':
			i++
		case s[i] == '"':
			end := strings.IndexByte(s[i+1:], '"')
			if end < 0 {
				c.error(w.after(i), "real server: a double quote is not closed", "strings cannot contain # or double quotes")
				return nil, false
			}
			out = append(out, token{word{w.after(i), expandTabs(s[i+1 : i+1+end])}, true})
			i += end + 2
		default:
			j := i
			for j < len(s) && !blank(s[j]) && s[j] != ',' && s[j] != '"' {
				j++
			}
			out = append(out, token{word{w.after(i), s[i:j]}, false})
			i = j
		}
	}
	return out, true
}

// maxWeight is the kernel's: ip_vs stores and ipvsadm accepts no more.
const maxWeight = 65535

// realOptions reads what follows the forwarding method: a weight, a pair of
// strings, l:N, u:N. Words before the weight are dropped, as in ldirectord.
func (c *cfParser) realOptions(r *rawReal, tokens []token) bool {
	weightAt := -1
	for i, t := range tokens {
		if !t.quoted && digits(t.text) {
			weightAt = i
			break
		}
	}
	ok := true
	var pair []token
	for i, t := range tokens {
		limit, isLimit := threshold(t)
		switch {
		case t.quoted:
			pair = append(pair, t)
			if weightAt > i && len(pair) == 2 {
				c.warn(tokens[weightAt].pos, "real server: the weight stands behind the strings", "write it before them: ldirectord does not see the strings here")
			}
		case i == weightAt:
			r.weight, _ = number(t.text)
			if n, small := number(t.text); !small || n > maxWeight {
				r.weight = maxWeight
				c.warn(t.pos, fmt.Sprintf("real server: weight %s is too large, %d is used", clip(t.text), maxWeight), fmt.Sprintf("write 0 to %d", maxWeight))
			}
		case i < weightAt:
			c.warn(t.pos, fmt.Sprintf("real server: %q before the weight is ignored", clip(t.text)), "remove it")
		case isLimit && t.text[0] == 'l':
			r.lower = limit
			if r.upper != 0 {
				c.warn(t.pos, fmt.Sprintf("real server: the upper threshold u:%d is lost because l:%d follows it", r.upper, r.lower), fmt.Sprintf("write l:%d u:%d", r.lower, r.upper))
				r.upper = 0
			}
		case isLimit:
			r.upper = limit
		default:
			c.error(t.pos, fmt.Sprintf("real server: %q is not understood", clip(t.text)), "the weight is a whole number from 0 on; strings stand in double quotes; thresholds are l:N u:N")
			ok = false
		}
	}
	switch {
	case len(pair) == 0:
		return ok
	case len(pair) != 2:
		c.error(pair[0].pos, "real server: request and receive must be given both", `write "REQUEST", "RECEIVE"`)
		return false
	}
	if weightAt < 0 && hasBlankDigit(pair) {
		c.warn(pair[0].pos, "real server: a number inside the strings", "write the weight before them: ldirectord takes the number for the weight and refuses the line")
	}
	r.request, r.receive = withSlash(pair[0].text), word{pair[1].after(1), pair[1].text}
	return ok
}

// hasBlankDigit finds what ldirectord takes for a weight.
func hasBlankDigit(pair []token) bool {
	for _, t := range pair {
		for i := 1; i < len(t.text); i++ {
			if t.text[i-1] == ' ' && t.text[i] >= '0' && t.text[i] <= '9' {
				return true
			}
		}
	}
	return false
}

// threshold reads l:N or u:N.
func threshold(t token) (uint32, bool) {
	if t.quoted || len(t.text) < 3 || t.text[0] != 'l' && t.text[0] != 'u' || t.text[1] != ':' || !digits(t.text[2:]) {
		return 0, false
	}
	n, ok := number(t.text[2:])
	return uint32(n), ok
}

// fallback reads HOST[:PORT] [METHOD]. An empty value means this machine.
func fallback(c *cfParser, b *rawVirtual, s *setting) bool {
	if b != nil && !c.rightFamily(b, s, "fallback") {
		return false
	}
	six := s.word == "fallback6"
	v := bare(b, s)
	f := &rawFallback{forward: model.Gate}
	s.fallback = f
	if len(v) != len(strings.TrimRight(s.value.text, " \t")) {
		c.warn(s.value.after(len(v)), s.word+": the comment behind the value is ignored", "write it on a line of its own: ldirectord refuses it here")
	}
	if v == "" {
		local := "127.0.0.1"
		if six {
			local = "[::1]"
		}
		c.warn(s.pos, s.word+" is empty, which means "+local, "write "+s.word+"="+local+", or remove the line")
		f.host = word{s.value.pos, local}
		return true
	}
	host, port, rest, ok := hostAndPort(word{s.value.pos, v}, six)
	if !ok && six {
		if _, err := netip.ParseAddr(v); err == nil || strings.HasPrefix(v, ":") {
			c.warn(s.value.pos, fmt.Sprintf("%s: %q has no brackets and is ignored", s.word, clip(v)), "write fallback6=[ADDRESS]:PORT")
			f.unusable = true
			return true
		}
	}
	if !ok {
		c.error(s.value.pos, fmt.Sprintf("%s: %q has no address", s.word, clip(v)), "write "+s.word+"=ADDRESS[:PORT] [gate|masq|ipip]")
		return false
	}
	f.host, f.port = host, port
	words := fields(rest, "")
	if len(words) > 0 {
		m, err := model.ParseForward(words[0].text)
		if err != nil || words[0].col == rest.col {
			c.error(words[0].pos, fmt.Sprintf("%s: unknown forwarding method %q", s.word, clip(words[0].text)), orElse(didYouMean(words[0].text, forwards), "write gate, masq or ipip"))
			return false
		}
		f.forward = m
	}
	if len(words) > 1 {
		c.warn(words[1].pos, fmt.Sprintf("%s: %q behind the forwarding method is ignored", s.word, clip(words[1].text)), "remove it")
	}
	return true
}

// netmask reads four numbers for IPv4, a prefix length for IPv6. A prefix
// length for IPv4 is taken as meant.
func netmask(c *cfParser, b *rawVirtual, s *setting) bool {
	v := bare(b, s)
	n, small := number(v)
	if b.six {
		if !digits(v) || !small || n < 1 || n > 128 {
			c.error(s.value.pos, fmt.Sprintf("netmask: %q is not a prefix length", clip(v)), "write a number from 1 to 128")
			return false
		}
		s.value.text = prefixMask(n, 128).String()
		return true
	}
	if bits := strings.TrimPrefix(v, "/"); digits(bits) {
		if n, small = number(bits); small && n >= 1 && n <= 32 {
			mask := prefixMask(n, 32).String()
			c.warn(s.value.pos, fmt.Sprintf("netmask: %q is taken as %s", v, mask), "write netmask="+mask+": ldirectord refuses a prefix length")
			s.value.text = mask
			return true
		}
	}
	parts := strings.Split(v, ".")
	quad := len(parts) == 4
	for _, p := range parts {
		quad = quad && digits(p)
	}
	if !quad {
		c.error(s.value.pos, fmt.Sprintf("netmask: %q is not a mask", clip(v)), "write four numbers, as 255.255.255.0")
		return false
	}
	a, err := netip.ParseAddr(v)
	if err != nil {
		c.warn(s.value.pos, fmt.Sprintf("netmask: %q is out of range and ignored", clip(v)), "write four numbers from 0 to 255")
		return false
	}
	s.value.text = a.String()
	return true
}

// prefixMask is a mask of n ones, as an address.
func prefixMask(n, size int) netip.Addr {
	b := make([]byte, size/8)
	for i := range n {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
