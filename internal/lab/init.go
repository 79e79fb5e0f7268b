package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nodePath is where a node's commands are looked for: batuta comes first.
const nodePath = privateDir + "/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// serveArg makes Init go on with its second half.
const serveArg = "serve-node"

// Init is the hidden verb `batuta lab init`: PID 1 of a node. It runs twice in
// the same process. The first time it builds the node and gives up the powers
// that reach beyond it; the second time, after an exec that makes this final
// for every thread, it runs jobs for the caller until it is killed.
func Init(args []string) error {
	c, err := connFromFile(os.NewFile(controlFD, "init"))
	if err != nil {
		return fmt.Errorf("`batuta lab init` is started by the lab itself: %w", err)
	}
	if len(args) > 0 && args[0] == serveArg {
		return newInit(c).serve()
	}
	return c.Send(initReply{Kind: replyFailed, Error: becomeNode(c).Error()})
}

// becomeNode returns only with an error.
func becomeNode(c *conn) error {
	var cfg bootConfig
	if _, err := c.Receive(&cfg); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(cfg.Name)); err != nil {
		return fmt.Errorf("hostname: %w", err)
	}
	if err := buildRoot(cfg); err != nil {
		return err
	}
	if err := setUpNetwork(cfg); err != nil {
		return err
	}
	fd, err := c.file()
	if err != nil {
		return err
	}
	runtime.LockOSThread() // capabilities belong to threads; exec keeps this one's
	if err := dropPowers(); err != nil {
		return err
	}
	if err := unix.Dup3(fd, controlFD, 0); err != nil {
		return fmt.Errorf("keep the socket: %w", err)
	}
	env := []string{"PATH=" + nodePath, "HOME=/root", "LANG=C.UTF-8"}
	err = syscall.Exec(privateDir+"/bin/batuta", []string{"batuta", "lab", "init", serveArg}, env)
	return fmt.Errorf("exec: %w", err)
}

// file duplicates the socket's descriptor, close-on-exec, at a number that is
// not controlFD.
func (c *conn) file() (int, error) {
	raw, err := c.c.SyscallConn()
	if err != nil {
		return -1, err
	}
	dup := -1
	var derr error
	if err := raw.Control(func(fd uintptr) {
		dup, derr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, controlFD+1)
	}); err != nil {
		return -1, err
	}
	return dup, derr
}

// dropPowers takes from the node what would act on the whole machine: loading
// modules, setting the clock, device nodes (a disk!), the kernel's log.
func dropPowers() error {
	for _, power := range []uintptr{
		unix.CAP_SYS_MODULE, unix.CAP_SYS_RAWIO, unix.CAP_SYS_TIME, unix.CAP_MKNOD,
		unix.CAP_SYSLOG, unix.CAP_WAKE_ALARM, unix.CAP_MAC_ADMIN, unix.CAP_MAC_OVERRIDE,
	} {
		// EPERM: the host's root had not got it in the first place.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, power, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("give up capability %d: %w", power, err)
		}
	}
	return nil
}

// nodeSettings are the kernel's network settings of a plain Debian machine.
// They are written out because a new namespace may inherit the host's
// (net.core.devconf_inherit_init_net).
var nodeSettings = map[string]string{
	"ipv4/ip_forward":                       "0",
	"ipv4/ip_local_port_range":              "32768 60999",
	"ipv4/conf/all/rp_filter":               "0",
	"ipv4/conf/default/rp_filter":           "2", // loose: systemd's 50-default.conf
	"ipv4/conf/all/arp_ignore":              "0",
	"ipv4/conf/default/arp_ignore":          "0",
	"ipv4/conf/all/arp_announce":            "0",
	"ipv4/conf/default/arp_announce":        "0",
	"ipv4/conf/default/arp_notify":          "0",
	"ipv4/conf/default/accept_local":        "0",
	"ipv4/conf/default/accept_redirects":    "1",
	"ipv4/conf/default/forwarding":          "0",
	"ipv6/conf/default/forwarding":          "0",
	"ipv6/conf/default/disable_ipv6":        "0",
	"ipv4/conf/default/route_localnet":      "0",
	"ipv4/conf/default/proxy_arp":           "0",
	"ipv4/conf/default/send_redirects":      "1",
	"ipv4/conf/default/secure_redirects":    "1",
	"ipv4/conf/default/log_martians":        "0",
	"ipv4/conf/default/promote_secondaries": "1", // systemd's 50-default.conf, too
}

func setUpNetwork(cfg bootConfig) error {
	for name, value := range nodeSettings {
		if err := setting(name, value); err != nil {
			return err
		}
		// Cards that came before the defaults were set.
		if card, ok := strings.CutPrefix(name, "ipv4/conf/default/"); ok {
			for _, i := range cfg.Interfaces {
				if err := setting("ipv4/conf/"+i.Name+"/"+card, value); err != nil {
					return err
				}
			}
		}
	}
	if cfg.Forward {
		if err := setting("ipv4/ip_forward", "1"); err != nil {
			return err
		}
	}
	if err := setUpLink("lo", nil); err != nil {
		return err
	}
	for _, i := range cfg.Interfaces {
		// As on a wire between machines: full checksums, frames of MTU size.
		// veth would otherwise carry neither, and hide wrong ones.
		if err := disableOffload(i.Name); err != nil {
			return err
		}
		if err := setUpLink(i.Name, i.Addresses); err != nil {
			return err
		}
	}
	if cfg.Gateway.IsValid() {
		route := &netlink.Route{Gw: cfg.Gateway.AsSlice()}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("default route via %s: %w", cfg.Gateway, err)
		}
	}
	return nil
}

