package check

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"

	"github.com/batuta-ha/batuta/internal/model"
)

// connect opens a TCP connection within CheckTimeout and closes it at once:
// a server that accepts and then is silent, or resets, is up. UDP has no
// connections: those servers are pinged instead (ldirectord(8), checktype).
func connect(ctx context.Context, t model.Target) model.Verdict {
	if t.Proto == model.UDP {
		return ping(ctx, t)
	}
	if t.Addr.Port() == 0 {
		return down("no port to connect to: set checkport, or give the real server a port")
	}
	within, cancel := context.WithTimeout(ctx, t.CheckTimeout)
	defer cancel()
	conn, err := dial(within, t.Addr)
	if errors.Is(err, syscall.ECONNRESET) {
		// A refusal says ECONNREFUSED: this server took the connection, and
		// reset it before we looked.
		return up("connected, and reset by the server")
	}
	if err != nil {
		return failed(ctx, within, err, t.CheckTimeout)
	}
	_ = conn.Close()
	return up("connected")
}

// dial opens a TCP connection.
func dial(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
	return dialer().DialContext(ctx, "tcp", a.String())
}
