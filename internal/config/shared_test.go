package config

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/batuta-ha/batuta/internal/model"
)

// A disk that two nodes could write to at once is refused where nothing keeps
// them from it; what is replicated or on a file server is not such a disk.
func TestSharedDisks(t *testing.T) {
	for _, c := range []struct{ resource, watchdog, want string }{
		{"Filesystem::/dev/sdb1::/srv::ext4", "", "error"},
		{"Filesystem::-Ldata::/srv::ext4", "", "error"},
		{"Filesystem::/dev/sdb1::/srv::ext4", "watchdog /dev/watchdog", "warning"},
		{"LVM::vg0", "", "error"},
		{"Filesystem::/dev/drbd0::/srv::ext4", "", ""},
		{"Filesystem::nas:/export::/srv::nfs", "", ""},
		{"apache2", "", ""},
	} {
		r := Reader{Files: fstest.MapFS{
			"ha.d/ha.cf":       {Data: []byte("node a b\nucast lo 127.0.0.1\nauto_failback on\n" + c.watchdog + "\n")},
			"ha.d/authkeys":    {Data: []byte("auth 1\n1 sha1 x\n"), Mode: 0o600},
			"ha.d/haresources": {Data: []byte("a 127.0.0.9 " + c.resource + "\n")}},
			Node: "a", Host: model.Host{Interfaces: []model.Interface{{Name: "lo"}}}}
		_, problems := r.Load("ha.d")
		got := ""
		for _, p := range problems {
			if strings.Contains(p.Text, "may write to this disk") {
				got = p.Severity.String()
			}
		}
		if got != c.want {
			t.Errorf("%s %s: %q, want %q\n%v", c.resource, c.watchdog, got, c.want, problems)
		}
	}
}
