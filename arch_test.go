package batuta_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/batuta-ha/batuta/"

// room is one package of the house: its level, and what it may not touch.
// Imports go down only. Rooms of one level do not import each other unless
// `knows` names the neighbor, with the reason in a comment.
type room struct {
	level int
	pure  bool // no network, processes, clock, logging, global rand, goroutines
	knows []string
}

// rooms is the house of docs/ARCHITECTURE.md. A new room, or a new `knows`,
// is a decision: say why here and there.
var rooms = map[string]room{
	"internal/model": {level: 0, pure: true}, // nouns; standard library only

	"internal/config":    {level: 1, pure: true}, // text to model
	"internal/heartbeat": {level: 1, pure: true}, // wire codec, authentication, delivery, detector
	"internal/member":    {level: 1, pure: true}, // membership
	"internal/pair":      {level: 1, pure: true}, // haresources negotiation
	"internal/balance":   {level: 1, pure: true}, // desired table, difference
	"internal/sla":       {level: 1, pure: true}, // availability: statements and predictions
	"internal/doctor":    {level: 1, pure: true}, // facts about a machine to findings

	"internal/link":     {level: 2},                                        // heartbeat media
	"internal/agent":    {level: 2},                                        // resource agents
	"internal/fence":    {level: 2},                                        // a machine's reset before takeover
	"internal/check":    {level: 2, knows: []string{"internal/check/via"}}, // health checks; some go by the virtual address
	"internal/alert":    {level: 2},                                        // e-mail alerts
	"internal/announce": {level: 2},                                        // addresses and ARP
	"internal/journal":  {level: 2},                                        // events and states on disk
	"internal/logfile":  {level: 2},                                        // log files in the old programs' forms
	"internal/plane":    {level: 2},                                        // the contract of a data plane

	"internal/link/responder": {level: 2, knows: []string{"internal/link"}}, // its tests ask as links do; the kernel's answers when the daemon is silent: an eBPF program of its own
	"internal/check/via":      {level: 2},                                   // the way of checks by the virtual address: eBPF programs of its own

	"internal/plane/memory":    {level: 2, knows: []string{"internal/plane"}}, // implements the contract
	"internal/plane/ipvs":      {level: 2, knows: []string{"internal/plane"}}, // implements the contract
	"internal/plane/ebpf":      {level: 2, knows: []string{"internal/plane"}}, // implements the contract
	"internal/plane/proxy":     {level: 2, knows: []string{"internal/plane"}}, // implements the contract
	"internal/plane/planetest": {level: 2, knows: []string{"internal/plane"}}, // tests the contract

	"internal/messenger": {level: 3}, // loop: links in, cluster events out
	"internal/crm":       {level: 3}, // loop: cluster events in, resources moved
	"internal/director":  {level: 3}, // loop: checks in, table out

	"internal/beat": {level: 4}, // the messenger in a process of its own

	"internal/api": {level: 4}, // HTTP on the Unix socket

	"internal/node": {level: 5},                                  // composition root
	"internal/sim":  {level: 5},                                  // two nodes in virtual time
	"internal/lab":  {level: 5},                                  // namespaces test-bed
	"internal/demo": {level: 5, knows: []string{"internal/lab"}}, // shows a cluster, in the lab where root allows it

	"internal/story": {level: 5}, // plays the test scripts of the pure rooms
	"internal/rig":   {level: 5}, // namespaces, root and the program, for tests

	"internal/cli": {level: 6, knows: nil}, // one file per verb
	"cmd/batuta":   {level: 7},             // flags, signals, argv[0]
}

