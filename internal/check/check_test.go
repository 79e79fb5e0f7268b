package check

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// needRoot skips a test without root, or fails it where root was promised.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("BATUTA_REQUIRE_ROOT") == "1" {
		t.Fatal("BATUTA_REQUIRE_ROOT=1, but not root")
	}
	t.Skip("needs root")
}

func TestConnect(t *testing.T) {
	closed := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}()
	for _, tc := range []struct {
		name, addr string
		status     model.Status
		reason     string
	}{
		{"a silent server is up", script(t, silent), model.Up, "connected"},
		{"a resetting server is up", script(t, reset), model.Up, "connected"},
		{"nobody listens", closed, model.Down, "connection refused"},
		{"no port", "127.0.0.1:0", model.Down, "set checkport"},
	} {
		for way, make := range ways {
			v := make(t, target(tc.addr, func(t *model.Target) { t.Kind = model.CheckConnect }))
			if v.Status != tc.status || !strings.Contains(v.Reason, tc.reason) {
				t.Errorf("%s%s: verdict %v, want %v: ...%s...", tc.name, way, v, tc.status, tc.reason)
			}
		}
	}
}

func TestPing(t *testing.T) {
	needRoot(t)
	for _, tc := range []struct {
		addr   string
		f      Func
		proto  model.Protocol
		status model.Status
		reason string
	}{
		{"127.0.0.1:9", ping, model.TCP, model.Up, "echo reply"},
		{"[::1]:9", ping, model.TCP, model.Up, "echo reply"},
		{"127.0.0.1:9", connect, model.UDP, model.Up, "echo reply"},
	} {
		t.Run(tc.addr, func(t *testing.T) {
			v := Perform(t.Context(), tc.f, target(tc.addr, func(t *model.Target) { t.Proto = tc.proto }))
			if v.Status != tc.status || !strings.Contains(v.Reason, tc.reason) {
				t.Errorf("verdict %v, want %v: ...%s...", v, tc.status, tc.reason)
			}
		})
	}
}

func TestEveryTargetHasACheck(t *testing.T) {
	for kind := model.CheckNone; kind <= model.CheckOn; kind++ {
		for _, app := range []string{"", "none", "http", "dns", "nonsense"} {
			if For(model.Target{Kind: kind, Application: app}) == nil {
				t.Errorf("no check for %v %q", kind, app)
			}
		}
	}
	for _, tc := range []struct {
		t      model.Target
		status model.Status
	}{
		{model.Target{Kind: model.CheckOn}, model.Up},
		{model.Target{Kind: model.CheckOff}, model.Down},
		{model.Target{Kind: model.CheckNegotiate, Application: "none"}, model.Up},
		{model.Target{Kind: model.CheckNegotiate, Application: "nonsense"}, model.Unknown},
		{model.Target{Kind: model.CheckExternal}, model.Down},
	} {
		v := Perform(t.Context(), For(tc.t), tc.t)
		if v.Status != tc.status || v.Reason == "" {
			t.Errorf("%v %q: %v, want %v with a reason", tc.t.Kind, tc.t.Application, v, tc.status)
		}
	}
}

func TestACrashIsAVerdict(t *testing.T) {
	v := Perform(t.Context(), func(context.Context, model.Target) model.Verdict {
		var nothing []int
		return model.Verdict{Reason: string(rune(nothing[3]))}
	}, model.Target{})
	if v.Status != model.Down || !strings.Contains(v.Reason, "index out of range") || !strings.Contains(v.Reason, "check_test.go:") {
		t.Errorf("verdict %v, want down with the reason and the place", v)
	}
	if v.At.IsZero() {
		t.Error("the verdict has no time")
	}
}

// What servers say ends up on terminals.
func TestVerdictsArePrintable(t *testing.T) {
	for said, want := range map[string]string{
		"200 OK":                  "200 OK",
		"grüße, 世界":               "grüße, 世界",
		"a\r\nb\tc\x00d\x7f":      "a??b?c?d?",
		"\x1b[2J \u009b2J":        "?[2J ?2J",
		"left \u202eright":        "left ?right",
		"line\u2028and\u2029more": "line?and?more",
		"not UTF-8 \xff\xfe":      "not UTF-8 ??",
	} {
		v := Perform(t.Context(), func(context.Context, model.Target) model.Verdict {
			return model.Verdict{Status: model.Up, Reason: said, Warning: said, Load: model.Load{Reason: said}}
		}, model.Target{})
		if v.Reason != want || v.Warning != want || v.Load.Reason != want {
			t.Errorf("%q became %q, %q, %q, want %q", said, v.Reason, v.Warning, v.Load.Reason, want)
		}
	}
}

func TestFaultsOfThisMachineSayNothingAboutTheServer(t *testing.T) {
	ctx := t.Context()
	expired, cancel := context.WithDeadline(ctx, time.Unix(1, 0))
	defer cancel()
	op := func(e error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort("10.0.0.1:80")), Err: os.NewSyscallError("connect", e)}
	}
	for _, tc := range []struct {
		err    error
		within context.Context
		status model.Status
		reason string
	}{
		{op(syscall.EMFILE), ctx, model.Unknown, "this machine could not make the check: dial tcp 10.0.0.1:80: connect: too many open files"},
		{op(syscall.EPERM), ctx, model.Unknown, "this machine could not make the check: dial tcp 10.0.0.1:80: connect: operation not permitted"},
		{op(syscall.ECONNREFUSED), ctx, model.Down, "connection refused"},
		{op(syscall.EHOSTUNREACH), ctx, model.Down, "no route to host"},
		{errors.New("use of closed network connection"), expired, model.Down, "no answer within 2s"},
	} {
		if v := failed(ctx, tc.within, tc.err, 2*time.Second); v.Status != tc.status || v.Reason != tc.reason {
			t.Errorf("%v: %v, want %v: %s", tc.err, v, tc.status, tc.reason)
		}
	}
}

// BenchmarkHTTP makes one complete check after the other against a server in
// the same process.
func BenchmarkHTTP(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go answerAll(l)
	t := target(l.Addr().String(), receive("alive"))
	b.ReportAllocs()
	for b.Loop() {
		if v := Perform(b.Context(), negotiateHTTP, t); v.Status != model.Up {
			b.Fatal(v)
		}
	}
}

// answerAll is the server of benchmarks.
func answerAll(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			buf := make([]byte, 1024)
			_, _ = c.Read(buf)
			_, _ = c.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nalive"))
			_ = c.Close()
		}()
	}
}
