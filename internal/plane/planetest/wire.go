package planetest

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// The servers of a bench speak a small protocol of their own. A stream:
//
//	client  length uint32, payload        ... then it closes its side
//	server  who, length uint32, payload   ... then who, 40, total uint64, SHA-256
//
// The echo begins before the message has ended, so large ones load both
// directions at once. A datagram:
//
//	client  sequence uint64, payload
//	server  who, sequence uint64, payload
//
// who is the server's own address as text after its length in one byte.

// maxMessage bounds what a server believes of a length field.
const maxMessage = 64 << 20

// summarySize is the length of the encoded Summary.
const summarySize = 8 + sha256.Size

// StartServer runs the real server of protocol p on addr until the test ends.
// The socket belongs to the network namespace of the calling thread. It
// returns the address in use (addr may have port 0).
func StartServer(t *testing.T, p model.Protocol, addr netip.AddrPort) netip.AddrPort {
	t.Helper()
	var wg sync.WaitGroup
	if p == model.UDP {
		pc, err := net.ListenPacket("udp", addr.String())
		if err != nil {
			t.Fatalf("real server: %v", err)
		}
		wg.Go(func() { ServePackets(pc) })
		t.Cleanup(func() { _ = pc.Close(); wg.Wait() })
		return addrPort(pc.LocalAddr())
	}
	l, err := net.Listen("tcp", addr.String())
	if err != nil {
		t.Fatalf("real server: %v", err)
	}
	wg.Go(func() { ServeStream(l) })
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return addrPort(l.Addr())
}

// ServeStream is the real server for TCP. It returns when l is closed, after
// it has closed every connection.
func ServeStream(l net.Listener) {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		open = map[net.Conn]bool{}
	)
	for {
		c, err := l.Accept()
		if err != nil {
			break
		}
		mu.Lock()
		open[c] = true
		mu.Unlock()
		wg.Go(func() {
			_ = serveConn(c)
			_ = c.Close()
			mu.Lock()
			delete(open, c)
			mu.Unlock()
		})
	}
	mu.Lock()
	for c := range open {
		_ = c.Close()
	}
	mu.Unlock()
	wg.Wait()
}

func serveConn(c net.Conn) error {
	who := slices.Clip(whoBytes(addrPort(c.LocalAddr())))
	sum, total := sha256.New(), uint64(0)
	for {
		var size [4]byte
		if _, err := io.ReadFull(c, size[:]); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		n := binary.BigEndian.Uint32(size[:])
		if n > maxMessage {
			return fmt.Errorf("message of %d bytes", n)
		}
		if _, err := c.Write(append(who, size[:]...)); err != nil {
			return err
		}
		if _, err := io.CopyN(io.MultiWriter(c, sum), c, int64(n)); err != nil {
			return err
		}
		total += uint64(n)
	}
	out := binary.BigEndian.AppendUint32(who, summarySize)
	out = binary.BigEndian.AppendUint64(out, total)
	_, err := c.Write(sum.Sum(out))
	return err
}

// ServePackets is the real server for UDP. It returns when pc is closed.
func ServePackets(pc net.PacketConn) {
	who := slices.Clip(whoBytes(addrPort(pc.LocalAddr())))
	buf := make([]byte, 64<<10)
	for {
		n, from, err := pc.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of an earlier answer
		}
		_, _ = pc.WriteTo(append(who, buf[:n]...), from)
	}
}

// NewConn makes a Conn of a TCP connection or a connected UDP socket.
func NewConn(c net.Conn) Conn {
	if _, ok := c.(*net.UDPConn); ok {
		return &packetConn{c: c}
	}
	return &streamConn{c: c}
}

type streamConn struct{ c net.Conn }

func (s *streamConn) Local() netip.AddrPort { return addrPort(s.c.LocalAddr()) }
func (s *streamConn) Close() error          { return s.c.Close() }

