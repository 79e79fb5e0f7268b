package responder

import (
	"context"
	"time"

	"github.com/vishvananda/netlink"
)

const (
	// settle is how long changes are collected: a takeover adds addresses, and
	// must not wait for this.
	settle = 200 * time.Millisecond
	// listenAgain is the time until the kernel's news are subscribed to again.
	listenAgain = time.Second
)

// String names the task.
func (r *Responder) String() string { return "kernel responder" }

// Ready is closed once changes of interfaces and addresses are followed.
func (r *Responder) Ready() <-chan struct{} { return r.ready }

// Run follows changes of interfaces and addresses until ctx ends, and returns
// nil then. Without it the program goes on with the addresses that it knows.
func (r *Responder) Run(ctx context.Context) error {
	first := true
	for ctx.Err() == nil {
		inner, stop := context.WithCancel(ctx)
		links, addrs := make(chan netlink.LinkUpdate, 256), make(chan netlink.AddrUpdate, 256)
		ignore := func(error) {} // the channel is closed then
		err := netlink.LinkSubscribeWithOptions(links, inner.Done(), netlink.LinkSubscribeOptions{ErrorCallback: ignore})
		if err == nil {
			err = netlink.AddrSubscribeWithOptions(addrs, inner.Done(), netlink.AddrSubscribeOptions{ErrorCallback: ignore})
		}
		if first {
			close(r.ready)
			first = false
		}
		if err == nil {
			r.follow(inner, links, addrs)
		}
		stop()
		wait(ctx, listenAgain)
	}
	return nil
}

// follow returns when the kernel has lost news, or ctx ends.
func (r *Responder) follow(ctx context.Context, links <-chan netlink.LinkUpdate, addrs <-chan netlink.AddrUpdate) {
	for {
		r.refresh()
		ok := true
		select {
		case <-ctx.Done():
			return
		case _, ok = <-links:
		case _, ok = <-addrs:
		}
		if !ok {
			return
		}
		wait(ctx, settle)
		for len(links) > 0 {
			<-links
		}
		for len(addrs) > 0 {
			<-addrs
		}
	}
}

// wait sleeps, or until ctx ends.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
