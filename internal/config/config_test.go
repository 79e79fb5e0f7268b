package config

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/batuta-ha/batuta/internal/model"
)

var rewrite = flag.Bool("rewrite", false, "write what is found as the wanted golden files")

// addresses lets cmp compare what has no exported fields.
var addresses = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})

// testHost is lvs01 of the tutorial, with the names that were known when the
// verdicts of testdata/ldirectord were recorded.
func testHost() model.Host {
	names := map[string]string{
		"web1": "10.1.1.11", "web2": "10.1.1.12", "web3.example.test": "10.1.1.13",
		"vip.example.test": "10.1.1.1", "v6only.example.test": "2001:db8::77", "sorry.example.test": "10.1.1.99",
	}
	ports := map[string]uint16{
		"tcp/http": 80, "tcp/https": 443, "tcp/imap2": 143, "tcp/domain": 53, "udp/domain": 53, "udp/radius": 1812,
	}
	return model.Host{
		NodeName: "lvs01",
		Interfaces: []model.Interface{
			{Name: "lo", Addrs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8")}},
			{Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.1.0.11/24")}, Broadcast: netip.MustParseAddr("10.1.0.255")},
			{Name: "eth1", Addrs: []netip.Prefix{netip.MustParsePrefix("10.240.0.11/24"), netip.MustParsePrefix("10.240.1.11/24")}, Broadcast: netip.MustParseAddr("10.240.0.255")},
		},
		LookupAddr: func(name string) ([]netip.Addr, error) {
			if a, ok := names[name]; ok {
				return []netip.Addr{netip.MustParseAddr(a)}, nil
			}
			return nil, errors.New("no such host")
		},
		LookupPort: func(network, service string) (uint16, error) {
			if p, ok := ports[network+"/"+service]; ok {
				return p, nil
			}
			return 0, errors.New("unknown port")
		},
	}
}

// machine is a file system with the directories that files of testdata name.
func machine(files map[string]string) fs.FS {
	m := fstest.MapFS{
		"var/log":     {Mode: fs.ModeDir | 0o755},
		"scratch/dir": {Mode: fs.ModeDir | 0o755},
	}
	for name, text := range files {
		m[strings.TrimPrefix(name, "/")] = &fstest.MapFile{Data: []byte(text), Mode: 0o600}
	}
	return m
}

// readDirector reads text as /etc/ha.d/ldirectord.cf. @DIR@ is a scratch
// directory.
func readDirector(t testing.TB, text string) (*model.Director, []Problem) {
	t.Helper()
	text = strings.ReplaceAll(text, "@DIR@", "/scratch")
	r := Reader{Files: machine(map[string]string{"etc/ha.d/ldirectord.cf": text}), Dir: "/etc/ha.d", Host: testHost()}
	return r.Director("ldirectord.cf")
}

func testdata(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// text prints problems as check-config does.
func text(list []Problem) string {
	var b strings.Builder
	for _, p := range list {
		fmt.Fprintln(&b, p)
	}
	return b.String()
}

// count counts problems of a severity.
func count(list []Problem, s Severity) int {
	n := 0
	for _, p := range list {
		if p.Severity == s {
			n++
		}
	}
	return n
}

func nodeNames(names ...string) []model.NodeName {
	out := make([]model.NodeName, len(names))
	for i, n := range names {
		out[i] = model.NodeName(n)
	}
	return out
}
