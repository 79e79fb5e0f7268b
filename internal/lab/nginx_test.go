package lab_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/batuta-ha/batuta/internal/lab"
)

// debianTree makes or finds a tree; where that cannot be, the test is left
// out, except in CI.
func debianTree(t *testing.T, packages ...string) string {
	t.Helper()
	requireRoot(t)
	tree, err := lab.DebianTree(t.Context(), packages...)
	if errors.Is(err, lab.ErrNoTree) && os.Getenv("BATUTA_REQUIRE_ROOT") != "1" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// A real nginx, from a private Debian tree, is a real server of the lab.
func TestRealServerFromADebianTree(t *testing.T) {
	tree := debianTree(t, "nginx-light")
	l := start(t, func(o *lab.Options) {
		web := o.Topology.Machine("web1")
		web.Root = tree
		web.Service = []string{"nginx", "-g", "daemon off;"}
		web.Files = map[string]lab.File{"/var/www/html/.testpage": {Data: []byte("the test page of nginx\n")}}
	})
	got := fetch(t, l, "lvs01", "10.240.0.20", "/.testpage")
	if !strings.Contains(got, "Server: nginx") || !strings.HasSuffix(got, "the test page of nginx") {
		t.Errorf("nginx answers\n%s", got)
	}
	if out := output(t, l, "web1", "sh", "-c", "hostname; touch /usr/x 2>/dev/null || echo read-only; ls /var/log/nginx"); out != "web1\nread-only\naccess.log\nerror.log" {
		t.Errorf("the node: %q", out)
	}
	if err := l.Node("web1").StopService(t.Context()); err != nil {
		t.Error(err)
	}
}
