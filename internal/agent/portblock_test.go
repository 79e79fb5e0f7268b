package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/rig"
)

// TestMain runs the tests of root in a network namespace of their own.
func TestMain(m *testing.M) { os.Exit(rig.Inside(m, syscall.CLONE_NEWNET, nil)) }

// A group with both lines comes and goes: the client gets in when both or none
// of them run, by IPv4 and IPv6, over TCP and UDP, at the address that they
// name and nowhere else. A daemon that is started anew finds what there was.
func TestPortBlock(t *testing.T) {
	rig.RequireRoot(t, "rules of a network namespace's firewall")
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"10.9.9.1/32", "10.9.9.2/32", "2001:db8::9/128"} {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			t.Fatal(err)
		}
		addr.Flags = 0x02 // IFA_F_NODAD
		if err := netlink.AddrReplace(lo, addr); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ protocol, to, at, elsewhere string }{
		{"tcp", "::10.9.9.1", "10.9.9.1", "10.9.9.2"},
		{"udp", "::10.9.9.0/31", "10.9.9.1", "10.9.9.2"},
		{"tcp", "::2001:db8::9", "2001:db8::9", "10.9.9.1"},
		{"udp", "::2001:db8::/32", "2001:db8::9", "10.9.9.1"},
		{"tcp", "", "10.9.9.2", ""},
		{"udp", "", "2001:db8::9", ""},
	} {
		t.Run(c.protocol+c.to, func(t *testing.T) {
			shut, open := echo(t, c.protocol), echo(t, c.protocol)
			// Made anew for each step, as a daemon that was restarted does.
			line := func(action string) Agent {
				text := fmt.Sprintf("portblock::%s::%d,9::%s%s", c.protocol, shut, action, c.to)
				words := strings.Split(text, "::")
				a, err := PortBlock(model.Resource{Agent: words[0], Args: words[1:], Text: text})
				if err != nil {
					t.Fatal(err)
				}
				return a
			}
			for i, step := range []struct {
				do             string
				block, unblock model.ResourceState
				in             bool
			}{
				{"", model.ResourceStopped, model.ResourceStopped, true},
				{"unblock stop", model.ResourceStopped, model.ResourceStopped, true}, // it did not run
				{"block start", model.ResourceRunning, model.ResourceStopped, false},
				{"block start", model.ResourceRunning, model.ResourceStopped, false},
				{"unblock start", model.ResourceRunning, model.ResourceRunning, true},
				{"block start", model.ResourceRunning, model.ResourceRunning, true}, // a service that runs is not cut
				{"unblock stop", model.ResourceRunning, model.ResourceStopped, false},
				{"unblock stop", model.ResourceRunning, model.ResourceStopped, false},
				{"block stop", model.ResourceStopped, model.ResourceStopped, true},
				{"block stop", model.ResourceStopped, model.ResourceStopped, true},
			} {
				action, call, _ := strings.Cut(step.do, " ")
				var err error
				switch call {
				case "start":
					err = line(action).Start(t.Context())
				case "stop":
					err = line(action).Stop(t.Context())
				}
				if err != nil {
					t.Fatal(err)
				}
				for action, want := range map[string]model.ResourceState{"block": step.block, "unblock": step.unblock} {
					if got, err := line(action).Status(t.Context()); err != nil || got != want {
						t.Errorf("step %d, after %q: %s is %v, %v; want %v", i, step.do, action, got, err, want)
					}
				}
				reach(t, c.protocol, c.at, shut, step.in)
				reach(t, c.protocol, c.at, open, true)
				if c.elsewhere != "" {
					reach(t, c.protocol, c.elsewhere, shut, true)
				}
			}
			left, err := (&nftables.Conn{}).ListTables()
			if err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// echo answers at a port of every address until the test ends.
func echo(t *testing.T, protocol string) (port int) {
	t.Helper()
	if protocol == "udp" {
		u, err := net.ListenUDP("udp", nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = u.Close() })
		go func() {
			b := make([]byte, 16)
			for {
				n, from, err := u.ReadFrom(b)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil {
					_, _ = u.WriteTo(b[:n], from) // a client that is gone
				}
			}
		}()
		return u.LocalAddr().(*net.UDPAddr).Port
	}
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 16)
				if n, err := c.Read(b); err == nil {
					_, _ = c.Write(b[:n])
				}
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// reach tells whether a client is answered. It is asked again until it is so,
// and what must not come is waited for a moment only: a slow machine fails
// nothing.
func reach(t *testing.T, protocol, address string, port int, want bool) {
	t.Helper()
	ask := func(patience time.Duration) bool {
		d := net.Dialer{Timeout: patience}
		c, err := d.DialContext(context.Background(), protocol, net.JoinHostPort(address, fmt.Sprint(port)))
		if err != nil {
			return false
		}
		defer c.Close()
		b := make([]byte, 16)
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return false
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			return false
		}
		n, err := c.Read(b)
		return err == nil && string(b[:n]) == "hello"
	}
	if !want {
		if ask(50 * time.Millisecond) {
			t.Errorf("%s %s port %d answers", protocol, address, port)
		}
		return
	}
	for range 30 {
		if ask(time.Second) {
			return
		}
	}
	t.Errorf("%s %s port %d does not answer", protocol, address, port)
}
