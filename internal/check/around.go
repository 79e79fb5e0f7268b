package check

import (
	"context"
	"net"
	"syscall"
)

// around is what a check is given, and gives back, beside its target and its
// verdict. It travels in the context, because it passes through libraries.
type around struct {
	socket  func(network, address string, c syscall.RawConn) error
	warning string // what to say although the server is up
}

type aroundKey struct{}

// WithSocket returns a context for a check whose sockets are prepared by f
// before they are connected: another way to the real server than the usual one
// (model.Target.Via) is a matter of its socket.
func WithSocket(ctx context.Context, f func(network, address string, c syscall.RawConn) error) context.Context {
	return context.WithValue(ctx, aroundKey{}, &around{socket: f})
}

// withAround makes sure that ctx carries an around of this check's own.
func withAround(ctx context.Context) (context.Context, *around) {
	a := &around{}
	if given, ok := ctx.Value(aroundKey{}).(*around); ok {
		*a = *given
	}
	return context.WithValue(ctx, aroundKey{}, a), a
}

// warn notes what is to be said of a server that is up.
func warn(ctx context.Context, text string) {
	if a, ok := ctx.Value(aroundKey{}).(*around); ok && a.warning == "" {
		a.warning = text
	}
}

// dialer connects without the keepalives that would outlive nothing here.
func dialer() *net.Dialer {
	return &net.Dialer{KeepAlive: -1, ControlContext: func(ctx context.Context, network, address string, c syscall.RawConn) error {
		if a, ok := ctx.Value(aroundKey{}).(*around); ok && a.socket != nil {
			return a.socket(network, address, c)
		}
		return nil
	}}
}
