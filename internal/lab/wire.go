package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxMessage bounds one message between the lab's processes, in bytes. The
// largest holds an ha.d directory.
const maxMessage = 4 << 20

// maxFiles is the most descriptors that travel with one message: standard
// input, output and error.
const maxFiles = 3

// conn carries JSON messages, one a packet, with open files beside them, on a
// SOCK_SEQPACKET socket: message borders and the end of the peer come from the
// kernel. One goroutine may receive; any number may send.
type conn struct {
	c    *net.UnixConn
	send sync.Mutex
	buf  []byte
}

func newConn(c *net.UnixConn) *conn { return &conn{c: c, buf: make([]byte, 64<<10)} }

// connFromFile takes the socket over; f is closed.
func connFromFile(f *os.File) (*conn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("lab: take over a socket: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("lab: inherited descriptor is no Unix socket")
	}
	return newConn(u), nil
}

// socketPair returns the two ends of a connection, close-on-exec.
func socketPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("lab: socketpair: %w", err)
	}
	for _, fd := range fds {
		// Without this a packet ends at net.core.wmem_default. Root may;
		// where it fails, only large messages do.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, maxMessage)
	}
	return os.NewFile(uintptr(fds[0]), "lab"), os.NewFile(uintptr(fds[1]), "lab"), nil
}

// Send writes one message; the files stay the caller's.
func (c *conn) Send(v any, files ...*os.File) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(data) > maxMessage/2 {
		return fmt.Errorf("lab: message of %d bytes; the limit is %d", len(data), maxMessage/2)
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	c.send.Lock()
	defer c.send.Unlock()
	_, _, err = c.c.WriteMsgUnix(data, oob, nil)
	return err
}

// Receive reads one message into v; the files beside it become the caller's.
// It returns io.EOF when the peer is gone.
func (c *conn) Receive(v any) ([]*os.File, error) {
	if err := c.fit(); err != nil {
		return nil, err
	}
	oob := make([]byte, unix.CmsgSpace(maxFiles*4))
	n, oobn, _, _, err := c.c.ReadMsgUnix(c.buf, oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, fmt.Errorf("lab: control message: %w", err)
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	if err := json.Unmarshal(c.buf[:n], v); err != nil {
		closeAll(files)
		return nil, fmt.Errorf("lab: message: %w", err)
	}
	return files, nil
}

// fit waits for a packet and grows the buffer to its size.
func (c *conn) fit() error {
	raw, err := c.c.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var rerr error
	err = raw.Read(func(fd uintptr) bool {
		// MSG_TRUNC makes the kernel tell the packet's whole length.
		for {
			n, _, rerr = unix.Recvfrom(int(fd), nil, unix.MSG_PEEK|unix.MSG_TRUNC)
			if rerr != unix.EINTR {
				return rerr != unix.EAGAIN
			}
		}
	})
	if err != nil {
		return err
	}
	if rerr != nil {
		return rerr
	}
	if n > maxMessage {
		return fmt.Errorf("lab: message of %d bytes; the limit is %d", n, maxMessage)
	}
	if n > len(c.buf) {
		c.buf = make([]byte, n)
	}
	return nil
}

func (c *conn) Close() error { return c.c.Close() }

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
