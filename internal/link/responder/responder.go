// Package responder has the kernel answer for its machine when the daemon does
// not. What comes in are the media of ha.cf, the keys and the node's name; what
// goes out is an eBPF program (bpf/responder.c) on the interfaces of those
// media, which answers questions of other nodes, and the name of this run of
// the machine. It lives on over the daemon's death and is adopted by the next
// one. The package never asks anybody, and decides nothing.
package responder

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/model"
)

// DefaultDir is where the attachments are pinned, in a directory for each node
// and network namespace. Removing it takes the programs off.
const DefaultDir = "/sys/fs/bpf/batuta-responder"

// ErrNoMedium is returned by Open where no medium is UDP: a serial line has no kernel to ask.
var ErrNoMedium = errors.New("no medium is bcast, mcast or ucast")

// Options says for whom to answer, and where.
type Options struct {
	Node  model.NodeName
	Media []model.Medium
	Keys  model.Keyring
	Dir   string     // "" is DefaultDir
	Sink  model.Sink // told of interfaces on which it cannot answer; nil for nobody
	NoTCX bool       // attach as on kernels before 6.6, which have no tcx
}

// Responder is the program on the interfaces of one node.
type Responder struct {
	o       Options
	dir     string // of this node's pins
	run     heartbeat.Run
	objects respondObjects
	net     *netlink.Handle
	ready   chan struct{}

	mu       sync.Mutex
	attached map[int]link.Link // by ifindex; nil values with clsact
	places   map[respondPlaceKey]respondPlace
	trouble  map[string]string // what has been said of an interface
}

// Open attaches the program to the interfaces of the media, or takes over what
// an earlier daemon of this node has left there, without a moment in which
// nobody answers. The error says what this machine or process lacks.
func Open(o Options) (_ *Responder, err error) {
	if o.Dir == "" {
		o.Dir = DefaultDir
	}
	if o.Sink == nil {
		o.Sink = func(model.Event) {}
	}
	if len(ports(o.Media)) == 0 {
		return nil, ErrNoMedium
	}
	namespace, err := namespaceName()
	if err != nil {
		return nil, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("the identity of this run of the machine: %w", err)
	}
	r := &Responder{o: o, ready: make(chan struct{}), attached: map[int]link.Link{}, places: map[respondPlaceKey]respondPlace{}, trouble: map[string]string{},
		dir: filepath.Join(o.Dir, namespace+"-"+strings.ToLower(string(o.Node))),
		// A namespace that is made anew has lost its addresses as a machine has.
		run: heartbeat.RunOf(strings.TrimSpace(string(boot)), namespace, strings.ToLower(string(o.Node)))}
	defer func() {
		if err != nil {
			_ = r.Close()
		}
	}()
	if err := onBPF(o.Dir); err != nil {
		return nil, err
	}
	_ = rlimit.RemoveMemlock() // matters to kernels before 5.11 only
	if err := loadRespondObjects(&r.objects, nil); err != nil {
		return nil, fmt.Errorf("load the program (it needs root, or CAP_BPF and CAP_NET_ADMIN): %w", err)
	}
	if err := r.introduce(); err != nil {
		return nil, err
	}
	if err := r.Rekey(o.Keys); err != nil {
		return nil, err
	}
	if r.net, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return nil, err
	}
	r.refresh()
	if len(r.attached) == 0 {
		return nil, errors.New("the program is on no interface")
	}
	r.sweep()
	return r, nil
}

// ports are those that beats come to, by interface.
func ports(media []model.Medium) map[string][]uint16 {
	m := map[string][]uint16{}
	for _, x := range media {
		switch x.Kind {
		case model.Broadcast, model.Multicast, model.Unicast:
			m[x.Interface] = append(m[x.Interface], x.Peer.Port())
		case model.MediumNone, model.Serial, model.Ping, model.PingGroup:
		}
	}
	return m
}

// namespaceName tells the network namespaces of one run of a machine apart.
func namespaceName() (string, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("name the network namespace: %w", err)
	}
	defer unix.Close(fd)
	if cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err == nil {
		return strconv.FormatUint(cookie, 10), nil
	}
	var st unix.Stat_t // before Linux 5.14; an inode may be used again
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return "", fmt.Errorf("name the network namespace: %w", err)
	}
	return "i" + strconv.FormatUint(st.Ino, 10), nil
}

// onBPF tells whether dir is, or would be, on a BPF file system.
func onBPF(dir string) error {
	var st unix.Statfs_t
	at := dir
	err := unix.Statfs(at, &st)
	for errors.Is(err, fs.ErrNotExist) && at != "/" {
		at = filepath.Dir(at)
		err = unix.Statfs(at, &st)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	if uint32(st.Type) != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%s is on no BPF file system; mount one: mount -t bpf bpf /sys/fs/bpf", dir)
	}
	return nil
}

