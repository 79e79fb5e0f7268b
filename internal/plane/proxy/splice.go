package proxy

import (
	"errors"
	"io"
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

// chunk is how much is moved at once; the size asked for pipes.
const chunk = 256 << 10

// errNoSplice means that the kernel does not splice here, or that there is no
// pipe to splice through. Nothing was read yet.
var errNoSplice = errors.New("splice is not to be had")

// transfer moves bytes from src to dst until src ends, and reports each move
// at once. A slow destination holds back the source: at most one chunk is
// under way. A connection that waits to read holds no buffer and no pipe.
func (p *Plane) transfer(dst, src *net.TCPConn, moved func(int)) error {
	from, err := src.SyscallConn()
	if err != nil {
		return err
	}
	to, err := dst.SyscallConn()
	if err != nil {
		return err
	}
	for {
		var (
			through pipe
			n       int
			err     error
		)
		waited := from.Read(func(fd uintptr) bool {
			if through, err = p.pipes.get(); err != nil {
				err = errNoSplice
				return true
			}
			if n, err = splice(int(fd), through.in, chunk); errors.Is(err, unix.EAGAIN) {
				p.pipes.put(through)
				return false
			}
			return true
		})
		switch {
		case waited != nil:
			return waited
		case errors.Is(err, errNoSplice):
			return p.copy(dst, src, moved)
		case err != nil:
			p.pipes.put(through)
			if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
				return p.copy(dst, src, moved)
			}
			return err
		}
		if n == 0 {
			p.pipes.put(through)
			return nil
		}
		moved(n) // first: whoever has received bytes finds them counted
		for left := n; left > 0; {
			m := 0
			waited := to.Write(func(fd uintptr) bool {
				m, err = splice(through.out, int(fd), left)
				return !errors.Is(err, unix.EAGAIN)
			})
			if waited != nil || err != nil {
				through.close() // it still holds bytes
				return errors.Join(waited, err)
			}
			left -= m
		}
		p.pipes.put(through)
	}
}

// splice moves up to n bytes between a pipe and a socket, without waiting.
func splice(from, to, n int) (int, error) {
	for {
		m, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if !errors.Is(err, unix.EINTR) {
			return int(max(0, m)), err
		}
	}
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// copy is transfer without splice.
func (p *Plane) copy(dst, src *net.TCPConn, moved func(int)) error {
	b, _ := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	for {
		n, err := src.Read(*b)
		if n > 0 {
			moved(n)
			if _, err := dst.Write((*b)[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// pipe is an empty pipe(2).
type pipe struct{ out, in int }

func (p pipe) close() {
	_ = unix.Close(p.out)
	_ = unix.Close(p.in)
}

// pipePool keeps some pipes for reuse, since making one costs more than a
// small transfer. A connection has one only while bytes are under way.
type pipePool struct{ idle chan pipe }

func newPipePool() pipePool { return pipePool{idle: make(chan pipe, 64)} }

func (pp pipePool) get() (pipe, error) {
	select {
	case p := <-pp.idle:
		return p, nil
	default:
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return pipe{}, err
	}
	// More room is welcome; a limit (pipe-user-pages-soft) is no error.
	_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, chunk)
	return pipe{out: fds[0], in: fds[1]}, nil
}

func (pp pipePool) put(p pipe) {
	select {
	case pp.idle <- p:
	default:
		p.close()
	}
}

func (pp pipePool) close() {
	for {
		select {
		case p := <-pp.idle:
			p.close()
		default:
			return
		}
	}
}
