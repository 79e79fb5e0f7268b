package api

import (
	"context"
	"fmt"
	"time"

	"github.com/batuta-ha/batuta/internal/journal"
	"github.com/batuta-ha/batuta/internal/model"
)

// PlanRequest asks to declare a maintenance window.
type PlanRequest struct {
	From   time.Time `json:"from"`
	To     time.Time `json:"to"`
	About  string    `json:"about,omitempty"`
	Reason string    `json:"reason"`
}

// String is the request as on the command line.
func (r PlanRequest) String() string {
	s := fmt.Sprintf("--from %s --to %s", r.From.Format(time.RFC3339), r.To.Format(time.RFC3339))
	if r.About != "" {
		s += " --about " + r.About
	}
	return s + fmt.Sprintf(" --reason %q", r.Reason)
}

// CancelRequest asks to take a window back.
type CancelRequest struct {
	Window string `json:"window"`
	Reason string `json:"reason,omitempty"`
}

// String is the request as on the command line.
func (r CancelRequest) String() string { return r.Window }

// PlanAnswer is the window as it has been recorded.
type PlanAnswer struct {
	Version int              `json:"version"`
	Window  journal.Window   `json:"window"`
	Late    bool             `json:"late"`  // declared after it began: it excuses nothing
	Nodes   []model.NodeName `json:"nodes"` // that were told: this one, and the peers that are there
}

// Planner is implemented by daemons that keep maintenance windows.
type Planner interface {
	Plan(ctx context.Context, r PlanRequest) (PlanAnswer, error)
	Unplan(ctx context.Context, r CancelRequest) (PlanAnswer, error)
}

// Plan asks the daemon to declare a window, on all nodes.
func (c *Client) Plan(ctx context.Context, r PlanRequest) (PlanAnswer, error) {
	return post[PlanAnswer](ctx, c, "maintenance-plan", r)
}

// Unplan asks the daemon to cancel a window, on all nodes.
func (c *Client) Unplan(ctx context.Context, r CancelRequest) (PlanAnswer, error) {
	return post[PlanAnswer](ctx, c, "maintenance-cancel", r)
}
