package check

import (
	"bufio"
	"crypto/hmac"
	"crypto/md5"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"io"
	"net"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

// line is one step of a scripted server: what it hears, the first part of a
// line, and what it says to that.
type line struct{ hears, says string }

// Words of a script that are not said but done.
const (
	hang  = "(hang)"
	drop  = "(drop)"  // close
	abort = "(abort)" // reset
	flood = "(flood)" // what follows, without end
	long  = "(long)"  // one line without end
)

// act says one thing of a script; false ends the connection.
func act(c net.Conn, says string) bool {
	switch says {
	case hang:
		silent(c)
		return false
	case drop:
		return false
	case abort:
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		return false
	case long:
		says = flood + "2"
	}
	if piece, ok := strings.CutPrefix(says, flood); ok {
		repeat(c, strings.Repeat(piece, 500))
		return false
	}
	_, err := io.WriteString(c, says)
	return err == nil
}

// scripted plays a dialogue: a greeting, then the script from its top for each
// line that is heard. What is heard goes to heard, if that is not nil.
func scripted(greeting string, script []line, heard chan<- string) func(net.Conn) {
	return func(c net.Conn) {
		if heard != nil {
			defer close(heard)
		}
		if !act(c, greeting) {
			return
		}
		in := bufio.NewScanner(c)
		for in.Scan() {
			if heard != nil {
				heard <- in.Text()
			}
			says := "500 what?\r\n"
			for _, l := range script {
				if strings.HasPrefix(in.Text(), l.hears) {
					says = l.says
					break
				}
			}
			if !act(c, says) || strings.HasSuffix(in.Text(), "QUIT") || strings.HasSuffix(in.Text(), "LOGOUT") {
				return
			}
		}
	}
}

func application(name string) func(*model.Target) {
	return func(t *model.Target) { t.Application, t.Request = name, "/" }
}

func login(user, password string) func(*model.Target) {
	return func(t *model.Target) { t.Login, t.Password = user, password }
}

func request(r string) func(*model.Target) { return func(t *model.Target) { t.Request = r } }

// wantVerdict performs the target's own check.
func wantVerdict(t *testing.T, tg model.Target, status model.Status, reason string) {
	t.Helper()
	v := Perform(t.Context(), For(tg), tg)
	if v.Status != status || !strings.Contains(v.Reason, reason) {
		t.Errorf("%s: verdict %v, want %v: ...%s...", tg.Application, v, status, reason)
	}
}

var (
	smtpScript = []line{{"EHLO", "250-me\r\n250-PIPELINING\r\n250 HELP\r\n"}, {"QUIT", "221 bye\r\n"}}
	popScript  = []line{{"CAPA", "+OK\r\nUSER\r\n.\r\n"}, {"USER u", "+OK\r\n"}, {"PASS p", "+OK\r\n"}, {"PASS", "-ERR [AUTH] no\r\n"}, {"QUIT", "+OK\r\n"}}
	imapScript = []line{{`0 LOGIN "u" "p"`, "* CAPABILITY IMAP4rev1\r\n0 OK in\r\n"}, {"0 LOGIN", "0 NO [AUTHENTICATIONFAILED] no\r\n"}, {"1 LOGOUT", "* BYE\r\n1 OK\r\n"}}
)

// with puts lines before a script's own.
func with(script []line, first ...line) []line { return append(first, script...) }

func TestDialogues(t *testing.T) {
	const greets = "220 mx ESMTP\r\n"
	in := login("u", "p")
	for _, tc := range []struct {
		name     string
		app      string
		greeting string
		script   []line
		opts     []func(*model.Target)
		status   model.Status
		reason   string
	}{
		{"fine", "smtp", greets, smtpScript, nil, model.Up, "220 mx ESMTP"},
		{"fine", "submission", greets, smtpScript, nil, model.Up, "220 mx ESMTP"},
		{"a greeting of several lines", "smtp", "220-mx\r\n220-says\r\n220 hello\r\n", smtpScript, nil, model.Up, "220-mx"},
		{"HELO will do", "smtp", greets, []line{{"EHLO", "502 what?\r\n"}, {"HELO", "250 me\r\n"}}, nil, model.Up, "220 mx"},
		{"goes away at EHLO", "smtp", greets, []line{{"EHLO", "421 busy\r\n"}, {"HELO", drop}}, nil, model.Down, "HELO: connection closed by the server"},
		{"refuses both", "smtp", greets, []line{{"EHLO", "550 not you\r\n"}, {"HELO", "550 nor so\r\n"}}, nil, model.Down, "HELO: 550 nor so"},
		{"refuses at once", "smtp", "554 go away\r\n", smtpScript, nil, model.Down, "greeting: 554 go away"},
		{"another protocol", "smtp", "+OK pop\r\n", smtpScript, nil, model.Down, `greeting: not an answer: "+OK pop"`},
		{"greets without end", "smtp", flood + "220-mx\r\n", smtpScript, nil, model.Down, "greeting: an answer without end"},
		{"is not asked for goodbye", "smtp", greets, with(smtpScript, line{"QUIT", drop}), nil, model.Up, "220 mx"},

		{"fine", "nntp", "201 me\r\n", nil, nil, model.Up, "201 me"},
		{"a greeting without an end", "nntp", "200", []line{}, []func(*model.Target){short}, model.Down, "greeting: no answer within 100ms"},
		{"refuses", "nntp", "400 no\r\n", nil, nil, model.Down, `greeting: "400 no"`},

		{"no login: a greeting is enough", "pop", "+OK me\r\n", popScript, nil, model.Up, "+OK me"},
		{"and needed", "pop", "-ERR full\r\n", popScript, nil, model.Down, "greeting: -ERR full"},
		{"logs in", "pop", "+OK me\r\n", popScript, []func(*model.Target){in}, model.Up, "logged in"},
		{"no CAPA", "pop", "+OK me\r\n", with(popScript, line{"CAPA", "-ERR what?\r\n"}), []func(*model.Target){in}, model.Up, "logged in"},
		{"wrong password", "pop", "+OK me\r\n", popScript, []func(*model.Target){login("u", "x")}, model.Down, "PASS: -ERR [AUTH] no"},
		{"unknown user", "pop", "+OK me\r\n", with(popScript, line{"USER", "-ERR who?\r\n"}), []func(*model.Target){in}, model.Down, "USER: -ERR who?"},
		{"APOP", "pop", "+OK <1896.697170952@dbc.mtview.ca.us>\r\n", with(popScript, line{"APOP mrose c4c9334bac560ecc979e58001b3e22fb", "+OK\r\n"}),
			[]func(*model.Target){login("mrose", "tanstaaf")}, model.Up, "logged in"}, // the example of RFC 1939
		{"APOP refused, PASS not", "pop", "+OK <1@x>\r\n", with(popScript, line{"APOP", "-ERR no\r\n"}), []func(*model.Target){in}, model.Up, "logged in"},
		{"capabilities without end", "pop", "+OK me\r\n", with(popScript, line{"CAPA", flood + "+OK\r\n"}), []func(*model.Target){in}, model.Down, "CAPA: an answer without end"},

		{"no login: a greeting is enough", "imap", "* OK me\r\n", imapScript, nil, model.Up, "* OK me"},
		{"and needed", "imap", "* BYE full\r\n", imapScript, nil, model.Down, `greeting: "* BYE full"`},
		{"logs in", "imap", "* OK [CAPABILITY IMAP4rev1] me\r\n", imapScript, []func(*model.Target){in}, model.Up, "logged in"},
		{"is logged in already", "imap", "* PREAUTH me\r\n", nil, []func(*model.Target){in}, model.Up, "* PREAUTH me"},
		{"wrong password", "imap", "* OK me\r\n", imapScript, []func(*model.Target){login("u", "x")}, model.Down, "LOGIN: NO [AUTHENTICATIONFAILED] no"},
		{"quotes in the password", "imap", "* OK me\r\n", []line{{`0 LOGIN "u" "a\"b\\c d"`, "0 OK\r\n"}}, []func(*model.Target){login("u", `a"b\c d`)}, model.Up, "logged in"},
		{"says BYE", "imap", "* OK me\r\n", with(imapScript, line{"0 LOGIN", "* BYE down for lunch\r\n"}), []func(*model.Target){in}, model.Down, "LOGIN: * BYE down for lunch"},
		{"another protocol", "imap", "220 mx\r\n", imapScript, nil, model.Down, `greeting: "220 mx"`},

		{"a password of two lines", "pop", "+OK me\r\n", popScript, []func(*model.Target){login("u", "p\r\nDELE 1")}, model.Down, "control character"},
	} {
		t.Run(tc.app+": "+tc.name, func(t *testing.T) {
			t.Parallel()
			opts := append([]func(*model.Target){application(tc.app)}, tc.opts...)
			wantVerdict(t, target(script(t, scripted(tc.greeting, tc.script, nil)), opts...), tc.status, tc.reason)
		})
	}
}

// Each protocol's server misbehaves at each step.
func TestDialogueFailsAtEveryStep(t *testing.T) {
	protocols := []struct {
		app, greeting string
		script        []line
		steps         []string // lines that it waits for an answer to
		opts          []func(*model.Target)
	}{
		{"smtp", "220 mx\r\n", smtpScript, []string{"greeting", "EHLO"}, nil},
		{"pop", "+OK me\r\n", popScript, []string{"greeting", "CAPA", "USER", "PASS"}, []func(*model.Target){login("u", "p")}},
		{"imap", "* OK me\r\n", imapScript, []string{"greeting", "0 LOGIN"}, []func(*model.Target){login("u", "p")}},
		{"nntp", "200 me\r\n", nil, []string{"greeting"}, nil},
		{"ftp", "220 me\r\n", ftpScript, []string{"greeting", "USER", "PASS", "TYPE", "PORT", "RETR"}, []func(*model.Target){request("/f"), login("u", "p")}},
	}
	faults := []struct {
		name, says string
		short      bool
		reason     []string // one of these
	}{
		{"hangs", hang, true, []string{"no answer within "}},
		{"hangs inside a line", "25", true, []string{"no answer within "}},
		{"closes", drop, false, []string{"connection closed by the server", "connection reset by peer", "broken pipe"}},
		{"resets", abort, false, []string{"connection reset by peer", "connection closed by the server", "broken pipe"}},
		{"talks binary", "\x16\x03\x01\x00\xff\n\x00\x00\n\n\n", false, []string{"not an answer", `"`}},
		{"talks without end", flood + "* x\r\n", false, []string{"an answer without end", "not an answer", `"* x"`}},
		{"has one line without end", long, false, []string{"a line of more than 8192 bytes"}},
	}
	for _, p := range protocols {
		for _, step := range p.steps {
			for _, f := range faults {
				t.Run(p.app+" "+f.name+" at "+step, func(t *testing.T) {
					t.Parallel()
					greeting, script2 := p.greeting, with(p.script, line{step, f.says})
					if step == "greeting" {
						greeting, script2 = f.says, p.script
					}
					opts := append([]func(*model.Target){application(p.app)}, p.opts...)
					if f.short {
						opts = append(opts, short)
					}
					tg := target(script(t, scripted(greeting, script2, nil)), opts...)
					v := Perform(t.Context(), For(tg), tg)
					ok := false
					for _, r := range f.reason {
						ok = ok || strings.Contains(v.Reason, r)
					}
					if v.Status != model.Down || !ok || strings.ContainsAny(v.Reason, "\r\n\x00\x16") {
						t.Errorf("verdict %v, want down with one of %q", v, f.reason)
					}
				})
			}
		}
	}
}

// A server that uses most of each step's time is given up after three.
func TestADialogueHasATotalTime(t *testing.T) {
	const step = 300 * time.Millisecond
	slow := func(c net.Conn) {
		_, _ = io.WriteString(c, "+OK me\r\n")
		in := bufio.NewScanner(c)
		for in.Scan() {
			time.Sleep(step * 9 / 10) // the server's slowness, nothing waits for it
			if _, err := io.WriteString(c, "+OK\r\n.\r\n"); err != nil {
				return
			}
		}
	}
	junk := func(c net.Conn) { // a byte now and then: no line ever ends
		for {
			if _, err := io.WriteString(c, "x"); err != nil {
				return
			}
			time.Sleep(step / 10)
		}
	}
	for name, play := range map[string]func(net.Conn){"slow": slow, "drips": junk} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tg := target(script(t, play), application("pop"), login("u", "p"), func(t *model.Target) { t.NegotiateTimeout = step })
			v := Perform(t.Context(), For(tg), tg)
			if v.Status != model.Down {
				t.Errorf("verdict %v, want down", v)
			}
		})
	}
}

