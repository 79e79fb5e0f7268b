package check

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

// polled is a check that a Poll has under way. Apart from its place it belongs
// to the polling goroutine, once it is started.
type polled struct {
	of       any
	target   *model.Target
	http     *httpCheck // nil for connect
	start    time.Time
	limit    time.Duration
	deadline time.Time
	place    int // in deadlines
	fd       int
	serial   int32  // tells events of this socket from late ones of an earlier
	unsent   []byte // of the request
	answer   []byte // that came so far, if it is not complete
	tries    int    // pieces of it that were looked at
}

// fate is how a check goes on after an event.
type fate uint8

const (
	waiting fate = iota // for the next event
	over                // there is a verdict
	onward              // with a goroutine of its own
)

// end stamps the verdict.
func (x *polled) end(v model.Verdict) Ended {
	stamp(&v, x.start)
	return Ended{Of: x.of, Verdict: v}
}

// failed turns an error of a system call into a verdict.
func (x *polled) failed(err error) model.Verdict {
	return failed(context.Background(), context.Background(), err, x.limit)
}

// connecting opens a socket and has it connect. A request that is to follow
// also carries the last step of the handshake: TCP_QUICKACK 0 keeps the kernel
// from sending a packet for that alone.
func connecting(a netip.AddrPort, request bool) (fd int, err error) {
	family, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()})
	if ip := a.Addr().Unmap(); ip.Is4() {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: ip.As4()}
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if request {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0) // one packet more without it
	}
	if err := unix.Connect(fd, to); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		_ = unix.Close(fd)
		return -1, os.NewSyscallError("connect", err)
	}
	return fd, nil
}

// step goes on after an event. A check that panics has made a verdict, too.
func (x *polled) step(events uint32, scratch []byte) (v model.Verdict, next fate) {
	defer func() {
		if p := recover(); p != nil {
			v, next = crashed(p), over
		}
	}()
	if x.http == nil {
		return x.connected(), over
	}
	for len(x.unsent) > 0 {
		n, err := unix.Write(x.fd, x.unsent)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return v, waiting
		case err != nil && !errors.Is(err, unix.EINTR):
			return x.failed(err), over
		}
		x.unsent = x.unsent[max(n, 0):]
	}
	if events&^unix.EPOLLOUT == 0 {
		return v, waiting
	}
	return x.read(events, scratch)
}

// connected is the verdict of a connect check: see connect.
func (x *polled) connected() model.Verdict {
	code, err := unix.GetsockoptInt(x.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	switch errno := syscall.Errno(code); {
	case err != nil:
		return x.failed(os.NewSyscallError("getsockopt", err))
	case errno == unix.ECONNRESET:
		return up("connected, and reset by the server")
	case errno != 0:
		return x.failed(errno)
	case x.toItself():
		return x.failed(unix.ECONNREFUSED)
	}
	return up("connected")
}

// toItself tells whether the kernel chose the very port that was to be asked
// as the socket's own: then it is connected to itself (RFC 9293, section
// 3.5, simultaneous open), and nobody listens there.
func (x *polled) toItself() bool {
	own, err := unix.Getsockname(x.fd)
	if err != nil {
		return false
	}
	switch s := own.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(s.Addr), uint16(s.Port)) == netip.AddrPortFrom(x.target.Addr.Addr().Unmap(), x.target.Addr.Port())
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(s.Addr), uint16(s.Port)) == x.target.Addr
	}
	return false
}

// read reads what has come, and ends the check if that is all.
func (x *polled) read(events uint32, scratch []byte) (v model.Verdict, next fate) {
	for {
		n, err := unix.Read(x.fd, scratch)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return v, waiting
		case err != nil:
			return x.failed(err), over
		}
		came := scratch[:n]
		if len(x.answer) > 0 {
			x.answer = append(x.answer, came...)
			came = x.answer
		}
		in := &soFar{came: came, all: n == 0}
		a, err := readAnswer(in, x.http.method, x.target)
		switch {
		case err == nil:
			if v, ended := x.http.judge(a); ended {
				return v, over
			}
			return v, onward
		case !in.dry:
			return x.failed(err), over
		}
		if len(x.answer) == 0 {
			x.answer = append(x.answer, came...)
		}
		if x.tries++; x.tries == pollTries || len(x.answer) >= pollLimit {
			return v, onward
		}
		if n < len(scratch) && events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) == 0 {
			return v, waiting // an event tells when there is more
		}
	}
}

// soFar is an answer as far as it has come.
type soFar struct {
	came []byte
	all  bool // the server has ended it
	dry  bool // more was asked for than has come
}

// errMore never leaves this package: dry says the same of every reader.
var errMore = errors.New("there is more to come")

func (s *soFar) Read(b []byte) (int, error) {
	n := copy(b, s.came)
	s.came = s.came[n:]
	switch {
	case n > 0:
		return n, nil
	case s.all:
		return 0, io.EOF
	}
	s.dry = true
	return 0, errMore
}

// finish makes what is left of a check: it follows a redirect, or reads on.
func (x *polled) finish(ctx context.Context) (v model.Verdict) {
	defer func() {
		if p := recover(); p != nil {
			v = crashed(p)
		}
	}()
	within, cancel := context.WithDeadline(ctx, x.deadline)
	defer cancel()
	file := os.NewFile(uintptr(x.fd), "check")
	if x.http.hops > 0 {
		_ = file.Close()
		return x.http.run(ctx, within)
	}
	conn, err := net.FileConn(file)
	_ = file.Close()
	if err != nil {
		return failed(ctx, within, err, x.limit)
	}
	rest := bound(within, conn, httpLimit)
	defer rest.Close()
	a, err := readAnswer(io.MultiReader(bytes.NewReader(x.answer), rest), x.http.method, x.target)
	if err != nil {
		return failed(ctx, within, err, x.limit)
	}
	if v, ended := x.http.judge(a); ended {
		return v
	}
	return x.http.run(ctx, within)
}

// deadlines is a heap (container/heap) of checks, the first to time out first.
type deadlines []*polled

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].deadline.Before(d[j].deadline) }

func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].place, d[j].place = i, j
}

// Push adds x, a *polled, at the end.
func (d *deadlines) Push(x any) {
	p := x.(*polled)
	p.place = len(*d)
	*d = append(*d, p)
}

// Pop takes the last one away.
func (d *deadlines) Pop() any {
	old := *d
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*d = old[:len(old)-1]
	return last
}
