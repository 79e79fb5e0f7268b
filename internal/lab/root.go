package lab

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// privateDir holds the lab's own things in a node's root.
const privateDir = "/.lab"

// Folders of the root that a node never shares with the file system below it.
var private = []string{".lab", "proc", "sys", "dev", "run", "tmp", "var", "etc", "lost+found"}

// makeDisk makes what a node keeps over a power loss, once: /etc and /var.
//
// On the host's file system, /etc is made of links into the host's (read-only)
// one, except for what tells machines apart; /var starts empty. On a tree of
// the lab's own, both are copied: the packages there left their files in them.
func makeDisk(cfg bootConfig) error {
	disk := filepath.Join(diskDir, cfg.Name)
	if _, err := os.Stat(disk); err == nil {
		return nil
	}
	// Built aside and renamed, so that a failure leaves no half a disk.
	build := disk + ".new"
	if err := os.RemoveAll(build); err != nil {
		return err
	}
	etc, variable := filepath.Join(build, "etc"), filepath.Join(build, "var")
	if err := os.MkdirAll(build, 0o755); err != nil {
		return err
	}
	var err error
	if cfg.Root == "" {
		err = errors.Join(linkTree(filepath.Join(hostDir, "etc"), etc), os.Mkdir(variable, 0o755))
	} else {
		err = errors.Join(
			copyTree(filepath.Join(hostPath(cfg.Root), "etc"), etc),
			copyTree(filepath.Join(hostPath(cfg.Root), "var"), variable, "cache/apt", "lib/apt", "lib/dpkg"))
	}
	if err != nil {
		return err
	}
	for _, dir := range []string{"lib", "log", "cache", "spool", "tmp", "lib/misc"} {
		if err := os.MkdirAll(filepath.Join(variable, dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(variable, "tmp"), 0o777|fs.ModeSticky); err != nil {
		return err
	}
	for link, target := range map[string]string{"run": "/run", "lock": "/run/lock"} {
		if err := ignore(os.Symlink(target, filepath.Join(variable, link)), fs.ErrExist); err != nil {
			return err
		}
	}
	for name, f := range cfg.Files {
		if err := writeFile(filepath.Join(build, name), f); err != nil {
			return err
		}
	}
	return os.Rename(build, disk)
}

// writeFile puts a file on a node's disk. Folders on the way that are links
// into the host are replaced by folders of links, so that the node's copy of
// /etc/nginx/nginx.conf, say, is its own.
func writeFile(name string, f File) error {
	dir := filepath.Dir(name)
	if err := ownDir(dir); err != nil {
		return err
	}
	if err := ignore(os.Remove(name), fs.ErrNotExist); err != nil {
		return err
	}
	mode := fs.FileMode(f.Mode)
	if mode == 0 {
		mode = 0o644
	}
	if err := os.WriteFile(name, f.Data, mode); err != nil {
		return err
	}
	return os.Chmod(name, mode) // whatever the umask
}

func ownDir(dir string) error {
	info, err := os.Lstat(dir)
	switch {
	case err == nil && info.IsDir():
		return nil
	case err == nil && info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(dir)
		if err != nil {
			return err
		}
		below, ok := strings.CutPrefix(target, privateDir+"/etc/")
		if !ok {
			return fmt.Errorf("%s is a link to %s", dir, target)
		}
		if err := os.Remove(dir); err != nil {
			return err
		}
		return linkDir(filepath.Join(hostDir, "etc", below), dir, below)
	case errors.Is(err, fs.ErrNotExist):
		if err := ownDir(filepath.Dir(dir)); err != nil {
			return err
		}
		return os.Mkdir(dir, 0o755)
	case err != nil:
		return err
	}
	return fmt.Errorf("%s is no directory", dir)
}

// linkTree makes the node's /etc on the host's file system.
func linkTree(from, to string) error {
	if err := linkDir(from, to, ""); err != nil {
		return err
	}
	// Another machine's identity, services and cluster are not this one's.
	for _, name := range []string{"hostname", "hosts", "machine-id"} {
		if err := ignore(os.Remove(filepath.Join(to, name)), fs.ErrNotExist); err != nil {
			return err
		}
	}
	for _, name := range []string{"ha.d", "init.d", "batuta"} {
		dir := filepath.Join(to, name)
		if err := ignore(os.Remove(dir), fs.ErrNotExist); err != nil {
			return err
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// linkDir fills a folder with links to where a node sees the host's /etc;
// links are copied, since relative ones must start from the same place.
func linkDir(from, to, below string) error {
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		target := filepath.Join(privateDir, "etc", below, e.Name())
		if e.Type()&fs.ModeSymlink != 0 {
			if target, err = os.Readlink(filepath.Join(from, e.Name())); err != nil {
				return err
			}
		}
		if err := os.Symlink(target, filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// copyTree copies folders, files and links with owner and mode; devices and
// sockets are left out, and so are the folders named in skip.
func copyTree(from, to string, skip ...string) error {
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir() && slices.Contains(skip, rel):
			return fs.SkipDir
		case d.IsDir():
			err = os.Mkdir(dst, 0o700)
		case d.Type()&fs.ModeSymlink != 0:
			var target string
			if target, err = os.Readlink(p); err == nil {
				err = os.Symlink(target, dst)
			}
		case d.Type().IsRegular():
			err = copyFile(p, dst)
		default:
			return nil
		}
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		if err := os.Lchown(dst, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
		if d.Type()&fs.ModeSymlink != 0 {
			return nil
		}
		return os.Chmod(dst, info.Mode()) // after chown, which clears set-id bits
	})
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// buildRoot runs in a node's init: it makes the node's file system in a fresh
// tmpfs and moves into it. Nothing of the host can be written from there.
func buildRoot(cfg bootConfig) error {
	if err := mount("tmpfs", nodeDir, "tmpfs", unix.MS_NOSUID, "mode=0755"); err != nil {
		return err
	}
	if err := os.Chdir(nodeDir); err != nil {
		return err
	}
	below := hostPath(cfg.Root)
	if err := shareRoot(below); err != nil {
		return err
	}
	steps := []func() error{
		func() error { return privateFolders(cfg, below) },
		mountProc(cfg.BootID),
		mountSys,
		mountDev,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	// pivot_root(".", ".") stacks the old root on the new one; see the manual.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the host's mounts: %w", err)
	}
	return os.Chdir("/")
}

// shareRoot binds every folder of the root file system, read-only with all
// that is mounted below.
func shareRoot(below string) error {
	entries, err := os.ReadDir(below)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name, source := e.Name(), filepath.Join(below, e.Name())
		switch {
		case slices.Contains(private, name):
		case e.Type()&fs.ModeSymlink != 0: // /bin -> usr/bin
			target, err := os.Readlink(source)
			if err != nil {
				return err
			}
			if err := os.Symlink(target, name); err != nil {
				return err
			}
		case e.IsDir():
			if err := bindReadOnly(source, name); err != nil {
				return err
			}
		}
	}
	return nil
}

func privateFolders(cfg bootConfig, below string) error {
	for name, mode := range map[string]fs.FileMode{
		".lab": 0o755, ".lab/bin": 0o755,
		"run": 0o755, "run/lock": 0o777 | fs.ModeSticky, "tmp": 0o777 | fs.ModeSticky,
		"etc": 0o755, "var": 0o755, "proc": 0o555, "sys": 0o555, "dev": 0o755,
	} {
		if err := os.MkdirAll(name, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(name, mode); err != nil {
			return err
		}
	}
	disk := filepath.Join(diskDir, cfg.Name)
	for _, name := range []string{"etc", "var"} {
		if err := mount(filepath.Join(disk, name), name, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	if err := bindReadOnly(filepath.Join(below, "etc"), ".lab/etc"); err != nil {
		return err
	}
	return bindFile(binaryBin, ".lab/bin/batuta")
}

// mountProc gives the node its own processes and boot id, and keeps it from
// the kernel's settings except those of its own network.
func mountProc(bootID string) func() error {
	return func() error {
		if err := mount("proc", "proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return err
		}
		const file = ".lab/boot_id"
		if err := os.WriteFile(file, []byte(bootID+"\n"), 0o444); err != nil {
			return err
		}
		const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
		for _, dir := range []string{"proc/sys", "proc/sysrq-trigger"} {
			if _, err := os.Stat(dir); err != nil {
				continue
			}
			if err := mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
				return err
			}
			if err := mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|flags, ""); err != nil {
				return err
			}
		}
		if err := mount("proc/sys/net", "proc/sys/net", "", unix.MS_BIND, ""); err != nil {
			return err
		}
		if err := mount("", "proc/sys/net", "", unix.MS_BIND|unix.MS_REMOUNT|flags, ""); err != nil {
			return err
		}
		return mount(file, "proc/sys/kernel/random/boot_id", "", unix.MS_BIND, "")
	}
}

// mountSys shows the node's own network devices and its own, empty bpffs.
func mountSys() error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := mount("sysfs", "sys", "sysfs", flags|unix.MS_RDONLY, ""); err != nil {
		return err
	}
	if _, err := os.Stat("sys/fs/bpf"); err != nil {
		return nil // a kernel without BPF: the node is none the worse
	}
	return mount("bpf", "sys/fs/bpf", "bpf", flags, "mode=0700")
}

// mountDev makes the devices that every program expects, and no disk.
func mountDev() error {
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty", "net/tun"} {
		source := filepath.Join(hostDir, "dev", name)
		if _, err := os.Stat(source); err != nil {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join("dev", name)), 0o755); err != nil {
			return err
		}
		if err := bindFile(source, filepath.Join("dev", name)); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
		"stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(target, filepath.Join("dev", link)); err != nil {
			return err
		}
	}
	for _, dir := range []string{"dev/pts", "dev/shm"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if err := mount("devpts", "dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"); err != nil {
		return err
	}
	return mount("tmpfs", "dev/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777")
}

func mount(source, target, kind string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		what := kind
		if what == "" {
			what = source
		}
		return fmt.Errorf("mount %s on %s: %w", what, target, err)
	}
	return nil
}

// bindReadOnly makes a folder and shows source there, read-only with all that
// is mounted below it, whatever the host mounts later. Needs Linux 5.12.
func bindReadOnly(source, target string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := mount(source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(unix.AT_FDCWD, target, unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("make %s read-only (needs Linux 5.12): %w", target, err)
	}
	return nil
}

func bindFile(source, target string) error {
	f, err := os.OpenFile(target, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	f.Close()
	return mount(source, target, "", unix.MS_BIND, "")
}