// forbidden names what a pure room may not import, with the reason.
var forbidden = map[string]string{
	"net":           "a decider does no network I/O (net/netip is fine)",
	"net/http":      "a decider does no network I/O",
	"os":            "a decider receives an fs.FS",
	"os/exec":       "a decider starts no process",
	"os/signal":     "signals belong to cmd",
	"syscall":       "a decider makes no system call",
	"log":           "a decider returns what is worth saying",
	"log/slog":      "a decider returns what is worth saying",
	"math/rand":     "chance comes in as a seeded *rand.Rand from math/rand/v2",
	"sync":          "a decider runs on its caller's goroutine",
	"sync/atomic":   "a decider runs on its caller's goroutine",
	"context":       "a decider does not wait",
	"runtime":       "a decider does not know where it runs",
	"testing":       "only tests import testing",
	"crypto/rand":   "chance comes in as a seeded *rand.Rand",
	"unsafe":        "not needed to decide",
	"embed":         "a decider has no files of its own",
	"path/filepath": "a decider sees an fs.FS: use path",
}

// forbiddenCalls are selectors that a pure room may not use.
var forbiddenCalls = map[string]string{
	"time.Now":   "the caller passes now",
	"time.Since": "the caller passes now",
	"time.Until": "the caller passes now",
	"time.Sleep": "a decider does not wait",
	"time.After": "a decider does not wait",
	"rand.IntN":  "chance comes in as a seeded *rand.Rand",
	"rand.N":     "chance comes in as a seeded *rand.Rand",
	"rand.Int":   "chance comes in as a seeded *rand.Rand",
}

// loops are the packages whose goroutines and timers live in loop.go only.
var loops = []string{"internal/messenger", "internal/crm", "internal/director"}

// badNames are package names that say nothing.
var badNames = []string{"util", "utils", "common", "helper", "helpers", "types", "manager", "misc", "base"}

func TestHouse(t *testing.T) {
	fset := token.NewFileSet()
	documented := map[string]bool{}
	seen := map[string]bool{}
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if n := d.Name(); p != "." && (strings.HasPrefix(n, ".") || n == "testdata" || n == "node_modules" || n == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		dir := path.Dir(filepath.ToSlash(p))
		if dir == "." || dir == "bpf" {
			return nil
		}
		f, err := parser.ParseFile(fset, p, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		test := strings.HasSuffix(p, "_test.go")
		if slices.Contains(badNames, f.Name.Name) {
			t.Errorf("%s: package name %q says nothing", p, f.Name.Name)
		}
		if f.Doc != nil && !test {
			documented[dir] = true
		}
		r, ok := rooms[dir]
		if !ok {
			if !seen[dir] {
				t.Errorf("%s: a room that the house does not know; add it to arch_test.go and docs/ARCHITECTURE.md", dir)
			}
			seen[dir] = true
			return nil
		}
		if !test {
			seen[dir] = true
		}
		for _, im := range f.Imports {
			name, _ := strconv.Unquote(im.Path.Value)
			checkImport(t, p, dir, r, name, test)
		}
		if test {
			return nil
		}
		inspect(t, fset, p, dir, r, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir := range seen {
		if !documented[dir] {
			t.Errorf("%s: no package comment", dir)
		}
	}
	for dir := range rooms {
		if _, err := os.Stat(dir); err == nil && !seen[dir] {
			t.Errorf("%s: a room without content; remove it from arch_test.go", dir)
		}
	}
}

func checkImport(t *testing.T, file, dir string, r room, name string, test bool) {
	t.Helper()
	if r.level == 0 && strings.Contains(strings.Split(name, "/")[0], ".") && !test {
		t.Errorf("%s imports %s: model imports the standard library only", file, name)
	}
	if why, bad := forbidden[name]; bad && r.pure && !test {
		t.Errorf("%s imports %s: %s", file, name, why)
	}
	rel, ours := strings.CutPrefix(name, module)
	if !ours || rel == dir {
		return
	}
	other, ok := rooms[rel]
	if !ok {
		if rel != "bpf" {
			t.Errorf("%s imports %s, which is no room of the house", file, rel)
		}
		return
	}
	if other.level < r.level || slices.Contains(r.knows, rel) {
		return
	}
	// Contract suites, the player of scripts and the rig are made to be imported by tests.
	if test && (rel == "internal/plane/planetest" || rel == "internal/story" || rel == "internal/rig") {
		return
	}
	t.Errorf("%s (level %d) imports %s (level %d): imports go down only, and neighbors meet in model", file, r.level, rel, other.level)
}
