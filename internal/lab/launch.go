package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Where things are in the launcher's mount namespace.
const (
	hostDir   = "/host"   // the host's root
	diskDir   = "/disk"   // one folder a node: what survives a power loss
	nodeDir   = "/node"   // where init builds the node's root
	binaryBin = "/batuta" // the executable
)

// controlFD is the socket that the launcher and init inherit.
const controlFD = 3

// launcher is PID 1 of the lab: it holds the bridges and the disks, starts and
// kills nodes. It does one thing at a time.
type launcher struct {
	ctl   *conn
	nodes map[string]*machine
}

// machine is a node that has power.
type machine struct {
	init  *exec.Cmd
	ports []string // the switch's ends of its cables
}

// Launch is the hidden verb `batuta lab launch`. Start runs it in fresh
// namespaces; it returns when the caller is gone.
func Launch() error {
	ctl, err := connFromFile(os.NewFile(controlFD, "control"))
	if err != nil {
		return fmt.Errorf("`batuta lab launch` is started by the lab itself: %w", err)
	}
	var req launchRequest
	if _, err := ctl.Receive(&req); err != nil {
		return err
	}
	l := &launcher{ctl: ctl, nodes: map[string]*machine{}}
	if err := l.setUp(req); err != nil {
		return ctl.Send(switchReply{Error: err.Error()})
	}
	if err := ctl.Send(switchReply{}); err != nil {
		return err
	}
	for {
		var req switchRequest
		if _, err := ctl.Receive(&req); err != nil {
			return nil // the caller is gone; PID 1 ends, the kernel ends the rest
		}
		files, err := l.do(req)
		var reply switchReply
		if err != nil {
			reply.Error = err.Error()
		}
		err = ctl.Send(reply, files...)
		closeAll(files)
		if err != nil {
			return err
		}
	}
}

// setUp leaves the host's mounts for a tmpfs of the lab's own, with the host
// at hostDir, and builds the switch in this network namespace.
func (l *launcher) setUp(req launchRequest) error {
	// Slave, not private: what the host unmounts must not stay busy here.
	if err := mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return err
	}
	// The place is arbitrary: pivot_root takes the tmpfs off it again.
	const place = "/tmp"
	if err := mount("tmpfs", place, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return err
	}
	for _, dir := range []string{hostDir, diskDir, nodeDir, "/proc", "/sys"} {
		if err := os.Mkdir(place+dir, 0o755); err != nil {
			return err
		}
	}
	// Devices, and the libraries of an executable that is not static.
	for _, dir := range []string{"dev", "usr", "lib", "lib64"} {
		if err := os.Symlink("host/"+dir, filepath.Join(place, dir)); err != nil {
			return err
		}
	}
	if err := unix.PivotRoot(place, place+hostDir); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	// A bind mount keeps this very executable, whatever a rebuild does.
	if err := bindFile(filepath.Join(hostDir, req.Binary), binaryBin); err != nil {
		return err
	}
	// Bridged frames are none of a firewall's business here.
	for _, name := range []string{"iptables", "ip6tables", "arptables"} {
		_ = os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+name, []byte("0"), 0)
	}
	for _, name := range req.Bridges {
		if err := addBridge(name); err != nil {
			return err
		}
		if req.PcapDir == "" {
			continue
		}
		file := filepath.Join(hostDir, req.PcapDir, name+".pcap")
		if err := capture(name, file); err != nil {
			return err
		}
	}
	return nil
}

func addBridge(name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	noSnooping := false // a switch without IGMP querier would lose multicast heartbeats
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &noSnooping}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("add bridge %s: %w", name, err)
	}
	return netlink.LinkSetUp(bridge)
}

func (l *launcher) do(req switchRequest) ([]*os.File, error) {
	switch req.Op {
	case opBoot:
		return l.boot(req.Boot)
	case opKill:
		return nil, l.kill(req.Node)
	case opLink:
		return nil, setLink(port(req.Node, req.Device), req.Up)
	case opUnset:
	}
	return nil, fmt.Errorf("launcher: no such operation: %d", req.Op)
}

