package lab_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// The two ends of TestBenchConnections, processes of their own with one thread
// and bare system calls, so that they cost little beside what they measure.

// errand is what the client is to do.
type errand struct {
	To, From []netip.AddrPort // by turns
	Sockets  int              // at a time
	For      time.Duration
	// Rate is how many requests to make a second, on connections that stay
	// open; 0 is a new connection for each, as fast as it goes.
	Rate int
}

// asked is what came of it.
type asked struct {
	Took, CPU time.Duration
	Made      int             // connections, with those before it counted
	By        [256]int        // answers, by what they say: the real server's place
	Latency   []time.Duration // of each request: with its connection, where that is new
}

// asker is the client at work.
type asker struct {
	errand
	epoll   int
	begun   []time.Duration // by descriptor: when its request began
	counted bool            // the first requests are not
	asked
}

// ask is the client: what to do comes from standard input, and what came of it
// goes to standard output.
func ask() error {
	runtime.LockOSThread()
	debug.SetGCPercent(-1)
	a := asker{begun: make([]time.Duration, 4096), asked: asked{Latency: make([]time.Duration, 0, 1<<18)}}
	err := json.NewDecoder(os.Stdin).Decode(&a.errand)
	if err != nil {
		return err
	}
	if a.epoll, err = unix.EpollCreate1(0); err != nil {
		return err
	}
	if err := a.untilThere(); err != nil {
		return err
	}
	if a.Rate > 0 {
		err = a.atRate()
	} else {
		err = a.asFastAsItGoes()
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(a.asked)
}

// untilThere waits for each of the addresses to answer: a proxy may take its time.
func (a *asker) untilThere() error {
	deadline := time.Now().Add(30 * time.Second)
	for range a.To {
		for {
			err := a.once()
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("no answer: %w", err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	return nil
}

// once makes one connection and waits for each of its steps.
func (a *asker) once() error {
	fd, err := a.connect(unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return err
	}
	b := []byte{'?'}
	if _, err := unix.Write(fd, b); err != nil {
		return err
	}
	n, err := unix.Read(fd, b)
	if err == nil && n == 0 {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// connect begins a connection to the next address from the next.
func (a *asker) connect(kind int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	from, to := a.From[a.Made/len(a.To)%len(a.From)], a.To[a.Made%len(a.To)]
	a.Made++
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1), unix.Bind(fd, inet4(from)))
	if err == nil {
		if err = unix.Connect(fd, inet4(to)); errors.Is(err, unix.EINPROGRESS) {
			err = nil
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return 0, fmt.Errorf("connect from %s to %s: %w", from, to, err)
	}
	return fd, nil
}

func inet4(a netip.AddrPort) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}

// asFastAsItGoes connects, asks, hears the answer and closes, on all sockets at once.
func (a *asker) asFastAsItGoes() error {
	for range a.Sockets {
		if err := a.another(); err != nil {
			return err
		}
	}
	var events [256]unix.EpollEvent
	var begun, used time.Duration
	left := 2 * a.Sockets // before it counts
	for {
		n, err := unix.EpollWait(a.epoll, events[:], 10_000)
		if err = waited(n, err); err != nil {
			return err
		}
		for _, e := range events[:max(n, 0)] {
			fd := int(e.Fd)
			if e.Events&unix.EPOLLIN == 0 { // connected
				if err := a.request(fd); err != nil {
					return err
				}
				if err := unix.EpollCtl(a.epoll, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: e.Fd}); err != nil {
					return err
				}
				continue
			}
			if err := a.answer(fd); err != nil {
				return err
			}
			if err := errors.Join(unix.Close(fd), a.another()); err != nil {
				return err
			}
			if left--; left == 0 {
				a.counted, begun, used = true, clock(unix.CLOCK_MONOTONIC), clock(unix.CLOCK_PROCESS_CPUTIME_ID)
			}
		}
		if a.counted && clock(unix.CLOCK_MONOTONIC)-begun >= a.For {
			a.Took, a.CPU = clock(unix.CLOCK_MONOTONIC)-begun, clock(unix.CLOCK_PROCESS_CPUTIME_ID)-used
			return nil
		}
	}
}

// waited tells a silence of ten seconds from an interruption.
func waited(n int, err error) error {
	if err == nil && n == 0 {
		return errors.New("no answer for ten seconds")
	}
	if err != nil && !errors.Is(err, unix.EINTR) {
		return err
	}
	return nil
}

func (a *asker) another() error {
	begun := clock(unix.CLOCK_MONOTONIC)
	fd, err := a.connect(unix.SOCK_STREAM | unix.SOCK_NONBLOCK)
	if err != nil {
		return err
	}
	a.begun[fd] = begun
	return unix.EpollCtl(a.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLOUT, Fd: int32(fd)})
}

func (a *asker) request(fd int) error {
	if _, err := unix.Write(fd, []byte{'?'}); err != nil {
		return fmt.Errorf("ask: %w", err) // of a connection that was refused, too
	}
	return nil
}

func (a *asker) answer(fd int) error {
	var b [8]byte
	n, err := unix.Read(fd, b[:])
	if err == nil && n != 1 {
		err = fmt.Errorf("%d bytes", n)
	}
	if err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	if a.counted {
		a.By[b[0]]++
		a.Latency = append(a.Latency, clock(unix.CLOCK_MONOTONIC)-a.begun[fd])
	}
	return nil
}

// atRate asks on connections that stay open, one after the other.
func (a *asker) atRate() error {
	sockets := make([]int, a.Sockets)
	for i := range sockets {
		var err error
		if sockets[i], err = a.connect(unix.SOCK_STREAM); err != nil {
			return err
		}
		if err := errors.Join(unix.SetsockoptInt(sockets[i], unix.SOL_TCP, unix.TCP_NODELAY, 1),
			unix.EpollCtl(a.epoll, unix.EPOLL_CTL_ADD, sockets[i], &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(sockets[i])})); err != nil {
			return err
		}
	}
	timer, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, 0)
	if err != nil {
		return err
	}
	each := unix.NsecToTimespec(int64(time.Second) / int64(a.Rate))
	if err := errors.Join(unix.TimerfdSettime(timer, 0, &unix.ItimerSpec{Interval: each, Value: each}, nil),
		unix.EpollCtl(a.epoll, unix.EPOLL_CTL_ADD, timer, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(timer)})); err != nil {
		return err
	}
	var (
		events [256]unix.EpollEvent
		ticks  [8]byte
		busy   = make([]bool, len(a.begun))
		used   time.Duration
		begun  = clock(unix.CLOCK_MONOTONIC)
	)
	for next := 0; ; {
		n, err := unix.EpollWait(a.epoll, events[:], 10_000)
		if err = waited(n, err); err != nil {
			return err
		}
		for _, e := range events[:max(n, 0)] {
			fd := int(e.Fd)
			if fd != timer {
				if err := a.answer(fd); err != nil {
					return err
				}
				busy[fd] = false
				continue
			}
			if _, err := unix.Read(timer, ticks[:]); err != nil { // ticks that were missed are not made up for
				return err
			}
			fd, next = sockets[next], (next+1)%len(sockets)
			if busy[fd] {
				return errors.New("a request had no answer when its connection's turn came again: the rate is too high")
			}
			busy[fd], a.begun[fd] = true, clock(unix.CLOCK_MONOTONIC)
			if err := a.request(fd); err != nil {
				return err
			}
		}
		now := clock(unix.CLOCK_MONOTONIC)
		if !a.counted && now-begun >= a.For/10 {
			a.counted, begun, used = true, now, clock(unix.CLOCK_PROCESS_CPUTIME_ID)
		}
		if a.counted && now-begun >= a.For {
			a.Took, a.CPU = now-begun, clock(unix.CLOCK_PROCESS_CPUTIME_ID)-used
			return nil
		}
	}
}

