package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrPrivilege is wrapped by what Start and Available return where the process
// may not make namespaces.
var ErrPrivilege = errors.New("network namespaces need root")

// ErrDown is wrapped by what a node's methods return while it has no power,
// and by Cmd.Wait when it lost it.
var ErrDown = errors.New("the node is down")

// Options say what to build. The zero value is the tutorial's cluster.
type Options struct {
	// Topology is the drawing; the zero value is Tutorial().
	Topology Topology

	// Binary is the batuta executable; empty: this process's own.
	Binary string

	// HaD is /etc/ha.d of every director; nil: TutorialHaD().
	HaD fs.FS

	// Log receives each line that a node's service prints, and nothing else.
	// It is called from several goroutines. Nil: the lines are dropped.
	Log func(node, line string)

	// PcapDir is a folder for one capture file a bridge; empty: none.
	PcapDir string
}

// Lab is a running cluster. Its methods may be called from any goroutine.
type Lab struct {
	topology Topology
	log      func(node, line string)

	launcher *exec.Cmd
	stderr   *bytes.Buffer // of the launcher and the nodes' inits; read after ended
	ended    chan struct{} // the launcher is gone, and so is everything

	ctl   *conn
	order sync.Mutex // one request to the launcher at a time

	nodes map[string]*Node // fixed after Start
}

// Available tells whether Start can work here: nil, or an error that wraps
// ErrPrivilege.
func Available() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("lab: read the capabilities: %w", err)
	}
	const need = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN
	if os.Geteuid() != 0 || data[0].Effective&need != need {
		return fmt.Errorf("lab: %w (CAP_SYS_ADMIN and CAP_NET_ADMIN): use sudo, or `batuta demo`, which works without", ErrPrivilege)
	}
	return nil
}

// Start builds the switch, boots every machine of the drawing and starts their
// services. It returns when all nodes run; ctx bounds the start only. Close
// must be called; if the caller dies instead, even by SIGKILL, nothing is left
// either.
func Start(ctx context.Context, o Options) (_ *Lab, err error) {
	if err := Available(); err != nil {
		return nil, err
	}
	if len(o.Topology.Machines) == 0 {
		o.Topology = Tutorial()
	}
	if err := o.Topology.validate(); err != nil {
		return nil, err
	}
	req := launchRequest{Bridges: o.Topology.Bridges}
	if req.Binary, err = executable(o.Binary); err != nil {
		return nil, err
	}
	if o.PcapDir != "" {
		if req.PcapDir, err = filepath.Abs(o.PcapDir); err != nil {
			return nil, fmt.Errorf("lab: pcap folder: %w", err)
		}
	}
	l := &Lab{topology: o.Topology, log: o.Log, ended: make(chan struct{}), nodes: map[string]*Node{}}
	if l.log == nil {
		l.log = func(string, string) {}
	}
	if err := l.prepare(o.HaD); err != nil {
		return nil, err
	}
	if err := l.launch(req.Binary); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { l.ctl.Close() })
	defer stop()
	defer func() {
		if err == nil {
			return
		}
		switch {
		case ctx.Err() != nil:
			err = fmt.Errorf("lab: start: %w", ctx.Err())
		case strings.Contains(err.Error(), unix.EPERM.Error()): // said in another process
			err = refused(err)
		}
		_ = l.Close()
	}()
	if _, err := l.request(req); err != nil {
		return nil, err
	}
	for _, name := range l.topology.names() {
		if err := l.nodes[name].powerOn(); err != nil {
			return nil, err
		}
	}
	for _, name := range l.topology.names() {
		if err := l.nodes[name].ready(ctx); err != nil {
			return nil, err
		}
	}
	if !stop() {
		return nil, ctx.Err()
	}
	return l, nil
}

func executable(name string) (string, error) {
	if name == "" {
		var err error
		if name, err = os.Executable(); err != nil {
			return "", fmt.Errorf("lab: find this executable: %w", err)
		}
	}
	name, err := filepath.Abs(name)
	if err == nil {
		name, err = filepath.EvalSymlinks(name)
	}
	if err != nil {
		return "", fmt.Errorf("lab: find the batuta executable: %w", err)
	}
	return name, nil
}