// What a server says never costs more memory than the limits.
func TestGigabytesCostNothing(t *testing.T) {
	for _, app := range []string{"smtp", "pop", "imap", "nntp", "ftp", "simpletcp", "sip"} {
		for name, play := range map[string]func(net.Conn){
			"lines": func(c net.Conn) { act(c, flood+"* x\r\n") },
			"line":  func(c net.Conn) { act(c, long) },
		} {
			tg := target(script(t, play), application(app), login("u", "p"), receive("no such line$"))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			v := Perform(t.Context(), For(tg), tg)
			runtime.ReadMemStats(&after)
			if v.Status != model.Down {
				t.Errorf("%s, endless %s: verdict %v, want down", app, name, v)
			}
			if got := after.TotalAlloc - before.TotalAlloc; got > 16<<20 {
				t.Errorf("%s, endless %s: %d bytes allocated", app, name, got)
			}
		}
	}
}

func TestWhatIsSent(t *testing.T) {
	for _, tc := range []struct {
		app, greeting string
		script        []line
		opts          []func(*model.Target)
		want          []string
	}{
		{"smtp", "220 mx\r\n", smtpScript, nil, []string{"EHLO localhost.localdomain", "QUIT"}},
		{"pop", "+OK\r\n", popScript, []func(*model.Target){login("u", "p")}, []string{"CAPA", "USER u", "PASS p", "QUIT"}},
		{"pop", "+OK\r\n", popScript, nil, []string{"QUIT"}},
		{"imap", "* OK\r\n", imapScript, []func(*model.Target){login("u", "p")}, []string{`0 LOGIN "u" "p"`, "1 LOGOUT"}},
		{"nntp", "200\r\n", nil, nil, []string{"QUIT"}},
		{"ftp", "220\r\n", ftpScript, []func(*model.Target){login("u", "p")}, []string{"USER u", "PASS p", "QUIT"}},
	} {
		heard := make(chan string, 16)
		wantVerdict(t, target(script(t, scripted(tc.greeting, tc.script, heard)), append(tc.opts, application(tc.app))...), model.Up, "")
		var got []string
		for l := range heard {
			got = append(got, l)
		}
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%s (-want +got)\n%s", tc.app, d)
		}
	}
}

