package director_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// timeline is what happens in a scenario.
type timeline struct {
	Duration float64
	Defect   string
	Setup    struct {
		Addrs, Mkdir, Ipvsadm []string
		Hosts, Files          map[string]string
		TrustBackends         bool `json:"trust_backends"`
	}
	Backends []map[string]json.RawMessage
	Events   []happening
}

type happening struct {
	At                           float64
	Label                        string
	Backend, State               string
	Set                          map[string]json.RawMessage
	Config, Touch, Remove, Write string
	Text, Hook, Ipvsadm, Verb    string
	RC, Sleep                    *float64
	AddrDel                      string `json:"addr_del"`
	AddrAdd                      string `json:"addr_add"`
}

// record is what happened, in the form of expected.json.
type record struct {
	Settled     []snapshot            `json:"settled"`
	Transitions []transition          `json:"transitions"`
	Checks      map[string][][]string `json:"check_invocations"`
	Alive       bool                  `json:"alive"`
	Log         string                `json:"log,omitempty"`
	Monitor     []string              `json:"monitorfile_head,omitempty"`
	Error       string                `json:"error,omitempty"`
}

type snapshot struct {
	T     float64 `json:"t"`
	Label string  `json:"label"`
	Table table   `json:"table"`
}

type table map[string]serviceRow

type serviceRow struct {
	Scheduler  string             `json:"scheduler"`
	Persistent *int               `json:"persistent,omitempty"`
	Netmask    string             `json:"netmask,omitempty"`
	Flags      string             `json:"schedflags,omitempty"`
	OnePacket  bool               `json:"ops,omitempty"`
	Reals      map[string]realRow `json:"reals"`
}

type realRow struct {
	Forward string `json:"forward"`
	Weight  int    `json:"weight"`
	Upper   int    `json:"upper,omitempty"`
	Lower   int    `json:"lower,omitempty"`
}

// transition is a change of the table, a call of a hook (exec), or a mail.
type transition struct {
	T       float64  `json:"t"`
	Op      string   `json:"op"`
	Service string   `json:"service,omitempty"`
	Real    string   `json:"real,omitempty"`
	Weight  *int     `json:"weight,omitempty"`
	Hook    string   `json:"hook,omitempty"`
	Argv    []string `json:"argv,omitempty"`
	Rcpt    []string `json:"rcpt,omitempty"`
	Subject []string `json:"subject,omitempty"`
}

// line is one line of the events file: changes of the table by the plane, and
// what hooks and the mail sink add.
type line struct {
	At      float64      `json:"at"`
	Kind    string       `json:"kind"`
	Changes []transition `json:"changes,omitempty"`
	Name    string       `json:"name,omitempty"`
	Argv    []string     `json:"argv,omitempty"`
	Rcpt    []string     `json:"rcpt,omitempty"`
	Subject string       `json:"subject,omitempty"`
}

func wallClock() float64 { return float64(time.Now().UnixMicro()) / 1e6 }

func appendLine(file string, l line) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	return errors.Join(err, f.Close())
}

// hookProgram is the test binary called as hook-NAME: it writes its arguments
// down, sleeps and exits as the files beside it say.
func hookProgram() int {
	self := filepath.Base(os.Args[0])
	dir := filepath.Dir(filepath.Dir(os.Args[0]))
	if err := appendLine(filepath.Join(dir, "events.jsonl"), line{At: wallClock(), Kind: "hook", Name: self, Argv: os.Args[1:]}); err != nil {
		return 99
	}
	setting := func(what string) float64 {
		b, _ := os.ReadFile(filepath.Join(dir, self+"."+what)) // none: 0
		n, _ := strconv.ParseFloat(string(b), 64)
		return n
	}
	time.Sleep(time.Duration(setting("sleep") * float64(time.Second)))
	return int(setting("rc"))
}

// stage is the place where one scenario is played, inside its namespaces.
type stage struct {
	scenario, dir, program string
	timeline               timeline
	backends               map[string]*backend
	director               *exec.Cmd
	exited                 chan struct{}
	began                  float64 // the director's first change of the table
	mailLock               sync.Mutex
}

// play is the body of the child process.
func play(scenario, dir, program string) (record, error) {
	s := &stage{scenario: scenario, dir: dir, program: program, backends: map[string]*backend{}}
	b, err := os.ReadFile(filepath.Join(scenario, "timeline.json"))
	if err != nil {
		return record{}, err
	}
	if err := json.Unmarshal(b, &s.timeline); err != nil {
		return record{}, err
	}
	if err := s.prepare(); err != nil {
		return record{}, err
	}
	if err := s.start(); err != nil {
		return record{}, err
	}
	return s.run()
}

func (s *stage) path(name string) string { return filepath.Join(s.dir, name) }

var hookRule = regexp.MustCompile(`@HOOK:([a-z0-9-]+)@`)

