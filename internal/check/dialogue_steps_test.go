package check

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// steps makes a target of a dialogue.
func steps(list ...model.Step) func(*model.Target) {
	return func(t *model.Target) { t.Application, t.Request, t.Steps = "dialogue", "", model.StepsText(list) }
}

func send(text string) model.Step    { return model.Step{Kind: model.StepSend, Text: text} }
func expect(re string) model.Step    { return model.Step{Kind: model.StepExpect, Text: re} }
func expectNot(re string) model.Step { return model.Step{Kind: model.StepExpectNot, Text: re} }

// tells says something to whoever connects, and closes.
func tells(text string) func(net.Conn) { return func(c net.Conn) { act(c, text) } }

func within(s model.Step, d time.Duration) model.Step {
	s.Timeout = d
	return s
}

func TestDialogueSteps(t *testing.T) {
	const impatient = 200 * time.Millisecond
	closes := model.Step{Kind: model.StepClose}
	echo := func(c net.Conn) { _, _ = io.Copy(c, c) }
	for _, tc := range []struct {
		name   string
		play   func(net.Conn)
		steps  []model.Step
		status model.Status
		reason string
	}{
		{"a line is sent and comes back", echo, []model.Step{send("PING\r\n"), expect("^PING$")}, model.Up, "PING"},
		{"nothing but a connection", silent, []model.Step{closes}, model.Up, "connected"},
		{"lines before the one that matters", tells("one\r\ntwo\nthree\r\n"), []model.Step{expect("^th")}, model.Up, "three"},
		{"the next expect begins behind the last", tells("one\r\ntwo\r\n"), []model.Step{expect("^one$"), expect("^one$")}, model.Down, `step 2, expect: "^one$" is in no line, the last one is "two"`},
		{"a prompt without an end", func(c net.Conn) { act(c, "login: "); silent(c) }, []model.Step{expect("^login: $"), closes}, model.Up, "login:"},
		{"a last line without an end", tells("done"), []model.Step{expect("^done$")}, model.Up, "done"},
		{"what must not be is not", tells("fine\r\n"), []model.Step{expectNot("error")}, model.Up, "fine"},
		{"what must not be is", tells("an error\r\n"), []model.Step{expectNot("error")}, model.Down, `step 1, expect-not: "error" is in the answer "an error"`},
		{"nothing comes", silent, []model.Step{within(expect("x"), impatient)}, model.Down, "step 1, expect: no answer within 200ms"},
		{"nothing comes to what was sent", silent, []model.Step{send("a\n"), within(expect("x"), impatient)}, model.Down, "step 2, expect: no answer within 200ms"},
		{"it closes", tells(""), []model.Step{expect("x")}, model.Down, "step 1, expect: connection closed by the server"},
		{"not a regular expression", silent, []model.Step{expect("(")}, model.Down, "regular expression"},
		{"a line without end", pours("x"), []model.Step{expect("^y")}, model.Down, "a line of more than 8192 bytes"},
		{"lines without end", pours("x\n"), []model.Step{expect("^y")}, model.Down, "an answer without end"},
		{"a line without end, of which one must not be", pours("x"), []model.Step{expectNot("y")}, model.Down, "a line of more than 8192 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			wantVerdict(t, target(script(t, tc.play), steps(tc.steps...)), tc.status, tc.reason)
		})
	}
	t.Run("text that is no dialogue", func(t *testing.T) {
		wantVerdict(t, target(script(t, silent), steps(), func(t *model.Target) { t.Steps = "sing \"x\"\n" }), model.Down, `"sing" is no step`)
	})
}

// A server that drips costs time, which is bounded, and not much else.
func TestDialogueDrips(t *testing.T) {
	play := func(c net.Conn) {
		for {
			if _, err := c.Write([]byte("x")); err != nil {
				return
			}
		}
	}
	tg := target(script(t, play), steps(expect("(x+x+)+y")))
	wantVerdict(t, tg, model.Down, "a line of more than 8192 bytes")
}

