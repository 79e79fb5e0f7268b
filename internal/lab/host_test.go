package lab_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/lab"
)

// host is what a lab must leave as it was.
type host struct {
	Interfaces []string
	Mounts     []string
	Processes  []string // those that come from this test executable
	Namespaces []string // those that such processes are in
	Files      []string // of the folders where a careless lab would leave some
	Settings   []string
}

// look takes a picture of the host. The machine is shared, so processes and
// namespaces are those of this executable only.
func look(t *testing.T) host {
	t.Helper()
	var h host
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range interfaces {
		addresses, err := i.Addrs()
		if err != nil {
			t.Fatal(err)
		}
		h.Interfaces = append(h.Interfaces, fmt.Sprint(i.Name, i.Flags, i.HardwareAddr, addresses))
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if !strings.Contains(line, "/run/netns") { // of other tests that run meanwhile
			h.Mounts = append(h.Mounts, line)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range processes(t, self) {
		args, _ := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
		h.Processes = append(h.Processes, pid+" "+strings.ReplaceAll(string(args), "\x00", " "))
		links, _ := filepath.Glob(filepath.Join("/proc", pid, "ns/*"))
		for _, link := range links {
			if ns, err := os.Readlink(link); err == nil && !slices.Contains(h.Namespaces, ns) {
				h.Namespaces = append(h.Namespaces, ns)
			}
		}
	}
	slices.Sort(h.Namespaces)
	for _, dir := range []string{"/etc", "/run", "/var/lib", "/var/log", "/sys/fs/bpf", os.TempDir()} {
		h.Files = append(h.Files, files(dir)...)
	}
	for _, name := range []string{"kernel/hostname", "net/ipv4/ip_forward", "net/ipv4/conf/default/rp_filter", "kernel/random/boot_id"} {
		text, err := os.ReadFile(filepath.Join("/proc/sys", name))
		if err != nil {
			t.Fatal(err)
		}
		h.Settings = append(h.Settings, name+"="+strings.TrimSpace(string(text)))
	}
	return h
}

// processes finds the processes that run the executable, and those whose
// parents do, by the device and inode of what they run: a node sees it under
// another name.
func processes(t *testing.T, executable string) []string {
	t.Helper()
	want, err := os.Stat(executable)
	if err != nil {
		t.Fatal(err)
	}
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, dir := range all {
		if got, err := os.Stat(filepath.Join(dir, "exe")); err == nil && os.SameFile(got, want) {
			found = append(found, filepath.Base(dir))
		}
	}
	return found
}

// files lists a folder two levels deep; in the folder for temporary files,
// where everybody writes, only what abuse leaves.
func files(dir string) []string {
	var found []string
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		name := d.Name()
		if p != dir && dir == os.TempDir() && name != "lab-was-here" || p == "/run/netns" || p == "/run/batuta" { // of others
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		if p == os.TempDir() {
			return nil
		}
		line := fmt.Sprint(p, " ", info.Mode())
		if dir == "/etc" && !d.IsDir() {
			line += fmt.Sprint(" ", info.Size(), " ", info.ModTime().UnixNano())
		}
		found = append(found, line)
		if rel, _ := filepath.Rel(dir, p); d.IsDir() && strings.Count(rel, "/") >= 1 {
			return fs.SkipDir
		}
		return nil
	})
	return found
}

func TestHostIsTheSameAfterwards(t *testing.T) {
	requireRoot(t)
	before := look(t)
	t.Run("lab", func(t *testing.T) {
		l := start(t)
		abuse(t, l)
		if during := look(t); cmp.Diff(before.Interfaces, during.Interfaces) != "" || cmp.Diff(before.Mounts, during.Mounts) != "" {
			t.Error("the host's interfaces and mounts change while the lab is up")
		}
		if err := l.Kill("lvs01"); err != nil {
			t.Fatal(err)
		}
	})
	if diff := cmp.Diff(before, look(t)); diff != "" {
		t.Errorf("the host before and after (-before +after):\n%s", diff)
	}
}

// abuse does inside a node what would be visible outside if it could be.
func abuse(t *testing.T, l *lab.Lab) {
	t.Helper()
	_ = l.Node("lvs01").Run(t.Context(), "sh", "-c", `
		touch /etc/lab-was-here /run/lab-was-here /var/lib/lab-was-here /var/log/lab-was-here /tmp/lab-was-here
		touch /usr/lab-was-here /root/lab-was-here /home/lab-was-here
		echo x >/etc/hostname; rm -f /etc/passwd; rm -rf /etc/ssl
		hostname elsewhere
		echo 1 >/proc/sys/net/ipv4/conf/default/rp_filter
		mount -t tmpfs none /mnt
		mkdir /sys/fs/bpf/lab-was-here
		date -s 2001-01-01
		ip link add lab-was-here type bridge
		sleep 1000 >/dev/null 2>&1 </dev/null &
		setsid sleep 1000 >/dev/null 2>&1 </dev/null &
		true`)
}

// The caller's death by SIGKILL leaves nothing behind either: no deferred
// function runs then.
func TestHostIsTheSameAfterSIGKILL(t *testing.T) {
	requireRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	before := look(t)
	cmd := exec.Command(self, "lab", "caller")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// The lab's namespaces, one a word.
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	namespaces := strings.Fields(line)
	if len(holders(t, namespaces)) == 0 || len(namespaces) != 5 {
		t.Fatalf("the caller's lab is not up: %q", line)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, out)
	_ = cmd.Wait()
	eventually(t, "everything of the killed caller ends", func() bool {
		return len(holders(t, namespaces)) == 0 && len(processes(t, self)) == len(before.Processes)
	})
	if diff := cmp.Diff(before, look(t)); diff != "" {
		t.Errorf("the host before and after (-before +after):\n%s", diff)
	}
}

// caller builds a lab, names a node's namespaces, and waits to be killed.
func caller([]string) error {
	l, err := lab.Start(context.Background(), lab.Options{})
	if err != nil {
		return err
	}
	out, err := l.Node("web1").Output(context.Background(), "sh", "-c",
		"sleep 1000 >/dev/null 2>&1 & for n in net mnt pid uts ipc; do readlink /proc/self/ns/$n; done")
	if err != nil {
		return err
	}
	fmt.Println(strings.Join(strings.Fields(out), " "))
	_ = unix.Pause()
	return strconv.ErrRange
}
