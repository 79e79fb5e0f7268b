package check

import (
	"io"
	"net"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

var callIDHeader = regexp.MustCompile(`(?m)^Call-ID: (\S+)\r$`)

// sipServer answers a request with a status and the Call-ID that came with it.
func sipServer(status ...string) func(string) []string {
	return func(request string) []string {
		var answers []string
		for _, s := range status {
			answers = append(answers, "SIP/2.0 "+s+"\r\nCall-ID: "+callIDHeader.FindStringSubmatch(request)[1]+"\r\nContent-Length: 0\r\n\r\n")
		}
		return answers
	}
}

// overTCP plays a datagram server's part over a connection.
func overTCP(answer func(string) []string) func(net.Conn) {
	return func(c net.Conn) {
		for _, a := range answer(readHead(c)) {
			if !act(c, a) {
				return
			}
		}
	}
}

func TestSIP(t *testing.T) {
	const late = "SIP/2.0 200 OK\r\nCall-ID: of-another-check\r\n\r\n"
	for _, tc := range []struct {
		name     string
		answer   func(string) []string
		opts     []func(*model.Target)
		udp, tcp model.Status
		reason   string
	}{
		{"200", sipServer("200 OK"), nil, model.Up, model.Up, "SIP/2.0 200 OK"},
		{"200 in other words", sipServer("200 Keepalive"), nil, model.Up, model.Up, "SIP/2.0 200 Keepalive"},
		{"provisional first", sipServer("100 Trying", "200 OK"), nil, model.Up, model.Up, "SIP/2.0 200 OK"},
		{"404", sipServer("404 Not Found"), nil, model.Down, model.Down, "SIP/2.0 404 Not Found"},
		{"503", sipServer("503 Service Unavailable"), nil, model.Down, model.Down, "SIP/2.0 503 Service Unavailable"},
		{"the least that answers", answers("SIP/2.0 200 OK\r\n\r\n"), nil, model.Up, model.Up, "SIP/2.0 200 OK"},
		{"garbage", answers("hello\r\n\r\n"), nil, model.Down, model.Down, `not an answer: "hello"`},
		{"a number that is none", answers("SIP/2.0 2000 OK\r\n\r\n"), nil, model.Down, model.Down, "not an answer"},
		{"another protocol", answers("HTTP/1.1 200 OK\r\n\r\n"), nil, model.Down, model.Down, "not an answer"},
		{"a header without end", answers("SIP/2.0 200 OK\r\nX: " + strings.Repeat("x", 60000) + "\r\n\r\n"), nil, model.Down, model.Down, "a line of more than 8192 bytes"},
		{"silent", answers(hang), []func(*model.Target){short}, model.Down, model.Down, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			opts := append([]func(*model.Target){application("sip"), login("ldirectord@lvs01", "")}, tc.opts...)
			wantVerdict(t, target(datagrams(t, tc.answer), append(opts, udp)...), tc.udp, tc.reason)
			wantVerdict(t, target(script(t, overTCP(tc.answer)), opts...), tc.tcp, tc.reason)
		})
	}
	t.Run("a late answer to another check", func(t *testing.T) {
		t.Parallel()
		answer := func(q string) []string { return append([]string{late}, sipServer("404 Not Found")(q)...) }
		wantVerdict(t, target(datagrams(t, answer), application("sip"), udp), model.Down, "404 Not Found")
	})
	t.Run("a datagram that is lost", func(t *testing.T) {
		t.Parallel()
		first := true
		answer := func(q string) []string {
			if first {
				first = false
				return nil
			}
			return sipServer("200 OK")(q)
		}
		wantVerdict(t, target(datagrams(t, answer), application("sip"), udp), model.Up, "200 OK")
	})
	for name, says := range map[string]string{"without end": flood + "X: y\r\n", "reset": abort, "closed": drop, "no end of line": long} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wantVerdict(t, target(script(t, func(c net.Conn) {
				readHead(c)
				if !strings.HasPrefix(says, "(") || act(c, "SIP/2.0 200 OK\r\n") {
					act(c, says)
				}
			}), application("sip")), model.Down, "")
		})
	}
}

func TestSIPRequest(t *testing.T) {
	random := regexp.MustCompile(`(z9hG4bK|Call-ID: )[A-Z2-7]{26}`)
	tag := regexp.MustCompile(`tag=[A-Z2-7]{8}`)
	for _, tc := range []struct {
		name string
		opts []func(*model.Target)
		uri  string
	}{
		{"the login", []func(*model.Target){login("ldirectord@lvs01", "")}, "sip:ldirectord@lvs01"},
		{"no login: the server itself", nil, "sip:127.0.0.1"},
	} {
		heard := make(chan string, 1)
		var from string
		addr := script(t, func(c net.Conn) {
			from = c.RemoteAddr().String()
			heard <- readHead(c)
			_, _ = io.WriteString(c, "SIP/2.0 200 OK\r\n\r\n")
		})
		wantVerdict(t, target(addr, append(tc.opts, application("sip"))...), model.Up, "200 OK")
		got := random.ReplaceAllString(tag.ReplaceAllString(<-heard, "tag=T"), "${1}R")
		want := "OPTIONS " + tc.uri + " SIP/2.0\r\nVia: SIP/2.0/TCP " + from + ";branch=z9hG4bKR\r\nMax-Forwards: 70\r\nTo: <" + tc.uri + ">\r\n" +
			"From: <" + tc.uri + ">;tag=T\r\nCall-ID: R\r\nCSeq: 63104 OPTIONS\r\nContact: <sip:" + from + ">\r\nAccept: application/sdp\r\nContent-Length: 0\r\n\r\n"
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got)\n%s", tc.name, d)
		}
	}
	wantVerdict(t, target("127.0.0.1:5060", application("sip"), login("a b", "")), model.Down, "it is no SIP user")
}
