package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// ScriptOptions say where scripts are and what they are told.
type ScriptOptions struct {
	HaD      string          // configuration directory; its resource.d is searched first
	InitD    string          // searched next; "" for /etc/init.d
	Self     model.NodeName  // HA_CURHOST
	Settings []model.Setting // parameters of ha.cf and their defaults, for HA_<directive>
	Programs []string        // NAME=VALUE of env lines, for HA_NAME
	Legacy   bool            // auto_failback legacy: no HA_NICEFAILBACK
	Environ  []string        // what the scripts inherit; nil for this process's own
	Output   io.Writer       // what scripts print, labeled; nil for nowhere
}

// maxOutput is how much of a script's output is kept, in bytes.
const maxOutput = 64 << 10

// script is a resource that a Heartbeat-style script carries out: it is called
// as SCRIPT [ARGS...] start|stop|status.
type script struct {
	res model.Resource
	opt ScriptOptions
}

// Script returns the agent of a resource that a script of resource.d or
// init.d carries out. As with Heartbeat the script is looked for at each call,
// so that it may come later than the daemon.
func Script(r model.Resource, opt ScriptOptions) (Agent, error) {
	if r.Agent == "" || strings.ContainsRune(r.Agent, '/') {
		return nil, fmt.Errorf("resource %q: %q is no name of a script; write the base name of a file in %s", r.Text, r.Agent, filepath.Join(opt.HaD, "resource.d"))
	}
	if opt.InitD == "" {
		opt.InitD = "/etc/init.d"
	}
	if opt.Environ == nil {
		opt.Environ = os.Environ()
	}
	return &script{r, opt}, nil
}

// Start calls the script with start. Its exit status alone counts.
func (s *script) Start(ctx context.Context) error {
	_, err := s.call(ctx, "start")
	return err
}

// Stop calls the script with stop. Its exit status alone counts.
func (s *script) Stop(ctx context.Context) error {
	_, err := s.call(ctx, "stop")
	return err
}

// Status calls the script with status. Its output alone counts, as Heartbeat
// has it: LSB exit codes are not looked at.
func (s *script) Status(ctx context.Context) (model.ResourceState, error) {
	out, err := s.call(ctx, "status")
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || ctx.Err() != nil) {
		return model.ResourceUnknown, err
	}
	return statusOf(out), nil
}

var notRunning = regexp.MustCompile(`(?s)[Nn][Oo][Tt] .*[Rr]unning`)

// statusOf reads the output of a status call by Heartbeat's rule: "not",
// a blank, anything, "running" is stopped; else "running" or "OK" is running.
func statusOf(out []byte) model.ResourceState {
	switch {
	case notRunning.Match(out):
		return model.ResourceStopped
	case bytes.Contains(out, []byte("running")), bytes.Contains(out, []byte("Running")), bytes.Contains(out, []byte("OK")):
		return model.ResourceRunning
	}
	return model.ResourceStopped
}

// find returns the script's file.
func (s *script) find() (string, error) {
	dirs := []string{filepath.Join(s.opt.HaD, "resource.d"), s.opt.InitD}
	for _, d := range dirs {
		file := filepath.Join(d, s.res.Agent)
		if st, err := os.Stat(file); err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o111 != 0 {
			return file, nil
		}
	}
	return "", fmt.Errorf("resource %s: no executable file %s in %s, and no systemd unit of that name; install it there", s.res.Text, s.res.Agent, strings.Join(dirs, " or "))
}

// HasScript tells whether resource.d of that configuration directory has a
// script for the resource.
func HasScript(r model.Resource, had string) bool {
	_, err := (&script{r, ScriptOptions{HaD: had, InitD: os.DevNull}}).find()
	return err == nil
}

