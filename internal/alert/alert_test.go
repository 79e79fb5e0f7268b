package alert

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/batuta-ha/batuta/internal/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var shop = Message{
	To: "ops@example.test", From: "LVS <lvs@example.test>", Relay: "127.0.0.1",
	Subject: "[Shop] Deleted real server: 10.0.0.1:80 (10.0.0.9:80)", Status: "running", Service: "Shop", Comment: "call the shop team",
}

var director = Identity{User: "root", Host: "lvs01.example.test"}

func TestBody(t *testing.T) {
	plain := shop
	plain.Service, plain.Comment = "", ""
	for _, tc := range []struct {
		m    Message
		want string
	}{
		{shop, "ldirectord host: lvs01.example.test\nLog-Message: [Shop] Deleted real server: 10.0.0.1:80 (10.0.0.9:80)\nDaemon-Status: running\n\n" +
			"Service name: Shop\nComment: call the shop team\n"},
		{plain, "ldirectord host: lvs01.example.test\nLog-Message: [Shop] Deleted real server: 10.0.0.1:80 (10.0.0.9:80)\nDaemon-Status: running\n"},
	} {
		if d := cmp.Diff(tc.want, tc.m.Body(director)); d != "" {
			t.Errorf("(-want +got)\n%s", d)
		}
	}
}

func TestRecipients(t *testing.T) {
	for to, want := range map[string][]string{
		"ops@example.test":                        {"<ops@example.test>"},
		"a@example.test, b@example.test":          {"<a@example.test>", "<b@example.test>"},
		"root":                                    {"root"},
		"root , a@example.test,":                  {"root", "a@example.test"},
		`"Ops, the" <o@example.test>,b@x.test`:    {`"Ops, the" <o@example.test>`, "<b@x.test>"},
		"\r\nBcc: evil@example.test, fine@x.test": {"Bcc: evil@example.test", "fine@x.test"},
	} {
		m := Message{To: to}
		if d := cmp.Diff(want, m.recipients()); d != "" {
			t.Errorf("%q (-want +got)\n%s", to, d)
		}
	}
}

// relay is a scripted SMTP server on loopback: answers by the beginning of a
// line, 250 for all others.
type relay struct {
	port    int
	answers map[string]string
	mu      sync.Mutex
	heard   []string // MAIL, RCPT and header lines, one session after the other
	mails   chan string
}

func newRelay(t *testing.T, answers map[string]string) *relay {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{port: ln.Addr().(*net.TCPAddr).Port, answers: answers, mails: make(chan string, 10)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); r.session(c) })
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return r
}

func (r *relay) session(c net.Conn) {
	fmt.Fprint(c, "220 relay\r\n")
	in := bufio.NewScanner(c)
	for in.Scan() {
		line := in.Text()
		r.mu.Lock()
		if strings.HasPrefix(line, "MAIL") || strings.HasPrefix(line, "RCPT") {
			r.heard = append(r.heard, line)
		}
		answer := "250 fine"
		for begin, a := range r.answers {
			if strings.HasPrefix(line, begin) {
				answer = a
			}
		}
		r.mu.Unlock()
		switch line {
		case "DATA":
			fmt.Fprint(c, "354 go\r\n")
			var text strings.Builder
			for in.Scan() && in.Text() != "." {
				fmt.Fprintln(&text, in.Text())
			}
			r.mails <- text.String()
		case "QUIT":
			fmt.Fprint(c, "221 bye\r\n")
			return
		}
		fmt.Fprintf(c, "%s\r\n", answer)
	}
}

func mailer(r *relay) (m *Mailer, told *[]string) {
	var mu sync.Mutex
	told = &[]string{}
	m = New(Options{Identity: director, Port: r.port, Sink: func(e model.Event) {
		mu.Lock()
		defer mu.Unlock()
		*told = append(*told, e.Text)
	}})
	return m, told
}

func finish(t *testing.T, m *Mailer) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	m.Close(ctx)
}