// fill puts the run's own paths into a text.
func (s *stage) fill(text string) string {
	return hookRule.ReplaceAllStringFunc(strings.ReplaceAll(text, "@DIR@", s.dir), func(m string) string {
		p := s.path("bin/hook-" + hookRule.FindStringSubmatch(m)[1])
		_ = os.Symlink("test", p) // the second time it is there
		return p
	})
}

func (s *stage) prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	hosts := "127.0.0.1 localhost\n::1 localhost\n"
	for name, ip := range s.timeline.Setup.Hosts {
		hosts += ip + " " + name + "\n"
	}
	for file, text := range map[string]string{"/etc/hosts": hosts, "/etc/resolv.conf": "nameserver 127.0.0.53\noptions timeout:1 attempts:1\n",
		"/etc/nsswitch.conf": "hosts: files\n"} {
		own := s.path("ns" + strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(own, []byte(text), 0o644); err != nil {
			return err
		}
		real, err := filepath.EvalSymlinks(file)
		if err != nil {
			continue // the machine has none
		}
		if err := unix.Mount(own, real, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	for _, a := range s.timeline.Setup.Addrs {
		if err := address(netlink.AddrAdd, a); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := errors.Join(os.Mkdir(s.path("bin"), 0o755), os.Symlink(self, s.path("bin/test"))); err != nil {
		return err
	}
	for _, d := range s.timeline.Setup.Mkdir {
		if err := os.MkdirAll(s.path(d), 0o755); err != nil {
			return err
		}
	}
	for name, text := range s.timeline.Setup.Files {
		if err := os.WriteFile(s.path(name), []byte(s.fill(text)), 0o755); err != nil {
			return err
		}
	}
	certs := certificates{dir: s.dir, mu: new(sync.Mutex)}
	for _, raw := range s.timeline.Backends {
		b, err := newBackend(raw, certs, s.mailed)
		if err != nil {
			return err
		}
		s.backends[b.spec.Name] = b
	}
	if s.timeline.Setup.TrustBackends {
		if err := s.trust(); err != nil {
			return err
		}
	}
	for _, command := range s.timeline.Setup.Ipvsadm {
		if err := ipvsadm(s.path("table.json"), strings.Fields(command)); err != nil {
			return err
		}
	}
	return nil
}

// trust makes the system's trust store of the certificates "tls" and "ip-...".
func (s *stage) trust() error {
	var all []byte
	files, err := filepath.Glob(s.path("*.crt"))
	for _, f := range files {
		if n := filepath.Base(f); n == "tls.crt" || strings.HasPrefix(n, "ip-") {
			b, e := os.ReadFile(f)
			all, err = append(all, b...), errors.Join(err, e)
		}
	}
	return errors.Join(err, os.WriteFile(s.path("trust.pem"), all, 0o644),
		os.Setenv("SSL_CERT_FILE", s.path("trust.pem")), os.Setenv("SSL_CERT_DIR", "/nonexistent"))
}

func address(do func(netlink.Link, *netlink.Addr) error, text string) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(text)
	if err != nil {
		return err
	}
	a.Flags = unix.IFA_F_NODAD
	return do(lo, a)
}

// config writes a version of the configuration.
func (s *stage) config(version string) error {
	b, err := os.ReadFile(filepath.Join(s.scenario, version))
	if err != nil {
		return err
	}
	return os.WriteFile(s.path("ldirectord.cf"), []byte(s.fill(string(b))), 0o644)
}

func (s *stage) start() error {
	if err := s.config("ldirectord.cf"); err != nil {
		return err
	}
	old := time.Now().Add(-100 * time.Second)
	if err := os.Chtimes(s.path("ldirectord.cf"), old, old); err != nil {
		return err
	}
	log, err := os.Create(s.path("output"))
	if err != nil {
		return err
	}
	s.director = exec.Command(s.program, "director", "--run-dir", s.path("run"), "--dry-run",
		"--events", s.path("events.jsonl"), "--table", s.path("table.json"), s.path("ldirectord.cf"))
	s.director.Stdout, s.director.Stderr = log, log
	// The race detector keeps a program for a second at its exit: too long for hooks.
	s.director.Env = append(os.Environ(), "HOSTNAME=director.test", "GORACE=atexit_sleep_ms=0")
	if err := s.director.Start(); err != nil {
		return err
	}
	s.exited = make(chan struct{})
	go func() {
		_ = s.director.Wait() // how it ended is seen in the record
		close(s.exited)
	}()
	for range 3000 {
		if lines := s.lines(); len(lines) > 0 {
			s.began = lines[0].At
			return nil
		}
		if !s.alive() {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	out, _ := os.ReadFile(s.path("output"))
	return fmt.Errorf("the director changed nothing: %s", out)
}

func (s *stage) alive() bool {
	select {
	case <-s.exited:
		return false
	default:
		return true
	}
}

// lines reads the events file.
func (s *stage) lines() []line {
	f, err := os.Open(s.path("events.jsonl"))
	if err != nil {
		return nil
	}
	defer f.Close()
	var out []line
	for in := bufio.NewScanner(f); in.Scan(); {
		var l line
		if json.Unmarshal(in.Bytes(), &l) == nil {
			out = append(out, l)
		}
	}
	return out
}

func (s *stage) mailed(rcpt []string, subject string) {
	s.mailLock.Lock()
	defer s.mailLock.Unlock()
	_ = appendLine(s.path("events.jsonl"), line{At: wallClock(), Kind: "mail", Rcpt: rcpt, Subject: subject})
}

func (s *stage) until(second float64) {
	time.Sleep(time.Duration((s.began + second - wallClock()) * float64(time.Second)))
}

func (s *stage) snapshot(label string) (snapshot, error) {
	t, err := readTable(s.path("table.json"))
	return snapshot{T: wallClock() - s.began, Label: label, Table: t}, err
}

// run lets the events happen and writes down what came of them.
func (s *stage) run() (r record, err error) {
	note := func(label string) {
		shot, e := s.snapshot(label)
		r.Settled, err = append(r.Settled, shot), errors.Join(err, e)
	}
	for _, h := range s.timeline.Events {
		s.until(h.At)
		note(fmt.Sprintf("before second %v", h.At))
		if e := s.happen(h); e != nil {
			return r, fmt.Errorf("second %v: %w", h.At, e)
		}
	}
	s.until(s.timeline.Duration)
	r.Alive = s.alive()
	note("at the end")
	_ = s.director.Process.Signal(syscall.SIGTERM) // it may have ended by a verb
	select {
	case <-s.exited:
	case <-time.After(20 * time.Second):
		return r, errors.New("the director does not stop")
	}
	note("after the stop")
	s.collect(&r)
	return r, err
}

func (s *stage) happen(h happening) error {
	var err error
	try := func(e error) { err = errors.Join(err, e) }
	if h.Backend != "" {
		b := s.backends[h.Backend]
		if h.Set != nil {
			try(b.set(h.Set))
		}
		if h.State != "" {
			try(b.become(h.State))
		}
	}
	if h.Config != "" {
		try(s.config(h.Config))
	}
	if h.Touch != "" {
		try(os.WriteFile(s.path(h.Touch), nil, 0o644))
	}
	if h.Remove != "" {
		try(os.Remove(s.path(h.Remove)))
	}
	if h.Write != "" {
		try(os.WriteFile(s.path(h.Write), []byte(h.Text), 0o644))
	}
	for what, v := range map[string]*float64{"rc": h.RC, "sleep": h.Sleep} {
		if h.Hook != "" && v != nil {
			try(os.WriteFile(s.path("hook-"+h.Hook+"."+what), fmt.Append(nil, *v), 0o644))
		}
	}
	if h.Ipvsadm != "" {
		try(ipvsadm(s.path("table.json"), strings.Fields(h.Ipvsadm)))
	}
	if h.AddrDel != "" {
		try(address(netlink.AddrDel, h.AddrDel))
	}
	if h.AddrAdd != "" {
		try(address(netlink.AddrAdd, h.AddrAdd))
	}
	switch h.Verb {
	case "reload", "force-reload":
		try(s.director.Process.Signal(syscall.SIGHUP))
	case "stop":
		try(s.director.Process.Signal(syscall.SIGTERM))
	}
	return err
}

// collect makes transitions of the events.
func (s *stage) collect(r *record) {
	r.Checks = map[string][][]string{}
	clean := func(words []string) []string {
		for i := range words {
			words[i] = strings.ReplaceAll(words[i], s.dir, "@DIR@")
		}
		return words
	}
	seen := map[string]bool{}
	for _, l := range s.lines() {
		at := l.At - s.began
		switch {
		case l.Kind == "table":
			for _, c := range l.Changes {
				c.T = at
				r.Transitions = append(r.Transitions, c)
			}
		case strings.HasPrefix(l.Name, "hook-check"):
			if k := l.Name + strings.Join(l.Argv, " "); !seen[k] {
				seen[k] = true
				r.Checks[l.Name] = append(r.Checks[l.Name], clean(l.Argv))
			}
		case l.Kind == "hook":
			r.Transitions = append(r.Transitions, transition{T: at, Op: "exec", Hook: strings.TrimPrefix(l.Name, "hook-"), Argv: clean(l.Argv)})
		case l.Kind == "mail":
			r.Transitions = append(r.Transitions, transition{T: at, Op: "mail", Rcpt: l.Rcpt, Subject: []string{"Subject: " + l.Subject}})
		}
	}
	log, _ := os.ReadFile(s.path("log"))
	out, _ := os.ReadFile(s.path("output"))
	r.Log = strings.ReplaceAll(string(log)+string(out), s.dir, "@DIR@")
	monitor, _ := os.ReadFile(s.path("monitor.log"))
	r.Monitor = strings.Split(strings.TrimSpace(string(monitor)), "\n")
}
