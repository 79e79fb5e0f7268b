package lab

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The eBPF plane on the oldest kernel that it is made for, Debian 12's: its own
// tests (golden packets, the suite on clsact, a random duel with its model)
// run in QEMU, without hardware support, on that kernel. make test-plane-kernel
// runs it; it takes some minutes.
func TestPlaneOnDebian12(t *testing.T) {
	if os.Getenv("BATUTA_KERNEL") != "plane" {
		t.Skip("BATUTA_KERNEL is not \"plane\": make test-plane-kernel runs it")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Minute)
	defer cancel()
	tree, err := DebianTree(ctx, "qemu-system-x86", "linux-image-cloud-amd64", "busybox-static", "kmod")
	if err != nil {
		t.Fatal(err)
	}
	kernels, err := filepath.Glob(tree + "/boot/vmlinuz-*")
	if err != nil || len(kernels) == 0 {
		t.Fatalf("no kernel in %s: %v", tree, err)
	}
	version := strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	dir := t.TempDir()
	run := func(env string, name string, args ...string) []byte {
		t.Helper()
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Env = append(os.Environ(), env)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return out
	}
	run("CGO_ENABLED=0", "go", "test", "-c", "-o", dir+"/root/plane.test", "../plane/ebpf")
	run("A=", "cp", "-r", "../plane/ebpf/testdata", dir+"/root/testdata")
	run("A=", "cp", tree+"/bin/busybox", dir+"/root/busybox")
	modules := run("A=", "chroot", tree, "/sbin/modprobe", "-a", "-S", version, "--show-depends", "veth", "sch_ingress", "cls_bpf")
	var load []string
	for line := range strings.SplitSeq(string(modules), "\n") {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "insmod" {
			run("A=", "cp", tree+f[1], dir+"/root/"+filepath.Base(f[1]))
			load = append(load, "insmod /"+filepath.Base(f[1]))
		}
	}
	script := "#!/busybox sh\n/busybox mkdir -p /bin /proc /sys /dev /tmp\n/busybox --install -s /bin\n" +
		"mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp\n" +
		strings.Join(load, "\n") + "\nuname -r\ncd /\n" +
		"BATUTA_REQUIRE_ROOT=1 BATUTA_SEED=1 BATUTA_PACKETS=5000 /plane.test -test.v -test.timeout 40m -test.run 'TestGolden|TestAgainst|TestExpiry|TestPathMTU|TestConformanceClsact' </dev/null >/tmp/log 2>&1\n" +
		"code=$?; grep -E '^(---|    ---|ok|FAIL|PASS|panic)|oracle' /tmp/log; [ $code = 0 ] || tail -n 100 /tmp/log; echo plane tests ended with $code\npoweroff -f\n"
	if err := os.WriteFile(dir+"/root/init", []byte(script), 0o755); err != nil { //nolint:gosec // it is to be run
		t.Fatal(err)
	}
	run("A=", "sh", "-c", "cd "+dir+"/root && find . | ./busybox cpio -o -H newc | gzip -1 > ../initrd")
	// QEMU runs outside the tree, with the tree's libraries and modules.
	kernel, initrd := kernels[0], dir+"/initrd"
	loader := tree + "/lib64/ld-linux-x86-64.so.2"
	cmd := exec.CommandContext(ctx, loader, "--library-path", tree+"/lib/x86_64-linux-gnu:"+tree+"/usr/lib/x86_64-linux-gnu",
		tree+"/usr/bin/qemu-system-x86_64", "-L", tree+"/usr/share/qemu", "-L", tree+"/usr/share/seabios", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1500",
		"-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio", "-kernel", kernel, "-initrd", initrd,
		"-append", "console=ttyS0 quiet mitigations=off panic=-1 rdinit=/init")
	var out bytes.Buffer
	cmd.Env = append(os.Environ(), "QEMU_MODULE_DIR="+tree+"/usr/lib/x86_64-linux-gnu/qemu")
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	t.Logf("%s", out.String())
	if err != nil || !strings.Contains(out.String(), "plane tests ended with 0") {
		t.Fatalf("the plane's tests did not pass on %s: %v", version, err)
	}
}
