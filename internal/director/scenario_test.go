package director_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// The test binary plays three parts: the tests, the process that plays one
// scenario in its own namespaces, and the hook programs of scenarios.
func TestMain(m *testing.M) {
	if strings.HasPrefix(filepath.Base(os.Args[0]), "hook-") {
		os.Exit(hookProgram())
	}
	if scenario := os.Getenv("BATUTA_SCENARIO"); scenario != "" {
		r, err := play(scenario, os.Getenv("BATUTA_SCENARIO_DIR"), os.Getenv("BATUTA_SCENARIO_PROGRAM"))
		if err != nil {
			r.Error = err.Error()
		}
		_ = json.NewEncoder(os.Stdout).Encode(r) // the parent misses it
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var updateScenarios = flag.Bool("update-scenarios", false, "write what Batuta does in scenarios with a defect into ours.json")

const (
	// atOnce scenarios are played at the same time: they mostly wait.
	atOnce = 16
	// startPhase ends before the first event of any scenario. ldirectord brings
	// every server in, out and in again meanwhile; we do not.
	startPhase = 3.5
	// later is how much later than the recording a change may come.
	later = 1.5
	// settleTime is the interval of checks in all scenarios, and a bit more.
	settleTime = 1.3
	// flash is how long ldirectord shows a server that it has not looked at.
	flash = 0.3
)

// ours is what Batuta does where the recording shows a defect.
type ours struct {
	Why     string     `json:"why"`
	Refused string     `json:"refused,omitempty"` // what the configuration is refused for
	Settled []snapshot `json:"settled,omitempty"`
}

// requireRoot leaves a test out without root, except in CI.
func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("BATUTA_REQUIRE_ROOT") == "1" {
		t.Fatal("this test needs root for namespaces")
	}
	t.Skip("needs root for namespaces")
}

// TestScenarios plays what was recorded from ldirectord with the real program,
// each scenario in namespaces of its own, and compares tables, transitions,
// calls of hooks and checks, and mails.
func TestScenarios(t *testing.T) {
	requireRoot(t)
	if testing.Short() {
		t.Skip("takes a minute")
	}
	program := filepath.Join(t.TempDir(), "batuta")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../../cmd/batuta").CombinedOutput(); err != nil {
		t.Fatalf("build the program: %v\n%s", err, out)
	}
	dirs, err := filepath.Glob("testdata/scenarios/*/timeline.json")
	if err != nil || len(dirs) == 0 {
		t.Fatal("no scenarios", err)
	}
	results := make([]chan record, len(dirs))
	turn := make(chan struct{}, atOnce)
	for i, d := range dirs {
		results[i] = make(chan record, 1)
		run := t.TempDir()
		if err := os.Chmod(run, 0o755); err != nil {
			t.Fatal(err)
		}
		go func() {
			turn <- struct{}{}
			results[i] <- stageFor(t, filepath.Dir(d), run, program)
			<-turn
		}()
	}
	passed, defects := 0, 0
	for i, d := range dirs {
		dir := filepath.Dir(d)
		got := <-results[i]
		ok := t.Run(filepath.Base(dir), func(t *testing.T) { judge(t, dir, got) })
		if ok {
			passed++
		}
		if _, err := os.Stat(filepath.Join(dir, "ours.json")); err == nil {
			defects++
		}
	}
	t.Logf("%d of %d scenarios passed; in %d of them the recording shows a defect that we do not share", passed, len(dirs), defects)
}

// stageFor starts the process that plays a scenario.
func stageFor(t *testing.T, scenario, dir, program string) record {
	runtime.LockOSThread() // Pdeathsig is the death of the thread
	defer runtime.UnlockOSThread()
	self, err := os.Executable()
	if err != nil {
		return record{Error: err.Error()}
	}
	scenario, _ = filepath.Abs(scenario) // only fails without a working directory
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), "BATUTA_SCENARIO="+scenario, "BATUTA_SCENARIO_DIR="+dir, "BATUTA_SCENARIO_PROGRAM="+program)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var r record
	if err := errors.Join(err, json.Unmarshal(out, &r)); err != nil {
		r.Error = fmt.Sprintf("%v\n%s", err, stderr.String())
	}
	return r
}

func read(t *testing.T, file string, into any) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

func judge(t *testing.T, dir string, got record) {
	defer func() {
		if t.Failed() {
			t.Logf("the director's log:\n%s", got.Log)
		}
	}()
	var line timeline
	var want record
	var own ours
	read(t, filepath.Join(dir, "timeline.json"), &line)
	read(t, filepath.Join(dir, "expected.json"), &want)
	file := filepath.Join(dir, "ours.json")
	if _, err := os.Stat(file); err == nil {
		read(t, file, &own)
		t.Logf("ldirectord: %s. Batuta: %s", line.Defect, own.Why)
	}
	switch {
	case own.Refused != "":
		if !strings.Contains(got.Error, own.Refused) {
			t.Errorf("not refused for %q: %s", own.Refused, got.Error)
		}
		return
	case got.Error != "":
		t.Fatal(got.Error)
	case line.Defect != "" && *updateScenarios:
		writeOurs(t, file, own.Why, want, got)
		return
	}
	if stopped := slices.ContainsFunc(line.Events, func(h happening) bool { return h.Verb == "stop" }); !got.Alive && !stopped {
		t.Error("the director died")
	}
	switch {
	case own.Settled != nil:
		compareSettled(t, line, own.Settled, got.Settled)
	case line.Defect != "": // it shows elsewhere than in the tables
		compareSettled(t, line, want.Settled, got.Settled)
	default:
		compare(t, line, want, got)
	}
}

