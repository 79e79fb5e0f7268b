package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Cmd is a command on a node; it is used as os/exec's Cmd is. The command runs
// in a session of its own, with the node's environment, in "/".
type Cmd struct {
	Args   []string
	Env    []string // added to the node's: KEY=value
	Dir    string
	Stdin  io.Reader // nil: /dev/null. An *os.File is passed as it is
	Stdout io.Writer // nil: /dev/null. An *os.File is passed as it is
	Stderr io.Writer // may be the same as Stdout

	// TTY makes Stdin, which must then be a terminal, the controlling
	// terminal of the command.
	TTY bool

	node *Node
	ctx  context.Context
	s    *session
	id   int
	job  *job
	pid  int
	stop func() bool // no longer kill the command when ctx ends

	copies sync.WaitGroup
	ours   []*os.File // our ends of the pipes that carry output
}

// outputGrace is how long Wait goes on reading output after the command has
// ended, while a process that it left behind holds the pipe open.
const outputGrace = 2 * time.Second

// ExitError is returned by Wait for a command that ended with another status
// than 0.
type ExitError struct {
	Node string
	Args []string
	Code int    // 128 + signal when killed by one
	Text string // what Run and Output saw on standard error
}

func (e *ExitError) Error() string {
	text := fmt.Sprintf("lab: %s: %s: exit status %d", e.Node, strings.Join(e.Args, " "), e.Code)
	if e.Text != "" {
		text += ": " + e.Text
	}
	return text
}

// Command prepares a command on the node. When ctx ends, it is killed.
func (n *Node) Command(ctx context.Context, args ...string) *Cmd {
	return &Cmd{Args: args, node: n, ctx: ctx}
}

// Run runs a command and waits for its end; what it prints on standard error
// becomes part of the error.
func (n *Node) Run(ctx context.Context, args ...string) error {
	_, err := n.Output(ctx, args...)
	return err
}

// Output runs a command and returns what it prints on standard output.
func (n *Node) Output(ctx context.Context, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := n.Command(ctx, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit, ok := errors.AsType[*ExitError](err); ok {
		exit.Text = strings.TrimSpace(stderr.String())
	}
	return stdout.String(), err
}

// Run starts the command and waits for its end.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Start starts the command. It wraps ErrDown when the node has no power.
func (c *Cmd) Start() (err error) {
	if err := c.node.known(); err != nil {
		return err
	}
	if err := c.ctx.Err(); err != nil {
		return err
	}
	if c.s = c.node.current(); c.s == nil {
		return c.node.down()
	}
	files, passed, err := c.files()
	defer func() {
		closeAll(passed)
		if err != nil {
			closeAll(c.ours)
			c.copies.Wait()
		}
	}()
	if err != nil {
		return err
	}
	req := initRequest{Op: initExec, Args: c.Args, Env: c.Env, Dir: c.Dir, TTY: c.TTY}
	j, err := c.s.ask(&req, files...)
	if err != nil {
		return err
	}
	reply, err := c.s.first(j)
	if err != nil {
		return fmt.Errorf("lab: %s: %w", c.node.Name, err)
	}
	c.id, c.job, c.pid = req.ID, j, reply.PID
	c.stop = context.AfterFunc(c.ctx, func() { _ = c.Signal(unix.SIGKILL) })
	return nil
}

// files returns the command's standard files, and those of them that are only
// ours until the node has them.
func (c *Cmd) files() (files, passed []*os.File, err error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	passed = append(passed, null)
	stdin := null
	switch in := c.Stdin.(type) {
	case nil:
	case *os.File:
		stdin = in
	default:
		r, w, err := os.Pipe()
		if err != nil {
			return nil, passed, err
		}
		passed = append(passed, r)
		stdin = r
		// Nobody waits for it: it ends with the pipe's reader, or its source.
		go func() {
			_, _ = io.Copy(w, in)
			w.Close()
		}()
	}
	output := func(dst io.Writer) (*os.File, error) {
		switch dst := dst.(type) {
		case nil:
			return null, nil
		case *os.File:
			return dst, nil
		}
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		passed, c.ours = append(passed, w), append(c.ours, r)
		c.copies.Go(func() {
			_, _ = io.Copy(dst, r)
			r.Close()
		})
		return w, nil
	}
	stdout, err := output(c.Stdout)
	if err != nil {
		return nil, passed, err
	}
	stderr := stdout
	if !same(c.Stderr, c.Stdout) {
		if stderr, err = output(c.Stderr); err != nil {
			return nil, passed, err
		}
	}
	return []*os.File{stdin, stdout, stderr}, passed, nil
}

// same compares writers that may be of a type without comparison.
func same(a, b io.Writer) (equal bool) {
	defer func() { _ = recover() }()
	return a == b
}

// Wait waits for the command's end and for its output. It returns nil for exit
// status 0, else an *ExitError; it wraps ErrDown when the node went down first.
func (c *Cmd) Wait() error {
	<-c.job.done
	c.stop()
	drained := make(chan struct{})
	go func() {
		c.copies.Wait()
		close(drained)
	}()
	grace := time.NewTimer(outputGrace)
	defer grace.Stop()
	select {
	case <-drained:
	case <-grace.C:
		closeAll(c.ours)
		<-drained
	}
	switch {
	case !c.job.lost && c.job.code == 0:
		return nil
	case c.ctx.Err() != nil:
		return fmt.Errorf("lab: %s: %s: %w", c.node.Name, c.Args[0], c.ctx.Err())
	case c.job.lost:
		return c.node.down()
	}
	return &ExitError{Node: c.node.Name, Args: c.Args, Code: c.job.code}
}

// Signal sends a signal to the command and to the processes of its group. A
// command that has ended is no error.
func (c *Cmd) Signal(sig syscall.Signal) error {
	if c.exited() {
		return nil
	}
	err := c.s.c.Send(initRequest{Op: initSignal, ID: c.id, Signal: int(sig)})
	if err != nil && c.s.over() {
		return nil
	}
	return err
}

// PID returns the process's number in the node's PID namespace.
func (c *Cmd) PID() int { return c.pid }

// Done is closed when the command has ended.
func (c *Cmd) Done() <-chan struct{} { return c.job.done }

// ExitCode returns the exit status, 128 + signal when killed by one, and -1
// while the command runs or when it went down with its node.
func (c *Cmd) ExitCode() int {
	if !c.exited() || c.job.lost {
		return -1
	}
	return c.job.code
}

func (c *Cmd) exited() bool {
	select {
	case <-c.job.done:
		return true
	default:
		return false
	}
}
