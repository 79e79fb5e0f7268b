package ebpf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

// sweepEvery is how often silent connections are looked for.
const sweepEvery = time.Second

// start starts the plane's one goroutine: it sweeps, follows interfaces, and
// tells the programs when routes change.
func (p *Plane) start(ctx context.Context) error {
	// Interfaces and routes are those of the caller's namespace, whatever
	// thread the goroutine runs on.
	ns, err := netns.Get()
	if err != nil {
		return fmt.Errorf("own network namespace: %w", err)
	}
	first, err := subscribe(ctx, ns)
	if err != nil {
		_ = ns.Close()
		return err
	}
	// What came between the first scan and the subscription.
	if err := p.hooks.scan(); err != nil {
		p.event(model.LevelWarning, "attach-failed", err.Error())
	}
	full := p.fullness() // a table that was adopted has counted before
	p.done.Go(func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		defer func() { _ = ns.Close() }()
		if err := netns.Set(ns); err != nil {
			p.event(model.LevelError, "namespace", fmt.Sprintf("enter own network namespace: %v", err))
		}
		p.loop(ctx, first, func() (news, error) { return subscribe(ctx, ns) }, full)
	})
	return nil
}

// news is what the kernel tells.
type news struct {
	links     chan netlink.LinkUpdate
	routes    chan struct{}
	neighbors chan netlink.NeighUpdate
	stop      context.CancelFunc
}

func subscribe(ctx context.Context, ns netns.NsHandle) (news, error) {
	ctx, stop := context.WithCancel(ctx)
	n := news{links: make(chan netlink.LinkUpdate, 256), routes: make(chan struct{}, 1), neighbors: make(chan netlink.NeighUpdate, 256), stop: stop}
	if err := netlink.LinkSubscribeWithOptions(n.links, ctx.Done(), netlink.LinkSubscribeOptions{Namespace: &ns, ErrorCallback: func(error) {}}); err != nil {
		stop()
		return n, fmt.Errorf("subscribe to interface changes: %w", err)
	}
	if err := hearRoutes(ctx, ns, n.routes); err != nil {
		stop()
		return n, fmt.Errorf("subscribe to route changes: %w", err)
	}
	if err := netlink.NeighSubscribeWithOptions(n.neighbors, ctx.Done(), netlink.NeighSubscribeOptions{Namespace: &ns, ListExisting: true, ErrorCallback: func(error) {}}); err != nil {
		stop()
		return n, fmt.Errorf("subscribe to neighbor changes: %w", err)
	}
	return n, nil
}

// hearRoutes tells whenever something changes that decides on routes (rtnetlink(7)):
// several changes may be told once. It closes the channel when some may have been
// missed.
func hearRoutes(ctx context.Context, ns netns.NsHandle, told chan<- struct{}) error {
	s, err := nl.SubscribeAt(ns, netns.None(), unix.NETLINK_ROUTE,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_NEXTHOP)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, s.Close)
	go func() {
		defer close(told)
		for {
			if _, _, err := s.Receive(); err != nil {
				return
			}
			select {
			case told <- struct{}{}:
			default:
			}
		}
	}()
	return nil
}

// hardware is the hardware addresses of neighbors, as heard of last. Of all the
// kernel tells of a neighbor only another address concerns connections.
type hardware map[neighbor]string

type neighbor struct {
	link int
	addr netip.Addr
}

// moved enters what is told, and says whether a known neighbor has another
// hardware address now.
func (k hardware) moved(u netlink.NeighUpdate) bool {
	addr, ok := netip.AddrFromSlice(u.IP)
	if !ok || len(u.HardwareAddr) == 0 {
		return false
	}
	at, now := neighbor{u.LinkIndex, addr.Unmap()}, string(u.HardwareAddr)
	if u.Type == unix.RTM_DELNEIGH {
		delete(k, at)
		return false
	}
	was, ok := k[at]
	k[at] = now
	return ok && was != now
}