// cram plays a server that offers CRAM-MD5 and knows one password.
func cram(password string) func(net.Conn) {
	return func(c net.Conn) {
		const challenge = "<1896.697170952@postoffice.reston.mci.net>"
		in := bufio.NewScanner(c)
		say := func(s string) bool { _, _ = io.WriteString(c, s+"\r\n"); return in.Scan() }
		if !say("+OK me") || !say("+OK\r\nSASL PLAIN CRAM-MD5\r\n.") || !say("+ "+base64.StdEncoding.EncodeToString([]byte(challenge))) {
			return
		}
		mac := hmac.New(md5.New, []byte(password))
		mac.Write([]byte(challenge))
		want := "tim " + hex.EncodeToString(mac.Sum(nil))
		if got, _ := base64.StdEncoding.DecodeString(in.Text()); string(got) != want {
			for say("-ERR no") {
			}
			return
		}
		say("+OK in")
	}
}

func TestPOPCRAM(t *testing.T) {
	addr := script(t, cram("tanstaaftanstaaf"))
	wantVerdict(t, target(addr, application("pop"), login("tim", "tanstaaftanstaaf")), model.Up, "logged in")
	wantVerdict(t, target(addr, application("pop"), login("tim", "guess")), model.Down, "USER: -ERR no")
}

