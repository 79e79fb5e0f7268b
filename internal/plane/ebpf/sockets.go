package ebpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// sockets is what leads clients on the director itself (bpf/socket.c):
// programs on a control group, for all processes within. Where the machine has
// none of version 2 these clients reach what listens on the director alone.
type sockets struct {
	links []link.Link
	why   string // why there are none; "" if there are
}

// socketPrefix begins the names of their pins.
const socketPrefix = "socket-"

// socketHooks says which program is for what.
var socketHooks = []struct {
	name  string
	where ebpf.AttachType
}{
	// What ends a connection comes before what opens one.
	{socketProgRelease, ebpf.AttachCgroupInetSockRelease},
	{socketProgRecvmsg4, ebpf.AttachCGroupUDP4Recvmsg},
	{socketProgRecvmsg6, ebpf.AttachCGroupUDP6Recvmsg},
	{socketProgGetpeername4, ebpf.AttachCgroupInet4GetPeername},
	{socketProgGetpeername6, ebpf.AttachCgroupInet6GetPeername},
	{socketProgConnect4, ebpf.AttachCGroupInet4Connect},
	{socketProgConnect6, ebpf.AttachCGroupInet6Connect},
	{socketProgSendmsg4, ebpf.AttachCGroupUDP4Sendmsg},
	{socketProgSendmsg6, ebpf.AttachCGroupUDP6Sendmsg},
}

// openSockets attaches the programs, or brings those that are there up to
// date. All else works without them.
func openSockets(o Options, t *tables) *sockets {
	s := &sockets{}
	if err := s.attach(o, t); err != nil {
		s.why = err.Error()
		s.close()
		_ = removeSockets(filepath.Join(o.Dir, "links")) // half of them would be worse than none
	}
	return s
}

func (s *sockets) attach(o Options, t *tables) error {
	group := o.Cgroup
	if group == "" {
		var err error
		if group, err = cgroupRoot(); err != nil {
			return err
		}
	}
	cookie, err := namespaceCookie()
	if err != nil {
		return err
	}
	spec, err := loadSocket()
	if err != nil {
		return err
	}
	if err := t.variables(spec, false); err != nil {
		return err
	}
	if err := spec.Variables[socketVarNetnsCookie].Set(cookie); err != nil {
		return err
	}
	c, err := t.collection(spec)
	if err != nil {
		return fmt.Errorf("the kernel refuses the programs: %w", err)
	}
	defer c.Close()
	for _, h := range socketHooks {
		pin := filepath.Join(o.Dir, "links", socketPrefix+h.name)
		l, err := adoptLink(pin, 0, c.Programs[h.name])
		if err == nil && l == nil {
			if l, err = link.AttachCgroup(link.CgroupOptions{Path: group, Attach: h.where, Program: c.Programs[h.name]}); err == nil {
				if err = l.Pin(pin); err != nil {
					_ = l.Close()
				}
			}
		}
		if err != nil {
			return fmt.Errorf("attach %s to %s: %w", h.name, group, err)
		}
		s.links = append(s.links, l)
	}
	return nil
}

// collection loads a program's object onto the tables.
func (t *tables) collection(spec *ebpf.CollectionSpec) (*ebpf.Collection, error) {
	shared := map[string]*ebpf.Map{}
	for name, m := range t.replacements() {
		if s, ok := spec.Maps[name]; ok {
			s.MaxEntries, shared[name] = m.MaxEntries(), m
		}
	}
	return ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
}

// cgroupRoot is where control groups of version 2 are mounted: all processes
// are below.
func cgroupRoot() (string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		before, after, _ := strings.Cut(line, " - ")
		f := strings.Fields(before)
		if strings.HasPrefix(after, "cgroup2 ") && len(f) > 4 {
			return f[4], nil
		}
	}
	return "", errors.New("no control groups of version 2 are mounted")
}

// namespaceCookie is the number by which programs know the caller's network
// namespace (SO_NETNS_COOKIE, Linux 5.14).
func namespaceCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	n, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("ask for the network namespace's cookie: %w", err)
	}
	return n, nil
}

// String is for Info.
func (s *sockets) String() string {
	if s.why != "" {
		return "clients on this machine are not balanced: " + s.why
	}
	return "clients on this machine by their sockets"
}

// close lets go of the links; pinned ones stay attached.
func (s *sockets) close() {
	for _, l := range s.links {
		_ = l.Close()
	}
	s.links = nil
}

// removeSockets takes the programs off that are pinned in a directory of
// links, at once: without a pin alone the kernel does it when it finds time.
func removeSockets(dir string) error {
	pins, err := filepath.Glob(filepath.Join(dir, socketPrefix+"*"))
	for _, pin := range pins {
		l, e := link.LoadPinnedLink(pin, nil)
		if e == nil {
			e = errors.Join(l.Detach(), l.Close())
		}
		if r := os.Remove(pin); r != nil && !errors.Is(r, fs.ErrNotExist) {
			e = errors.Join(e, r)
		}
		err = errors.Join(err, e)
	}
	return err
}
