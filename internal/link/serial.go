package link

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/model"
)

// Bounds of a serial line.
const (
	serialChunk   = 512     // bytes written at a time (§11.4)
	serialQueue   = 64      // messages that wait for a slow line
	longestSerial = 8 << 10 // of a message; more without an end is noise
)

// Frame marks of the text encoding (§2.2).
var (
	frameStart = []byte(">>>\n")
	frameEnd   = []byte("<<<\n")
)

// lockDir is where programs that use serial lines agree who does (UUCP).
const lockDir = "/var/lock"

var baudRates = map[int]uint32{9600: unix.B9600, 19200: unix.B19200, 38400: unix.B38400, 57600: unix.B57600,
	115200: unix.B115200, 230400: unix.B230400, 460800: unix.B460800}

// serial is a null-modem line to one peer. It carries the text encoding only,
// which needs no lengths: a lost byte costs one message (§11.4). Datagrams in
// the other encoding are written out as text, under their inner signature.
type serial struct {
	medium model.Medium
	lock   string // name of the lock file

	queue chan []byte
	done  chan struct{}
	ended sync.WaitGroup

	rest []byte // read and not yet a message; of the goroutine that receives

	mu     sync.Mutex
	line   *os.File // replaced when the device comes back
	closed bool
}

var _ Link = (*serial)(nil)

func openSerial(m model.Medium, _ Options) (Link, error) { return openSerialLine(m, lockDir) }

func openSerialLine(m model.Medium, locks string) (Link, error) {
	if baudRates[m.Baud] == 0 {
		return nil, fmt.Errorf("serial %s: %d is no speed of a serial line", m.Interface, m.Baud)
	}
	s := &serial{medium: m, lock: filepath.Join(locks, "LCK.."+filepath.Base(m.Interface)),
		queue: make(chan []byte, serialQueue), done: make(chan struct{})}
	if err := takeLock(s.lock); err != nil {
		return nil, fmt.Errorf("serial %s: %w", m.Interface, err)
	}
	var err error
	if s.line, err = openLine(m.Interface, m.Baud); err != nil {
		_ = os.Remove(s.lock)
		return nil, fmt.Errorf("serial %s: %w", m.Interface, err)
	}
	s.ended.Go(s.write)
	return s, nil
}

// openLine opens a terminal device as a raw line of 8 bits, with hardware flow control.
func openLine(device string, baud int) (*os.File, error) {
	// Non-blocking, so that no missing carrier holds us up and Close ends a read.
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	t := unix.Termios{Cflag: unix.CS8 | unix.CREAD | unix.CLOCAL | unix.CRTSCTS | baudRates[baud],
		Ispeed: baudRates[baud], Ospeed: baudRates[baud]}
	t.Cc[unix.VMIN] = 1
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &t); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("no serial line: %w", err)
	}
	return os.NewFile(uintptr(fd), device), nil
}

// takeLock makes the line's lock file, which names the process that uses it.
// One whose process is gone is replaced.
func takeLock(name string) error {
	text := fmt.Appendf(nil, "%10d\n", os.Getpid())
	for range 2 {
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err == nil {
			_, err = f.Write(text)
			return errors.Join(err, f.Close())
		}
		if !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("lock: %w", err)
		}
		held, err := os.ReadFile(name)
		if err != nil {
			return fmt.Errorf("lock: %w", err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(held)))
		if err == nil && pid != os.Getpid() && !errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			return fmt.Errorf("process %d uses the line (%s): end it, or use another device", pid, name)
		}
		if err := os.Remove(name); err != nil {
			return fmt.Errorf("lock left by a process that is gone: %w", err)
		}
	}
	return fmt.Errorf("lock %s: somebody else takes it again and again", name)
}

func (s *serial) Name() string { return s.medium.Name }

// Send queues the message. A line that is too slow for its beats drops new ones.
func (s *serial) Send(b []byte) error {
	text, err := asText(b)
	if err != nil {
		return fmt.Errorf("serial %s: %w", s.medium.Name, err)
	}
	select {
	case <-s.done:
		return fmt.Errorf("serial %s: %w", s.medium.Name, ErrClosed)
	case s.queue <- text:
		return nil
	default:
		return fmt.Errorf("serial %s: the line is slower than the heartbeats (%d baud): raise baud or keepalive", s.medium.Name, s.medium.Baud)
	}
}

// asText is a datagram in the encoding of serial lines: no NUL at the end.
func asText(b []byte) ([]byte, error) {
	p, err := heartbeat.Parse(b)
	if err != nil {
		return nil, err
	}
	if p.Get("auth") == "" {
		return nil, errors.New("a message without an inner signature cannot be sent as text: write msgfmt classic")
	}
	p.Encoding = heartbeat.Text
	return bytes.TrimSuffix(p.Append(nil), []byte{0}), nil
}

// write is the goroutine that feeds the line, in pieces that a device's buffer takes.
func (s *serial) write() {
	for {
		select {
		case <-s.done:
			return
		case text := <-s.queue:
			for len(text) > 0 {
				n := min(len(text), serialChunk)
				if _, err := s.current().Write(text[:n]); err != nil {
					break // the reader finds out and opens the device again
				}
				text = text[n:]
			}
		}
	}
}

func (s *serial) current() *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.line
}

// Receive returns the next whole message. What stands between messages is noise.
func (s *serial) Receive() (Packet, error) {
	buf := make([]byte, 4<<10)
	for {
		frame, rest, ok := cutFrame(s.rest)
		s.rest = rest
		if ok {
			return Packet{Data: bytes.Clone(frame), At: time.Now()}, nil
		}
		n, err := s.current().Read(buf)
		s.rest = append(s.rest, buf[:n]...)
		if err == nil {
			continue
		}
		if err := s.reopen(); err != nil {
			return Packet{}, err
		}
	}
}

// cutFrame finds a message, from its last start mark before its end.
func cutFrame(b []byte) (frame, rest []byte, ok bool) {
	end := bytes.Index(b, frameEnd)
	if end < 0 {
		if len(b) > longestSerial {
			b = b[len(b)-len(frameEnd):]
		}
		return nil, b, false
	}
	whole, rest := b[:end+len(frameEnd)], b[end+len(frameEnd):]
	start := bytes.LastIndex(whole[:end], frameStart)
	if start < 0 {
		return cutFrame(rest)
	}
	return whole[start:], rest, true
}

// reopen gets a device back that failed (a USB adapter was pulled out, the
// other end of a pseudo terminal closed), or tells why not yet.
func (s *serial) reopen() error {
	select {
	case <-s.done:
		return ErrClosed
	case <-time.After(reopenAfter):
	}
	line, err := openLine(s.medium.Interface, s.medium.Baud)
	if err != nil {
		return fmt.Errorf("serial %s: %w", s.medium.Name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = line.Close()
		return ErrClosed
	}
	_ = s.line.Close()
	s.line, s.rest = line, nil
	return nil
}

func (s *serial) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.done)
	err := s.line.Close()
	s.mu.Unlock()
	s.ended.Wait()
	return errors.Join(err, os.Remove(s.lock))
}
