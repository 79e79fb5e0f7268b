package check

import (
	"io"
	"net"
	"strings"
	"testing"

	"github.com/batuta-ha/batuta/internal/model"
)

// afterAll answers once the other side has ended.
func afterAll(answer string) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = io.Copy(io.Discard, c)
		_, _ = io.WriteString(c, answer)
	}
}

func TestSimpleTCP(t *testing.T) {
	redis := []func(*model.Target){request(`/PING\nINFO`), receive(`^\+PONG`)}
	for _, tc := range []struct {
		name   string
		play   func(net.Conn)
		opts   []func(*model.Target)
		status model.Status
		reason string
	}{
		{"the second line matches", afterAll("x\n+PONG\n"), redis, model.Up, "+PONG"},
		{"the last line has no end", afterAll("+PONG"), redis, model.Up, "+PONG"},
		{"none matches", afterAll("-ERR\r\n-ERR again\r\n"), redis, model.Down, `receive="^\\+PONG" is in no line, the last one is "-ERR again"`},
		{"dollar looks past the end of a line", afterAll("+PONG\n"), []func(*model.Target){receive("PONG$")}, model.Up, "+PONG"},
		{"any line will do", afterAll("hello\n"), nil, model.Up, "hello"},
		{"none does not", afterAll(""), nil, model.Down, "connection closed without an answer"},
		{"answers and goes on", func(c net.Conn) { act(c, "+PONG\n"); silent(c) }, redis, model.Up, "+PONG"},
		{"silent", func(c net.Conn) { silent(c); select {} }, []func(*model.Target){short}, model.Down, "no answer within 100ms"},
		{"resets", func(c net.Conn) { act(c, abort) }, redis, model.Down, ""},
		{"lines without end", func(c net.Conn) { act(c, flood+"no\n") }, redis, model.Down, "the answer is too long: more than 1048576 bytes"},
		{"a line without end", func(c net.Conn) { act(c, long) }, redis, model.Down, "the answer is too long"},
		{"no regular expression", silent, []func(*model.Target){receive("(")}, model.Down, "missing closing"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			wantVerdict(t, target(script(t, tc.play), append([]func(*model.Target){application("simpletcp")}, tc.opts...)...), tc.status, tc.reason)
		})
	}
}

func TestSimpleTCPSendsTheRequestAndEnds(t *testing.T) {
	for configured, want := range map[string]string{`/PING\nINFO\t`: "PING\nINFO\\t", "/": "", "//x": "/x"} {
		heard := make(chan string, 1)
		addr := script(t, func(c net.Conn) {
			b, _ := io.ReadAll(c)
			heard <- string(b)
			_, _ = io.WriteString(c, "ok\n")
		})
		wantVerdict(t, target(addr, application("simpletcp"), request(configured)), model.Up, "ok")
		if got := <-heard; got != want {
			t.Errorf("request=%q sent %q, want %q", configured, got, want)
		}
	}
}

// datagrams answers each datagram with others.
func datagrams(t *testing.T, answer func(question string) []string) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			for _, a := range answer(string(buf[:n])) {
				_, _ = c.WriteTo([]byte(a), from)
			}
		}
	}()
	return c.LocalAddr().String()
}

func answers(all ...string) func(string) []string {
	return func(string) []string { return all }
}

func udp(t *model.Target) { t.Proto = model.UDP }

func TestSimpleUDP(t *testing.T) {
	ask := request("/ask")
	for _, tc := range []struct {
		name   string
		answer func(string) []string
		opts   []func(*model.Target)
		status model.Status
		reason string
	}{
		{"an answer", answers("fine\n"), []func(*model.Target){ask}, model.Up, "fine"},
		{"the second one matches", answers("x\ny\n", "z\nfine"), []func(*model.Target){ask, receive("^fine$")}, model.Up, "fine"},
		{"none matches", answers("x"), []func(*model.Target){ask, short, receive("fine")}, model.Down, "no answer within 100ms"},
		{"silent", answers(), []func(*model.Target){ask, short}, model.Down, "no answer within 100ms"},
		{"not asked", answers("fine"), []func(*model.Target){request("/")}, model.Down, "request is missing"},
		{"what it hears", func(q string) []string { return []string{"heard " + strings.ToUpper(q)} }, []func(*model.Target){ask}, model.Up, "heard ASK"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			wantVerdict(t, target(datagrams(t, tc.answer), append([]func(*model.Target){application("simpletcp"), udp}, tc.opts...)...), tc.status, tc.reason)
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		wantVerdict(t, target(c.LocalAddr().String(), application("simpletcp"), udp, ask), model.Down, "connection refused")
	})
}
