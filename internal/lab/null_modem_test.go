package lab_test

import (
	"context"
	"io"
	"os"
	"sync"
)

const serialDevice = "/dev/ttyS0"

// modemEnd is a serial port on a node: a pseudo terminal, whose other side is
// standard input and output. As a real port does, it drops what nobody reads.
const modemEnd = `
import os, pty, select, tty
master, port = pty.openpty()
tty.setraw(port)
os.set_blocking(master, False)
os.symlink(os.ttyname(port), "` + serialDevice + `")
while True:
    for fd in select.select([0, master], [], [])[0]:
        data = os.read(fd, 4096)
        if not data:
            raise SystemExit
        try:
            os.write(1 if fd == master else master, data)
        except BlockingIOError:
            pass
`

// nullModem is a line between the serial ports of the two nodes of a duet. A
// node's end is plugged in at each boot, before its service uses it.
type nullModem struct {
	d *duet

	mu   sync.Mutex
	cut  bool
	into map[string]*os.File // what a node's port is to hear
}

func newNullModem(d *duet) *nullModem {
	n := &nullModem{d: d, into: map[string]*os.File{}}
	n.plug(ours)
	n.plug(theirs)
	d.Cleanup(func() {
		for _, f := range n.into {
			f.Close()
		}
	})
	return n
}

// plug makes the port of a node that has booted. Without a line it does nothing.
func (n *nullModem) plug(node string) {
	if n == nil {
		return
	}
	n.d.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		n.d.Fatal(err)
	}
	n.mu.Lock()
	if old := n.into[node]; old != nil {
		old.Close()
	}
	n.into[node] = w
	n.mu.Unlock()
	cmd := n.d.Node(node).Command(context.Background(), "python3", "-c", modemEnd) // ends with its node
	cmd.Stdin, cmd.Stdout, cmd.Stderr = r, modemWriter{n, other(node)}, os.Stderr
	err = cmd.Start()
	r.Close()
	if err != nil {
		n.d.Fatal(err)
	}
}

// pull takes the line away, or puts it back. Without a line it does nothing.
func (n *nullModem) pull(away bool) {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = away
}

// modemWriter carries bytes to a node's port.
type modemWriter struct {
	*nullModem
	to string
}

var _ io.Writer = modemWriter{}

// Write never fails: what finds no port is lost.
func (m modemWriter) Write(b []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f := m.into[m.to]; f != nil && !m.cut {
		_, _ = f.Write(b)
	}
	return len(b), nil
}
