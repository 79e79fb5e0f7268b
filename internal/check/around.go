package check

import (
	"context"
	"fmt"
	"net"
	"sync"
	"syscall"

	"github.com/batuta-ha/batuta/internal/check/via"
	"github.com/batuta-ha/batuta/internal/model"
)

// around is what a check is given, and gives back, beside its target and its
// verdict. It travels in the context, because it passes through libraries.
type around struct {
	socket  func(network, address string, c syscall.RawConn) error
	warning string // what to say although the server is up
}

type aroundKey struct{}

// openWays leads checks by the virtual address. It is opened when the first such
// check is made.
var openWays = sync.OnceValues(via.Open)

// byVirtualAddress makes a check that goes by the virtual address: that is a
// matter of its sockets alone.
func byVirtualAddress(f Func) Func {
	return func(ctx context.Context, t model.Target) model.Verdict {
		w, err := openWays()
		if err != nil {
			return unknown("this machine could not make the check: " + err.Error())
		}
		prepare := w.Socket(t.VirtualAddr.Addr(), t.Addr.Addr(), t.Via == model.ViaTunnel)
		return f(context.WithValue(ctx, aroundKey{}, &around{socket: prepare}), t)
	}
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
			if err := a.socket(network, address, c); err != nil {
				return fmt.Errorf("%w: %w", errHere, err)
			}
		}
		return nil
	}}
}
