package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/lab"
	"github.com/batuta-ha/batuta/internal/model"
)

// netns stages the cluster in the lab: every machine has a kernel network, a
// file system and processes of its own, the director's packets go through the
// kernel, and a crash is a power loss.
type netns struct {
	Options
	lab *lab.Lab
	log *nodeLog
}

func newNetns(ctx context.Context, o Options) (stage, error) {
	t := lab.Tutorial()
	for _, n := range []model.NodeName{first, second} {
		t.Machine(string(n)).Service = nil // started by the story
	}
	had := map[string]string{}
	for _, name := range []string{"ha.cf", "authkeys", "haresources", "ldirectord.cf"} {
		text, err := tutorialFile(name)
		if err != nil {
			return nil, err
		}
		if name == "ha.cf" {
			text = paced(text, o.Duration)
		}
		had[name] = text
	}
	dir := filepath.Join(o.Dir, "ha.d")
	if err := writeHaD(dir, had); err != nil {
		return nil, err
	}
	log, err := newNodeLog(filepath.Join(o.Dir, "output.log"))
	if err != nil {
		return nil, err
	}
	l, err := lab.Start(ctx, lab.Options{Topology: t, Binary: o.Binary, HaD: os.DirFS(dir), Log: log.line})
	if err != nil {
		return nil, errors.Join(err, log.close())
	}
	return &netns{Options: o, lab: l, log: log}, nil
}

func (s *netns) mode() string { return "netns" }

func (s *netns) url() string { return "http://" + lab.TutorialVIP + "/.testpage" }

func (s *netns) describe() []string {
	return []string{
		"The tutorial's cluster in network namespaces, with its own files:",
		"",
		"  client ── eth0 ──┬── eth0  lvs01  eth1 ──┬── web1 10.240.0.20   10.240.0.0/24",
		"  10.1.0.10/24     │   VIP 10.1.0.100      ├── web2 10.240.0.21",
		"                   └── eth0  lvs02  eth1 ──┼── web3 10.240.1.20   10.240.1.0/24",
		"       outside           heartbeat: eth1   └── web4 10.240.1.21",
		"                                        inside",
		"",
	}
}

func (s *netns) reals() []string { return []string{"web1", "web2", "web3", "web4"} }

func (s *netns) load(ctx context.Context, out io.Writer) (func() error, error) {
	// The process is told to end with TERM, so that it reports its last answers.
	cmd := s.lab.Node("client").Command(context.WithoutCancel(ctx), "batuta", "demo", "load", "--url", s.url(), "--want", lab.PageText)
	cmd.Stdout, cmd.Stderr = out, s.log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the load at the client: %w", err)
	}
	return func() error {
		<-ctx.Done()
		return errors.Join(terminate(cmd), cmd.Wait())
	}, nil
}

func (s *netns) status(ctx context.Context, n model.NodeName) (st api.Status, err error) {
	text, err := s.lab.Node(string(n)).Output(ctx, "batuta", "status", "--json")
	if err != nil {
		return st, fmt.Errorf("status of %s: %w", n, err)
	}
	if err := json.Unmarshal([]byte(text), &st); err != nil {
		return st, fmt.Errorf("status of %s: %w", n, err)
	}
	return st, nil
}

func (s *netns) startNode(_ context.Context, n model.NodeName) error {
	node := s.lab.Node(string(n))
	node.SetService("batuta", "run", "--ha.d", "/etc/ha.d")
	return node.StartService()
}

func (s *netns) stopNode(ctx context.Context, n model.NodeName) error {
	return s.lab.Node(string(n)).StopService(ctx)
}

func (s *netns) crash(_ context.Context, n model.NodeName) error { return s.lab.Kill(string(n)) }

func (s *netns) setReal(ctx context.Context, name string, up bool) error {
	if up {
		return s.lab.Node(name).StartService()
	}
	return s.lab.Node(name).StopService(ctx)
}

// linger lets `batuta lab` work on the cluster until ctx ends or `down` is said.
func (s *netns) linger(ctx context.Context) (err error) {
	server, err := lab.NewServer(s.RunDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	fmt.Fprintf(s.Account, "\nThe cluster stays up until Ctrl-C. Look around from elsewhere:\n\n"+
		"  batuta lab --run-dir %[1]s status\n  batuta lab --run-dir %[1]s exec lvs02 -- batuta status\n", s.RunDir)
	return server.Serve(ctx, s.lab)
}

func (s *netns) close() error { return errors.Join(s.lab.Close(), s.log.close()) }

// nodeLog keeps what the machines' services print.
type nodeLog struct {
	mu    sync.Mutex
	file  *os.File
	began time.Time
}

func newNodeLog(path string) (*nodeLog, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("keep the programs' output: %w", err)
	}
	return &nodeLog{file: f, began: time.Now()}, nil
}

func (l *nodeLog) line(node, line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.file, "%8.3f %s: %s\n", time.Since(l.began).Seconds(), node, line)
}

// Write takes what commands print on standard error.
func (l *nodeLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file.Write(b)
}

func (l *nodeLog) close() error { return l.file.Close() }

// terminate asks a command to end; one that has ended already is no error.
func terminate(cmd *lab.Cmd) error {
	err := cmd.Signal(syscall.SIGTERM)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}
