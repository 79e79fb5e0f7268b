package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/director"
)

var (
	_ api.Drainer = (*clusterNode)(nil)
	_ api.Drainer = (*loneDirector)(nil)
)

// Drain takes a real server out of service, in all directors of this node.
func (n *clusterNode) Drain(ctx context.Context, r api.DrainRequest) (api.DrainAnswer, error) {
	return n.directors.drain(ctx, r)
}

// PutBack puts a real server back into service.
func (n *clusterNode) PutBack(ctx context.Context, r api.DrainRequest) (api.DrainAnswer, error) {
	return n.directors.putBack(ctx, r)
}

// Drain takes a real server out of service.
func (d *loneDirector) Drain(ctx context.Context, r api.DrainRequest) (api.DrainAnswer, error) {
	return d.directors.drain(ctx, r)
}

// PutBack puts a real server back into service.
func (d *loneDirector) PutBack(ctx context.Context, r api.DrainRequest) (api.DrainAnswer, error) {
	return d.directors.putBack(ctx, r)
}

func (ds *directors) drain(ctx context.Context, r api.DrainRequest) (api.DrainAnswer, error) {
	if r.Deadline < 0 {
		return api.DrainAnswer{}, fmt.Errorf("the deadline %v is in the past", r.Deadline)
	}
	return ds.order(func(l *director.Loop) ([]string, error) { return l.Drain(ctx, r.Real, r.Deadline) })
}

func (ds *directors) putBack(ctx context.Context, r api.DrainRequest) (api.DrainAnswer, error) {
	return ds.order(func(l *director.Loop) ([]string, error) { return l.PutBack(ctx, r.Real) })
}

// order asks every director; it is enough if one has such a real server.
func (ds *directors) order(ask func(*director.Loop) ([]string, error)) (api.DrainAnswer, error) {
	a := api.DrainAnswer{Version: api.Version, Reals: []string{}}
	if ds == nil {
		return a, errNoPlane
	}
	var unknown, other error
	for _, in := range ds.instances() {
		reals, err := ask(in.loop)
		a.Reals = append(a.Reals, reals...)
		switch {
		case errors.Is(err, director.ErrNoReal):
			unknown = err
		case err != nil:
			other = errors.Join(other, err)
		}
	}
	if len(a.Reals) == 0 && other == nil {
		other = unknown
	}
	return a, other
}
