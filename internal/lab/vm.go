package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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

// VMPackages are what a tree for VM must have: the emulator, the kernel, and
// what brings it up and down. What commands in the machine need comes beside
// them: the tree is its root file system, too.
var VMPackages = []string{"qemu-system-x86", "linux-image-cloud-amd64", "busybox-static", "kmod", "iproute2", "e2fsprogs"}

// VM is a machine with Debian's own kernel to run one command in, emulated by
// QEMU in software: it needs no support of the processor's, and can count
// instructions. It boots in some 10 s and is 10 to 50 times slower than the
// machine it runs on.
//
// Its root file system is a tree of DebianTree, on a disk whose changes are
// forgotten. It has no network but what the command makes, and Devices.
type VM struct {
	Tree       string            // made by DebianTree with VMPackages among the packages
	Files      map[string]string // files of the host that the command finds, by their name below /mnt
	Memory     int               // MiB; 0 is 1024
	Processors int               // 0 is 1
	Env        []string          // KEY=value, besides PATH, HOME and TMPDIR
	Devices    []string          // more arguments for QEMU
	// Counted makes a nanosecond of the machine's time one instruction
	// (QEMU's -icount shift=0): clocks count instructions.
	Counted bool
	// Output is told what the command writes while it runs; may be nil.
	Output io.Writer
}

// ErrNoVM is wrapped where the machine did not get as far as the command.
var ErrNoVM = errors.New("no virtual machine")

