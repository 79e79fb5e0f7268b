package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

const (
	// termGrace is what a check command gets between SIGTERM and SIGKILL.
	termGrace = time.Second

	// outputGrace is how long output is read on after the command's end,
	// while a process that it left behind holds its end of the pipe.
	outputGrace = 100 * time.Millisecond

	tailLimit = 4 << 10 // bytes of the end of the output that are kept
)

// external runs checkcommand with four arguments: virtual address or mark,
// virtual port (0 for marks), real address, real port (0 for none). Exit
// status 0 is up. After CheckTimeout its process group is ended.
func external(ctx context.Context, t model.Target) model.Verdict {
	words, err := commandWords(t.Command)
	if err != nil {
		return down(err.Error())
	}
	return run(ctx, t, words)
}

// externalPerl does so with a file of Perl. ldirectord compiles it once and
// calls it in its own process; here perl runs it each time.
func externalPerl(ctx context.Context, t model.Target) model.Verdict {
	words, err := commandWords(t.Command)
	if err != nil {
		return down(err.Error())
	}
	perl, err := exec.LookPath("perl")
	if err != nil {
		return down("external-perl needs perl, which is not installed: apt-get install perl, or use checktype=external")
	}
	return run(ctx, t, append([]string{perl}, words...))
}

// externalArguments are those of ldirectord: an IPv6 address has brackets.
func externalArguments(t model.Target) []string {
	virtual := []string{strconv.FormatUint(uint64(t.Mark), 10), "0"}
	if t.VirtualAddr.IsValid() {
		virtual = []string{hostText(t.VirtualAddr.Addr()), strconv.Itoa(int(t.VirtualAddr.Port()))}
	}
	return append(virtual, hostText(t.Addr.Addr()), strconv.Itoa(int(t.RealPort)))
}

// commandWords is a checkcommand as a program and its arguments. A string that
// names a file is that file, whatever is in its name. Else blanks divide words,
// and quotes and backslashes keep them together as in a shell.
func commandWords(command string) ([]string, error) {
	if info, err := os.Stat(command); err == nil && !info.IsDir() {
		return []string{command}, nil
	}
	words, err := splitWords(command)
	if err == nil && len(words) == 0 {
		err = errors.New("it is empty")
	}
	if err != nil {
		return nil, fmt.Errorf("checkcommand=%q: %w", command, err)
	}
	return words, nil
}

// splitWords divides a string as a shell does without expanding anything.
func splitWords(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	var quote rune // ' or " while inside
	begun, escaped := false, false
	for _, c := range s {
		switch {
		case escaped:
			if quote == '"' && c != '"' && c != '\\' && c != '$' && c != '`' {
				word.WriteByte('\\')
			}
			word.WriteRune(c)
			escaped = false
		case c == '\\' && quote != '\'':
			escaped, begun = true, true
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(c)
		case c == '\'' || c == '"':
			quote, begun = c, true
		case c == ' ' || c == '\t':
			if begun {
				words = append(words, word.String())
				word.Reset()
				begun = false
			}
		default:
			word.WriteRune(c)
			begun = true
		}
	}
	if quote != 0 || escaped {
		return nil, errors.New("a quote or backslash is left open")
	}
	if begun {
		words = append(words, word.String())
	}
	return words, nil
}

// run runs a command to its end or to the end of its time.
func run(ctx context.Context, t model.Target, words []string) model.Verdict {
	within, cancel := context.WithTimeout(ctx, t.CheckTimeout)
	defer cancel()
	if err := within.Err(); err != nil {
		return failed(ctx, within, err, t.CheckTimeout)
	}
	out := &tail{}
	cmd, err := start(append(words, externalArguments(t)...), out)
	if err != nil {
		return startFailed(err, words[0])
	}
	ended := make(chan struct{})
	go func() {
		waitForEnd(cmd.Process.Pid)
		close(ended)
	}()
	select {
	case <-ended:
	case <-within.Done():
		endGroup(cmd.Process.Pid, ended)
		go func() { _ = cmd.Wait() }() // a process that waits for a dead disk ends when it ends
		if ctx.Err() != nil {
			return unknown("interrupted")
		}
		return down(out.after(fmt.Sprintf("no end within %v", t.CheckTimeout)))
	}
	_ = cmd.Wait() // reaps; the state says how it ended
	switch status := cmd.ProcessState; {
	case status.Success():
		return up(out.after("exit status 0"))
	default:
		return down(out.after(status.String()))
	}
}

// start starts a command in a process group of its own. A file without a "#!"
// line is a shell script, as for execvp(3).
func start(words []string, out *tail) (*exec.Cmd, error) {
	command := func(words ...string) *exec.Cmd {
		cmd := exec.Command(words[0], words[1:]...)
		cmd.Stdout, cmd.Stderr = out, out
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.WaitDelay = outputGrace
		return cmd
	}
	cmd := command(words...)
	err := cmd.Start()
	if errors.Is(err, syscall.ENOEXEC) {
		script := append([]string{"/bin/sh", cmd.Path}, words[1:]...)
		cmd = command(script...)
		err = cmd.Start()
	}
	return cmd, err
}

// startFailed tells a command that cannot be run, which is down as ever, from
// a machine that can run none at the moment.
func startFailed(err error, program string) model.Verdict {
	for _, e := range []error{syscall.EAGAIN, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE} {
		if errors.Is(err, e) {
			return unknown("this machine could not make the check: " + err.Error())
		}
	}
	what := plain(err)
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		what = "no such program"
	case errors.Is(err, fs.ErrPermission):
		what = "not an executable file: chmod +x"
	}
	return down(fmt.Sprintf("checkcommand %s: %s", program, what))
}

// waitForEnd waits for the end of a process and leaves it unreaped: its group
// cannot be another's meanwhile.
func waitForEnd(pid int) {
	for {
		if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); !errors.Is(err, syscall.EINTR) {
			return
		}
	}
}

// endGroup asks the processes of a group to end, and then ends them.
func endGroup(group int, ended <-chan struct{}) {
	_ = syscall.Kill(-group, syscall.SIGTERM)
	grace := time.NewTimer(termGrace)
	defer grace.Stop()
	select {
	case <-ended:
	case <-grace.C:
	}
	_ = syscall.Kill(-group, syscall.SIGKILL) // what is left of it; its number is not free before it is reaped
}

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex // a process left behind may go on writing
	buf []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b[max(0, len(b)-tailLimit):]...)
	t.buf = t.buf[max(0, len(t.buf)-tailLimit):]
	return len(b), nil
}

// after is what happened, and the last line of output if there is one.
func (t *tail) after(what string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := bytes.TrimSpace(t.buf)
	if i := bytes.LastIndexByte(text, '\n'); i >= 0 {
		text = text[i+1:]
	}
	if len(text) == 0 {
		return what
	}
	return what + ": " + clean(string(bytes.TrimSpace(text)))
}
