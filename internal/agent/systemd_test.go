package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/batuta-ha/batuta/internal/model"
)

// A resource that no script carries out is the systemd unit of its name.
func TestSystemdUnit(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	write(t, bin, "systemctl", `shift 2
echo "$@" >> `+dir+`/calls
case "$*" in
"show --property=LoadState --value nginx.service") echo loaded ;;
"show "*) echo not-found ;;
"is-active nginx.service") test -f `+dir+`/flag && echo active || { echo inactive; exit 3; } ;;
"start nginx.service") : > `+dir+`/flag ;;
"stop nginx.service") test ! -f `+dir+`/stuck && rm -f `+dir+`/flag || { echo "Job for nginx.service failed" >&2; exit 1; } ;;
*) exit 4 ;;
esac`)
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	a := agentFor(t, dir, "nginx")
	state := func(want model.ResourceState) {
		t.Helper()
		if got, err := a.Status(t.Context()); err != nil || got != want {
			t.Errorf("status %v, %v; want %v", got, err, want)
		}
	}
	state(model.ResourceStopped)
	if err := a.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	state(model.ResourceRunning)
	if err := os.WriteFile(filepath.Join(dir, "stuck"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	want := "resource nginx: systemctl stop nginx.service: exit status 1: Job for nginx.service failed"
	if err := a.Stop(t.Context()); err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	// Neither a script nor a unit: said with all places.
	if err := agentFor(t, dir, "other").Start(t.Context()); err == nil || !strings.Contains(err.Error(), "and no systemd unit of that name") {
		t.Errorf("got %v", err)
	}
	// A script comes first.
	write(t, filepath.Join(dir, "init.d"), "nginx", "echo OK")
	if err := os.Remove(filepath.Join(dir, "calls")); err != nil {
		t.Fatal(err)
	}
	state(model.ResourceRunning)
	if _, err := os.Stat(filepath.Join(dir, "calls")); err == nil {
		t.Error("systemctl was called although there is a script")
	}
}