// tlsScript is script with TLS from the first byte.
func tlsScript(t *testing.T, cert tls.Certificate, play func(net.Conn)) string {
	t.Helper()
	return script(t, func(c net.Conn) {
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
		if s.Handshake() == nil {
			play(s)
		}
	})
}

func TestMailOverTLS(t *testing.T) {
	soon := time.Now().Add(time.Hour)
	here := net.IPv4(127, 0, 0, 1)
	for _, tc := range []struct {
		name   string
		cert   tls.Certificate
		opts   []func(*model.Target)
		status model.Status
		reason string
	}{
		{"trusted, for the address", trusted.serverAt(t, soon, here), nil, model.Up, ""},
		{"for another name", trusted.server(t, soon), nil, model.Down, "TLS: "},
		{"for another name, which is told", trusted.server(t, soon), []func(*model.Target){func(t *model.Target) { t.ServerName = "other.example.test" }}, model.Up, ""},
		{"expired", trusted.serverAt(t, time.Now().Add(-time.Hour), here), nil, model.Down, "expired"},
		{"of an unknown authority", newAuthority().serverAt(t, soon, here), nil, model.Down, "unknown authority"},
		{"of an unknown authority, which is told not to matter", newAuthority().server(t, soon), []func(*model.Target){func(t *model.Target) { t.TLSVerify = model.VerifyNothing }}, model.Up, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			wantVerdict(t, target(tlsScript(t, tc.cert, scripted("+OK me\r\n", popScript, nil)), append(tc.opts, application("pops"), login("u", "p"))...), tc.status, tc.reason)
			wantVerdict(t, target(tlsScript(t, tc.cert, scripted("* OK me\r\n", imapScript, nil)), append(tc.opts, application("imaps"), login("u", "p"))...), tc.status, tc.reason)
		})
	}
	for name, play := range map[string]func(net.Conn){
		"plain text":                     scripted("+OK me\r\n", popScript, nil),
		"a TLS record of nothing":        func(c net.Conn) { act(c, "\x16\x03\x03\x00\x00"); silent(c) },
		"TLS records without end":        func(c net.Conn) { repeat(c, "\x16\x03\x03\x40\x00"+strings.Repeat("\x02\xff\xff\xff", 4096)) },
		"change cipher spec without end": func(c net.Conn) { repeat(c, "\x14\x03\x03\x00\x01\x01") },
		"silence":                        silent,
		"a reset":                        func(c net.Conn) { act(c, abort) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wantVerdict(t, target(script(t, play), application("imaps"), func(t *model.Target) { t.NegotiateTimeout = 300 * time.Millisecond }), model.Down, "")
		})
	}
}

