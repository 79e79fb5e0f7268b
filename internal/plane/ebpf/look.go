package ebpf

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Surroundings are facts about the machine that go with the plane, or against
// it. What cannot be found out is left out.
type Surroundings struct {
	First     []OtherProgram // programs that get packets before the plane's
	LRO       []string       // interfaces of the plane with large-receive-offload
	NoSockets string         // why clients on this machine are not balanced; "" if they are
}

// OtherProgram is one that is not the plane's.
type OtherProgram struct {
	Interface string
	Where     string // as bpftool says it: tcx_ingress, tcx_egress
	Name      string
	ID        uint32
}

// Look finds out what is around the plane pinned in dir ("" is DefaultDir).
func Look(dir string) (s Surroundings) {
	if dir == "" {
		dir = DefaultDir
	}
	ours := map[uint32]bool{} // also those of tables set aside
	pins, _ := filepath.Glob(filepath.Join(dir, "links", "*"))
	aside, _ := filepath.Glob(filepath.Join(dir, retiredPrefix+"*", "links", "*"))
	for _, pin := range append(aside, pins...) {
		if l, err := link.LoadPinnedLink(pin, nil); err == nil {
			if info, err := l.Info(); err == nil {
				ours[uint32(info.Program)] = true
			}
			_ = l.Close()
		}
	}
	for _, pin := range pins {
		number, hook, _ := strings.Cut(filepath.Base(pin), "-")
		where, ok := map[string]ebpf.AttachType{"ingress": ebpf.AttachTCXIngress, "egress": ebpf.AttachTCXEgress}[hook]
		ifindex, err := strconv.Atoi(number)
		if !ok || err != nil {
			continue
		}
		i, err := net.InterfaceByIndex(ifindex)
		if err != nil {
			continue
		}
		s.First = append(s.First, firstOn(i, hook, where, ours)...)
		if hook == "ingress" && hasLRO(i.Name) {
			s.LRO = append(s.LRO, i.Name)
		}
	}
	if sockets, _ := filepath.Glob(filepath.Join(dir, "links", socketPrefix+"*")); len(sockets) == 0 && len(pins) > 0 {
		s.NoSockets = "the kernel has refused what leads their sockets; batuta status says why"
		if _, err := cgroupRoot(); err != nil {
			s.NoSockets = err.Error()
		}
	}
	return s
}

// firstOn lists the programs before ours.
func firstOn(i *net.Interface, hook string, where ebpf.AttachType, ours map[uint32]bool) (first []OtherProgram) {
	q, err := link.QueryPrograms(link.QueryOptions{Target: i.Index, Attach: where})
	if err != nil {
		return nil
	}
	at := slices.IndexFunc(q.Programs, func(p link.AttachedProgram) bool { return ours[uint32(p.ID)] })
	for _, p := range q.Programs[:max(at, 0)] {
		o := OtherProgram{Interface: i.Name, Where: "tcx_" + hook, Name: fmt.Sprint("program ", p.ID), ID: uint32(p.ID)}
		if prog, err := ebpf.NewProgramFromID(p.ID); err == nil {
			if info, err := prog.Info(); err == nil {
				o.Name = info.Name
			}
			_ = prog.Close()
		}
		first = append(first, o)
	}
	return first
}

// hasLRO asks the driver (ETHTOOL_GFLAGS of linux/ethtool.h).
func hasLRO(name string) bool {
	const gflags, lro = 0x25, 1 << 15
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	value := struct{ cmd, data uint32 }{cmd: gflags}
	var req struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(req.name[:unix.IFNAMSIZ-1], name)
	req.data = unsafe.Pointer(&value)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	return errno == 0 && value.data&lro != 0
}