func clock(which int32) time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(which, &t)
	return time.Duration(t.Nano())
}

// serveAnswers is the servers, each at an address of its own: one byte comes, and
// the server's place in the list goes back, as often as there are bytes.
// Connections are closed after their clients. It ends with its standard input.
func serveAnswers(at []string) error {
	runtime.LockOSThread()
	debug.SetGCPercent(-1)
	epoll, err := unix.EpollCreate1(0)
	if err != nil {
		return err
	}
	watch := func(fd int) error {
		return unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
	}
	place := make([]byte, 8192) // by descriptor
	listens := make([]bool, len(place))
	for i, text := range at {
		a, err := netip.ParseAddrPort(text)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(fd, inet4(a)), unix.Listen(fd, 4096), watch(fd)); err != nil {
			return fmt.Errorf("listen on %s: %w", a, err)
		}
		place[fd], listens[fd] = byte(i), true
	}
	if err := watch(0); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(os.Stdout, "ready"); err != nil {
		return err
	}
	var events [256]unix.EpollEvent
	var b [8]byte
	for {
		n, err := unix.EpollWait(epoll, events[:], -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		for _, e := range events[:max(n, 0)] {
			fd := int(e.Fd)
			if fd == 0 {
				return nil
			}
			if listens[fd] {
				for {
					c, _, err := unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
					if err != nil {
						break // no more, or gone before it was accepted
					}
					if c >= len(place) {
						return fmt.Errorf("more than %d connections", len(place))
					}
					place[c] = place[fd]
					if err := errors.Join(unix.SetsockoptInt(c, unix.SOL_TCP, unix.TCP_NODELAY, 1), watch(c)); err != nil {
						return err
					}
				}
				continue
			}
			n, err := unix.Read(fd, b[:])
			if errors.Is(err, unix.EAGAIN) {
				continue
			}
			if err != nil || n == 0 {
				_ = unix.Close(fd)
				continue
			}
			if _, err := unix.Write(fd, []byte{place[fd]}); err != nil {
				_ = unix.Close(fd)
			}
		}
	}
}
