// Package fence makes sure that a node that is taken for dead is dead, before
// its resources are taken over. The device of a stonith or stonith_host line
// comes in and the name of a node; a command that resets the node's machine is
// run, and its exit status is the answer. It never decides whether or when a
// node is fenced, and never tries again by itself.
//
// Three kinds of devices are known by their type:
//
//	fence_NAME      a fence agent (fence-agents): name=value lines on standard input
//	external/NAME   a script of cluster-glue's plug-in external: parameters in
//	                its environment, called as SCRIPT reset NODE
//	anything else   a plug-in of cluster-glue, by its command stonith(8)
package fence

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// Options say where commands are; the zero value is what a system has.
type Options struct {
	Dirs    []string // of fence agents and of stonith(8)
	Plugins []string // of the scripts of external
}

// path is where cluster-glue's scripts look for the ha_log.sh by which they
// say what went wrong: stonith(8) calls them so, too.
var path = "PATH=/usr/share/cluster-glue:" + cmp.Or(os.Getenv("PATH"), "/usr/sbin:/usr/bin:/sbin:/bin")

// limit is how long a command may take. One that hangs is ended, and has
// failed. The operator whom meatware asks may take any time.
const limit = 2 * time.Minute

// Device resets machines. Make it with New.
type Device struct {
	model.FenceDevice
	file string // the command
	kind kind
}

type kind uint8

const (
	_      kind = iota
	agent       // fence-agents
	script      // external/NAME
	plugin      // stonith(8)
)

// New finds the command of a device. It does not call it: a device that does
// not answer now may answer when it is needed.
func New(d model.FenceDevice, o Options) (*Device, error) {
	if o.Dirs == nil {
		o.Dirs = []string{"/usr/sbin", "/usr/local/sbin", "/sbin", "/usr/bin"}
	}
	if o.Plugins == nil {
		o.Plugins = []string{"/usr/lib/stonith/plugins/external", "/usr/lib64/stonith/plugins/external"}
	}
	name, dirs, of, out := "stonith", o.Dirs, plugin, &Device{FenceDevice: d}
	if strings.HasPrefix(d.Type, "fence_") {
		name, of = d.Type, agent
	} else if n, ok := strings.CutPrefix(d.Type, "external/"); ok {
		name, dirs, of = n, o.Plugins, script
	}
	if strings.Contains(name, "/") {
		return nil, fmt.Errorf("stonith %s: %q is no name of a device", d.Type, name)
	}
	if d.File != "" {
		f, err := os.Open(d.File)
		if err != nil {
			return nil, fmt.Errorf("stonith %s: its configuration: %w; write that file, or use stonith_host", d.Type, err)
		}
		defer f.Close()
	}
	for _, dir := range dirs {
		file := filepath.Join(dir, name)
		if st, err := os.Stat(file); err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o111 != 0 {
			out.file, out.kind = file, of
			return out, nil
		}
	}
	return nil, fmt.Errorf("stonith %s: no executable file %s in %s; install the package that has it (fence-agents, cluster-glue)", d.Type, name, strings.Join(dirs, ", "))
}

// Fence resets the machine of a node. nil means that the device has confirmed
// it; any error that the node may live.
func (d *Device) Fence(ctx context.Context, node model.NodeName) error {
	parameters, err := d.parameters()
	if err != nil {
		return err
	}
	if d.Type != "meatware" {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, fmt.Errorf("it took longer than %v", limit))
		defer cancel()
	}
	var out []byte
	switch d.kind {
	case agent:
		out, err = d.run(ctx, agentInput(parameters, node), nil)
	case script:
		var env []string
		if env, err = d.environment(ctx, parameters); err == nil {
			out, err = d.run(ctx, "", append([]string{path}, env...), "reset", string(node))
		}
	case plugin:
		how := []string{"-p", strings.Join(parameters, " ")}
		if d.File != "" {
			how = []string{"-F", d.File}
		}
		out, err = d.run(ctx, "", nil, append(append([]string{"-t", d.Type}, how...), "-T", "reset", string(node))...)
	}
	if err != nil {
		return fmt.Errorf("fence %s by %s: %w%s", node, d.Type, err, lastLine(out))
	}
	return nil
}

// parameters are the words of the line, or of the file: one a line there, or
// several, and comments.
func (d *Device) parameters() ([]string, error) {
	if d.File == "" {
		return d.Parameters, nil
	}
	text, err := os.ReadFile(d.File)
	if err != nil {
		return nil, fmt.Errorf("stonith %s: its configuration: %w", d.Type, err)
	}
	var words []string
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		words = append(words, strings.Fields(line)...)
	}
	return words, nil
}

// agentInput is what a fence agent reads (FenceAgentAPI): action and node
// unless the parameters have them.
func agentInput(parameters []string, node model.NodeName) string {
	given := map[string]bool{}
	for _, p := range parameters {
		name, _, _ := strings.Cut(p, "=")
		given[name] = true
	}
	lines := slices.Clone(parameters)
	if !given["action"] {
		lines = append(lines, "action=reboot")
	}
	if !given["port"] && !given["plug"] {
		lines = append(lines, "port="+string(node))
	}
	lines = append(lines, "nodename="+string(node))
	return strings.Join(lines, "\n") + "\n"
}

// environment of an external script: name=value as they are; bare values are
// those of the names that the script itself gives (getconfignames), in order.
func (d *Device) environment(ctx context.Context, parameters []string) ([]string, error) {
	bare := slices.IndexFunc(parameters, func(p string) bool { return !strings.Contains(p, "=") })
	if bare < 0 {
		return parameters, nil
	}
	out, err := d.run(ctx, "", []string{path}, "getconfignames")
	if err != nil {
		return nil, fmt.Errorf("ask for the names of its parameters: %w%s", err, lastLine(out))
	}
	names := strings.Fields(string(out))
	if len(names) != len(parameters) {
		return nil, fmt.Errorf("it takes %d parameters (%s), and %d are given; write them as name=value", len(names), strings.Join(names, " "), len(parameters))
	}
	var env []string
	for i, n := range names {
		env = append(env, n+"="+parameters[i])
	}
	return env, nil
}

// run runs the command to its end. The end of ctx kills it with its children.
func (d *Device) run(ctx context.Context, input string, env []string, args ...string) ([]byte, error) {
	// A file, not a pipe: what the command leaves running may hold it open.
	printed, err := os.CreateTemp("", "batuta-fence-*")
	if err != nil {
		return nil, fmt.Errorf("no place for its output: %w", err)
	}
	defer printed.Close()
	if err := os.Remove(printed.Name()); err != nil {
		return nil, fmt.Errorf("no place for its output: %w", err)
	}
	cmd := exec.CommandContext(ctx, d.file, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Dir = strings.NewReader(input), printed, printed, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	out, _ := io.ReadAll(io.NewSectionReader(printed, 0, 64<<10)) // for people only
	if err != nil && ctx.Err() != nil {
		return out, fmt.Errorf("ended: %w", context.Cause(ctx))
	}
	// An agent need not read all that it is told.
	if errors.Is(err, syscall.EPIPE) {
		err = nil
	}
	return out, err
}

// lastLine is the end of what a command printed, where it mostly says why it failed.
func lastLine(out []byte) string {
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	if l := bytes.TrimSpace(lines[len(lines)-1]); len(l) > 0 {
		return ": " + strings.ToValidUTF8(string(l), "?")
	}
	return ""
}