// loop is the goroutine; anew subscribes to news again, full is what was counted
// of a full table before.
func (p *Plane) loop(ctx context.Context, n news, anew func() (news, error), full fullness) {
	defer func() { n.stop() }()
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	heard, listening, plain := hardware{}, true, isPlain()
	p.t.changed() // before anybody listened, perhaps
	p.t.heard(plain)
	for {
		lost := false
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if listening {
				p.t.heard(plain)
			}
			p.sweepOnce()
			p.endRetired()
			full = p.warnFull(full)
			p.t.hushed()
			if listening {
				continue
			}
			lost = true
		case _, ok := <-n.links:
			lost = !ok
			for len(n.links) > 0 { // one scan for all that came together
				<-n.links
			}
			if err := p.hooks.scan(); err != nil {
				p.event(model.LevelWarning, "attach-failed", err.Error())
			}
			p.resolveMarks()
		case _, ok := <-n.routes:
			lost = !ok
		case u, ok := <-n.neighbors:
			lost = !ok
			if ok && !heard.moved(u) {
				continue
			}
		}
		if lost && ctx.Err() == nil { // the socket overflowed: listen anew
			n.stop()
			fresh, err := anew()
			again := !listening
			if err != nil && !again {
				p.event(model.LevelError, "subscribe", err.Error()+"; it is tried again each second: until then interfaces are looked for as often, and routes asked for each half minute")
			}
			if err != nil {
				fresh = news{stop: func() {}}
			}
			n, heard, listening = fresh, hardware{}, err == nil
			if err := p.hooks.scan(); err != nil {
				p.event(model.LevelWarning, "attach-failed", err.Error())
			}
			p.resolveMarks()
			if again && !listening {
				continue
			}
		}
		p.findSources()
		if listening {
			plain = isPlain()
			p.t.heard(plain)
		}
		p.t.changed()
	}
}

// changed has all connections look up their routes again.
func (t *tables) changed() { atomic.AddUint32(&t.control.RouteEpoch, 1) }

// heard says that somebody listens to what changes routes: for some seconds more
// they are remembered. After that the programs ask for them again from time to time
// (bpf/maps.h: ROUTE_TICKS). plain is isPlain.
func (t *tables) heard(plain bool) {
	now := uint32(0)
	if plain {
		now = 1
	}
	atomic.StoreUint32(&t.control.RoutesUntil, ticksNow()+toTicks(5*sweepEvery))
	atomic.StoreUint32(&t.control.PlainRoutes, now)
}

// isPlain tells whether the rules of routing are those that each network has from
// the beginning, so that destinations alone decide (ip-rule(8)).
func isPlain() bool {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := netlink.RuleList(family)
		if err != nil {
			return false
		}
		for _, r := range rules {
			known := netlink.NewRule()
			known.Family, known.Table, known.Priority, known.Protocol = r.Family, r.Table, r.Priority, r.Protocol
			known.Type = r.Type
			if r.Table < unix.RT_TABLE_DEFAULT || !reflect.DeepEqual(r, *known) {
				return false
			}
		}
	}
	return true
}

// asPacketProgram makes a program for packets of one for system calls, which
// before about Linux 6.5 may not use the queue of free records. It is run in
// the same way, but holds off the packets of its processor meanwhile.
func asPacketProgram(s *ebpf.ProgramSpec) {
	s.Type, s.AttachType, s.Flags = ebpf.SchedCLS, ebpf.AttachNone, 0
}

// sweepOnce ends connections that have been silent for too long.
func (p *Plane) sweepOnce() {
	var o ebpf.RunOptions
	if p.sweep.Type() != ebpf.Syscall {
		o.Data = make([]byte, 64) // which it does not read
	}
	if _, err := p.sweep.Run(&o); err != nil && !errors.Is(err, context.Canceled) {
		p.event(model.LevelError, "sweep-failed", fmt.Sprintf("sweep connections: %v", err))
	}
}

// fullness is what was counted of a full table when it was last looked at.
type fullness struct {
	refused, waits uint64
	told           bool // that connections begin without a record
}

func (p *Plane) fullness() fullness {
	return fullness{refused: p.t.count(ReasonTableFull), waits: p.t.count(ReasonWaits)}
}

// warnFull tells each second how many connections a full table has refused, and once
// that connections begin without a record.
func (p *Plane) warnFull(before fullness) fullness {
	now := p.fullness()
	now.told = now.waits > before.waits
	if now.refused > before.refused {
		p.event(model.LevelError, "table-full", fmt.Sprintf(
			"connection table is full: %d new connections refused in the last second; open connections go on; give it room for more (batuta run --ebpf-table flows=N; now %d)",
			now.refused-before.refused, p.t.maxFlows))
	}
	if now.told && !before.told {
		p.event(model.LevelWarning, "table-full", fmt.Sprintf(
			"connection table is full: %d new connections in the last second without a record, which those get whose clients go on (a flood of SYNs?); open connections go on; if there are so many, give it room for more (batuta run --ebpf-table flows=N; now %d)",
			now.waits-before.waits, p.t.maxFlows))
	}
	return now
}
