package check

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"

	"github.com/batuta-ha/batuta/internal/model"
)

// zone is what a name server says that knows the records, which are in zone-file form.
func zone(t *testing.T, question string, change func(*dns.Msg), records ...string) string {
	q := &dns.Msg{}
	if err := q.Unpack([]byte(question)); err != nil {
		t.Errorf("question: %v", err)
		return ""
	}
	m := (&dns.Msg{}).SetReply(q)
	for _, r := range records {
		rr, err := dns.NewRR(r)
		if err != nil {
			t.Error(err)
			return ""
		}
		m.Answer = append(m.Answer, rr)
	}
	if change != nil {
		change(m)
	}
	b, err := m.Pack()
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func forDNS(t *model.Target) { t.Application, t.Proto = "dns", model.UDP }

func TestDNSAnswers(t *testing.T) {
	asks := func(request string) func(*model.Target) {
		return func(t *model.Target) { t.Request = request }
	}
	const a80, a81 = "host.example.test. 60 IN A 192.0.2.80", "host.example.test. 60 IN A 192.0.2.81"
	for _, tc := range []struct {
		name   string
		play   func(question string) []string
		opts   []func(*model.Target)
		status model.Status
		reason string
	}{
		{"one of two addresses", func(q string) []string { return []string{zone(t, q, nil, a80, a81)} },
			[]func(*model.Target){receive("81$")}, model.Up, "answered with 192.0.2.80, 192.0.2.81"},
		{"an alias is no address", func(q string) []string {
			return []string{zone(t, q, nil, "host.example.test. 60 IN CNAME www.example.test.", "www.example.test. 60 IN A 192.0.2.9")}
		}, []func(*model.Target){receive("www")}, model.Down, `receive="www" is not in the answer: 192.0.2.9`},
		{"refused", func(q string) []string {
			return []string{zone(t, q, func(m *dns.Msg) { m.Rcode = dns.RcodeRefused })}
		}, []func(*model.Target){receive(".")}, model.Down, "REFUSED for host.example.test."},
		{"a server that cannot read the question", func(q string) []string {
			return []string{zone(t, q, func(m *dns.Msg) { m.Rcode, m.Question = dns.RcodeFormatError, nil })}
		}, []func(*model.Target){receive(".")}, model.Down, "FORMERR for host.example.test."},
		{"forged, doubtful and broken answers before the right one", func(q string) []string {
			return []string{
				"", "garbage", q,
				zone(t, q, func(m *dns.Msg) { m.Id++ }, a80),
				zone(t, q, func(m *dns.Msg) { m.Question[0].Name = "other.example.test." }, a80),
				zone(t, q, func(m *dns.Msg) { m.Question = nil }, a80),
				zone(t, q, nil, a81),
			}
		}, []func(*model.Target){receive(".")}, model.Up, "answered with 192.0.2.81"},
		{"no such record type", nil, []func(*model.Target){func(t *model.Target) { t.RecordType = "MX" }}, model.Down, `record type "MX"`},
		{"nothing to ask for", nil, []func(*model.Target){asks("/")}, model.Down, "nothing to ask for"},
		{"no name", nil, []func(*model.Target){asks("/" + strings.Repeat("x", 64) + ".")}, model.Down, "is no domain name"},
		{"no regular expression", nil, []func(*model.Target){receive("(")}, model.Down, "missing closing"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			addr := datagrams(t, tc.play)
			tg := target(addr, append([]func(*model.Target){forDNS, asks("/host.example.test.")}, tc.opts...)...)
			v := Perform(t.Context(), negotiateDNS, tg)
			if v.Status != tc.status || !strings.Contains(v.Reason, tc.reason) {
				t.Errorf("verdict %v, want %v: ...%s...", v, tc.status, tc.reason)
			}
		})
	}
}

// A question or an answer that is lost costs a second, not the verdict.
func TestDNSAsksAgain(t *testing.T) {
	var asked atomic.Int32
	addr := datagrams(t, func(q string) []string {
		if asked.Add(1) == 1 {
			return nil
		}
		return []string{zone(t, q, nil, "host.example.test. 60 IN A 192.0.2.80")}
	})
	v := Perform(t.Context(), negotiateDNS, target(addr, forDNS, receive("."), func(t *model.Target) { t.Request = "/host.example.test." }))
	if v.Status != model.Up || asked.Load() < 2 {
		t.Errorf("%v after %d questions", v, asked.Load())
	}
}

func TestDNSFollowsTheSearchList(t *testing.T) {
	old := resolvConf
	defer func() { resolvConf = old }()
	resolvConf = filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolvConf, []byte("nameserver 192.0.2.1\nsearch example.org example.test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	addr := datagrams(t, func(q string) []string {
		m := &dns.Msg{}
		if m.Unpack([]byte(q)) == nil && m.Question[0].Name == "host.example.test." {
			return []string{zone(t, q, nil, "host.example.test. 60 IN A 192.0.2.80")}
		}
		return []string{zone(t, q, func(m *dns.Msg) { m.Rcode = dns.RcodeNameError })}
	})
	v := Perform(t.Context(), negotiateDNS, target(addr, forDNS, receive("."), func(t *model.Target) { t.Request = "/host" }))
	if v.Status != model.Up {
		t.Error(v)
	}
}

func TestDNSByTCP(t *testing.T) {
	for name, tc := range map[string]struct {
		frame  func(answer []byte) []byte
		reason string
	}{
		"cut short":         {func(a []byte) []byte { return append([]byte{0xff, 0xff}, a...) }, "connection closed before a DNS answer was complete"},
		"nothing":           {func([]byte) []byte { return nil }, "connection closed before a DNS answer was complete"},
		"another's answer":  {func(a []byte) []byte { a[0]++; return append([]byte{0, byte(len(a))}, a...) }, "not an answer to the DNS question"},
		"an empty message":  {func([]byte) []byte { return []byte{0, 0} }, "DNS"},
		"the length, no id": {func([]byte) []byte { return []byte{0, 1, 7} }, "DNS"},
	} {
		t.Run(name, func(t *testing.T) {
			addr := script(t, func(c net.Conn) {
				b := make([]byte, 512)
				n, err := io.ReadAtLeast(c, b, 14)
				if err == nil {
					_, _ = c.Write(tc.frame([]byte(zone(t, string(b[2:n]), nil, "host.example.test. 60 IN A 192.0.2.80"))))
				}
			})
			v := Perform(t.Context(), negotiateDNS, target(addr, receive("."), func(t *model.Target) {
				t.Application, t.Request = "dns", "/host.example.test."
			}))
			if v.Status != model.Down || !strings.Contains(v.Reason, tc.reason) {
				t.Errorf("%v, want down: ...%s...", v, tc.reason)
			}
		})
	}
}

func FuzzDNSAnswer(f *testing.F) {
	question := (&dns.Msg{}).SetQuestion("host.example.test.", dns.TypeA)
	question.Id = 7
	reply := (&dns.Msg{}).SetReply(question)
	rr, err := dns.NewRR("host.example.test. 60 IN A 192.0.2.80")
	if err != nil {
		f.Fatal(err)
	}
	reply.Answer = []dns.RR{rr}
	b, err := reply.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)-3])
	f.Add([]byte{0, 7, 0x80, 5, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, ours := readDNS(b, question)
		if !ours {
			return
		}
		if m.Id != question.Id || !m.Response {
			t.Errorf("taken for an answer: %v", m)
		}
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypePTR} {
			if s := enumerate(dnsRecords(m, qtype)); strings.ContainsAny(s, "\r\n") {
				t.Errorf("%q would break a log line", s)
			}
		}
	})
}
