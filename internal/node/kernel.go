package node

import (
	"context"
	"fmt"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/balance"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
	"github.com/batuta-ha/batuta/internal/plane/ipvs"
)

// Kernel is this machine's IPVS without a daemon: for looking at it, and for
// tables that were saved.
type Kernel struct{ plane plane.Plane }

// OpenKernel opens the kernel's IPVS and changes nothing of it. Its errors are
// those of ipvs.Open.
func OpenKernel() (*Kernel, error) {
	p, err := ipvs.Open(ipvs.Options{AsItIs: true})
	if err != nil {
		return nil, err
	}
	return &Kernel{p}, nil
}

// Table is the kernel's table, as a daemon's client gets it.
func (k *Kernel) Table(ctx context.Context) (api.Table, error) {
	return tableOf(ctx, k.plane, newRateMeter(k.plane))
}

// Flows are the kernel's connections.
func (k *Kernel) Flows(ctx context.Context) (api.Flows, error) { return flowsOf(ctx, k.plane) }

// Restore makes the kernel's table have what the changes say, leaves the rest
// of it alone, and returns the changes that were needed for that; with dryRun
// none is made. A refused change does not stop the others.
func (k *Kernel) Restore(ctx context.Context, changes []model.Change, dryRun bool) ([]model.Change, error) {
	have, err := k.plane.Read(ctx)
	if err != nil {
		return nil, err
	}
	have.Sort()
	want := have.Clone()
	for _, c := range changes {
		if err := want.Perform(c); err != nil {
			return nil, fmt.Errorf("restore: %w", err)
		}
	}
	needed := balance.Diff(have, want)
	if dryRun {
		return needed, nil
	}
	return needed, k.plane.Apply(ctx, needed)
}

// Close lets go of the kernel.
func (k *Kernel) Close() error { return k.plane.Close() }
