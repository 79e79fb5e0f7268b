package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// Who asks is who the kernel says: the user that connected, whatever the rest
// of its process is.
func TestCallerOf(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(CallerOf(r.Context()))
	}))
	address := fmt.Sprintf("@batuta-caller-%d", os.Getpid()) // no file: others may come to it
	var err error
	if server.Listener, err = net.Listen("unix", address); err != nil {
		t.Fatal(err)
	}
	server.Config.ConnContext = withCaller
	server.Start()
	defer server.Close()

	command, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	users := []int{os.Geteuid()}
	if users[0] == 0 {
		users = append(users, 65534)
	}
	for _, uid := range users {
		ask := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return dialAs(uid, address) }}}
		resp, err := ask.Get("http://caller/")
		if err != nil {
			t.Fatal(err)
		}
		var got Caller
		err = json.NewDecoder(resp.Body).Decode(&got)
		_ = resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		want := Caller{PID: os.Getpid(), UID: uint32(uid), Login: loginOf(uid), Command: strings.TrimSpace(string(command))}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("user %d (-want +got):\n%s", uid, diff)
		}
	}
	if got := CallerOf(t.Context()).String(); got != "unknown (uid 0, pid 0)" {
		t.Errorf("a request of no connection comes from %s", got)
	}
}

// dialAs connects as another user does: on a thread that is that user's, and
// ends with it.
func dialAs(uid int, address string) (conn net.Conn, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if uid != os.Geteuid() {
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); e != 0 {
				err = e
				return
			}
		}
		conn, err = net.Dial("unix", address)
	}()
	<-done
	return conn, err
}

// loginOf is the name of who logged in, or else of that user.
func loginOf(uid int) string {
	id := strconv.Itoa(uid)
	if login, err := os.ReadFile("/proc/self/loginuid"); err == nil && string(login) != "4294967295" {
		id = string(login)
	}
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return "uid " + id
}