// vmInit is the first process: it finds the disk, and goes on there.
const vmInit = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
for m in /modules/*; do /bin/busybox insmod $m; done
/bin/busybox mount -t ext4 /dev/vda /root
/bin/busybox mount -t tmpfs tmpfs /root/mnt
/bin/busybox cp -r /job/* /root/mnt
exec /bin/busybox switch_root /root /mnt/main
`

// vmMain runs the command and ends the machine. Its terminals are the
// console, the command's output and the exit status.
const vmMain = `#!/bin/sh
export PATH=/mnt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp TMPDIR=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mkdir -p /run/netns
ip link set lo up
stty raw -F /dev/ttyS1
stty raw -F /dev/ttyS2
. /mnt/run >/dev/ttyS1 2>&1 </dev/null
echo $? >/dev/ttyS2
sync
busybox poweroff -f
`

// Run boots the machine, runs the command there as root and returns what it
// wrote and its exit status. A machine that does not come to an end within the
// context is killed: then, and where it never got to the command, the error
// holds the last of its console.
func (v VM) Run(ctx context.Context, command ...string) (output []byte, status int, err error) {
	if runtime.GOARCH != "amd64" {
		return nil, 0, fmt.Errorf("lab: %w on %s", ErrNoVM, runtime.GOARCH)
	}
	kernels, err := filepath.Glob(v.Tree + "/boot/vmlinuz-*")
	if err != nil || len(kernels) == 0 {
		return nil, 0, fmt.Errorf("lab: %w: no kernel in %s: is linux-image-cloud-amd64 among the tree's packages?", ErrNoVM, v.Tree)
	}
	disk, err := v.disk(ctx)
	if err != nil {
		return nil, 0, err
	}
	job, err := os.MkdirTemp("", "batuta-vm-")
	if err != nil {
		return nil, 0, fmt.Errorf("lab: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(job)) }()
	version := strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	if err := v.writeJob(ctx, job, version, command); err != nil {
		return nil, 0, fmt.Errorf("lab: prepare the virtual machine: %w", err)
	}
	output, bootErr := v.boot(ctx, job, disk, kernels[0])
	console, _ := os.ReadFile(filepath.Join(job, "console"))
	text, _ := os.ReadFile(filepath.Join(job, "status"))
	if ctx.Err() != nil {
		return output, 0, fmt.Errorf("lab: virtual machine was stopped: %w; its last words:\n%s", ctx.Err(), lastLines(string(console), 8))
	}
	status, err = strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return output, 0, fmt.Errorf("lab: %w: it ended before the command (%s):\n%s", ErrNoVM, fmt.Sprint(bootErr), lastLines(string(console), 20))
	}
	return output, status, nil
}

// disk is the tree as an image of a file system, kept beside the tree.
func (v VM) disk(ctx context.Context) (string, error) {
	image := v.Tree + ".ext4"
	unlock, err := lockFile(ctx, image+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(image); err == nil {
		return image, nil
	}
	partial := image + ".partial"
	_ = os.Remove(partial)
	if err := command(ctx, "mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", v.Tree, partial, "2G"); err != nil {
		return "", fmt.Errorf("lab: %w: a disk of %s: %w", ErrNoVM, v.Tree, err)
	}
	return image, os.Rename(partial, image)
}

// writeJob makes the initial file system: busybox, the disk's modules, and
// the folder that the command sees as /mnt.
func (v VM) writeJob(ctx context.Context, job, version string, words []string) error {
	var run strings.Builder
	for _, e := range v.Env {
		run.WriteString("export " + shellWord(e) + "\n")
	}
	for _, w := range words {
		run.WriteString(shellWord(w) + " ")
	}
	run.WriteByte('\n')
	write := func(name, text string, mode fs.FileMode) error {
		to := filepath.Join(job, "root", name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		return os.WriteFile(to, []byte(text), mode)
	}
	put := func(name, source string) error {
		to := filepath.Join(job, "root", name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := copyFile(source, to); err != nil {
			return err
		}
		return os.Chmod(to, 0o755)
	}
	err := errors.Join(write("init", vmInit, 0o755), write("job/main", vmMain, 0o755), write("job/run", run.String(), 0o644),
		put("bin/busybox", v.Tree+"/bin/busybox"))
	for name, source := range v.Files {
		err = errors.Join(err, put("job/"+name, source))
	}
	if err != nil {
		return err
	}
	list, err := exec.CommandContext(ctx, "chroot", v.Tree, "/sbin/modprobe", "-a", "-S", version, "--show-depends", "virtio_pci", "virtio_blk", "ext4").Output()
	if err != nil {
		return fmt.Errorf("modprobe in the tree: %w", err)
	}
	n := 0
	for line := range strings.Lines(string(list)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "insmod" {
			n++
			if err := put(fmt.Sprintf("modules/%02d-%s", n, filepath.Base(f[1])), v.Tree+f[1]); err != nil {
				return err
			}
		}
	}
	return command(ctx, "sh", "-c", `cd "$1/root" && find . | ./bin/busybox cpio -o -H newc | gzip -1 >../initrd`, "sh", job)
}

// boot runs QEMU, which lives in the tree with its libraries, to its end.
func (v VM) boot(ctx context.Context, job, disk, kernel string) ([]byte, error) {
	lib := v.Tree + "/usr/lib/x86_64-linux-gnu"
	memory, processors := max(v.Memory, 0), max(v.Processors, 1)
	if memory == 0 {
		memory = 1024
	}
	cpu, options := "max", ""
	if v.Counted {
		// An instruction that repeats counts once for each byte, where a processor
		// clears 64 at a time: 4096 for the page of each received packet, several
		// times what is done with the packet.
		cpu, options = "max,-erms,-fsrm", " init_on_alloc=0"
	}
	args := []string{"--library-path", v.Tree + "/lib/x86_64-linux-gnu:" + lib, v.Tree + "/usr/bin/qemu-system-x86_64",
		"-L", v.Tree + "/usr/share/qemu", "-L", v.Tree + "/usr/share/seabios",
		"-cpu", cpu, "-smp", strconv.Itoa(processors), "-m", strconv.Itoa(memory),
		"-display", "none", "-no-reboot", "-nodefaults",
		"-serial", "file:" + filepath.Join(job, "console"), "-serial", "stdio", "-serial", "file:" + filepath.Join(job, "status"),
		"-drive", "file=" + disk + ",format=raw,if=virtio,snapshot=on",
		"-kernel", kernel, "-initrd", filepath.Join(job, "initrd"),
		"-append", "console=ttyS0 quiet mitigations=off panic=-1 rdinit=/init" + options}
	if v.Counted {
		args = append(args, "-accel", "tcg", "-icount", "shift=0,sleep=off")
	} else {
		args = append(args, "-accel", "tcg,thread=multi")
	}
	cmd := exec.CommandContext(ctx, v.Tree+"/lib64/ld-linux-x86-64.so.2", append(args, v.Devices...)...)
	var said, trouble bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &trouble
	if v.Output != nil {
		cmd.Stdout = io.MultiWriter(&said, v.Output)
	}
	cmd.Env = append(os.Environ(), "QEMU_MODULE_DIR="+lib+"/qemu", "TMPDIR="+job) // a snapshot's changes are a file in TMPDIR
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // as in Lab.launch: the death signal is the thread's
		defer runtime.UnlockOSThread()
		ended <- cmd.Run()
	}()
	err := <-ended
	if err != nil {
		err = fmt.Errorf("%w: %s", err, lastLines(trouble.String(), 5))
	}
	return said.Bytes(), err
}

// command runs a program that says nothing unless it fails.
func command(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, lastLines(string(out), 5))
	}
	return nil
}
