package api

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Caller is who made a request: the process at the other end of the socket, as
// the kernel tells it (SO_PEERCRED, unix(7)). It cannot be forged by less than
// root.
type Caller struct {
	PID     int    `json:"pid"`
	UID     uint32 `json:"uid"`
	Login   string `json:"login"`   // who logged in, also behind sudo and su, where the system keeps that; else the user
	Command string `json:"command"` // the program's name, as it calls itself
}

// String is the caller in an event: "anna (uid 0, pid 4711, hb_standby)".
func (c Caller) String() string {
	s := fmt.Sprintf("%s (uid %d, pid %d", c.Login, c.UID, c.PID)
	if c.Command != "" {
		s += ", " + c.Command
	}
	return s + ")"
}

// Order is a request that changed something, or was refused.
type Order struct {
	By   Caller
	Verb string // "standby"
	What string // "all"
}

// String is the order as on the command line.
func (o Order) String() string { return strings.TrimSpace(o.Verb + " " + o.What) }

// Auditor is implemented by daemons that keep what was asked of them and by
// whom. Ordered is called before an order is obeyed, Obeyed after it, with the
// error that the caller gets.
type Auditor interface {
	Ordered(Order)
	Obeyed(Order, time.Duration, error)
}

// callerKey finds the Caller in a request's context.
type callerKey struct{}

// withCaller is a connection's context: it knows who is at its other end.
func withCaller(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	if raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }) != nil || err != nil {
		return ctx
	}
	return context.WithValue(ctx, callerKey{}, Caller{PID: int(cred.Pid), UID: cred.Uid})
}

// CallerOf is who made the request of a context. Its names are looked up now: the process
// waits for the answer, so that it is still there.
func CallerOf(ctx context.Context) Caller {
	c, ok := ctx.Value(callerKey{}).(Caller)
	if !ok {
		return Caller{Login: "unknown"}
	}
	proc := "/proc/" + strconv.Itoa(c.PID) + "/"
	name, _ := os.ReadFile(proc + "comm") // "" when it has just ended
	c.Command = string(bytes.TrimSpace(name))
	id := strconv.FormatUint(uint64(c.UID), 10)
	// 4294967295 is "never set" (proc(5), loginuid).
	if login, err := os.ReadFile(proc + "loginuid"); err == nil && string(login) != "4294967295" {
		id = string(login)
	}
	c.Login = "uid " + id
	if u, err := user.LookupId(id); err == nil {
		c.Login = u.Username
	}
	return c
}