// call runs the script to its end and returns what it printed. The end of ctx
// kills it with all its children.
func (s *script) call(ctx context.Context, action string) ([]byte, error) {
	file, err := s.find()
	if err != nil {
		if unit, ok := s.unitOf(ctx); ok {
			return s.unit(ctx, unit, action)
		}
		return nil, err
	}
	// A file, not a pipe: what the script leaves running may hold it open and write to it for ever.
	printed, err := os.CreateTemp("", "batuta-script-*")
	if err != nil {
		return nil, fmt.Errorf("resource %s: %s: no place for its output: %w", s.res.Text, action, err)
	}
	defer printed.Close()
	if err := os.Remove(printed.Name()); err != nil {
		return nil, fmt.Errorf("resource %s: %s: %w", s.res.Text, action, err)
	}
	cmd := exec.CommandContext(ctx, file, append(slices.Clone(s.res.Args), action)...)
	cmd.Env = Environment(s.opt)
	cmd.Stdout, cmd.Stderr = printed, printed
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	began := time.Now()
	err = cmd.Run()
	out, readErr := io.ReadAll(io.LimitReader(io.NewSectionReader(printed, 0, maxOutput), maxOutput))
	if s.opt.Output != nil && len(out) > 0 {
		fmt.Fprintf(s.opt.Output, "%s %s:\n%s", s.res.Text, action, out)
	}
	switch {
	case ctx.Err() != nil && err != nil:
		return out, fmt.Errorf("resource %s: %s %s was ended after %v: %w%s", s.res.Text, file, action, time.Since(began).Round(time.Millisecond), context.Cause(ctx), lastLine(out))
	case err != nil:
		return out, fmt.Errorf("resource %s: %s %s: %w%s", s.res.Text, file, action, err, lastLine(out))
	case readErr != nil:
		return nil, fmt.Errorf("resource %s: %s: its output: %w", s.res.Text, action, readErr)
	}
	return out, nil
}

// lastLine is the end of what a script printed, where it mostly says why it failed.
func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if l := strings.TrimSpace(lines[len(lines)-1]); l != "" {
		return ": " + strings.ToValidUTF8(l, "?")
	}
	return ""
}

// binDirs is where Heartbeat's own helpers may be.
var binDirs = []string{"/usr/libexec/heartbeat", "/usr/lib/heartbeat"}

// Environment is what Heartbeat tells the programs that it starts: directories,
// log files, every parameter of ha.cf, and what env lines say. What the
// configuration sets wins over defaults.
func Environment(opt ScriptOptions) []string {
	dir, bin := opt.HaD, binDirs[0]
	for _, d := range binDirs {
		if _, err := os.Stat(d); err == nil {
			bin = d
			break
		}
	}
	if opt.Environ == nil {
		opt.Environ = os.Environ()
	}
	env := append(slices.Clone(opt.Environ),
		"HA_CURHOST="+string(opt.Self),
		"HA_DIR="+dir,
		"HA_FUNCS="+filepath.Join(dir, "shellfuncs"),
		"HA_RCDIR="+filepath.Join(dir, "rc.d"),
		"HA_RESOURCEDIR="+filepath.Join(dir, "resource.d"),
		"HA_BIN="+bin,
		"HA_FIFO=/var/lib/heartbeat/fifo",
		"HA_DOCDIR=/usr/share/doc/heartbeat",
		"HA_DATEFMT=%Y/%m/%d_%T\t",
		"HA_LOGD=no",
		"HA_debug=0",
		"OCF_ROOT=/usr/lib/ocf",
		"OCF_AGENTS=/usr/lib/ocf/resource.d/heartbeat/",
	)
	if !opt.Legacy {
		env = append(env, "HA_NICEFAILBACK=yes")
	}
	names := map[string]string{"logfile": "HA_LOGFILE", "debugfile": "HA_DEBUGLOG", "logfacility": "HA_LOGFACILITY", "compression": "HA_COMPRESSION"}
	for _, set := range opt.Settings {
		env = append(env, "HA_"+set.Name+"="+set.Value)
		if n, ok := names[set.Name]; ok {
			env = append(env, n+"="+set.Value)
		}
	}
	for _, set := range opt.Programs {
		env = append(env, "HA_"+set)
	}
	return env
}

var _ Agent = (*script)(nil)
