package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAnLdirectordIsToldByItsCommandLine(t *testing.T) {
	for cmdline, want := range map[string]bool{
		"ldirectord\x00--detached=web.cf\x00--\x00/etc/ha.d/web.cf\x00start\x00": true,
		"/usr/bin/perl\x00-w\x00/usr/sbin/ldirectord\x00web.cf\x00start\x00":     true, // the old one
		"ldirectord tcp:10.0.0.1:80":                                             true, // and its children
		"batuta\x00ldirectord\x00-d\x00start\x00":                                true,
		"vi\x00/etc/ha.d/ldirectord.cf\x00":                                      false,
		"":                                                                       false, // gone, or a zombie
	} {
		if got := isLdirectord([]byte(cmdline)); got != want {
			t.Errorf("%q: ldirectord %v, want %v", cmdline, got, want)
		}
	}
}

func TestTheProgramAnswersToOldNames(t *testing.T) {
	for argv, want := range map[string]string{
		"batuta status":                   "status",
		"/usr/sbin/ldirectord web start":  "ldirectord web start",
		"batuta ldirectord web start":     "ldirectord web start",
		"ldirectord":                      "ldirectord",
		"/opt/ldirectord.old/batuta help": "help",
	} {
		if diff := cmp.Diff(want, strings.Join(Arguments(strings.Fields(argv)), " ")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", argv, diff)
		}
	}
	if got := Arguments(nil); got != nil {
		t.Errorf("without a name: %q", got)
	}
}

func TestPidFile(t *testing.T) {
	f := pidFile(filepath.Join(t.TempDir(), "ldirectord.web.cf.pid"))
	for content, want := range map[string]pidState{
		"":      {exists: true},
		"web\n": {exists: true},
		"-1\n":  {exists: true}, // kill(-1) would be everybody
		"0\n":   {exists: true},
		"1\n":   {exists: true, pid: 1}, // no ldirectord
	} {
		if err := os.WriteFile(string(f), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := f.read(); got != want {
			t.Errorf("%q: %+v, want %+v", content, got, want)
		}
	}
	f.remove()
	if !f.read().exists {
		t.Error("the pid file of another process was removed")
	}
	if err := f.write(); err != nil {
		t.Fatal(err)
	}
	if got := f.read().pid; got != os.Getpid() {
		t.Errorf("the file names pid %d", got)
	}
	f.remove()
	if f.read().exists {
		t.Error("our own pid file stays")
	}
	if err := pidFile("/dev/null").write(); err == nil || !strings.Contains(err.Error(), "is no file") {
		t.Errorf("a device as the pid file: %v", err)
	}
}
