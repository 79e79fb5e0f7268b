package check

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// byTCP are the checks that this machine's hostile servers are shown to.
var byTCP = []struct {
	name  string
	alter func(*model.Target)
}{
	{"http", func(*model.Target) {}},
	{"http by HTTP/2", func(t *model.Target) { t.HTTP2 = true }},
	{"https", func(t *model.Target) { t.Application = "https" }},
	{"http_proxy", func(t *model.Target) { t.Application, t.Request = "http_proxy", "/http://www.example.test/" }},
	{"dns", func(t *model.Target) { t.Application, t.Request, t.Receive = "dns", "/host.example.test.", "." }},
	{"ldap", func(t *model.Target) { t.Application = "ldap" }},
	{"ldaps", func(t *model.Target) { t.Application = "ldaps" }},
	{"mysql", database},
	{"pgsql", func(t *model.Target) { database(t); t.Application = "pgsql" }},
	{"oracle", func(t *model.Target) { database(t); t.Application = "oracle" }},
	{"dialogue", steps(model.Step{Kind: model.StepExpect, Text: "^never$"})},
	{"dialogue, one line", steps(model.Step{Kind: model.StepExpectNot, Text: "^"}, model.Step{Kind: model.StepExpect, Text: "^never$"})},
	{"dialogue by TLS", func(t *model.Target) { steps(model.Step{Kind: model.StepExpect, Text: "^never$"})(t); t.TLS = true }},
}

func database(t *model.Target) {
	t.Application, t.Login, t.Password, t.Database, t.Request = "mysql", "u", "p", "d", "/SELECT 1"
}

// pours never stops saying the same, and hears nothing.
func pours(piece string) func(net.Conn) {
	return func(c net.Conn) {
		b := bytes.Repeat([]byte(piece), 1+32768/len(piece))
		for {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}
}

// hangsUp says something and closes once the client has spoken, or does not.
func hangsUp(words string) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = io.WriteString(c, words)
		_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		_, _ = c.Read(make([]byte, 1))
	}
}

func abruptly(c net.Conn) {
	_ = c.(*net.TCPConn).SetLinger(0)
}

// drips says one byte after the other, without end.
func drips(piece string) func(net.Conn) {
	return func(c net.Conn) {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			if _, err := c.Write([]byte{piece[i%len(piece)]}); err != nil {
				return
			}
			<-tick.C
		}
	}
}

// Whatever a server sends: it is down, in bounded time, with a reason that
// fits one line.
func TestHostileServers(t *testing.T) {
	const tlsJunk = "\x16\x03\x03\x40\x00\x02\x00\x3f\xfc"
	for _, h := range []struct {
		name   string
		play   func(net.Conn)
		short  bool   // the check is to run into its time-out
		reason string // a part of it, "" for any
	}{
		{"silence", silent, true, "no answer within"},
		{"hangs up", hangsUp(""), false, ""},
		{"resets at once", abruptly, false, ""},
		{"text", hangsUp("220 mail.example.test ESMTP\r\n"), false, ""},
		{"zeros", pours("\x00"), false, ""},
		{"ones", pours("\xff"), false, ""},
		{"text without end", pours("x"), false, ""},
		{"lines without end", pours("x\r\n"), false, ""},
		{"binary without end", pours("\x30\x84\x7f\xff\xff\xff"), false, ""},
		{"nested without end", pours("\x30\x82"), false, ""},
		{"a length of gigabytes", pours("\x7f\xff\xff\xff"), false, ""},
		{"junk in TLS", pours(tlsJunk), false, ""},
		{"an alert in TLS", hangsUp("\x15\x03\x03\x00\x02\x02\x28"), false, ""},
		{"a drop at a time", drips("HTTP/1.1 200 OK\r\nX: y\r\n"), true, ""},
		{"headers, a drop at a time", func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n"); drips("X: y\r\n")(c) }, true, ""},
	} {
		for _, p := range byTCP {
			for way, make := range ways {
				t.Run(h.name+" for "+p.name+way, func(t *testing.T) {
					t.Parallel()
					tg := target(script(t, h.play), p.alter)
					if h.short {
						short(&tg)
					}
					v := make(t, tg)
					if v.Status != model.Down || !strings.Contains(v.Reason, h.reason) || strings.ContainsAny(v.Reason, "\r\n\x00") || len(v.Reason) > 400 {
						t.Errorf("%v, want down in one line: ...%s...", v, h.reason)
					}
					if !h.short && strings.Contains(v.Reason, "no answer within") && h.name != "a length of gigabytes" {
						t.Errorf("%v, want a verdict before the time is over", v)
					}
				})
			}
		}
	}
}

// A server that pours gigabytes does not get them into memory.
func TestHostileServersTakeNoMemory(t *testing.T) {
	for _, p := range byTCP {
		for _, piece := range []string{"\x00", "\x02\x01\x00", "\x30\x82", "HTTP/1.1 200 OK\r\n\r\n"} {
			tg := target(script(t, pours(piece)), p.alter)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for _, make := range ways {
				v := make(t, tg)
				runtime.ReadMemStats(&after)
				if used := after.TotalAlloc - before.TotalAlloc; used > 64<<20 {
					t.Errorf("%s, fed with %q, took %d MB: %v", p.name, piece, used>>20, v)
				}
			}
		}
	}
}

// Nobody listens, and nobody is asked where the port is not known.
func TestNobodyThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	l.Close()
	radius := func(t *model.Target) { t.Application, t.Secret = "radius", "s" }
	for _, p := range append(byTCP, []struct {
		name  string
		alter func(*model.Target)
	}{
		{"dns by udp", func(t *model.Target) { byTCP[4].alter(t); udp(t) }},
		{"radius", radius},
	}...) {
		tg := target(closed, p.alter)
		for way, make := range ways {
			if v := make(t, tg); v.Status != model.Down || !strings.Contains(v.Reason, "connection refused") {
				t.Errorf("%s%s: %v, want down: connection refused", p.name, way, v)
			}
		}
		tg.Addr = netip.AddrPortFrom(tg.Addr.Addr(), 0)
		if v := Perform(t.Context(), For(tg), tg); v.Status != model.Down || !strings.Contains(v.Reason, "no port to connect to") {
			t.Errorf("%s: %v, want down: no port", p.name, v)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, p := range byTCP {
		tg := target(closed, p.alter)
		if v := Perform(ended, For(tg), tg); v.Status != model.Unknown {
			t.Errorf("%s, interrupted: %v, want unknown", p.name, v)
		}
	}
}

// Datagrams that are no answer do not keep a check from its end.
func TestHostileDatagrams(t *testing.T) {
	for name, alter := range map[string]func(*model.Target){
		"dns":    func(t *model.Target) { byTCP[4].alter(t); udp(t) },
		"radius": func(t *model.Target) { t.Application, t.Secret = "radius", "s3cret" },
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			over, done := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(done)
				b := make([]byte, 2*datagramSize)
				n, from, err := c.ReadFrom(b)
				for i := n; err == nil; i = i%len(b) + 1 {
					_, _ = c.WriteTo(b[:i], from) // first the question itself, then ever more and less
					select {
					case <-over:
						return
					default:
					}
				}
			}()
			tg := target(c.LocalAddr().String(), alter, short)
			v := Perform(t.Context(), For(tg), tg)
			close(over)
			c.Close()
			<-done
			if v.Status != model.Down || !strings.Contains(v.Reason, "within 100ms") {
				t.Errorf("%v, want down: nothing within 100ms", v)
			}
		})
	}
}
