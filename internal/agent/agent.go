// Package agent starts, stops and examines cluster resources: by calling
// scripts the way Heartbeat does, or through what is built in. It never
// decides where or when a resource runs.
package agent

import (
	"context"

	"github.com/batuta-ha/batuta/internal/model"
)

// Agent controls one resource on this node. Calls for one resource never
// overlap. All three are idempotent.
type Agent interface {
	// Start makes the resource run and returns nil once it does.
	Start(ctx context.Context) error
	// Stop ends it and returns nil once it has ended, also when it did not run.
	Stop(ctx context.Context) error
	// Status tells whether it runs. An error means that this is not known.
	Status(ctx context.Context) (model.ResourceState, error)
}