func repeat(c net.Conn, piece string) {
	for {
		if _, err := io.WriteString(c, piece); err != nil {
			return
		}
	}
}

// A dialogue may go over to TLS in its middle (RFC 2595, RFC 3207).
func TestStartTLS(t *testing.T) {
	cert := trusted.serverAt(t, time.Now().Add(time.Hour), net.IPv4(127, 0, 0, 1))
	addr := script(t, func(c net.Conn) {
		_, _ = io.WriteString(c, "220 plain\r\n")
		in := bufio.NewReader(c)
		if l, _ := in.ReadString('\n'); l != "STARTTLS\r\n" {
			return
		}
		_, _ = io.WriteString(c, "220 go ahead\r\n")
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
		scripted("", smtpScript, nil)(s)
	})
	tg := target(addr, func(t *model.Target) { t.TLSVerify = model.VerifyName })
	v := converse(t.Context(), tg, func(d *dialogue) (string, error) {
		if _, err := d.must(d.reply()); err != nil {
			return "", err
		}
		if _, err := d.must(d.ask("STARTTLS")); err != nil {
			return "", err
		}
		if err := d.secure(tg); err != nil {
			return "", err
		}
		r, err := d.must(d.ask("EHLO " + helo))
		return r.text, err
	})
	if v.Status != model.Up || v.Reason != "250-me" {
		t.Errorf("verdict %v, want up: 250-me", v)
	}
}

// Text that comes before the handshake is not taken for the server's.
func TestWordsBeforeTheHandshakeAreRefused(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	go func() { _, _ = io.WriteString(theirs, "220 go ahead\r\n250 forged\r\n") }()
	d := &dialogue{ctx: t.Context(), step: 10 * time.Second}
	d.use(ours)
	if r, err := d.reply(); err != nil || !r.ok() {
		t.Fatal(r, err)
	}
	if err := d.secure(target("127.0.0.1:25")); err == nil || !strings.Contains(err.Error(), "before the TLS handshake") {
		t.Errorf("error %v", err)
	}
}

func FuzzDialogueAnswers(f *testing.F) {
	for _, s := range []string{"220 mx\r\n", "250-a\r\n250-b\r\n250 c\r\n", "123-a\r\n 123 b\r\n123 c\r\n", "250", "250-", "+OK\r\n", "-ERR no\r\n", "+ PDE=\r\n",
		"a\r\n.\r\n", "* OK\r\n0 OK\r\n", "0 NO\r\n", "* BYE\r\n", "SIP/2.0 200 OK\r\nCall-ID: x\r\nl: 3\r\n\r\nabc", "\x00\xff\n", strings.Repeat("2", lineLimit+1)} {
		f.Add([]byte(s))
	}
	two := regexp.MustCompile("2")
	f.Fuzz(func(t *testing.T, b []byte) {
		said := func() lines { return newLines(strings.NewReader(string(b))) }
		texts := []string{}
		note := func(s string, err error) {
			if err != nil {
				s = plain(err)
			}
			texts = append(texts, clean(s))
		}
		r, err := said().reply()
		note(r.text, err)
		if err == nil && (r.code < 100 || r.code > 999 || r.ok() != (r.asError() == nil)) {
			t.Errorf("reply %+v", r)
		}
		s, err := said().pop()
		note(s, err)
		_, err = said().popList()
		note("", err)
		note("", said().tagged("0"))
		a, err := said().sip()
		note(a.status, err)
		if err == nil && (a.code < 100 || a.code > 699) {
			t.Errorf("SIP answer %+v", a)
		}
		s, err = matchLine(strings.NewReader(string(b)), "2", two)
		note(s, err)
		if err == nil && !strings.Contains(s, "2") {
			t.Errorf("%q matches /2/", s)
		}
		for _, s := range texts {
			if strings.ContainsAny(s, "\r\n\x00") || len(s) > 4*130 {
				t.Errorf("%q would break a log line", s)
			}
		}
		_, _ = pasvPort(string(b))
		_, _ = epsvPort(string(b))
		_ = offersCRAM(string(b))
	})
}
