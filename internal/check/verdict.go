package check

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/batuta-ha/batuta/internal/model"
)

// Perform runs one check and stamps its verdict with the time. A check that
// panics has made a verdict, too: the server is down for a reason that the
// stack in it explains.
func Perform(ctx context.Context, f Func, t model.Target) (v model.Verdict) {
	start := time.Now()
	var surroundings *around
	if t.ExpiryWarning > 0 { // the others have nothing to say
		ctx, surroundings = withAround(ctx)
	}
	defer func() {
		if p := recover(); p != nil {
			v = crashed(p)
		}
		if surroundings != nil && v.Status == model.Up {
			v.Warning = surroundings.warning
		}
		stamp(&v, start)
	}()
	return f(ctx, t)
}

// stamp completes the verdict of a check that began at start. Whatever words
// of a server are in it, it is fit for a log and for a terminal.
func stamp(v *model.Verdict, start time.Time) {
	v.Reason, v.Warning, v.Load.Reason = printable(v.Reason), printable(v.Warning), printable(v.Load.Reason)
	v.At = time.Now()
	v.Duration = v.At.Sub(start)
}

// printable replaces what forges lines, drives a terminal (control characters,
// those of ISO 6429 above ASCII among them), or turns the direction of a line.
func printable(s string) string {
	if !strings.ContainsFunc(s, unprintable) {
		return s
	}
	return strings.Map(func(c rune) rune {
		if unprintable(c) {
			return '?'
		}
		return c
	}, s)
}

func unprintable(c rune) bool {
	return c < ' ' || c > '~' && (c == utf8.RuneError || unicode.In(c, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp))
}

// clean makes a server's words printable, and short.
func clean(s string) string {
	s = printable(s)
	if r := []rune(s); len(r) > 120 {
		s = string(r[:120]) + "..."
	}
	return s
}

// crashed is the verdict of a check that panicked, made where it is recovered.
func crashed(p any) model.Verdict {
	return down(fmt.Sprintf("the check crashed, please report this: %v at %s", p, crashSite(debug.Stack())))
}

// crashSite is the first line of a stack that names a file of the panicking code.
func crashSite(stack []byte) string {
	_, after, _ := strings.Cut(string(stack), "\npanic(")
	for line := range strings.Lines(after) {
		if l := strings.TrimSpace(line); strings.HasPrefix(l, "/") && !strings.Contains(l, "/runtime/") {
			file, _, _ := strings.Cut(l, " ")
			return file
		}
	}
	return "an unknown place"
}

func up(reason string) model.Verdict   { return model.Verdict{Status: model.Up, Reason: reason} }
func down(reason string) model.Verdict { return model.Verdict{Status: model.Down, Reason: reason} }
func unknown(reason string) model.Verdict {
	return model.Verdict{Status: model.Unknown, Reason: reason}
}

// failed turns an error into a verdict. ctx is the caller's; within is its
// child that has the check's own time-out; limit is that time-out, for the text.
func failed(ctx, within context.Context, err error, limit time.Duration) model.Verdict {
	switch {
	case ctx.Err() != nil:
		return unknown("interrupted")
	case localFault(err):
		return unknown("this machine could not make the check: " + err.Error())
	case within.Err() != nil, isTimeout(err):
		return down(fmt.Sprintf("no answer within %v", limit))
	}
	return down(plain(err))
}

// plain is the text of an error without the call and the addresses that
// packages put around it: the reader of a verdict knows whom it is about.
func plain(err error) string {
	if sys, ok := errors.AsType[*os.SyscallError](err); ok {
		return sys.Err.Error()
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Err != nil {
		return op.Err.Error()
	}
	return err.Error()
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// localFault tells faults of this machine from those of the server: they say
// nothing about it.
func localFault(err error) bool {
	for _, e := range []error{errHere, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM,
		syscall.EPERM, syscall.EACCES, syscall.EADDRNOTAVAIL, syscall.EAFNOSUPPORT, syscall.EPROTONOSUPPORT} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// hostText is an address as URLs and Host headers write it.
func hostText(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}