// Several addresses are several recipients.
func TestMailToSeveral(t *testing.T) {
	r := newRelay(t, nil)
	m, told := mailer(r)
	msg := shop
	msg.To = "ops@example.test, night@example.test"
	m.Send(msg)
	finish(t, m)
	want := []string{"MAIL FROM:<root@lvs01.example.test>", "RCPT TO:<ops@example.test>", "RCPT TO:<night@example.test>"}
	if d := cmp.Diff(want, r.heard); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	text := <-r.mails
	for _, want := range []string{"From: \"LVS\" <lvs@example.test>\n", "To: <ops@example.test>, <night@example.test>\n",
		"Subject: [Shop] Deleted real server: 10.0.0.1:80 (10.0.0.9:80)\n", "\nDate: ", "Message-ID: <", "\nLog-Message: [Shop] Deleted", "\nService name: Shop\n"} {
		if !strings.Contains("\n"+text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if len(*told) > 0 {
		t.Error(*told)
	}
}

// A recipient that is refused does not take the others' mail away, even if the
// relay's TLS does not work.
func TestOneRefused(t *testing.T) {
	for name, answers := range map[string]map[string]string{
		"plain":      {},
		"broken TLS": {"EHLO": "250-relay\r\n250 STARTTLS", "STARTTLS": "220 go on\r\nthis is no TLS"},
	} {
		answers["RCPT TO:<gone@"] = "550 no such user"
		r := newRelay(t, answers)
		m, told := mailer(r)
		msg := shop
		msg.To = "gone@example.test, night@example.test"
		m.Send(msg)
		finish(t, m)
		select {
		case text := <-r.mails:
			if !strings.Contains(text, "To: <night@example.test>") {
				t.Errorf("%s: the other one's mail\n%s", name, text)
			}
		default:
			t.Errorf("%s: the other one got no mail", name)
		}
		if len(*told) != 1 || !strings.Contains((*told)[0], `550 "no such user"`) {
			t.Errorf("%s: told %q", name, *told)
		}
	}
}

// A refusal for good is told once and not repeated; an address that is none is
// told without asking anybody.
func TestRefusals(t *testing.T) {
	r := newRelay(t, map[string]string{"MAIL": "554 not from you"})
	m, told := mailer(r)
	m.Send(shop)
	bad := shop
	bad.From = "not <an address"
	m.Send(bad)
	finish(t, m)
	if len(r.heard) != 1 || len(*told) != 2 || !strings.Contains((*told)[0], `554 "not from you"`) || !strings.Contains((*told)[1], "emailalertfrom=not <an address is no address") {
		t.Errorf("heard %q, told %q", r.heard, *told)
	}
}

// A relay that is silent delays no caller, costs a bounded number of messages,
// and does not keep the director from stopping.
func TestSilentRelay(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0") // nobody accepts: connected, and silence
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	m, told := mailer(&relay{port: ln.Addr().(*net.TCPAddr).Port})
	for range 3 * maxWaiting {
		m.Send(shop)
	}
	m.mu.Lock()
	if n := len(m.queues["127.0.0.1"].waiting); n > maxWaiting {
		t.Errorf("%d messages wait", n)
	}
	m.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m.Close(ctx)
	if !strings.Contains(strings.Join(*told, "\n"), "were dropped") {
		t.Errorf("nothing tells of the dropped ones: %d lines", len(*told))
	}
	m.Send(shop) // after the end: nothing
}

// A relay that is away for a moment gets the mail later.
func TestAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries int
		q := &queue{hurry: make(chan struct{})}
		m := New(Options{Identity: director, Sendmail: "/nonexistent/sendmail"})
		msg := shop
		msg.Relay = ""
		start := time.Now()
		err := m.deliver(q, msg)
		tries++
		if err == nil || time.Since(start) != 14*time.Second { // 2 + 4 + 8
			t.Errorf("%v after %v, %d", err, time.Since(start), tries)
		}
		m.Close(t.Context())
	})
}

// Without a relay the local mail program gets the text and the recipients.
func TestSendmail(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "sendmail")
	script := "#!/bin/sh\necho \"$@\" > " + dir + "/args\ncat > " + dir + "/mail\n"
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	m := New(Options{Identity: director, Sendmail: program, Sink: func(e model.Event) { t.Error(e.Text) }})
	msg := shop
	msg.Relay, msg.To = "", "root, ops@example.test"
	m.Send(msg)
	finish(t, m)
	args, _ := os.ReadFile(dir + "/args")
	text, _ := os.ReadFile(dir + "/mail")
	if string(args) != "-oi -t -f root@lvs01.example.test\n" || !strings.Contains(string(text), "To: <root@lvs01.example.test>, <ops@example.test>\r\n") {
		t.Errorf("args %s, mail\n%s", args, text)
	}
}
