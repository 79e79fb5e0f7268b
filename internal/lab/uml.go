package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// UMLPackages are what a tree for UML must have: the kernel, what loads its
// modules, and what brings it up and down.
var UMLPackages = []string{"user-mode-linux", "kmod", "busybox-static"}

// Kernel is a User-Mode Linux kernel to run one command in: a whole machine
// of its own that is a process on this one. It has what many hosts' kernels
// lack (IPVS with all its schedulers), and modules can be loaded in it.
//
// Its root file system is a tree of DebianTree, read-only. It boots in a few
// seconds, has one processor, and no network but what the command makes.
type Kernel struct {
	Tree   string            // made by DebianTree with UMLPackages among the packages
	Files  map[string]string // files of the host that the command finds, by their name below /mnt
	Memory int               // MiB; 0 is 512
	Env    []string          // KEY=value, besides PATH, HOME and TMPDIR
}

// ErrNoKernel is wrapped where User-Mode Linux does not exist or cannot be
// started: it is for Linux on amd64.
var ErrNoKernel = errors.New("no User-Mode Linux")

// umlInit is the first and only process of the kernel: it makes the few file
// systems, runs the command and ends the machine. Modules are where Debian
// keeps them for this kernel, so modprobe must be told, also when the kernel
// itself calls it.
const umlInit = `#!/bin/sh
export PATH=/mnt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp TMPDIR=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t bpf bpf /sys/fs/bpf 2>/dev/null
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
echo /mnt/bin/modprobe >/proc/sys/kernel/modprobe
busybox ip link set lo up
. /mnt/run >/mnt/out 2>&1 </dev/null
echo $? >/mnt/status
sync
exec busybox poweroff -f
`

const umlModprobe = "#!/bin/sh\nexec /sbin/modprobe -d /mnt/root \"$@\"\n"

// Run boots the kernel, runs the command there as root and returns what it
// wrote and its exit status. A kernel that does not come to an end within the
// context is killed: then, and where it never got to the command, the error
// holds the last of the kernel's own words.
func (k Kernel) Run(ctx context.Context, command ...string) (output []byte, status int, err error) {
	linux := filepath.Join(k.Tree, "usr/bin/linux.uml")
	if runtime.GOARCH != "amd64" {
		return nil, 0, fmt.Errorf("lab: %w on %s", ErrNoKernel, runtime.GOARCH)
	}
	if _, err := os.Stat(linux); err != nil {
		return nil, 0, fmt.Errorf("lab: %w: %w: is user-mode-linux among the tree's packages?", ErrNoKernel, err)
	}
	job, err := os.MkdirTemp("", "batuta-uml-")
	if err != nil {
		return nil, 0, fmt.Errorf("lab: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(job)) }()
	if err := k.writeJob(job, command); err != nil {
		return nil, 0, fmt.Errorf("lab: prepare User-Mode Linux: %w", err)
	}
	log, err := k.boot(ctx, linux, job)
	output, readErr := os.ReadFile(filepath.Join(job, "out"))
	text, statusErr := os.ReadFile(filepath.Join(job, "status"))
	switch {
	case ctx.Err() != nil:
		return output, 0, fmt.Errorf("lab: User-Mode Linux was stopped: %w; its last words:\n%s", ctx.Err(), lastLines(log, 8))
	case readErr != nil || statusErr != nil:
		return output, 0, fmt.Errorf("lab: %w: the kernel ended before the command (%s):\n%s", ErrNoKernel, fmt.Sprint(err), lastLines(log, 20))
	}
	status, err = strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return output, 0, fmt.Errorf("lab: User-Mode Linux: exit status: %w", err)
	}
	return output, status, nil
}

// writeJob makes the folder that the kernel sees as /mnt.
func (k Kernel) writeJob(job string, command []string) error {
	for _, dir := range []string{"bin", "root/lib", "uml"} {
		if err := os.MkdirAll(filepath.Join(job, dir), 0o755); err != nil {
			return err
		}
	}
	var run strings.Builder
	for _, e := range k.Env {
		run.WriteString("export " + shellWord(e) + "\n")
	}
	for _, w := range command {
		run.WriteString(shellWord(w) + " ")
	}
	run.WriteByte('\n')
	for name, f := range map[string]struct {
		text string
		mode fs.FileMode
	}{"init": {umlInit, 0o755}, "run": {run.String(), 0o644}, "bin/modprobe": {umlModprobe, 0o755}} {
		if err := os.WriteFile(filepath.Join(job, name), []byte(f.text), f.mode); err != nil {
			return err
		}
	}
	for name, source := range k.Files {
		to := filepath.Join(job, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := copyFile(source, to); err != nil {
			return err
		}
		if err := os.Chmod(to, 0o755); err != nil {
			return err
		}
	}
	return os.Symlink("/usr/lib/uml/modules", filepath.Join(job, "root/lib/modules"))
}

// boot runs the kernel to its end and returns its console.
func (k Kernel) boot(ctx context.Context, linux, job string) (console string, err error) {
	memory := k.Memory
	if memory == 0 {
		memory = 512
	}
	cmd := exec.CommandContext(ctx, linux, fmt.Sprintf("mem=%dM", memory), "rootfstype=hostfs", "rootflags="+k.Tree, "ro",
		"con=null", "con0=null,fd:1", "quiet", "uml_dir="+filepath.Join(job, "uml"), "umid=batuta",
		"init=/bin/sh", "--", "-c", `"mount -t hostfs -o `+job+` job /mnt && exec /mnt/init"`)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.Env = []string{"TMPDIR=" + job, "HOME=" + job, "PATH=/usr/bin:/bin"} // its memory is a file in TMPDIR
	// The kernel is several processes: they end together, and with us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // as in Lab.launch: the death signal is the thread's
		defer runtime.UnlockOSThread()
		ended <- cmd.Run()
	}()
	err = <-ended
	return said.String(), err
}

// shellWord quotes a word for sh.
func shellWord(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