// boot starts a node's init in fresh namespaces, plugs its cables in, and
// returns the caller's end of the socket to it.
func (l *launcher) boot(cfg bootConfig) (_ []*os.File, err error) {
	if l.nodes[cfg.Name] != nil {
		return nil, fmt.Errorf("%s is up already", cfg.Name)
	}
	if err := makeDisk(cfg); err != nil {
		return nil, fmt.Errorf("disk of %s: %w", cfg.Name, err)
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	init := exec.Command(binaryBin, "lab", "init")
	init.Env = []string{}
	init.Stderr = os.Stderr
	init.ExtraFiles = []*os.File{theirs}
	init.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS |
			unix.CLONE_NEWPID | unix.CLONE_NEWIPC,
	}
	if err := init.Start(); err != nil {
		ours.Close()
		return nil, fmt.Errorf("start the init of %s: %w", cfg.Name, err)
	}
	m := &machine{init: init}
	l.nodes[cfg.Name] = m
	defer func() {
		if err != nil {
			ours.Close()
			_ = l.kill(cfg.Name)
		}
	}()
	for _, i := range cfg.Interfaces {
		p := port(cfg.Name, i.Name)
		if err := plugIn(p, i, init.Process.Pid, !cfg.Cut[i.Name]); err != nil {
			return nil, err
		}
		m.ports = append(m.ports, p)
	}
	// The configuration goes through the caller's end before the caller has it.
	dup, err := unix.FcntlInt(ours.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	c, err := connFromFile(os.NewFile(uintptr(dup), "init"))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	cfg.Files = nil // on the disk by now
	if err := c.Send(cfg); err != nil {
		return nil, err
	}
	return []*os.File{ours}, nil
}

// plugIn makes a cable between the switch and the node whose init is pid.
func plugIn(port string, i Interface, pid int, up bool) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = port
	veth := &netlink.Veth{
		LinkAttrs:        attrs,
		PeerName:         i.Name,
		PeerHardwareAddr: i.hardwareAddr(),
		PeerNamespace:    netlink.NsPid(pid),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add cable %s: %w", port, err)
	}
	bridge, err := netlink.LinkByName(i.Bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", i.Bridge, err)
	}
	if err := netlink.LinkSetMaster(veth, bridge); err != nil {
		return fmt.Errorf("plug %s into %s: %w", port, i.Bridge, err)
	}
	return setLink(port, up)
}

// setLink pulls or plugs a cable at the switch: the node loses or gains the
// carrier, as with a real one.
func setLink(port string, up bool) error {
	link, err := netlink.LinkByName(port)
	if err != nil {
		return fmt.Errorf("cable %s: %w", port, err)
	}
	if up {
		err = netlink.LinkSetUp(link)
	} else {
		err = netlink.LinkSetDown(link)
	}
	if err != nil {
		return fmt.Errorf("cable %s: %w", port, err)
	}
	return nil
}

// kill is a power loss. The order matters: a node's kernel part (addresses,
// ARP, eBPF programs) outlives its processes for some milliseconds, and would
// answer and forward in that time. So all its switch ports fall silent first,
// which takes microseconds; taking devices apart takes much longer.
func (l *launcher) kill(name string) error {
	m := l.nodes[name]
	if m == nil {
		return fmt.Errorf("%s is down already", name)
	}
	delete(l.nodes, name)
	var errs []error
	for _, p := range m.ports {
		errs = append(errs, silence(p))
	}
	// The end of a PID namespace's first process ends the whole namespace;
	// Wait returns when nobody is left in it.
	errs = append(errs, ignore(m.init.Process.Kill(), os.ErrProcessDone))
	for _, p := range m.ports {
		link, err := netlink.LinkByName(p)
		if err == nil {
			err = netlink.LinkDel(link)
		}
		if err != nil && !isGone(err) {
			errs = append(errs, fmt.Errorf("unplug %s: %w", p, err))
		}
	}
	_ = m.init.Wait() // "signal: killed"
	return errors.Join(errs...)
}

// isGone tells that an interface vanished by itself: the node's network
// namespace was gone first (its init had died) and took both ends with it.
func isGone(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV)
}

func ignore(err, harmless error) error {
	if errors.Is(err, harmless) {
		return nil
	}
	return err
}

// silence sets a bridge port to the state "disabled" (linux/if_bridge.h,
// BR_STATE_DISABLED): no frame passes either way.
func silence(port string) error {
	link, err := netlink.LinkByName(port)
	if err != nil {
		if isGone(err) {
			return nil
		}
		return fmt.Errorf("silence %s: %w", port, err)
	}
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(link.Attrs().Index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	info.AddRtAttr(nl.IFLA_BRPORT_STATE, []byte{0})
	req.AddData(info)
	_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	// ENETDOWN: the cable is pulled, there is nothing to silence.
	if err != nil && !errors.Is(err, unix.ENETDOWN) && !isGone(err) {
		return fmt.Errorf("silence %s: %w", port, err)
	}
	return nil
}

// hostPath is where the launcher and init see a path of the host.
func hostPath(p string) string {
	if p == "" {
		return hostDir
	}
	return filepath.Join(hostDir, strings.TrimPrefix(p, "/"))
}
