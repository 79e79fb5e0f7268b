package announce

import (
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Without permission one sentence says the way out.
func TestNoPermission(t *testing.T) {
	if os.Geteuid() == 0 {
		withoutCapabilities(t)
	}
	a, err := New(Options{}).Address(resource("IPaddr2::192.0.2.1/24/lo"))
	must(t, err)
	err = a.Start(t.Context())
	if err == nil || !strings.Contains(err.Error(), "add 192.0.2.1/24 to lo: operation not permitted: run batuta as root") {
		t.Errorf("got %v", err)
	}
}

// withoutCapabilities takes root's power from this test's thread.
func withoutCapabilities(t *testing.T) {
	runtime.LockOSThread()
	head := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	must(t, unix.Capget(head, &have[0]))
	none := have
	none[0].Effective, none[1].Effective = 0, 0
	must(t, unix.Capset(head, &none[0]))
	t.Cleanup(func() {
		must(t, unix.Capset(head, &have[0]))
		runtime.UnlockOSThread()
	})
}