// setting writes one file below /proc/sys/net; a kernel without it has no need.
func setting(name, value string) error {
	err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0)
	if err = ignore(err, os.ErrNotExist); err != nil {
		return fmt.Errorf("set net/%s to %s: %w", name, value, err)
	}
	return nil
}

func setUpLink(name string, addresses []netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	for _, p := range addresses {
		ip := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ip}); err != nil {
			return fmt.Errorf("add %s to %s: %w", p, name, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// ifreq is struct ifreq of linux/if.h with a pointer in its union.
type ifreq struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

// disableOffload switches transmit checksums off, and with them the
// segmentation that depends on them (linux/ethtool.h, ETHTOOL_STXCSUM).
func disableOffload(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	off := struct{ cmd, value uint32 }{cmd: unix.ETHTOOL_STXCSUM}
	req := ifreq{data: unsafe.Pointer(&off)}
	copy(req.name[:unix.IFNAMSIZ-1], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return fmt.Errorf("switch checksum offload of %s off: %w", name, errno)
	}
	return nil
}

// nodeInit runs jobs.
type nodeInit struct {
	c *conn

	mu   sync.Mutex
	jobs map[int]int // job ID to process
	ids  map[int]int // process to job ID
}

func newInit(c *conn) *nodeInit {
	return &nodeInit{c: c, jobs: map[int]int{}, ids: map[int]int{}}
}

func (n *nodeInit) serve() error {
	// Caught and forgotten rather than ignored: jobs would inherit that.
	signal.Notify(make(chan os.Signal, 1), unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT)
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	go func() {
		for range children {
			n.reap()
		}
	}()
	if err := n.c.Send(initReply{Kind: replyReady}); err != nil {
		return err
	}
	for {
		var req initRequest
		files, err := n.c.Receive(&req)
		if err != nil {
			return nil // the caller is gone: power off
		}
		reply := n.do(req, files)
		closeAll(files)
		if reply.Kind == replyUnset {
			continue
		}
		if err := n.c.Send(reply); err != nil {
			return err
		}
	}
}

func (n *nodeInit) do(req initRequest, files []*os.File) initReply {
	reply := initReply{ID: req.ID}
	var err error
	switch req.Op {
	case initExec:
		// start answers itself: its reply must precede that of the exit.
		if err = n.start(req, files); err == nil {
			return initReply{}
		}
		reply.Kind = replyFailed
	case initLinks:
		reply.Kind = replyLinks
		reply.Links, err = links()
	case initSignal:
		n.mu.Lock()
		if pid, ok := n.jobs[req.ID]; ok {
			_ = unix.Kill(-pid, syscall.Signal(req.Signal)) // a job is a session of its own
		}
		n.mu.Unlock()
		return initReply{}
	default:
		reply.Kind, err = replyFailed, fmt.Errorf("init: no such operation: %d", req.Op)
	}
	if err != nil {
		reply.Error = err.Error()
	}
	return reply
}

// start runs a job in a session of its own.
func (n *nodeInit) start(req initRequest, files []*os.File) error {
	if len(req.Args) == 0 || len(files) != maxFiles {
		return errors.New("a job needs a command and three files")
	}
	program, err := exec.LookPath(req.Args[0])
	if err != nil {
		return err
	}
	attr := &syscall.ProcAttr{
		Dir: req.Dir,
		Env: append(os.Environ(), req.Env...),
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: req.TTY, Ctty: 0},
	}
	if attr.Dir == "" {
		attr.Dir = "/"
	}
	for _, f := range files {
		attr.Files = append(attr.Files, f.Fd())
	}
	n.mu.Lock() // reap waits until the job is known
	defer n.mu.Unlock()
	pid, err := syscall.ForkExec(program, req.Args, attr)
	if err != nil {
		return fmt.Errorf("start %s: %w", program, err)
	}
	n.jobs[req.ID], n.ids[pid] = pid, req.ID
	return n.c.Send(initReply{Kind: replyStarted, ID: req.ID, PID: pid})
}

// reap collects every process that ended: jobs, and orphans of jobs.
func (n *nodeInit) reap() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		n.mu.Lock()
		id, isJob := n.ids[pid]
		delete(n.ids, pid)
		delete(n.jobs, id)
		n.mu.Unlock()
		if !isJob {
			continue
		}
		code := status.ExitStatus()
		if status.Signaled() {
			code = 128 + int(status.Signal())
		}
		if n.c.Send(initReply{Kind: replyExited, ID: id, Code: code}) != nil {
			return // the caller is gone, and serve sees it, too
		}
	}
}

// links reports the node's interfaces, as its kernel has them now.
func links() ([]LinkStatus, error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	var out []LinkStatus
	for _, link := range all {
		if link.Attrs().Flags&net.FlagLoopback != 0 {
			continue
		}
		s := LinkStatus{Device: link.Attrs().Name, Carrier: link.Attrs().OperState == netlink.OperUp}
		addresses, err := netlink.AddrList(link, netlink.FAMILY_V4)
		if err != nil {
			return nil, err
		}
		for _, a := range addresses {
			s.Addresses = append(s.Addresses, a.IPNet.String())
		}
		out = append(out, s)
	}
	return out, nil
}
