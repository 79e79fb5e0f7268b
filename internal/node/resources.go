package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/batuta-ha/batuta/internal/agent"
	"github.com/batuta-ha/batuta/internal/announce"
	"github.com/batuta-ha/batuta/internal/model"
)

// heldAddress is an address resource together with the plane's knowledge that
// this node holds it. The plane is told before the address comes and after it
// has gone, so that the node's own stack never answers for a service.
type heldAddress struct {
	address *announce.Address
	addr    netip.Addr
	book    *addressBook
}

func (h heldAddress) Start(ctx context.Context) error {
	if err := h.book.set(ctx, h.addr, true); err != nil {
		return fmt.Errorf("let the plane serve %s: %w", h.addr, err)
	}
	return h.address.Start(ctx)
}

func (h heldAddress) Stop(ctx context.Context) error {
	return errors.Join(h.address.Stop(ctx), h.book.set(ctx, h.addr, false))
}

func (h heldAddress) Status(ctx context.Context) (model.ResourceState, error) {
	s, err := h.address.Status(ctx)
	if err == nil && s == model.ResourceRunning {
		_ = h.book.found(ctx, h.addr) // Start says what is in the way
	}
	return s, err
}

// balancer is the ldirectord resource: the director always checks and keeps
// the table right, and becomes active (hooks run) with the resource.
type balancer struct {
	directors *directors
	instance  *instance
}

func (b balancer) Start(context.Context) error { b.directors.setActive(b.instance, true); return nil }
func (b balancer) Stop(context.Context) error  { b.directors.setActive(b.instance, false); return nil }

func (b balancer) Status(context.Context) (model.ResourceState, error) {
	if b.instance.loop.Active() {
		return model.ResourceRunning, nil
	}
	return model.ResourceStopped, nil
}

var (
	_ agent.Agent = heldAddress{}
	_ agent.Agent = balancer{}
)
