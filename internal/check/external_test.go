package check

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

// program writes an executable file.
func program(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

func externalTarget(command string, opts ...func(*model.Target)) model.Target {
	t := model.Target{Kind: model.CheckExternal, Command: command, CheckTimeout: 10 * time.Second,
		VirtualAddr: netip.MustParseAddrPort("10.1.0.100:80"), Addr: netip.MustParseAddrPort("10.240.0.20:9999"), RealPort: 8080}
	for _, o := range opts {
		o(&t)
	}
	return t
}

func perl(t *model.Target) { t.Kind = model.CheckExternalPerl }

func TestExternal(t *testing.T) {
	sh := func(text string) string { return program(t, "check", "#!/bin/sh\n"+text+"\n") }
	plainFile := program(t, "file", "#!/bin/sh\n")
	if err := os.Chmod(plainFile, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name    string
		command string
		opts    []func(*model.Target)
		status  model.Status
		reason  string
	}{
		{"exit status 0", sh("exit 0"), nil, model.Up, "exit status 0"},
		{"with a last word", sh("echo one; echo two; echo"), nil, model.Up, "exit status 0: two"},
		{"exit status 3", sh("echo sorry >&2; exit 3"), nil, model.Down, "exit status 3: sorry"},
		{"killed", sh("kill -9 $$"), nil, model.Down, "signal: killed"},
		{"arguments", sh(`echo "$# $*"`), nil, model.Up, "exit status 0: 4 10.1.0.100 80 10.240.0.20 8080"},
		{"arguments of its own first", sh(`echo "$1|$2|$3"`) + ` --warn "a b"`, nil, model.Up, "exit status 0: --warn|a b|10.1.0.100"},
		{"a mark", sh(`echo "$*"`), []func(*model.Target){func(t *model.Target) { t.VirtualAddr, t.Mark, t.RealPort = netip.AddrPort{}, 77, 0 }}, model.Up, "77 0 10.240.0.20 0"},
		{"IPv6", sh(`echo "$*"`), []func(*model.Target){func(t *model.Target) {
			t.VirtualAddr, t.Addr = netip.MustParseAddrPort("[fd00::1]:80"), netip.MustParseAddrPort("[fd00::2]:80")
		}}, model.Up, "[fd00::1] 80 [fd00::2] 8080"},
		{"no input", sh("cat"), nil, model.Up, "exit status 0"},
		{"found in the path", "true", nil, model.Up, "exit status 0"},
		{"a name with a blank", program(t, "my check", "#!/bin/sh\necho me\n"), nil, model.Up, "me"},
		{"no #! line", program(t, "check", "echo shell $1\n"), nil, model.Up, "shell 10.1.0.100"},
		{"no such file", "/no/such/check --flag", nil, model.Down, "checkcommand /no/such/check: no such program"},
		{"nor such a name", "no-such-check", nil, model.Down, "checkcommand no-such-check: no such program"},
		{"not executable", plainFile, nil, model.Down, "not an executable file: chmod +x"},
		{"a folder", os.TempDir(), nil, model.Down, "not an executable file"},
		{"nothing", "  ", nil, model.Down, "it is empty"},
		{"an open quote", `/bin/true "x`, nil, model.Down, "left open"},
		{"output without end", sh("yes | head -c 50000000; echo done"), nil, model.Up, "exit status 0: done"},
		{"control characters", sh(`printf 'a\033[31mb\r'`), nil, model.Up, "exit status 0: a?[31mb"},
		{"leaves somebody behind with its output", sh("sleep 5 & echo fine"), nil, model.Up, "exit status 0: fine"},

		{"exit(0)", program(t, "c.pl", "print qq(perl @ARGV\\n); exit(0);"), []func(*model.Target){perl}, model.Up, "exit status 0: perl 10.1.0.100 80 10.240.0.20 8080"},
		{"exit(1)", program(t, "c.pl", "exit(1);"), []func(*model.Target){perl}, model.Down, "exit status 1"},
		{"falls off the end", program(t, "c.pl", "my $x = 1;"), []func(*model.Target){perl}, model.Up, "exit status 0"},
		{"dies", program(t, "c.pl", "die qq(no luck\\n);"), []func(*model.Target){perl}, model.Down, "no luck"},
		{"does not compile", program(t, "c.pl", "if ("), []func(*model.Target){perl}, model.Down, "exit status 255: "},
		{"no such file", "/no/such.pl", []func(*model.Target){perl}, model.Down, "No such file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tg := externalTarget(tc.command, tc.opts...)
			if v := Perform(t.Context(), For(tg), tg); v.Status != tc.status || !strings.Contains(v.Reason, tc.reason) || strings.ContainsAny(v.Reason, "\r\n\033") {
				t.Errorf("verdict %v, want %v: ...%s...", v, tc.status, tc.reason)
			}
		})
	}
}

