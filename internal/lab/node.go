package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Node is a machine of a running lab.
type Node struct {
	Name    string
	lab     *Lab
	machine Machine

	mu      sync.Mutex // guards what follows
	session *session   // nil: no power
	cut     map[string]bool
	service *Cmd
}

// known refuses nodes that the drawing does not have.
func (n *Node) known() error {
	if n.cut == nil {
		return fmt.Errorf("lab: no node %q; there are %s", n.Name, strings.Join(n.lab.topology.names(), ", "))
	}
	return nil
}

// Machine returns the drawing's entry for this node.
func (n *Node) Machine() Machine {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.machine
}

// SetService changes the service that StartService and the next boot start;
// without arguments the node has none. A running one goes on.
func (n *Node) SetService(args ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.machine.Service = args
}

// BootID returns what /proc/sys/kernel/random/boot_id says on the node; empty
// while it is down.
func (n *Node) BootID() string {
	if s := n.current(); s != nil {
		return s.bootID
	}
	return ""
}

// Up tells whether the node has power and its init runs.
func (n *Node) Up() bool { return n.current() != nil }

// off tells that the drawing has the node, and that it has no power.
func (n *Node) off() bool { return n.known() == nil && !n.Up() }

// current is the session of a node that is up; nil otherwise.
func (n *Node) current() *session {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.session == nil || n.session.over() {
		return nil
	}
	return n.session
}

// powerOn boots the node, without waiting until it is up.
func (n *Node) powerOn() error {
	if err := n.known(); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.session != nil {
		if !n.session.over() {
			return fmt.Errorf("lab: %s is up already", n.Name)
		}
		if err := n.clear(); err != nil { // it went down by itself
			return err
		}
	}
	cfg := bootConfig{
		Name: n.Name, Root: n.machine.Root, BootID: newUUID(), Forward: n.machine.Role == RoleDirector,
		Interfaces: n.machine.Interfaces, Gateway: n.machine.Gateway, Cut: n.cut, Files: n.machine.Files,
	}
	files, err := n.lab.request(switchRequest{Op: opBoot, Node: n.Name, Boot: cfg})
	if err != nil {
		return err
	}
	if len(files) != 1 {
		closeAll(files)
		return fmt.Errorf("lab: the launcher sent %d files for %s", len(files), n.Name)
	}
	c, err := connFromFile(files[0])
	if err != nil {
		return err
	}
	n.session = newSession(n.Name, cfg.BootID, c)
	return nil
}

// ready waits until the node has booted, and starts its service.
func (n *Node) ready(ctx context.Context) error {
	n.mu.Lock()
	s := n.session
	n.mu.Unlock()
	if s == nil {
		return n.down()
	}
	select {
	case <-s.booted:
	case <-s.ended:
		return s.failure()
	case <-ctx.Done():
		return fmt.Errorf("lab: boot of %s: %w", n.Name, ctx.Err())
	}
	if len(n.Machine().Service) == 0 {
		return nil
	}
	return n.StartService()
}

func (n *Node) down() error { return fmt.Errorf("lab: %s: %w", n.Name, ErrDown) }

func (n *Node) kill() error {
	if err := n.known(); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.session == nil {
		return n.down()
	}
	return n.clear()
}

// clear takes the power and the session away; n.mu is held.
func (n *Node) clear() error {
	_, err := n.lab.request(switchRequest{Op: opKill, Node: n.Name})
	s := n.session
	n.session, n.service = nil, nil
	s.close()
	return err
}

// wait returns when the goroutines of the node's session have ended.
func (n *Node) wait() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.session != nil {
		n.session.close()
	}
}

func (n *Node) plug(in bool, interfaces []string) error {
	if err := n.known(); err != nil {
		return err
	}
	var all []string
	for _, i := range n.machine.Interfaces {
		all = append(all, i.Name)
	}
	if len(interfaces) == 0 {
		interfaces = all
	}
	for _, i := range interfaces {
		if !slices.Contains(all, i) {
			return fmt.Errorf("lab: %s has no interface %q; it has %s", n.Name, i, strings.Join(all, ", "))
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, i := range interfaces {
		if n.session != nil && !n.session.over() {
			if _, err := n.lab.request(switchRequest{Op: opLink, Node: n.Name, Device: i, Up: in}); err != nil {
				return err
			}
		}
		if in {
			delete(n.cut, i)
		} else {
			n.cut[i] = true
		}
	}
	return nil
}

// StartService starts the machine's service, as its boot does.
func (n *Node) StartService() error {
	if err := n.known(); err != nil {
		return err
	}
	n.mu.Lock()
	service := n.machine.Service
	running := n.service != nil && !n.service.exited()
	n.mu.Unlock()
	if len(service) == 0 {
		return fmt.Errorf("lab: %s has no service", n.Name)
	}
	if running {
		return fmt.Errorf("lab: %s: %s runs already", n.Name, strings.Join(service, " "))
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := n.Command(context.Background(), service...)
	cmd.Stdout, cmd.Stderr = w, w
	err = cmd.Start()
	w.Close()
	if err != nil {
		r.Close()
		return err
	}
	n.mu.Lock()
	n.service = cmd
	n.mu.Unlock()
	go func() {
		defer r.Close()
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			n.lab.log(n.Name, lines.Text())
		}
	}()
	return nil
}

// StopService sends SIGTERM to the service and waits until it has ended; when
// ctx ends first, the service is killed. A service that is not running is no
// error.
func (n *Node) StopService(ctx context.Context) error {
	if err := n.known(); err != nil {
		return err
	}
	n.mu.Lock()
	cmd := n.service
	n.mu.Unlock()
	if cmd == nil || cmd.exited() {
		return nil
	}
	if err := cmd.Signal(unix.SIGTERM); err != nil {
		return err
	}
	select {
	case <-cmd.job.done:
		return nil
	case <-ctx.Done():
		err := errors.Join(ctx.Err(), cmd.Signal(unix.SIGKILL))
		return fmt.Errorf("lab: stop the service of %s: %w", n.Name, err)
	}
}

// Service returns the service's current run; nil before the first.
func (n *Node) Service() *Cmd {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.service
}

// links asks the node for its interfaces.
func (s *session) links() ([]LinkStatus, error) {
	j, err := s.ask(&initRequest{Op: initLinks})
	if err != nil {
		return nil, err
	}
	reply, err := s.first(j)
	return reply.Links, err
}

func (n *Node) status() NodeStatus {
	st := NodeStatus{Name: n.Name, Role: n.machine.Role.String(), Service: "none"}
	var live []LinkStatus
	if s := n.current(); s != nil {
		st.Up, st.BootID = true, s.bootID
		live, _ = s.links() // none when it goes down at this moment
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, i := range n.machine.Interfaces {
		link := LinkStatus{Device: i.Name, Addresses: []string{}}
		if k := slices.IndexFunc(live, func(l LinkStatus) bool { return l.Device == i.Name }); k >= 0 {
			link = live[k]
		}
		link.Bridge, link.Cut = i.Bridge, n.cut[i.Name]
		st.Links = append(st.Links, link)
	}
	switch {
	case len(n.machine.Service) == 0:
	case n.service == nil || n.service.exited() && n.service.job.lost:
		st.Service = "stopped"
	case n.service.exited():
		st.Service = fmt.Sprintf("exited %d", n.service.ExitCode())
	default:
		st.Service = "running"
	}
	return st
}
