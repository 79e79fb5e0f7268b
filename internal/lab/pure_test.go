package lab

import (
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTutorialHaDIsByteForByte(t *testing.T) {
	for name, source := range map[string]string{
		"ha.cf": "ha.cf", "authkeys": "authkeys", "ldirectord.cf": "ldirectord.cf",
		"haresources": "haresources-with-gateways",
	} {
		want, err := TutorialFiles.ReadFile("tutorial/" + source)
		if err != nil {
			t.Fatal(err)
		}
		got, err := fs.ReadFile(TutorialHaD(), name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestAuthkeysIsAlwaysPrivate(t *testing.T) {
	files, err := hadFiles(fstest.MapFS{
		"authkeys":             {Data: []byte("auth 1\n"), Mode: 0o644},
		"ha.cf":                {Data: []byte("node a\n"), Mode: 0o444},
		"resource.d/apache":    {Data: []byte("#!/bin/sh\n"), Mode: 0o755},
		"resource.d/README":    {Mode: 0o640},
		"conf/ldirectord.conf": {Mode: 0o600},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint32{}
	for name, f := range files {
		got[name] = f.Mode
	}
	want := map[string]uint32{
		"/etc/ha.d/authkeys": 0o600, "/etc/ha.d/ha.cf": 0o644, "/etc/ha.d/resource.d/apache": 0o755,
		"/etc/ha.d/resource.d/README": 0o640, "/etc/ha.d/conf/ldirectord.conf": 0o600,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestHostsOfTheTutorial(t *testing.T) {
	drawing := Tutorial()
	want := `127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
10.1.0.10	client
10.1.0.1	lvs01
10.240.0.2	lvs01-eth1
10.240.1.2	lvs01-eth1-1
10.1.0.2	lvs02
10.240.0.3	lvs02-eth1
10.240.1.3	lvs02-eth1-1
10.240.0.20	web1
10.240.0.21	web2
10.240.1.20	web3
10.240.1.21	web4
`
	if diff := cmp.Diff(want, string(drawing.hosts())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := drawing.Machine("web3").Gateway.String(); got != "10.240.1.1" {
		t.Errorf("gateway of web3: %s", got)
	}
	if err := drawing.validate(); err != nil {
		t.Error(err)
	}
}

func TestDrawingsThatCannotBeBuilt(t *testing.T) {
	for _, tt := range []struct {
		change func(*Topology)
		want   string
	}{
		{func(d *Topology) { d.Machines[1].Name = "a-rather-long-name" }, `machine "a-rather-long-name": names are unique, at most 10 of`},
		{func(d *Topology) { d.Machines[1].Name = "web1" }, `machine "web1": names are unique`},
		{func(d *Topology) { d.Machines[1].Name = "inside" }, `machine "inside": names are unique`},
		{func(d *Topology) { d.Bridges[0] = "inside" }, `bridge "inside": names are unique`},
		{func(d *Topology) { d.Machines[0].Interfaces[0].Bridge = "moon" }, `client eth0: no bridge "moon"`},
		{func(d *Topology) { d.Machines[1].Interfaces[1].Name = "eth0" }, `lvs01: interface "eth0": names are unique`},
		{func(d *Topology) { d.Machines[0].Files = map[string]File{"/usr/x": {}} }, "client: file /usr/x: only /etc and /var"},
		{func(d *Topology) { d.Machines[0].Files = map[string]File{"/etc/../x": {}} }, "client: file /etc/../x: only /etc and /var"},
	} {
		drawing := Tutorial()
		tt.change(&drawing)
		if err := drawing.validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got  %v\nwant %s", err, tt.want)
		}
	}
}

func TestWebServer(t *testing.T) {
	for _, tt := range []struct {
		path, body string
		status     int
		want       string
	}{
		{path: "/.testpage", status: http.StatusOK, want: "test page\nweb1\n"},
		{path: "/", body: "sorry", status: http.StatusOK, want: "sorry\nweb1\n"},
		{path: "/nowhere", status: http.StatusNotFound, want: "404 page not found\n"},
	} {
		rec := httptest.NewRecorder()
		Web{Name: "web1", Body: tt.body}.ServeHTTP(rec, httptest.NewRequest("GET", tt.path, nil))
		if rec.Code != tt.status || rec.Body.String() != tt.want || rec.Header().Get("X-Real-Server") != "web1" {
			t.Errorf("%s: %d %q %v", tt.path, rec.Code, rec.Body, rec.Header())
		}
	}
}

func TestPcapForm(t *testing.T) {
	got := pcapRecord(pcapHeader(), time.Unix(2, 3), []byte("frame"), 9)
	want := "\x4d\x3c\xb2\xa1\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x00\x00\x01\x00\x00\x00" +
		"\x02\x00\x00\x00\x03\x00\x00\x00\x05\x00\x00\x00\x09\x00\x00\x00frame"
	if diff := cmp.Diff([]byte(want), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestCopyTreeKeepsModesAndLinks(t *testing.T) {
	from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "to")
	for _, dir := range []string{"a/b", "skip/x"} {
		if err := os.MkdirAll(filepath.Join(from, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(from, "a/b/secret"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(from, "a"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("b/secret", filepath.Join(from, "a/link")); err != nil {
		t.Fatal(err)
	}
	if err := copyTree(from, to, "skip"); err != nil {
		t.Fatal(err)
	}
	var got []string
	err := filepath.WalkDir(to, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		rel, _ := filepath.Rel(to, p)
		got = append(got, rel+" "+info.Mode().String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{". drwxr-xr-x", "a drwxr-x---", "a/b drwxr-xr-x", "a/b/secret -rw-------", "a/link Lrwxrwxrwx"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLargeMessagesArrive(t *testing.T) {
	a, b := connPair(t)
	want := bootConfig{Name: "lvs01", Files: map[string]File{"/etc/big": {Data: make([]byte, 150<<10)}}}
	go func() { _ = a.Send(want) }()
	var got bootConfig
	if _, err := b.Receive(&got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(len(want.Files["/etc/big"].Data), len(got.Files["/etc/big"].Data)); diff != "" {
		t.Error(diff)
	}
	want.Files["/etc/big"] = File{Data: make([]byte, maxMessage)}
	if err := a.Send(want); err == nil || !strings.Contains(err.Error(), "the limit is") {
		t.Errorf("too large: %v", err)
	}
}

// Whatever arrives is an error, not a panic.
func TestNonsenseIsRefused(t *testing.T) {
	a, b := connPair(t)
	if _, err := a.c.Write([]byte("no json")); err != nil {
		t.Fatal(err)
	}
	var got bootConfig
	if _, err := b.Receive(&got); err == nil {
		t.Error("nonsense was accepted")
	}
	a.Close()
	if _, err := b.Receive(&got); err == nil {
		t.Error("no error at the end")
	}
}

func connPair(t *testing.T) (a, b *conn) {
	t.Helper()
	fa, fb, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	if a, err = connFromFile(fa); err != nil {
		t.Fatal(err)
	}
	if b, err = connFromFile(fb); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}
