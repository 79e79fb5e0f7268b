package check

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// errTooMuch ends the reading of an answer that has no end.
var errTooMuch = errors.New("the answer is too long")

// open connects to a real server by TCP. The connection is closed when ctx
// ends, not a moment earlier, so that ctx tells why reading failed. It gives no
// more than limit bytes: then reading is an error that wraps errTooMuch.
func open(ctx context.Context, a netip.AddrPort, limit int64) (net.Conn, error) {
	conn, err := dial(ctx, a)
	if err != nil {
		return nil, err
	}
	return bound(ctx, conn, limit), nil
}

// bound makes an open connection such a one.
func bound(ctx context.Context, conn net.Conn, limit int64) *boundConn {
	return &boundConn{Conn: conn, left: limit, limit: limit, stop: context.AfterFunc(ctx, func() { _ = conn.Close() })}
}

// boundConn is closed when its context ends, and stops reading at a limit.
// Deadlines that libraries set have no effect: the context's is the one.
type boundConn struct {
	net.Conn
	left, limit int64
	stop        func() bool
}

func (c *boundConn) Read(b []byte) (int, error) {
	if c.left <= 0 {
		return 0, fmt.Errorf("%w: more than %d bytes", errTooMuch, c.limit)
	}
	n, err := c.Conn.Read(b[:min(int64(len(b)), c.left)])
	c.left -= int64(n)
	return n, err
}

func (c *boundConn) SetDeadline(time.Time) error      { return nil }
func (c *boundConn) SetReadDeadline(time.Time) error  { return nil }
func (c *boundConn) SetWriteDeadline(time.Time) error { return nil }

func (c *boundConn) Close() error {
	c.stop()
	return c.Conn.Close()
}
