package check

import (
	"io"
	"net"
	"strings"
	"testing"

	"github.com/batuta-ha/batuta/internal/model"
)

// Real servers with an IPv6 address: ldirectord dies at the first http one.
func TestChecksByIPv6(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("this machine has no IPv6 loopback: ", err)
	}
	asked := make(chan string, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			request := readHead(c)
			select {
			case asked <- request:
			default:
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nalive")
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	tg := target(l.Addr().String(), receive("alive"))
	if v := Perform(t.Context(), For(tg), tg); v.Status != model.Up {
		t.Fatal(v)
	}
	if request := <-asked; !strings.Contains(request, "Host: [::1]\r\n") {
		t.Errorf("asked\n%s", request)
	}
	for _, p := range byTCP { // they get there: HTTP is no answer to them
		if strings.HasPrefix(p.name, "http") {
			continue
		}
		tg := target(l.Addr().String(), p.alter, short)
		if v := Perform(t.Context(), For(tg), tg); v.Status != model.Down || strings.Contains(v.Reason, "address") {
			t.Errorf("%s: %v", p.name, v)
		}
	}
}
