package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrNoLab is wrapped by every call of a Client when no lab serves its run
// directory.
var ErrNoLab = errors.New("no lab is up")

// ErrLabUp is wrapped by NewServer when the run directory has a lab already.
var ErrLabUp = errors.New("a lab is up already")

// errEnded is what a client gets whose lab ended before it answered.
var errEnded = fmt.Errorf("lab: %w any more: it ended meanwhile", ErrNoLab)

// socketName is the control socket of `batuta lab up` in the run directory.
const socketName = "lab.sock"

// controlRequest is what a client asks of the process that holds the lab; an
// exec brings three files.
type controlRequest struct {
	Op         controlOp
	Node       string
	Interfaces []string
	Args       []string
	Env        []string
	TTY        bool
	Signal     int
}

type controlOp int

const (
	controlUnset controlOp = iota
	controlStatus
	controlKill
	controlCut
	controlHeal
	controlExec
	controlSignal // to the command of an earlier exec on this connection
	controlDown
)

type controlReply struct {
	Error  string
	Status Status
	Code   int // of the command of an exec
}

// Server lets other processes use a lab, over a socket that only root may open.
type Server struct {
	dir  string
	made bool     // the run directory was made here
	lock *os.File // the run directory, locked
	ln   *net.UnixListener
	down chan struct{}

	mu      sync.Mutex
	waiting []*conn // clients that said down; told by Close
}

// NewServer takes the run directory, which is made if it is absent. Leftovers
// of a lab that was killed are replaced; a lab that lives is ErrLabUp.
func NewServer(dir string) (_ *Server, err error) {
	s := &Server{dir: dir, down: make(chan struct{})}
	err = os.Mkdir(dir, 0o755)
	s.made = err == nil
	if err = ignore(err, fs.ErrExist); err != nil {
		return nil, fmt.Errorf("lab: make the run directory: %w (choose another with --run-dir)", err)
	}
	// The lock lies on the folder itself: no file is left, and the kernel
	// gives it back whatever ends the process.
	if s.lock, err = os.Open(dir); err != nil {
		return nil, fmt.Errorf("lab: open the run directory: %w", err)
	}
	if err = unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		s.lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lab: %w in %s: end it with `batuta lab down`, or choose another --run-dir", ErrLabUp, dir)
		}
		return nil, fmt.Errorf("lab: lock %s: %w", dir, err)
	}
	name := filepath.Join(dir, socketName)
	err = ignore(os.Remove(name), fs.ErrNotExist)
	if err == nil {
		s.ln, err = net.ListenUnix("unixpacket", &net.UnixAddr{Name: name, Net: "unixpacket"})
	}
	if err == nil {
		err = os.Chmod(name, 0o600)
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("lab: control socket: %w", err)
	}
	return s, nil
}

// Serve answers clients until ctx ends, one of them says down, or the lab ends.
func (s *Server) Serve(ctx context.Context, l *Lab) error {
	ctx, cancel := context.WithCancel(ctx)
	var clients sync.WaitGroup
	clients.Go(func() {
		for {
			c, err := s.ln.AcceptUnix()
			if err != nil {
				return // closed below
			}
			clients.Go(func() { s.answer(ctx, l, newConn(c)) })
		}
	})
	var err error
	select {
	case <-ctx.Done():
	case <-s.down:
	case <-l.Done():
		err = errors.New("lab: the launcher ended by itself; everything in the lab is gone")
	}
	cancel()
	s.ln.Close()
	clients.Wait()
	return err
}

// answer serves one client.
func (s *Server) answer(ctx context.Context, l *Lab, c *conn) {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	var req controlRequest
	files, err := c.Receive(&req)
	if err != nil {
		c.Close()
		return
	}
	if req.Op == controlDown && stop() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.waiting = append(s.waiting, c)
		if len(s.waiting) == 1 {
			close(s.down)
		}
		return
	}
	defer c.Close()
	defer closeAll(files)
	var reply controlReply
	switch req.Op {
	case controlStatus:
		reply.Status = l.Status()
	case controlKill:
		err = l.Kill(req.Node)
	case controlCut:
		err = l.Cut(req.Node, req.Interfaces...)
	case controlHeal:
		if l.Node(req.Node).off() {
			err = l.Boot(ctx, req.Node)
		}
		err = errors.Join(err, l.Heal(req.Node, req.Interfaces...))
	case controlExec:
		reply.Code, err = s.exec(ctx, l, c, req, files)
	default:
		err = fmt.Errorf("lab: no such operation: %d", req.Op)
	}
	if err != nil {
		reply.Error = err.Error()
	}
	_ = c.Send(reply) // a client that left does not want it
}

