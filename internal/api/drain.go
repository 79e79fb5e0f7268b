package api

import (
	"context"
	"time"
)

// DrainRequest asks to take a real server out of service, or to put it back.
type DrainRequest struct {
	Real     string        `json:"real"`        // ADDRESS:PORT, or ADDRESS for all its ports
	Deadline time.Duration `json:"deadline_ns"` // cut what is left after that; 0 for never
}

// String is the request as on the command line.
func (r DrainRequest) String() string {
	if r.Deadline > 0 {
		return r.Real + " --deadline " + r.Deadline.String()
	}
	return r.Real
}

// DrainAnswer says which real servers of which services were meant.
type DrainAnswer struct {
	Version int      `json:"version"`
	Reals   []string `json:"reals"` // "tcp 10.0.0.1:80 10.0.1.1:8080"
}

// Drainer is implemented by daemons whose real servers can be drained.
type Drainer interface {
	Drain(ctx context.Context, r DrainRequest) (DrainAnswer, error)
	PutBack(ctx context.Context, r DrainRequest) (DrainAnswer, error)
}

// Drain takes a real server out of service.
func (c *Client) Drain(ctx context.Context, r DrainRequest) (DrainAnswer, error) {
	return post[DrainAnswer](ctx, c, "drain", r)
}

// PutBack puts a drained real server back into service.
func (c *Client) PutBack(ctx context.Context, r DrainRequest) (DrainAnswer, error) {
	return post[DrainAnswer](ctx, c, "ready", r)
}
