package check

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/batuta-ha/batuta/internal/model"
)

const (
	dnsLimit = 1 << 17 // bytes of one TCP connection: two messages of the longest kind

	// dnsRetry is how long a datagram may take before the question is asked
	// again: datagrams get lost (RFC 1035 section 4.2.1).
	dnsRetry = 1 * time.Second
)

// resolvConf is where the search list is read from: resolv.conf(5).
var resolvConf = "/etc/resolv.conf"

// negotiateDNS asks for the address of a name, or for the name of an address,
// over the virtual service's own transport, and is up if the receive
// expression is found in one of the addresses or names of the answer. Without
// a receive expression it is never up: that is what ldirectord does, and the
// verdict tells what to add. NegotiateTimeout covers everything.
func negotiateDNS(ctx context.Context, t model.Target) model.Verdict {
	re, err := compile(t.Receive)
	if err != nil {
		return down(err.Error())
	}
	questions, err := dnsQuestions(t)
	if err != nil {
		return down(err.Error())
	}
	if err := portOf(t); err != nil {
		return down(err.Error())
	}
	within, cancel := context.WithTimeout(ctx, t.NegotiateTimeout)
	defer cancel()
	var reply *dns.Msg
	var found []string
	for _, q := range questions {
		if reply, err = askDNS(within, t, q); err != nil {
			return failed(ctx, within, err, t.NegotiateTimeout)
		}
		if found = dnsRecords(reply, q.Qtype); len(found) > 0 {
			break
		}
	}
	kind := dns.TypeToString[questions[0].Qtype]
	switch {
	case reply.Rcode != dns.RcodeSuccess:
		return down(fmt.Sprintf("%s for %s", dns.RcodeToString[reply.Rcode], clean(questions[0].Name)))
	case len(found) == 0:
		return down(fmt.Sprintf("no %s record for %s in the answer", kind, clean(questions[0].Name)))
	case t.Receive == "":
		return down(fmt.Sprintf("answered with %s, but a dns check without receive is never up: add receive=\"...\"", enumerate(found)))
	case !slices.ContainsFunc(found, re.MatchString):
		return down(fmt.Sprintf("receive=%q is not in the answer: %s", t.Receive, enumerate(found)))
	}
	return up("answered with " + enumerate(found))
}

// dnsQuestions are what to ask, one after the other until one has an answer: a
// name is looked for along the resolver's search list.
func dnsQuestions(t model.Target) ([]dns.Question, error) {
	name := strings.TrimPrefix(t.Request, "/")
	if name == "" {
		return nil, errors.New(`nothing to ask for: add request="a name or an address"`)
	}
	kind := t.RecordType
	if a, err := netip.ParseAddr(name); err == nil {
		kind = cmp.Or(kind, "PTR")
		if kind == "PTR" {
			if name, err = dns.ReverseAddr(a.WithZone("").String()); err != nil {
				return nil, fmt.Errorf("request=%q: %w", t.Request, err)
			}
		}
	}
	qtype, ok := map[string]uint16{"": dns.TypeA, "A": dns.TypeA, "AAAA": dns.TypeAAAA, "PTR": dns.TypePTR}[kind]
	if !ok {
		return nil, fmt.Errorf("record type %q cannot be asked for: A, AAAA and PTR can", kind)
	}
	names := []string{dns.Fqdn(name)}
	if qtype != dns.TypePTR {
		if c, err := dns.ClientConfigFromFile(resolvConf); err == nil {
			names = c.NameList(name)
		}
	}
	var out []dns.Question
	for _, n := range names {
		if _, ok := dns.IsDomainName(n); ok {
			out = append(out, dns.Question{Name: n, Qtype: qtype, Qclass: dns.ClassINET})
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("request=%q is no domain name", t.Request)
	}
	return out, nil
}

// askDNS asks one question. An answer by UDP that says it was cut short is
// asked for again by TCP (RFC 7766 section 5).
func askDNS(ctx context.Context, t model.Target, q dns.Question) (*dns.Msg, error) {
	question := &dns.Msg{
		MsgHdr:   dns.MsgHdr{Id: dns.Id(), RecursionDesired: true},
		Question: []dns.Question{q},
	}
	packed, err := question.Pack()
	if err != nil {
		return nil, err
	}
	if t.Proto != model.TCP {
		reply, err := askByUDP(ctx, t.Addr, question, packed)
		if err != nil || !reply.Truncated {
			return reply, err
		}
	}
	return askByTCP(ctx, t.Addr, question, packed)
}

func askByTCP(ctx context.Context, a netip.AddrPort, question *dns.Msg, packed []byte) (*dns.Msg, error) {
	raw, err := open(ctx, a, dnsLimit)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	conn := &dns.Conn{Conn: raw}
	if _, err := conn.Write(packed); err != nil {
		return nil, err
	}
	// dns.Conn reads the length and no more than that many bytes.
	buf := make([]byte, dns.MaxMsgSize)
	n, err := conn.Read(buf)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil, errors.New("connection closed before a DNS answer was complete")
	case err != nil:
		return nil, err
	}
	reply, ours := readDNS(buf[:n], question)
	if !ours {
		return nil, errors.New("not an answer to the DNS question")
	}
	return reply, nil
}

// askByUDP asks again until an answer comes or ctx ends. Datagrams that do not
// answer the question are passed over: anyone can send them.
func askByUDP(ctx context.Context, a netip.AddrPort, question *dns.Msg, packed []byte) (*dns.Msg, error) {
	return exchangeDatagrams(ctx, a, dnsRetry, packed, func(b []byte) (*dns.Msg, bool) { return readDNS(b, question) })
}

// readDNS reads a message and tells whether it answers the question.
func readDNS(b []byte, question *dns.Msg) (*dns.Msg, bool) {
	m := &dns.Msg{}
	if m.Unpack(b) != nil || m.Id != question.Id || !m.Response {
		return nil, false
	}
	// Servers that cannot read a question leave it out of the answer.
	if len(m.Question) == 0 {
		return m, m.Rcode != dns.RcodeSuccess
	}
	q, want := m.Question[0], question.Question[0]
	return m, q.Qtype == want.Qtype && q.Qclass == want.Qclass && strings.EqualFold(q.Name, want.Name)
}

// dnsRecords are the addresses or names of that type in an answer, as text.
func dnsRecords(m *dns.Msg, qtype uint16) []string {
	var out []string
	for _, rr := range m.Answer {
		switch r := rr.(type) {
		case *dns.A:
			if qtype == dns.TypeA {
				out = append(out, r.A.String())
			}
		case *dns.AAAA:
			if qtype == dns.TypeAAAA {
				out = append(out, r.AAAA.String())
			}
		case *dns.PTR:
			if qtype == dns.TypePTR {
				out = append(out, strings.TrimSuffix(r.Ptr, "."))
			}
		}
	}
	return out
}

// enumerate names the first of many.
func enumerate(words []string) string {
	if more := len(words) - 3; more > 0 {
		return clean(strings.Join(words[:3], ", ")) + fmt.Sprintf(" and %d more", more)
	}
	return clean(strings.Join(words, ", "))
}
