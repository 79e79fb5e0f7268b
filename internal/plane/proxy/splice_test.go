package proxy

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"
)

// wire makes the two ends of a TCP connection on the loopback.
func wire(t testing.TB) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	near, _ = c.(*net.TCPConn)
	far, _ = d.(*net.TCPConn)
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	return near, far
}

type mover func(p *Plane, dst, src *net.TCPConn, moved func(int)) error

var movers = map[string]mover{"splice": (*Plane).transfer, "copy": (*Plane).copy}

func TestBothWaysOfMovingBytesMoveAllAndCountThem(t *testing.T) {
	msg := make([]byte, 5<<20+13)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(msg)
	for name, move := range movers {
		t.Run(name, func(t *testing.T) {
			p := New(Options{})
			defer func() { _ = p.Close() }()
			client, down := wire(t)
			up, server := wire(t)
			go func() {
				_, _ = client.Write(msg)
				_ = client.CloseWrite()
			}()
			total := 0
			done := make(chan error, 1)
			go func() {
				err := move(p, up, down, func(n int) { total += n })
				_ = up.CloseWrite()
				done <- err
			}()
			_ = server.SetDeadline(time.Now().Add(20 * time.Second))
			got, err := io.ReadAll(server)
			if err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, msg) || total != len(msg) {
				t.Fatalf("%d bytes arrived, %d counted, want the %d that were sent", len(got), total, len(msg))
			}
		})
	}
}

// One direction of one stream through the proxy, with splice and with a
// buffer in between.
func BenchmarkStream(b *testing.B) {
	for name, move := range movers {
		b.Run(name, func(b *testing.B) {
			p := New(Options{})
			defer func() { _ = p.Close() }()
			client, down := wire(b)
			up, server := wire(b)
			go func() { _ = move(p, up, down, func(int) {}) }()
			msg, sink := make([]byte, 256<<10), make([]byte, 256<<10)
			go func() {
				for {
					if _, err := client.Write(msg); err != nil {
						return
					}
				}
			}()
			b.SetBytes(int64(len(sink)))
			for b.Loop() {
				if _, err := io.ReadFull(server, sink); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