func TestExternalWithoutPerl(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	tg := externalTarget("/etc/check.pl", perl)
	if v := Perform(t.Context(), For(tg), tg); v.Status != model.Down || !strings.Contains(v.Reason, "perl, which is not installed") {
		t.Errorf("verdict %v", v)
	}
}

// A command that does not end is ended with all that it started, even if it
// minds no SIGTERM.
func TestExternalThatDoesNotEnd(t *testing.T) {
	for name, trap := range map[string]string{"minds SIGTERM": "", "minds it not": "trap '' TERM\n"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			command := program(t, "check", "#!/bin/sh\n"+trap+"echo working\nsleep 1000 &\necho $! >"+dir+"/child.new; mv "+dir+"/child.new "+dir+"/child\nwhile :; do wait; done\n")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			tg := externalTarget(command, func(t *model.Target) { t.CheckTimeout = time.Second })
			v := Perform(ctx, For(tg), tg)
			if v.Status != model.Down || v.Reason != "no end within 1s: working" {
				t.Errorf("verdict %v", v)
			}
			text, err := os.ReadFile(dir + "/child")
			if err != nil {
				t.Fatal(err)
			}
			child, err := strconv.Atoi(strings.TrimSpace(string(text)))
			if err != nil {
				t.Fatal(err)
			}
			for deadline := time.Now().Add(10 * time.Second); running(child); time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("child %d still runs", child)
				}
			}
		})
	}
}

// running tells whether a process is there and no zombie that nobody reaps.
func running(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}

func TestExternalIsInterrupted(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	tg := externalTarget("/bin/sleep 1000 #")
	tg.Command = program(t, "check", "#!/bin/sh\nexec sleep 1000\n")
	if v := Perform(ctx, For(tg), tg); v.Status != model.Unknown {
		t.Errorf("verdict %v, want unknown", v)
	}
	if v := Perform(ctx, For(tg), tg); v.Status != model.Unknown {
		t.Errorf("after the end: verdict %v, want unknown", v)
	}
}

func TestFaultsOfThisMachineSayNothingAboutACommand(t *testing.T) {
	for err, want := range map[error]model.Status{
		syscall.EAGAIN: model.Unknown, syscall.ENOMEM: model.Unknown, syscall.EMFILE: model.Unknown,
		syscall.ENOENT: model.Down, syscall.EACCES: model.Down, errors.New("odd"): model.Down,
	} {
		if v := startFailed(&os.PathError{Op: "fork/exec", Path: "/x", Err: err}, "/x"); v.Status != want {
			t.Errorf("%v: %v, want %v", err, v, want)
		}
	}
}

func TestSplitWords(t *testing.T) {
	for text, want := range map[string][]string{
		"":                    nil,
		"a  b\tc":             {"a", "b", "c"},
		`a "b c" 'd e'`:       {"a", "b c", "d e"},
		`a "" ''`:             {"a", "", ""},
		`a"b c"d`:             {"ab cd"},
		`a\ b \\ \"`:          {"a b", `\`, `"`},
		`"a\"b\\c\$d\e"`:      {`a"b\c$d\e`},
		`'a\b'`:               {`a\b`},
		`a;b|c $HOME *`:       {"a;b|c", "$HOME", "*"},
		"a\u00e4 \u4e16":      {"a\u00e4", "\u4e16"},
		`x --re="^a b$" 'é '`: {"x", `--re=^a b$`, "é "},
	} {
		got, err := splitWords(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%q (-want +got)\n%s", text, d)
		}
	}
	for _, text := range []string{`"a`, `'a`, `a\`, `"a\"`} {
		if got, err := splitWords(text); err == nil {
			t.Errorf("%q: %q, want an error", text, got)
		}
	}
}

func FuzzSplitWords(f *testing.F) {
	for _, s := range []string{"a b", `"a b"`, `a\ b`, `'`, "\t"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		words, err := splitWords(s)
		if err != nil {
			return
		}
		var quoted []string
		for _, w := range words {
			quoted = append(quoted, "'"+strings.ReplaceAll(w, "'", `'\''`)+"'")
		}
		again, err := splitWords(strings.Join(quoted, " "))
		if err != nil || cmp.Diff(words, again) != "" {
			t.Errorf("%q is %q, quoted %q is %q, %v", s, words, quoted, again, err)
		}
	})
}
