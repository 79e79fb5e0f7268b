package lab_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/lab"
)

// ipvsKernel is a kernel with IPVS, and ipvsadm beside it.
func ipvsKernel(t *testing.T) lab.Kernel {
	t.Helper()
	requireRoot(t)
	tree, err := lab.DebianTree(t.Context(), append([]string{"ipvsadm", "iproute2"}, lab.UMLPackages...)...)
	if errors.Is(err, lab.ErrNoTree) && os.Getenv("BATUTA_REQUIRE_ROOT") != "1" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return lab.Kernel{Tree: tree}
}

func TestKernelRunsACommand(t *testing.T) {
	k := ipvsKernel(t)
	k.Env = []string{"SAYING=it's a 'quoted' word"}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	out, status, err := k.Run(ctx, "sh", "-c", `echo "$SAYING"; modprobe ip_vs && ipvsadm -L -n; touch /usr/mark; exit 7`)
	if err != nil || status != 7 {
		t.Fatalf("status %d, %v, %s", status, err, out)
	}
	for _, want := range []string{"it's a 'quoted' word\n", "IP Virtual Server version 1.2.1", "Read-only file system"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("output lacks %q:\n%s", want, out)
		}
	}
}

// What IPVS really does can be seen only in a kernel that has it: the tests of
// the packages that deal with it run there.
func TestIPVS(t *testing.T) {
	for name, test := range map[string]struct {
		pkg  string
		args []string
	}{
		"the plane":        {"internal/plane/ipvs", []string{"-rapid.checks=30"}},
		"the tutorial":     {"internal/lab", []string{"-test.run=^TestStory"}},
		"texts of ipvsadm": {"internal/cli", []string{"-test.run=^TestTexts", "-rapid.checks=25", "-rapid.shrinktime=10s", "-rapid.nofailfile"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := ipvsKernel(t)
			k.Env = []string{inKernel + "=1"}
			k.Files = map[string]string{"bin/tests": testBinary(t, test.pkg)}
			if test.pkg == "internal/lab" {
				k.Files["bin/batuta"] = batuta(t)
			}
			// A minute each where nobody else needs the machine.
			ctx, cancel := context.WithTimeout(t.Context(), 13*time.Minute)
			defer cancel()
			out, status, err := k.Run(ctx, append([]string{"tests", "-test.v", "-test.timeout=12m"}, test.args...)...)
			t.Logf("in the kernel:\n%s", out)
			if err != nil || status != 0 {
				t.Fatalf("exit status %d, %v", status, err)
			}
		})
	}
}

// testBinary compiles the tests of a package of this module, so that they need
// nothing but a kernel.
func testBinary(t *testing.T, pkg string) string {
	t.Helper()
	// Looked at here so that go test knows what its cached results depend on.
	err := filepath.WalkDir("..", func(name string, _ fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(name, ".go") {
			_, err = os.Stat(name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(t.TempDir(), "tests")
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", binary, "./"+strings.TrimPrefix(pkg, "internal/"))
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("compile the tests of %s: %v\n%s", pkg, err, out)
	}
	return binary
}

func TestKernelEndsWithItsContext(t *testing.T) {
	k := ipvsKernel(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	out, _, err := k.Run(ctx, "sh", "-c", "echo begun; exec sleep 1000")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), "lab: User-Mode Linux was stopped: ") {
		t.Fatalf("%v", err)
	}
	if string(out) != "begun\n" {
		t.Errorf("output %q", out)
	}
}

func TestKernelSaysWhatIsMissing(t *testing.T) {
	_, _, err := lab.Kernel{Tree: t.TempDir()}.Run(t.Context(), "true")
	if !errors.Is(err, lab.ErrNoKernel) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v", err)
	}
}

// The program itself, as an administrator finds it: `auto` takes IPVS, leaves
// a service of somebody else alone, shows what ipvsadm shows, and takes its own
// service with it when it stops, by cleanstop.
func TestDirectorOnIPVS(t *testing.T) {
	const script = `
set -e
modprobe ip_vs
ipvsadm -A -t 192.0.2.9:9 -s lc
cat >/tmp/ldirectord.cf <<END
checkinterval = 1
virtual = 192.0.2.1:80
	real = 192.0.2.20:80 masq 3
	real = 192.0.2.21:80 gate
	scheduler = wlc
	persistent = 300
	checktype = on
END
batuta director --run-dir /run/batuta --state-dir /tmp/state /tmp/ldirectord.cf 2>/tmp/log &
for i in $(seq 100); do
	if ipvsadm -L -n | grep -q 192.0.2.21; then break; fi
	sleep 0.1
done
batuta status --run-dir /run/batuta | sed -n '1s/.*; //p; 2,3p'
ipvsadm -L -n >/tmp/theirs
batuta table --run-dir /run/batuta >/tmp/ours
diff /tmp/theirs /tmp/ours
ipvsadm -S -n
kill $!
wait $! || { echo "exit $?"; cat /tmp/log; }
echo left:
ipvsadm -S -n
`
	const want = `plane ipvs
  the kernel's IP Virtual Server 1.2.1
  chosen as the first that works here
-A -t 192.0.2.1:80 -s wlc -p 300
-a -t 192.0.2.1:80 -r 192.0.2.20:80 -m -w 3
-a -t 192.0.2.1:80 -r 192.0.2.21:80 -g -w 1
-A -t 192.0.2.9:9 -s lc
left:
-A -t 192.0.2.9:9 -s lc
`
	k := ipvsKernel(t)
	k.Files = map[string]string{"bin/batuta": batuta(t)}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	out, status, err := k.Run(ctx, "sh", "-c", script)
	if err != nil || status != 0 {
		t.Fatalf("exit status %d, %v:\n%s", status, err, out)
	}
	if diff := cmp.Diff(want, string(out)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