// A dialogue goes over to TLS in its middle, or begins with it.
func TestDialogueTLS(t *testing.T) {
	cert := trusted.server(t, time.Now().Add(time.Hour))
	play := func(c net.Conn) {
		act(c, "220 plain\r\n")
		in := bufio.NewReader(c)
		if l, _ := in.ReadString('\n'); l != "STARTTLS\r\n" {
			return
		}
		act(c, "220 go ahead\r\n")
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
		if s.Handshake() == nil {
			_, _ = io.Copy(s, s)
		}
	}
	list := []model.Step{expect("^220 "), send("STARTTLS\r\n"), expect("^220 "), {Kind: model.StepStartTLS}, send("EHLO x\r\n"), expect("^EHLO x$")}
	wantVerdict(t, target(script(t, play), steps(list...)), model.Up, "EHLO x")
	wantVerdict(t, target(script(t, play), steps(list...), func(t *model.Target) { t.TLSVerify = model.VerifyName }), model.Down, "step 4, starttls: ")
	eager := func(c net.Conn) { act(c, "220 plain\r\n220 go ahead\r\ninjected\r\n"); silent(c) }
	wantVerdict(t, target(script(t, eager), steps(expect("plain"), expect("ahead"), model.Step{Kind: model.StepStartTLS})), model.Down, "before the TLS handshake")
	wantVerdict(t, target(tlsScript(t, cert, tells("hello\r\n")), steps(expect("^hello$")), func(t *model.Target) { t.TLS = true }), model.Up, "hello")
}

// What StepsText writes, ParseSteps reads.
func FuzzSteps(f *testing.F) {
	f.Add("send \"HELO\\r\\n\" 2s\nexpect \"^250\"\nstarttls\nexpect-not \"x\"\nclose\n")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := model.ParseSteps(text)
		if err != nil {
			return
		}
		again, err := model.ParseSteps(model.StepsText(list))
		if err != nil || len(again) != len(list) {
			t.Fatalf("%q: %v, %v", text, again, err)
		}
		for i := range list {
			if again[i] != list[i] {
				t.Errorf("%q: step %d: %+v, %+v", text, i, list[i], again[i])
			}
		}
	})
}

// An agent's line says what the real server can take.
func TestAgent(t *testing.T) {
	load := func(mode model.LoadMode, reason string, percent ...int) model.Load {
		l := model.Load{Mode: mode, Reason: reason}
		if len(percent) > 0 {
			l.Weighted, l.Percent = true, percent[0]
		}
		return l
	}
	for _, tc := range []struct {
		name   string
		play   func(net.Conn)
		status model.Status
		load   model.Load
	}{
		{"a part", tells("75%\n"), model.Up, load(model.LoadUnsaid, "", 75)},
		{"no end of the line", tells("50%"), model.Up, load(model.LoadUnsaid, "", 50)},
		{"a word and a part", tells("ready, 30% maxconn:100\r\n"), model.Up, load(model.LoadReady, "", 30)},
		{"up", tells("up\n"), model.Up, load(model.LoadReady, "")},
		{"drain", tells("drain\n"), model.Up, load(model.LoadDrain, "")},
		{"maint", tells("maint # updates\n"), model.Up, load(model.LoadMaint, "updates")},
		{"the sternest counts", tells("up drain\n"), model.Up, load(model.LoadDrain, "")},
		{"too much", tells("99999999%\n"), model.Up, load(model.LoadUnsaid, "", model.MaxLoadPercent)},
		{"down", tells("down#disk full\n"), model.Down, model.Load{}},
		{"stopped", tells("stopped\n"), model.Down, model.Load{}},
		{"garbage", tells("HTTP/1.1 400 Bad Request\r\n"), model.Up, model.Load{}},
		{"a negative part", tells("-3%\n"), model.Up, model.Load{}},
		{"nothing", tells(""), model.Up, model.Load{}},
		{"silence", silent, model.Up, model.Load{}},
		{"a reset", func(c net.Conn) { act(c, abort) }, model.Up, model.Load{}},
		{"a flood", pours("x"), model.Up, model.Load{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			agent := target(script(t, tc.play)).Addr.Port()
			tg := target(script(t, says("HTTP/1.1 200 OK\r\n\r\n")), func(t *model.Target) { t.AgentPort = agent })
			if tc.name == "silence" {
				tg.CheckTimeout = 300 * time.Millisecond
			}
			v := Perform(t.Context(), For(tg), tg)
			if v.Status != tc.status || v.Load != tc.load {
				t.Errorf("%v, %+v; want %v, %+v", v, v.Load, tc.status, tc.load)
			}
			if tc.status == model.Down && !strings.Contains(v.Reason, "its agent reports down") {
				t.Error(v)
			}
		})
	}
	t.Run("nobody is asked of a server that is down", func(t *testing.T) {
		tg := target(script(t, says("HTTP/1.1 500 no\r\n\r\n")), func(t *model.Target) {
			t.AgentPort = 1
		})
		wantVerdict(t, tg, model.Down, "500")
	})
}

// A response header reports the same.
func TestWeightHeader(t *testing.T) {
	tg := target(script(t, says("HTTP/1.1 200 OK\r\nX-Load: 20%\r\n\r\n")), func(t *model.Target) { t.WeightHeader = "X-Load" })
	if v := Perform(t.Context(), For(tg), tg); v.Load.Percent != 20 || !v.Load.Weighted {
		t.Errorf("%v, %+v", v, v.Load)
	}
}