func (s *streamConn) Exchange(ctx context.Context, msg []byte) (netip.AddrPort, []byte, error) {
	if err := setDeadline(ctx, s.c); err != nil {
		return netip.AddrPort{}, nil, err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := s.c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(msg))), msg...))
		sent <- err
	}()
	who, echo, err := s.receive()
	return who, echo, errors.Join(err, <-sent)
}

func (s *streamConn) receive() (netip.AddrPort, []byte, error) {
	who, err := readWho(s.c)
	if err != nil {
		return who, nil, err
	}
	var size [4]byte
	if _, err := io.ReadFull(s.c, size[:]); err != nil {
		return who, nil, err
	}
	echo := make([]byte, min(binary.BigEndian.Uint32(size[:]), maxMessage))
	_, err = io.ReadFull(s.c, echo)
	return who, echo, err
}

func (s *streamConn) Finish(ctx context.Context) (sum Summary, err error) {
	if err := setDeadline(ctx, s.c); err != nil {
		return sum, err
	}
	half, ok := s.c.(interface{ CloseWrite() error })
	if !ok {
		return sum, fmt.Errorf("%T cannot close one side", s.c)
	}
	if err := half.CloseWrite(); err != nil {
		return sum, err
	}
	_, b, err := s.receive()
	if err != nil {
		return sum, err
	}
	if len(b) != summarySize {
		return sum, fmt.Errorf("summary of %d bytes, want %d", len(b), summarySize)
	}
	sum.Bytes = binary.BigEndian.Uint64(b)
	copy(sum.SHA256[:], b[8:])
	if n, err := s.c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return sum, fmt.Errorf("after the summary: %d bytes, %w; want the server's end", n, err)
	}
	return sum, nil
}

type packetConn struct {
	c   net.Conn
	seq uint64
}

func (p *packetConn) Local() netip.AddrPort { return addrPort(p.c.LocalAddr()) }
func (p *packetConn) Close() error          { return p.c.Close() }

func (p *packetConn) Finish(context.Context) (Summary, error) {
	return Summary{}, errors.New("a datagram socket has no end")
}

func (p *packetConn) Exchange(ctx context.Context, msg []byte) (netip.AddrPort, []byte, error) {
	if err := setDeadline(ctx, p.c); err != nil {
		return netip.AddrPort{}, nil, err
	}
	p.seq++
	if _, err := p.c.Write(append(binary.BigEndian.AppendUint64(nil, p.seq), msg...)); err != nil {
		return netip.AddrPort{}, nil, err
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := p.c.Read(buf)
		if err != nil {
			return netip.AddrPort{}, nil, err
		}
		who, rest, err := cutWho(buf[:n])
		if err != nil || len(rest) < 8 {
			return who, nil, fmt.Errorf("malformed answer %q", buf[:n])
		}
		if binary.BigEndian.Uint64(rest) == p.seq { // else: late answer to an earlier one
			return who, rest[8:], nil
		}
	}
}

func setDeadline(ctx context.Context, c net.Conn) error {
	d, _ := ctx.Deadline()
	if err := ctx.Err(); err != nil {
		return err
	}
	if d.IsZero() {
		d = time.Now().Add(patience)
	}
	return c.SetDeadline(d)
}

func whoBytes(a netip.AddrPort) []byte {
	s := a.String()
	return append([]byte{byte(len(s))}, s...)
}

func readWho(r io.Reader) (netip.AddrPort, error) {
	var n [1]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return netip.AddrPort{}, err
	}
	b := make([]byte, n[0])
	if _, err := io.ReadFull(r, b); err != nil {
		return netip.AddrPort{}, err
	}
	return netip.ParseAddrPort(string(b))
}

func cutWho(b []byte) (netip.AddrPort, []byte, error) {
	if len(b) == 0 || len(b) < 1+int(b[0]) {
		return netip.AddrPort{}, nil, errors.New("no address")
	}
	a, err := netip.ParseAddrPort(string(b[1 : 1+b[0]]))
	return a, b[1+b[0]:], err
}

// addrPort is the address of a TCP or UDP socket, IPv4 as IPv4.
func addrPort(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		ap = a.AddrPort()
	case *net.UDPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
