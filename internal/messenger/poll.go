package messenger

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/link"
)

// Attendant is something beside links that a loop waits for and looks after.
type Attendant interface {
	// Descriptor is what is waited for, and for which events (poll(2)).
	Descriptor() (fd int, events int16)
	// Attend is called when there were any, on the loop's goroutine. It does
	// not wait, and may call all methods of the Loop.
	Attend()
}

// poller waits for everything at once: for links, for an attendant, and for
// what goroutines have to say, by a bell.
type poller struct {
	links []polled
	other Attendant
	alone bool
	bell  int // an eventfd(2)
	fds   []unix.PollFd
}

type polled struct {
	link.Polled
	door  *door // nil: it has none
	retry time.Time
}

func newPoller(links []polled, other Attendant, alone bool) (*poller, error) {
	bell, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &poller{links: links, other: other, alone: alone, bell: bell}, nil
}

// ring wakes wait, from any goroutine.
func (p *poller) ring() {
	_, _ = unix.Write(p.bell, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // full: it has been rung
}

// wait returns when something may have come, or at that time. A link that is
// read at a pace is not waited for but looked at after that time.
func (p *poller) wait(now, until time.Time) {
	fds := append(p.fds[:0], unix.PollFd{Fd: int32(p.bell), Events: unix.POLLIN})
	if p.other != nil {
		fd, events := p.other.Descriptor()
		fds = append(fds, unix.PollFd{Fd: int32(fd), Events: events})
	}
	patience := max(0, until.Sub(now))
	for i := range p.links {
		k := &p.links[i]
		if pace := k.Paced(); pace > 0 {
			patience = min(patience, pace)
		} else if !now.Before(k.retry) {
			fds = k.Descriptors(fds)
		}
	}
	p.fds = fds
	ppoll(fds, patience, p.alone)
	if fds[0].Revents != 0 {
		var count [8]byte
		_, _ = unix.Read(p.bell, count[:])
	}
	if p.other != nil && fds[1].Revents != 0 {
		p.other.Attend()
	}
}

// take gives the packets that are there to a function, so many at most that a
// flood cannot keep the loop from its own beats.
func (p *poller) take(now time.Time, give func(*polled, link.Packet)) {
	for i := range p.links {
		k := &p.links[i]
		if now.Before(k.retry) {
			continue
		}
		for range drainLimit / len(p.links) {
			packet, err := k.Take()
			if err == nil {
				give(k, packet)
				continue
			}
			if !errors.Is(err, link.ErrNone) {
				k.retry = now.Add(linkBackoff)
			}
			break
		}
	}
}

func (p *poller) close() error { return unix.Close(p.bell) }

// ppoll is ppoll(2). A process that has nothing else to do keeps its processor
// (Go's P) meanwhile, so that the runtime's monitor has nothing to take away and
// nobody to wake: it would look every 20 µs after each wait. Should the runtime
// need the processor, it sends the thread a signal, which ends the wait early.
func ppoll(fds []unix.PollFd, patience time.Duration, alone bool) {
	t := unix.NsecToTimespec(int64(patience))
	if !alone {
		_, _ = unix.Ppoll(fds, &t, nil)
		return
	}
	_, _, _ = unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), uintptr(len(fds)), uintptr(unsafe.Pointer(&t)), 0, 0, 0)
}
