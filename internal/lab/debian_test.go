package lab

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAptSourcesOfTheRelease(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"etc/os-release": "ID=debian\nVERSION_CODENAME=bookworm\nNAME=\"Debian GNU/Linux\"\n",
		"etc/apt/sources.list": `# the main archive
deb http://mirror.example/debian bookworm main contrib # near
deb [ arch=amd64 ] http://mirror.example/debian bookworm-updates main
deb-src http://mirror.example/debian bookworm main
deb http://mirror.example/debian bookworm-backports main
deb [ broken
`,
		"etc/apt/sources.list.d/vendor.list": "deb https://vendor.example/apt vendor-bookworm main\n",
		"etc/apt/sources.list.d/debian.sources": `Types: deb deb-src
URIs: http://deb.example/debian
 http://deb2.example/debian
# a comment
Suites: bookworm
Components: main
Signed-By: /usr/share/keyrings/archive.gpg

Types: deb
URIs: http://off.example
Suites: bookworm
Components: main
Enabled: no

Types: deb
URIs: http://security.example
Suites: bookworm-security other
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
`,
	} {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	release, got, err := aptSources(root)
	if release != "bookworm" || err != nil {
		t.Fatalf("release %q, %v", release, err)
	}
	want := `deb http://mirror.example/debian bookworm main contrib
deb [ arch=amd64 ] http://mirror.example/debian bookworm-updates main
deb [signed-by=/usr/share/keyrings/archive.gpg] http://deb.example/debian bookworm main
deb [signed-by=/usr/share/keyrings/archive.gpg] http://deb2.example/debian bookworm main
deb http://security.example bookworm-security main
`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAptSourcesMissing(t *testing.T) {
	root := t.TempDir()
	if _, _, err := aptSources(root); err == nil || !strings.Contains(err.Error(), "no Debian release") {
		t.Errorf("no os-release: %v", err)
	}
}

func TestTreeSaysWhatIsMissing(t *testing.T) {
	t.Setenv("BATUTA_CACHE", t.TempDir())
	t.Setenv("PATH", t.TempDir())
	_, err := DebianTree(context.Background(), "nginx-light")
	if !errors.Is(err, ErrNoTree) || !strings.HasPrefix(err.Error(), "lab: no private Debian tree with nginx-light: ") || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v", err)
	}
	if _, err := DebianTree(context.Background(), "--hook"); err == nil || errors.Is(err, ErrNoTree) {
		t.Errorf("an option as a package: %v", err)
	}
}
