package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/batuta-ha/batuta/internal/model"
)

// seeds adds the files of testdata that match.
func seeds(f *testing.F, patterns ...string) {
	f.Helper()
	for _, p := range patterns {
		files, err := filepath.Glob("testdata/" + p)
		if err != nil || len(files) == 0 {
			f.Fatalf("%s: %v, %v", p, files, err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(string(b))
		}
	}
}

// checkPlaces holds each problem's place against the file.
func checkPlaces(t *testing.T, file string, list []Problem) {
	t.Helper()
	lines := strings.Split(file, "\n")
	for _, p := range list {
		if p.Line < 1 || p.Col < 1 || p.Line > len(lines) || p.Col > len(lines[p.Line-1])+1 || p.Severity == SeverityNone || p.Text == "" {
			t.Errorf("%q: place or text of %#v", file, p)
		}
		if strings.ContainsAny(p.String(), "\n\r") {
			t.Errorf("%q: more than one line: %q", file, p)
		}
	}
}

func FuzzLdirectord(f *testing.F) {
	seeds(f, "*.cf", "ldirectord/edge/*.cf", "ldirectord/wild/*.cf", "tutorial/ldirectord*.cf")
	f.Fuzz(func(t *testing.T, file string) {
		d, list := readDirector(t, strings.ReplaceAll(file, "->", "-")) // ranges make long tables
		checkPlaces(t, strings.ReplaceAll(strings.ReplaceAll(file, "->", "-"), "@DIR@", "/scratch"), list)
		if Failed(list) {
			return
		}
		checkServices(t, file, d)
	})
}

// checkServices holds what an accepted file means against what a director
// relies on.
func checkServices(t *testing.T, file string, d *model.Director) {
	t.Helper()
	keys := map[model.ServiceKey]bool{}
	for _, s := range d.Services {
		k := s.Virtual.Key
		if again, err := model.ParseServiceKey(k.String()); err != nil || again != k || keys[k] {
			t.Errorf("%q: service %s: %v", file, k, err)
		}
		keys[k] = true
		if s.FailureCount < 1 || s.CheckInterval <= 0 || s.CheckJitter > s.CheckInterval/2 {
			t.Errorf("%q: %+v", file, s)
		}
		for _, r := range s.Reals {
			if !r.Addr.IsValid() || model.FamilyOf(r.Addr.Addr()) != k.Family() || r.Forward == model.ForwardNone || r.Weight < 0 {
				t.Errorf("%q: real server %+v of %s", file, r, k)
			}
			if _, err := model.ParseSteps(r.Target.Steps); err != nil || strings.ContainsAny(strings.ReplaceAll(r.Target.Headers, "\n", ""), "\r\x00") {
				t.Errorf("%q: target %+v: %v", file, r.Target, err)
			}
		}
	}
}

func FuzzHaCf(f *testing.F) {
	seeds(f, "*.ha.cf", "tutorial/ha.cf")
	f.Fuzz(func(t *testing.T, file string) {
		c, list := Reader{Files: machine(map[string]string{"ha.cf": file}), Host: testHost(), Starting: true}.Load("ha.cf")
		checkPlaces(t, file, list)
		if h := c.Heartbeat; !Failed(list) && (h.Keepalive <= 0 || h.DeadTime <= 2*h.Keepalive || h.InitDead < 0 || len(h.Media) == 0 || len(h.Nodes) == 0) {
			t.Errorf("%q: %+v", file, h)
		}
	})
}

func FuzzAuthkeys(f *testing.F) {
	seeds(f, "*.authkeys", "tutorial/authkeys")
	f.Fuzz(func(t *testing.T, file string) {
		c, list := Reader{Files: machine(map[string]string{"authkeys": file})}.Load("authkeys")
		checkPlaces(t, file, list)
		if k := c.Heartbeat.Keys; !Failed(list) && k.Keys[k.Send].Method == model.AuthNone {
			t.Errorf("%q: %+v", file, k)
		}
	})
}

func FuzzHaresources(f *testing.F) {
	seeds(f, "*.haresources", "tutorial/haresources*")
	f.Fuzz(func(t *testing.T, file string) {
		c, list := Reader{Files: machine(map[string]string{"haresources": file})}.Load("haresources")
		checkPlaces(t, file, list)
		keys := map[string]bool{}
		for _, g := range c.Groups {
			if len(g.Resources) == 0 || g.Owner == "" || keys[g.Key()] {
				t.Errorf("%q: %+v", file, g)
			}
			keys[g.Key()] = true
		}
	})
}

// BenchmarkLdirectord reads a file of the size of a large site: 2,277 virtual
// services and 37,205 real servers.
func BenchmarkLdirectord(b *testing.B) {
	file := largeFile(2277, 37205)
	b.SetBytes(int64(len(file)))
	for b.Loop() {
		d, list := readDirector(b, file)
		if len(list) != 0 || len(d.Services) != 2277 {
			b.Fatal(len(d.Services), text(list[:min(len(list), 3)]))
		}
	}
}

// BenchmarkLdirectordBad is the same with a problem in each line.
func BenchmarkLdirectordBad(b *testing.B) {
	file := strings.ReplaceAll(largeFile(2277, 37205), "masq", "mask")
	for b.Loop() {
		if _, list := readDirector(b, file); len(list) != 37205 {
			b.Fatal(len(list))
		}
	}
}

func largeFile(services, reals int) string {
	var s strings.Builder
	s.WriteString("checktimeout=3\ncheckinterval=1\nquiescent=yes\n")
	for i, left := 0, reals; i < services; i++ {
		fmt.Fprintf(&s, "virtual=10.%d.%d.1:80\n", i/256, i%256)
		n := left / (services - i)
		for j := range n {
			fmt.Fprintf(&s, "\treal=10.%d.%d.%d:80 masq 1\n", 100+i/256, i%256, j+1)
		}
		left -= n
		s.WriteString("\tservice=http\n\trequest=\"index.html\"\n\treceive=\"^OK\"\n\tscheduler=wrr\n")
	}
	return s.String()
}
