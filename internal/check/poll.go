package check

import (
	"container/heap"
	"context"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

const (
	pollEvents = 256      // taken from the kernel at once
	pollLimit  = 16 << 10 // bytes of an answer that are read here
	pollTries  = 8        // pieces of an answer that are looked at here
)

// Poll makes checks that are one exchange over plain TCP, connect and http
// without encryption, of thousands of targets at a time: each is a socket and
// a few hundred bytes, but no goroutine and no timer, which cost as much as
// the exchange itself (docs/performance.md). Its verdicts are those of the
// Func for the target. What turns out to be more than a small answer in few
// pieces (a redirect, a long page) goes on with a goroutine of its own.
type Poll struct {
	deliver func([]Ended)
	epoll   *os.File // parked in the runtime's own poller, so that no thread waits here
	conn    syscall.RawConn
	fd      int // of epoll, which keeps it open
	wg      sync.WaitGroup
	scratch []byte // of the polling goroutine

	mu     sync.Mutex // guards what follows
	open   []*polled  // by descriptor
	due    deadlines
	armed  time.Time // when the polling goroutine looks at due; zero for never
	serial int32
	closed bool
}

// Ended is the verdict of a check that a Poll has made.
type Ended struct {
	Of      any // what Start was told
	Verdict model.Verdict
}

// NewPoll makes a Poll, which polls until ctx ends. deliver is called by
// several goroutines, with one verdict for each Start, except those that ctx
// interrupts; it does not block.
func NewPoll(ctx context.Context, deliver func([]Ended)) (*Poll, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	p := &Poll{deliver: deliver, epoll: os.NewFile(uintptr(fd), "epoll"), fd: fd, scratch: make([]byte, pollLimit)}
	if p.conn, err = p.epoll.SyscallConn(); err == nil {
		err = p.epoll.SetReadDeadline(time.Time{}) // tells whether the runtime can wait for it
	}
	if err != nil {
		_ = p.epoll.Close()
		return nil, err
	}
	p.wg.Go(func() { p.run(ctx) })
	context.AfterFunc(ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.arm(time.Unix(1, 0))
		p.closed = true
	})
	return p, nil
}

// Wait returns when all goroutines of the Poll have ended, after its context.
func (p *Poll) Wait() { p.wg.Wait() }

// Pollable tells whether Start can make the check of a target.
func Pollable(t *model.Target) bool {
	if !t.Addr.IsValid() || t.Addr.Port() == 0 || t.Addr.Addr().Zone() != "" || t.AgentPort != 0 || t.Via != model.ViaReal {
		return false
	}
	switch t.Kind {
	case model.CheckConnect:
		return t.Proto != model.UDP
	case model.CheckNegotiate:
		return !t.HTTP2 && t.RequestURL == "" && (t.Application == "http" || t.Application == "http_proxy")
	case model.CheckNone, model.CheckCombined, model.CheckPing, model.CheckExternal, model.CheckExternalPerl, model.CheckOff, model.CheckOn:
	}
	return false
}

// Start begins the check of a target, which must be Pollable and is not
// changed before the verdict.
func (p *Poll) Start(of any, t *model.Target) {
	x := &polled{of: of, target: t, start: time.Now()}
	if v, ended := p.begin(x); ended {
		p.deliver([]Ended{x.end(v)})
	}
}

// begin opens the socket and lets it connect.
func (p *Poll) begin(x *polled) (v model.Verdict, ended bool) {
	x.limit = x.target.CheckTimeout
	if x.target.Kind == model.CheckNegotiate {
		c, err := newHTTPCheck(x.target)
		if err != nil {
			return down(err.Error()), true
		}
		x.http, x.unsent, x.limit = c, []byte(c.req.String(c.method)), x.target.NegotiateTimeout
	}
	x.deadline = x.start.Add(x.limit)
	fd, err := connecting(x.target.Addr, x.http != nil)
	if err != nil {
		return x.failed(err), true
	}
	x.fd = fd
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = unix.Close(fd)
		return v, false
	}
	p.serial++
	x.serial = p.serial
	for len(p.open) <= fd {
		p.open = append(p.open, nil)
	}
	e := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(fd), Pad: x.serial}
	if err := unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &e); err != nil {
		_ = unix.Close(fd)
		return x.failed(os.NewSyscallError("epoll_ctl", err)), true
	}
	p.open[fd] = x
	heap.Push(&p.due, x)
	if p.armed.IsZero() || x.deadline.Before(p.armed) {
		p.arm(x.deadline)
	}
	return v, false
}

// arm sets when the polling goroutine looks for time-outs.
func (p *Poll) arm(at time.Time) {
	if p.closed {
		return
	}
	p.armed = at
	_ = p.epoll.SetReadDeadline(at) // fails only when it is closed
}

// run polls until ctx ends.
func (p *Poll) run(ctx context.Context) {
	events := make([]unix.EpollEvent, pollEvents)
	var ended []Ended
	for {
		n := 0
		err := p.conn.Read(func(fd uintptr) bool {
			n, _ = unix.EpollWait(int(fd), events, 0)
			return n != 0
		})
		if ctx.Err() != nil {
			p.shut()
			return
		}
		if err != nil { // the time-out: what has come until now still counts
			n, _ = unix.EpollWait(p.fd, events, 0)
		}
		for i := range max(n, 0) {
			ended = p.take(ctx, &events[i], ended)
		}
		if err != nil && n < pollEvents {
			ended = p.expire(ended)
		}
		if len(ended) > 0 {
			p.deliver(ended)
			clear(ended)
			ended = ended[:0]
		}
	}
}

// take goes on with the check that an event belongs to.
func (p *Poll) take(ctx context.Context, e *unix.EpollEvent, ended []Ended) []Ended {
	p.mu.Lock()
	x := p.open[e.Fd]
	p.mu.Unlock()
	if x == nil || x.serial != e.Pad {
		return ended
	}
	switch v, next := x.step(e.Events, p.scratch); next {
	case over:
		p.forget(x)
		_ = unix.Close(x.fd)
		return append(ended, x.end(v))
	case onward:
		p.forget(x)
		_ = unix.EpollCtl(p.fd, unix.EPOLL_CTL_DEL, x.fd, nil)
		p.wg.Go(func() {
			if v := x.finish(ctx); ctx.Err() == nil {
				p.deliver([]Ended{x.end(v)})
			}
		})
	case waiting:
	}
	return ended
}

// expire ends the checks whose time is over.
func (p *Poll) expire(ended []Ended) []Ended {
	now := time.Now()
	for {
		p.mu.Lock()
		if len(p.due) == 0 || now.Before(p.due[0].deadline) {
			next := time.Time{}
			if len(p.due) > 0 {
				next = p.due[0].deadline
			}
			p.arm(next)
			p.mu.Unlock()
			return ended
		}
		x := p.due[0]
		p.mu.Unlock()
		p.forget(x)
		_ = unix.Close(x.fd)
		ended = append(ended, x.end(down(fmt.Sprintf("no answer within %v", x.limit))))
	}
}

// forget takes a check out: no event finds it any more.
func (p *Poll) forget(x *polled) {
	p.mu.Lock()
	p.open[x.fd] = nil
	heap.Remove(&p.due, x.place)
	p.mu.Unlock()
}

// shut closes all sockets, and then what polls them.
func (p *Poll) shut() {
	p.mu.Lock()
	p.closed = true
	for _, x := range p.due {
		_ = unix.Close(x.fd)
	}
	p.open, p.due = nil, nil
	p.mu.Unlock()
	_ = p.epoll.Close()
}