// exec runs a command with the client's own files, passes signals on, and
// kills it when the client is gone.
func (s *Server) exec(ctx context.Context, l *Lab, c *conn, req controlRequest, files []*os.File) (int, error) {
	if len(files) != maxFiles {
		return 0, errors.New("lab: exec needs standard input, output and error")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := l.Node(req.Node).Command(ctx, req.Args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = files[0], files[1], files[2]
	cmd.Env, cmd.TTY = req.Env, req.TTY
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	go func() {
		for {
			var req controlRequest
			if _, err := c.Receive(&req); err != nil {
				cancel()
				return
			}
			_ = cmd.Signal(syscall.Signal(req.Signal))
		}
	}()
	err := cmd.Wait()
	if exit, ok := errors.AsType[*ExitError](err); ok {
		return exit.Code, nil
	}
	return 0, err
}

// Close gives the run directory back as it was, and tells those who said down.
// The lab is the caller's to close, before.
func (s *Server) Close() error {
	if s.ln != nil {
		s.ln.Close() // removes the socket
	}
	var err error
	if s.made {
		// Others may use it by now: a daemon's socket.
		err = os.Remove(s.dir)
		if errors.Is(err, unix.ENOTEMPTY) {
			err = nil
		}
	}
	s.lock.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.waiting {
		c.Close()
	}
	s.waiting = nil
	return ignore(err, fs.ErrNotExist)
}

// Client talks to the lab of a run directory.
type Client struct{ Dir string }

func (cl Client) dial() (*conn, error) {
	name := filepath.Join(cl.Dir, socketName)
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: name, Net: "unixpacket"})
	switch {
	case err == nil:
		return newConn(c), nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return nil, fmt.Errorf("lab: %w in %s: start one with `batuta lab up`, or say where it is with --run-dir", ErrNoLab, cl.Dir)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("lab: %s is root's: use sudo", name)
	}
	return nil, fmt.Errorf("lab: %w", err)
}

func (cl Client) ask(req controlRequest) (controlReply, error) {
	var reply controlReply
	c, err := cl.dial()
	if err != nil {
		return reply, err
	}
	defer c.Close()
	err = c.Send(req)
	if err == nil {
		_, err = c.Receive(&reply)
	}
	return reply, replyError(reply, err)
}

func replyError(reply controlReply, err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return errEnded
	case err != nil:
		return fmt.Errorf("lab: %w", err)
	case reply.Error != "":
		return errors.New(reply.Error)
	}
	return nil
}

// Status asks for the state of all nodes.
func (cl Client) Status() (Status, error) {
	reply, err := cl.ask(controlRequest{Op: controlStatus})
	return reply.Status, err
}

// Kill takes the power from a node, as Lab.Kill does.
func (cl Client) Kill(node string) error {
	_, err := cl.ask(controlRequest{Op: controlKill, Node: node})
	return err
}

// Cut pulls cables of a node, as Lab.Cut does.
func (cl Client) Cut(node string, interfaces ...string) error {
	_, err := cl.ask(controlRequest{Op: controlCut, Node: node, Interfaces: interfaces})
	return err
}

// Heal plugs cables in, and gives a node without power its power back first.
func (cl Client) Heal(node string, interfaces ...string) error {
	_, err := cl.ask(controlRequest{Op: controlHeal, Node: node, Interfaces: interfaces})
	return err
}

// Down ends the lab, and returns when it is gone.
func (cl Client) Down() error {
	_, err := cl.ask(controlRequest{Op: controlDown})
	if errors.Is(err, errEnded) {
		return nil
	}
	return err
}

// Exec runs a command on a node with the given files as its standard ones, and
// returns its exit status. Signals that arrive are passed on to it; when the
// channel is closed, or the process ends, the command is killed.
func (cl Client) Exec(node string, args, env []string, tty bool, files [maxFiles]*os.File, signals <-chan os.Signal) (int, error) {
	c, err := cl.dial()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	req := controlRequest{Op: controlExec, Node: node, Args: args, Env: env, TTY: tty}
	if err := c.Send(req, files[:]...); err != nil {
		return 0, fmt.Errorf("lab: %w", err)
	}
	go func() {
		for sig := range signals {
			if s, ok := sig.(syscall.Signal); ok {
				_ = c.Send(controlRequest{Op: controlSignal, Signal: int(s)})
			}
		}
	}()
	var reply controlReply
	_, err = c.Receive(&reply)
	return reply.Code, replyError(reply, err)
}
