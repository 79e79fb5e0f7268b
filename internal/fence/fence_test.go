package fence

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

// Each kind of device is called as its users expect; what it answers counts.
func TestFence(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return file
	}
	heard := filepath.Join(dir, "heard")
	write("fence_test", "#!/bin/sh\ncat >"+heard+"\n! grep -q ip=wrong "+heard+" || { echo 'no way to wrong'; exit 1; }\n", 0o755)
	write("fence_deaf", "#!/bin/sh\necho deaf >"+heard+"\n", 0o755)
	write("switch", `#!/bin/sh
case $1 in
getconfignames) echo hostlist outlet;;
reset) echo "$* hostlist=$hostlist outlet=$outlet" >`+heard+`;;
*) exit 1;;
esac
`, 0o755)
	write("stonith", "#!/bin/sh\necho \"$*\" >"+heard+"\n", 0o755)
	file := write("device.conf", "# the power switch\nip=10.0.0.9 username=op\npassword=x # changed in May\n", 0o600)
	words := strings.Fields
	for _, c := range []struct {
		name   string
		device model.FenceDevice
		heard  string
		err    string
	}{
		{"an agent, its parameters in the line", model.FenceDevice{Type: "fence_test", Parameters: words("ip=10.0.0.9 ssh=1")},
			"ip=10.0.0.9\nssh=1\naction=reboot\nport=lvs02\nnodename=lvs02\n", ""},
		{"an agent, its parameters in a file; its own name for the node", model.FenceDevice{Type: "fence_test", Parameters: words("action=off plug=7")},
			"action=off\nplug=7\nnodename=lvs02\n", ""},
		{"an agent, its parameters in a file", model.FenceDevice{Type: "fence_test", File: file},
			"ip=10.0.0.9\nusername=op\npassword=x\naction=reboot\nport=lvs02\nnodename=lvs02\n", ""},
		{"an agent that fails", model.FenceDevice{Type: "fence_test", Parameters: words("ip=wrong")}, "", "fence lvs02 by fence_test: exit status 1: no way to wrong"},
		{"an agent that does not read", model.FenceDevice{Type: "fence_deaf", Parameters: words("a=" + strings.Repeat("x", 1<<20))}, "deaf\n", ""},
		{"a script with names", model.FenceDevice{Type: "external/switch", Parameters: words("outlet=3 hostlist=lvs02")}, "reset lvs02 hostlist=lvs02 outlet=3\n", ""},
		{"a script without names", model.FenceDevice{Type: "external/switch", Parameters: words("lvs02 3")}, "reset lvs02 hostlist=lvs02 outlet=3\n", ""},
		{"a script with too few", model.FenceDevice{Type: "external/switch", Parameters: words("lvs02")}, "",
			"fence lvs02 by external/switch: it takes 2 parameters (hostlist outlet), and 1 are given; write them as name=value"},
		{"a plug-in", model.FenceDevice{Type: "apcmaster", Parameters: words("10.0.0.9 op secret")}, "-t apcmaster -p 10.0.0.9 op secret -T reset lvs02\n", ""},
		{"a plug-in with a file", model.FenceDevice{Type: "apcmaster", File: file}, "-t apcmaster -F " + file + " -T reset lvs02\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := New(c.device, Options{Dirs: []string{dir}, Plugins: []string{dir}})
			if err != nil {
				t.Fatal(err)
			}
			_ = os.Remove(heard) // may not be there
			said := ""
			if err := d.Fence(t.Context(), "lvs02"); err != nil {
				said = err.Error()
			}
			if d := cmp.Diff(c.err, said); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			if got, _ := os.ReadFile(heard); c.err == "" && string(got) != c.heard {
				t.Errorf("it was told (-want +got)\n%s", cmp.Diff(c.heard, string(got)))
			}
		})
	}
}

// A device that cannot work is refused when the node starts, not when it is needed.
func TestNewRefuses(t *testing.T) {
	for _, d := range []model.FenceDevice{{Type: "fence_none"}, {Type: "external/../x"}, {Type: "fence_none", File: "/nowhere"}} {
		if _, err := New(d, Options{Dirs: []string{t.TempDir()}, Plugins: []string{t.TempDir()}}); err == nil {
			t.Errorf("%+v is accepted", d)
		} else {
			t.Log(err)
		}
	}
}