// introduce tells the program who it is.
func (r *Responder) introduce() error {
	node := heartbeat.FingerprintOf(r.o.Node)
	self := respondSelf{Node: binary.LittleEndian.Uint64(node[:])}
	for i := range self.Run {
		self.Run[i] = binary.LittleEndian.Uint64(r.run[8*i:])
	}
	if err := r.objects.Selves.Put(uint32(0), self); err != nil {
		return fmt.Errorf("tell the program its name: %w", err)
	}
	return nil
}

// Boot names the run of the machine for which the kernel answers.
func (r *Responder) Boot() string { return r.run.String() }

// Rekey replaces the keys: questions under any of them are answered.
func (r *Responder) Rekey(ring model.Keyring) error {
	have := heartbeat.QuestionKeys(ring)
	for i := range r.objects.Keys.MaxEntries() {
		var k respondKey
		if key, ok := have[uint8(i)]; ok {
			k = respondKey{Half: [2]uint64{binary.LittleEndian.Uint64(key[:]), binary.LittleEndian.Uint64(key[8:])}, Known: 1}
		}
		if err := r.objects.Keys.Put(i, k); err != nil {
			return fmt.Errorf("give the program key %d: %w", i, err)
		}
	}
	return nil
}

// Counters are what became of questions, since the daemon's start.
type Counters struct {
	Answered  uint64 // questions for this node
	ForOthers uint64 // passed on: for another node
	Malformed uint64 // passed on: another version, or without a checksum
	NoKey     uint64 // passed on: authkeys has no key of that number
	WrongKey  uint64 // passed on: the check is another one
	NoAddress uint64 // passed on: came to all, and the interface has no address to answer from
	Failed    uint64 // dropped: the kernel refused to change the packet
}

// Counters reads them.
func (r *Responder) Counters() (Counters, error) {
	var n [respondOutcomeOUTCOMES]uint64
	for i := range n {
		var each []uint64
		if err := r.objects.Outcomes.Lookup(uint32(i), &each); err != nil {
			return Counters{}, fmt.Errorf("read the program's counters: %w", err)
		}
		for _, x := range each {
			n[i] += x
		}
	}
	return Counters{Answered: n[respondOutcomeANSWERED], ForOthers: n[respondOutcomeFOR_OTHERS], Malformed: n[respondOutcomeMALFORMED],
		NoKey: n[respondOutcomeNO_KEY], WrongKey: n[respondOutcomeWRONG_KEY], NoAddress: n[respondOutcomeNO_ADDRESS], Failed: n[respondOutcomeFAILED]}, nil
}

// Interfaces tells on how many interfaces the program is.
func (r *Responder) Interfaces() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.attached)
}

// Close lets go of the program, which goes on answering.
func (r *Responder) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, l := range r.attached {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	r.attached = map[int]link.Link{}
	if r.net != nil {
		r.net.Close()
		r.net = nil
	}
	return errors.Join(append(errs, r.objects.Close())...)
}

// Remove takes the program off, and closes: nobody answers from now on. What
// was closed before is left to the next one that is opened.
func (r *Responder) Remove() error {
	r.mu.Lock()
	for i := range r.attached {
		r.detach(i)
	}
	r.mu.Unlock()
	return errors.Join(os.RemoveAll(r.dir), r.Close())
}

func (r *Responder) say(level model.Level, kind, subject, text string) {
	r.o.Sink(model.Event{At: time.Now(), Level: level, Source: "heartbeat", Kind: kind, Subject: subject, Text: text})
}

// sweep removes what nodes have left whose network namespace is gone.
func (r *Responder) sweep() {
	dirs, err := os.ReadDir(r.o.Dir)
	if err != nil {
		return
	}
	for _, d := range dirs {
		dir := filepath.Join(r.o.Dir, d.Name())
		pins, err := os.ReadDir(dir)
		if err != nil || dir == r.dir || len(pins) == 0 { // an empty one may belong to a node that is starting
			continue
		}
		gone := true
		for _, p := range pins {
			l, err := link.LoadPinnedLink(filepath.Join(dir, p.Name()), nil)
			if err != nil {
				gone = false
				break
			}
			info, err := l.Info()
			gone = gone && err == nil && info.TCX() != nil && info.TCX().Ifindex == 0
			_ = l.Close()
		}
		if gone {
			_ = os.RemoveAll(dir)
		}
	}
}