// writeOurs writes what we do in a scenario with a defect, if it differs.
func writeOurs(t *testing.T, file, why string, want, got record) {
	if cmp.Equal(tables(want.Settled), tables(got.Settled)) {
		return
	}
	if why == "" {
		why = "TODO"
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "{\n \"why\": %q,\n \"settled\": [\n", why)
	for i, s := range got.Settled {
		s.T = want.Settled[i].T
		j, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "  %s", j)
		if i < len(got.Settled)-1 {
			b.WriteByte(',')
		}
		b.WriteByte('\n')
	}
	b.WriteString(" ]\n}\n")
	if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func tables(s []snapshot) []table {
	out := make([]table, len(s))
	for i := range s {
		out[i] = s[i].Table
	}
	return out
}

// compareSettled compares the tables that had time to settle: a second after
// the event before.
func compareSettled(t *testing.T, line timeline, want, got []snapshot) {
	t.Helper()
	if len(want) != len(got) {
		t.Fatalf("%d snapshots, want %d", len(got), len(want))
	}
	for i := range want {
		if i > 0 && i < len(line.Events) && line.Events[i].At < line.Events[i-1].At+settleTime {
			continue
		}
		if d := cmp.Diff(want[i].Table, got[i].Table, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("the table at %q, second %.1f (-ldirectord +batuta)\n%s", want[i].Label, got[i].T, d)
		}
	}
}

// compare holds a run against the recording.
func compare(t *testing.T, line timeline, want, got record) {
	compareSettled(t, line, want.Settled, got.Settled)
	if d := cmp.Diff(want.Checks, got.Checks, cmpopts.EquateEmpty(), cmpopts.SortSlices(func(a, b []string) bool { return slices.Compare(a, b) < 0 })); d != "" {
		t.Errorf("arguments of check programs (-ldirectord +batuta)\n%s", d)
	}
	theirs, ours := byRow(want, line.Duration), byRow(got, line.Duration)
	for k, w := range theirs {
		compareRow(t, k, w, ours[k])
	}
	for k, g := range ours {
		if _, ok := theirs[k]; !ok {
			t.Errorf("%s: ldirectord changes nothing, batuta %v", k, g)
		}
	}
	if d := cmp.Diff(monitorHead(want.Monitor), monitorHead(got.Monitor)); want.Monitor != nil && d != "" {
		t.Errorf("monitorfile (-ldirectord +batuta)\n%s", d)
	}
	if d := cmp.Diff(calls(want, "exec"), calls(got, "exec"), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("calls of hooks (-ldirectord +batuta)\n%s", d)
	}
	if d := cmp.Diff(calls(want, "mail"), calls(got, "mail"), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("mails (-ldirectord +batuta)\n%s", d)
	}
}

// byRow sorts the changes between start and stop by the row that they are
// about, without flashes: ldirectord brings a server in and at once out again
// before it looks at it.
func byRow(r record, stop float64) map[string][]transition {
	out := map[string][]transition{}
	for _, c := range r.Transitions {
		if !strings.HasPrefix(c.Op, "real-") || c.T <= startPhase || c.T >= stop {
			continue
		}
		k := c.Service + " " + c.Real
		if n := len(out[k]); n > 0 && c.T-out[k][n-1].T < flash {
			out[k] = out[k][:n-1]
			if len(out[k]) == 0 {
				delete(out, k)
			}
			continue
		}
		out[k] = append(out[k], c)
	}
	return out
}

// monitorHead is a monitorfile without times, messages and repetition.
func monitorHead(lines []string) []string {
	var out []string
	for _, l := range lines {
		l = regexp.MustCompile(`^\[.*?\] \[.*?\]`).ReplaceAllString(l, "")
		l = regexp.MustCompile(`\[(up|down)\].*`).ReplaceAllString(l, "[$1]")
		out = append(out, l)
	}
	return slices.Compact(out)
}

func (c transition) String() string {
	if c.Weight == nil {
		return fmt.Sprintf("%s at %.1f", c.Op, c.T)
	}
	return fmt.Sprintf("%s weight %d at %.1f", c.Op, *c.Weight, c.T)
}

// compareRow wants the same changes of a row in the same order, and none of
// them later.
func compareRow(t *testing.T, row string, want, got []transition) {
	t.Helper()
	same := len(want) == len(got)
	for i := 0; same && i < len(want); i++ {
		same = want[i].Op == got[i].Op && cmp.Equal(want[i].Weight, got[i].Weight) && got[i].T < want[i].T+later
	}
	if !same {
		t.Errorf("%s: ldirectord %v, batuta %v", row, want, got)
	}
}

// calls are the hooks or mails after the start, in order; those of one instant
// by their text. A list of recipients in one RCPT counts as several.
func calls(r record, op string) []string {
	type call struct {
		second int
		text   string
	}
	var out []call
	for _, c := range r.Transitions {
		if c.Op != op || c.T <= startPhase {
			continue
		}
		rcpt := strings.ReplaceAll(strings.Join(c.Rcpt, ", "), ">, RCPT TO:<", ", ")
		out = append(out, call{int(c.T + 0.5), strings.Join(append(slices.Clone(c.Argv), c.Hook, rcpt, strings.Join(c.Subject, "")), " ")})
	}
	slices.SortStableFunc(out, func(a, b call) int {
		if d := a.second - b.second; d < -1 || d > 1 {
			return d
		}
		return strings.Compare(a.text, b.text)
	})
	var texts []string
	for _, c := range out {
		texts = append(texts, c.text)
	}
	return texts
}