// prepare makes the nodes and the files of their disks.
func (l *Lab) prepare(had fs.FS) error {
	if had == nil {
		had = TutorialHaD()
	}
	cluster, err := hadFiles(had)
	if err != nil {
		return err
	}
	for _, m := range l.topology.Machines {
		files := map[string]File{
			"/etc/hosts":      {Data: l.topology.hosts()},
			"/etc/hostname":   {Data: []byte(m.Name + "\n")},
			"/etc/machine-id": {Data: []byte(strings.ReplaceAll(newUUID(), "-", "") + "\n"), Mode: 0o444},
		}
		if m.Role == RoleDirector {
			files["/etc/init.d/apache2"] = File{Data: fallbackScript, Mode: 0o755}
			maps.Copy(files, cluster)
		}
		maps.Copy(files, m.Files)
		m.Files = files
		l.nodes[m.Name] = &Node{Name: m.Name, lab: l, machine: m, cut: map[string]bool{}}
	}
	return nil
}

// launch starts the launcher in namespaces of its own.
func (l *Lab) launch(binary string) error {
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	if l.ctl, err = connFromFile(ours); err != nil {
		return err
	}
	l.stderr = &bytes.Buffer{}
	l.launcher = exec.Command(binary, "lab", "launch")
	l.launcher.Env = []string{}
	l.launcher.Stderr = l.stderr
	l.launcher.ExtraFiles = []*os.File{theirs}
	l.launcher.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, // a Ctrl-C on the terminal is the caller's to handle
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID |
			unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig: unix.SIGKILL,
	}
	started := make(chan error)
	go func() {
		// The death signal comes when the *thread* that forked ends: this
		// goroutine keeps its thread until the launcher is gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := l.launcher.Start()
		started <- err
		if err != nil {
			return
		}
		_ = l.launcher.Wait()
		l.ctl.Close()
		close(l.ended)
	}()
	if err := <-started; err != nil {
		l.ctl.Close()
		if errors.Is(err, unix.EPERM) {
			return refused(err)
		}
		return fmt.Errorf("lab: start the launcher: %w", err)
	}
	return nil
}

// refused explains that even root may not do what the lab needs.
func refused(err error) error {
	return fmt.Errorf("%w: %w, and this one (in a container?) may not: `batuta demo --loopback` works without", err, ErrPrivilege)
}

// request asks the launcher for one thing and waits until it is done.
func (l *Lab) request(req any) ([]*os.File, error) {
	l.order.Lock()
	defer l.order.Unlock()
	var reply switchReply
	err := l.ctl.Send(req)
	var files []*os.File
	if err == nil {
		files, err = l.ctl.Receive(&reply)
	}
	if err != nil {
		l.end()
		if said := strings.TrimSpace(l.stderr.String()); said != "" {
			return nil, fmt.Errorf("lab: the launcher is gone; it said: %s", said)
		}
		return nil, fmt.Errorf("lab: the launcher is gone: %w", err)
	}
	if reply.Error != "" {
		closeAll(files)
		return nil, fmt.Errorf("lab: %s", reply.Error)
	}
	return files, nil
}

// Close takes everything down and returns when no process is left. It may be
// called more than once.
func (l *Lab) Close() error {
	l.end()
	for _, n := range l.nodes {
		n.wait()
	}
	return nil
}

// end kills the launcher; with PID 1 everything in the lab ends.
func (l *Lab) end() {
	l.ctl.Close()
	_ = l.launcher.Process.Kill() // or it has ended by itself
	<-l.ended
}

// Done is closed when the lab is gone, by Close or by itself.
func (l *Lab) Done() <-chan struct{} { return l.ended }

// Topology returns the drawing that the lab was built from.
func (l *Lab) Topology() Topology { return l.topology }

// Node returns the node of that name. The methods of a node that the drawing
// does not have return an error that lists those it has.
func (l *Lab) Node(name string) *Node {
	if n, ok := l.nodes[name]; ok {
		return n
	}
	return &Node{Name: name, lab: l}
}

// Kill takes the power from a node: its cables fall silent, all its processes
// die, its network namespace and bpffs go, /run is lost; the disk (/etc, /var)
// stays. It returns when no process of the node is left.
func (l *Lab) Kill(name string) error { return l.Node(name).kill() }

// Boot gives a node its power back: a new boot id, its own disk, its service.
// It returns when the node has booted. A node that is up is an error.
func (l *Lab) Boot(ctx context.Context, name string) error {
	n := l.Node(name)
	if err := n.powerOn(); err != nil {
		return err
	}
	return n.ready(ctx)
}

// Cut pulls cables out of the switch: the named interfaces of the node, or all
// when none is named. They stay out over a power loss until Heal.
func (l *Lab) Cut(name string, interfaces ...string) error {
	return l.Node(name).plug(false, interfaces)
}

// Heal plugs the cables in again: those named, or all.
func (l *Lab) Heal(name string, interfaces ...string) error {
	return l.Node(name).plug(true, interfaces)
}

// newUUID is a random (version 4) UUID, RFC 9562 section 5.4.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
