package ipvs

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nlenc"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// kernel is a scripted kernel: it knows IPVS once loaded is true, answers each
// command as told and writes down what it was asked.
type kernel struct {
	loaded bool
	answer func(command uint8, data []byte) ([][]byte, error)
	asked  []string
}

// datagrams is the socket of a scripted kernel: each answer waits there to be
// received by itself, as the kernel's do.
type datagrams struct {
	kernel  *kernel
	waiting []netlink.Message
}

func (d *datagrams) Close() error                        { return nil }
func (d *datagrams) Send(m netlink.Message) error        { return d.SendMessages([]netlink.Message{m}) }
func (d *datagrams) Receive() ([]netlink.Message, error) { return nil, errors.New("not used") }

func (d *datagrams) SendMessages(requests []netlink.Message) error {
	for _, n := range requests {
		var g genetlink.Message
		if err := g.UnmarshalBinary(n.Data); err != nil {
			return err
		}
		head := netlink.Header{Type: n.Header.Type, Sequence: n.Header.Sequence, PID: n.Header.PID}
		answers, err := d.kernel.serve(g, n)
		dump := n.Header.Flags&netlink.Dump == netlink.Dump
		var errno unix.Errno
		switch {
		case errors.As(err, &errno), err == nil && len(answers) == 0 && n.Header.Flags&netlink.Acknowledge != 0 && !dump:
			head.Type = netlink.Error
			d.waiting = append(d.waiting, netlink.Message{Header: head, Data: nlenc.Int32Bytes(-int32(errno))})
		case err != nil:
			return err
		}
		if dump {
			head.Flags |= netlink.Multi
		}
		for _, a := range answers {
			b, err := genetlink.Message{Data: a}.MarshalBinary()
			if err != nil {
				return err
			}
			d.waiting = append(d.waiting, netlink.Message{Header: head, Data: b})
		}
		if dump && err == nil {
			head.Type = netlink.Done
			d.waiting = append(d.waiting, netlink.Message{Header: head, Data: nlenc.Int32Bytes(0)})
		}
	}
	return nil
}

func (d *datagrams) ReceiveIter() iter.Seq2[netlink.Message, error] {
	return func(yield func(netlink.Message, error) bool) {
		if len(d.waiting) == 0 {
			yield(netlink.Message{}, errors.New("the scripted kernel has no answer to that"))
			return
		}
		next := d.waiting[0]
		d.waiting = d.waiting[1:]
		yield(next, nil)
	}
}

func (k *kernel) conn() (*netlink.Conn, *datagrams) {
	d := &datagrams{kernel: k}
	return netlink.NewConn(d, 1), d
}

// raw is the next datagram for Plane.receive.
func (d *datagrams) raw() ([]syscall.NetlinkMessage, error) {
	for m, err := range d.ReceiveIter() {
		h := syscall.NlMsghdr{Type: uint16(m.Header.Type), Flags: uint16(m.Header.Flags), Seq: m.Header.Sequence, Pid: m.Header.PID}
		return []syscall.NetlinkMessage{{Header: h, Data: m.Data}}, err
	}
	return nil, io.EOF
}

func (k *kernel) serve(g genetlink.Message, n netlink.Message) ([][]byte, error) {
	if n.Header.Type == unix.GENL_ID_CTRL {
		if !k.loaded {
			return nil, unix.ENOENT
		}
		family, err := netlink.MarshalAttributes([]netlink.Attribute{
			{Type: unix.CTRL_ATTR_FAMILY_ID, Data: []byte{0x1c, 0}},
			{Type: unix.CTRL_ATTR_FAMILY_NAME, Data: []byte("IPVS\x00")},
			{Type: unix.CTRL_ATTR_VERSION, Data: []byte{1, 0, 0, 0}},
		})
		return [][]byte{family}, err
	}
	k.asked = append(k.asked, strings.TrimSuffix(fmt.Sprintf("%d %s", g.Header.Command, hex.EncodeToString(g.Data)), " "))
	if g.Header.Command == cmdGetInfo {
		return [][]byte{unhex("0800 0100 01020100 0800 0200 00100000")}, nil
	}
	return k.answer(g.Header.Command, g.Data)
}

// open makes a plane on the scripted kernel.
func (k *kernel) open(t *testing.T) *Plane {
	t.Helper()
	k.loaded = true
	conn, d := k.conn()
	p, err := newPlane(conn, func() error { return errors.New("must not be called") })
	if err != nil {
		t.Fatal(err)
	}
	p.receive = d.raw
	k.asked = nil
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func refuseAll(errno unix.Errno) func(uint8, []byte) ([][]byte, error) {
	return func(uint8, []byte) ([][]byte, error) { return nil, errno }
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		panic(err) //nolint:forbidigo // a mistake in the test
	}
	return b
}

func tcp(addr string) model.ServiceKey {
	return model.ServiceKey{Proto: model.TCP, Addr: netip.MustParseAddrPort(addr)}
}

// The bytes of these requests were checked by hand against linux/ip_vs.h:
// attribute length, attribute type (0x8000: nested), value.
func TestRequestsByteForByte(t *testing.T) {
	const (
		keyV4 = "0600 0100 0200 0000" + "0600 0200 0600 0000" +
			"1400 0300 0a010064 00000000 00000000 00000000" + "0600 0400 0050 0000"
		keyMark6 = "0600 0100 0a00 0000" + "0800 0500 05000000"
	)
	web := tcp("10.1.0.100:80")
	for name, c := range map[string]struct {
		change model.Change
		want   []string // command and message
	}{
		"a service": {
			model.Change{Op: model.ServiceAdd, Service: model.VirtualService{Key: web, Scheduler: "rr"}},
			[]string{"1 " + "5400 0180" + keyV4 + "0700 0600 727200 00" + "0c00 0700 00000000 ffffffff" + "0800 0800 00000000" + "0800 0900 ffffffff"},
		},
		"persistence, flags and one-packet of an IPv6 mark": {
			model.Change{Op: model.ServiceEdit, Service: model.VirtualService{Key: model.ServiceKey{Mark: 5, MarkFamily: model.IPv6}, Scheduler: "sh",
				SchedFlags: "sh-port,sh-fallback", OnePacket: true,
				Persistence: model.Persistence{Enabled: true, Timeout: 300 * time.Second, Netmask: model.MaskOf(64)}}},
			[]string{"2 " + "3800 0180" + keyMark6 + "0700 0600 736800 00" + "0c00 0700 1d000000 ffffffff" + "0800 0800 2c010000" + "0800 0900 40000000"},
		},
		"a service goes": {
			model.Change{Op: model.ServiceDelete, Service: model.VirtualService{Key: web}},
			[]string{"3 " + "3000 0180" + keyV4},
		},
		"a real server": {
			model.Change{Op: model.RealAdd, Service: model.VirtualService{Key: web},
				Real: model.RealServer{Addr: netip.MustParseAddrPort("10.240.0.20:8080"), Forward: model.Masq, Weight: 1000, Upper: 10, Lower: 5}},
			[]string{"5 " + "3000 0180" + keyV4 + "4800 0280" + "0600 0b00 0200 0000" + "1400 0100 0af00014 00000000 00000000 00000000" +
				"0600 0200 1f90 0000" + "0800 0300 00000000" + "0800 0400 e8030000" + "0800 0500 0a000000" + "0800 0600 05000000"},
		},
		"a tunnel has the service's port": {
			model.Change{Op: model.RealEdit, Service: model.VirtualService{Key: web},
				Real: model.RealServer{Addr: netip.MustParseAddrPort("10.240.0.20:8080"), Forward: model.IPIP, Weight: 1}},
			[]string{"6 " + "3000 0180" + keyV4 + "4800 0280" + "0600 0b00 0200 0000" + "1400 0100 0af00014 00000000 00000000 00000000" +
				"0600 0200 0050 0000" + "0800 0300 02000000" + "0800 0400 01000000" + "0800 0500 00000000" + "0800 0600 00000000"},
		},
		"a GUE tunnel": {
			model.Change{Op: model.RealAdd, Service: model.VirtualService{Key: web}, Real: model.RealServer{Addr: netip.MustParseAddrPort("10.240.0.20:80"),
				Forward: model.IPIP, Weight: 1, Tunnel: model.Tunnel{Kind: model.TunnelGUE, Port: 6080, Checksum: model.TunnelRemoteChecksum}}},
			[]string{"5 " + "3000 0180" + keyV4 + "6000 0280" + "0600 0b00 0200 0000" + "1400 0100 0af00014 00000000 00000000 00000000" +
				"0600 0200 0050 0000" + "0800 0300 02000000" + "0800 0400 01000000" + "0800 0500 00000000" + "0800 0600 00000000" +
				"0500 0d00 01 000000" + "0600 0e00 17c0 0000" + "0600 0f00 0200 0000"},
		},
		"a persistence engine": {
			model.Change{Op: model.ServiceAdd, Service: model.VirtualService{Key: web, Scheduler: "rr",
				Persistence: model.Persistence{Enabled: true, Timeout: time.Minute, Engine: "sip"}}},
			[]string{"1 " + "5c00 0180" + keyV4 + "0700 0600 727200 00" + "0c00 0700 01000000 ffffffff" + "0800 0800 3c000000" + "0800 0900 ffffffff" + "0800 0b00 73697000"},
		},
		"a real server goes": {
			model.Change{Op: model.RealDelete, Service: model.VirtualService{Key: web},
				Real: model.RealServer{Addr: netip.MustParseAddrPort("10.240.0.20:80"), Forward: model.Masq}},
			[]string{"7 " + "3000 0180" + keyV4 + "2800 0280" + "0600 0b00 0200 0000" + "1400 0100 0af00014 00000000 00000000 00000000" + "0600 0200 0050 0000"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := &kernel{answer: func(uint8, []byte) ([][]byte, error) { return nil, nil }}
			p := k.open(t)
			if err := p.Apply(t.Context(), []model.Change{c.change}); err != nil {
				t.Fatal(err)
			}
			for i, w := range c.want {
				command, data, _ := strings.Cut(w, " ")
				c.want[i] = command + " " + strings.ReplaceAll(data, " ", "")
			}
			if diff := cmp.Diff(c.want, k.asked); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestAdoptsWhatTheKernelHas(t *testing.T) {
	const stats32 = "0800 0100 ffffffff" // wrapped
	const stats64 = "0c00 0100 0000000001000000" + "0c00 0200 0500000000000000" + "0c00 0300 0400000000000000" +
		"0c00 0400 3c00000000000000" + "0c00 0500 2800000000000000" + "0c00 0600 0900000000000000"
	service := unhex("ac00 0180" + "0600 0100 0200 0000" + "0600 0200 0600 0000" + "1400 0300 0a010064 00000000 00000000 00000000" + "0600 0400 0050 0000" +
		"0800 0600 776c6300" + "0c00 0700 13000000 ffffffff" + "0800 0800 2c010000" + "0800 0900 ffffff00" +
		"0c00 0a80" + stats32 + "4c00 0c80" + stats64)
	dest := unhex("5c00 0280" + "1400 0100 0af00014 00000000 00000000 00000000" + "0600 0200 0050 0000" + "0800 0300 03000000" + "0800 0400 07000000" +
		"0800 0500 0a000000" + "0800 0600 05000000" + "0800 0700 02000000" + "0800 0800 03000000" + "0c00 0a80 0800 0100 04000000")
	k := &kernel{answer: func(command uint8, _ []byte) ([][]byte, error) {
		if command == cmdGetService {
			return [][]byte{service}, nil
		}
		return [][]byte{dest}, nil
	}}
	p := k.open(t)
	table, err := p.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	web, real := tcp("10.1.0.100:80"), netip.MustParseAddrPort("10.240.0.20:80")
	wantTable := model.Table{Services: []model.VirtualService{{Key: web, Scheduler: "wlc", SchedFlags: "flag-2",
		Persistence: model.Persistence{Enabled: true, Timeout: 300 * time.Second, Netmask: netip.MustParseAddr("255.255.255.0")},
		Reals:       []model.RealServer{{Addr: real, Forward: model.Gate, Weight: 7, Upper: 10, Lower: 5}}}}}
	if diff := cmp.Diff(wantTable, table, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	counters, err := p.Counters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantCounters := []model.ServiceCounters{{Key: web, Counters: model.Counters{Connections: 1 << 32, PacketsIn: 5, PacketsOut: 4, BytesIn: 60, BytesOut: 40},
		Reals: []model.RealCounters{{Addr: real, Counters: model.Counters{Connections: 4}, Active: 2, Inactive: 3}}}}
	if diff := cmp.Diff(wantCounters, counters, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
	if got, want := p.Info(), (model.PlaneInfo{Name: "ipvs", Detail: "the kernel's IP Virtual Server 1.2.1", Size: 4096}); got != want {
		t.Errorf("info %+v, want %+v", got, want)
	}
}

// Changes that do not hang on each other are one message; the kernel's answer
// to the last request, a harmless question, tells that all are done. Those that
// it refuses are told apart, and what only misfits is done the other way.
func TestChangesGoTogether(t *testing.T) {
	web := model.VirtualService{Key: tcp("10.1.0.100:80"), Scheduler: "rr"}
	row := func(op model.ChangeOp, addr string) model.Change {
		return model.Change{Op: op, Service: web, Real: model.RealServer{Addr: netip.MustParseAddrPort(addr), Forward: model.Masq, Weight: 1}}
	}
	add := model.Change{Op: model.ServiceAdd, Service: web}
	gone := model.Change{Op: model.ServiceDelete, Service: web}
	for name, c := range map[string]struct {
		changes []model.Change
		refuse  map[int]unix.Errno // by the number of the question
		asked   string
		err     string
	}{
		"all are carried out": {[]model.Change{add, row(model.RealAdd, "10.0.0.1:80"), row(model.RealAdd, "10.0.0.2:80")}, nil, "1 5 5 15", ""},
		"the middle one is refused": {[]model.Change{add, row(model.RealAdd, "10.0.0.1:80"), row(model.RealAdd, "10.0.0.2:80")},
			map[int]unix.Errno{1: unix.ERANGE}, "1 5 5 15",
			"real-add tcp 10.1.0.100:80 10.0.0.1:80 masq weight 1: the kernel refuses weight 1 or the thresholds upper 0, lower 0: numerical result out of range"},
		"the service is there already": {[]model.Change{add, row(model.RealAdd, "10.0.0.1:80")}, map[int]unix.Errno{0: unix.EEXIST, 3: unix.EEXIST}, "1 5 15 1 2", ""},
		"the service is gone": {[]model.Change{{Op: model.ServiceEdit, Service: web}, row(model.RealAdd, "10.0.0.1:80")},
			map[int]unix.Errno{0: unix.ESRCH, 1: unix.ESRCH, 3: unix.ESRCH}, "2 5 15 2 1 5", ""},
		"one row twice":            {[]model.Change{row(model.RealAdd, "10.0.0.1:80"), row(model.RealEdit, "10.0.0.1:80")}, nil, "5 6", ""},
		"a service and its end":    {[]model.Change{add, row(model.RealAdd, "10.0.0.1:80"), gone}, nil, "1 5 15 3", ""},
		"what is gone is no error": {[]model.Change{row(model.RealDelete, "10.0.0.1:80"), row(model.RealDelete, "10.0.0.2:80")}, map[int]unix.Errno{0: unix.ENOENT, 1: unix.ESRCH}, "7 7 15", ""},
	} {
		t.Run(name, func(t *testing.T) {
			k := &kernel{}
			k.answer = func(uint8, []byte) ([][]byte, error) {
				if errno := c.refuse[len(k.asked)-1]; errno != 0 {
					return nil, errno
				}
				return nil, nil
			}
			err := k.open(t).Apply(t.Context(), c.changes)
			if err == nil && c.err != "" || err != nil && err.Error() != c.err {
				t.Errorf("got  %v\nwant %s", err, c.err)
			}
			var asked []string
			for _, a := range k.asked {
				command, _, _ := strings.Cut(a, " ")
				asked = append(asked, command)
			}
			if got := strings.Join(asked, " "); got != c.asked {
				t.Errorf("commands %s, want %s", got, c.asked)
			}
		})
	}
}

func TestSyncDaemonsByteForByte(t *testing.T) {
	d := model.SyncDaemon{Role: model.SyncBackup, Interface: "eth1", ID: 7, MaxLen: 1400, Group: netip.MustParseAddr("224.0.0.99"), Port: 1234, TTL: 3}
	want := unhex("4000 0380" + "0800 0100 02000000" + "0900 0200 6574683100 000000" + "0800 0300 07000000" + "0600 0400 7805 0000" +
		"0800 0500 e0000063" + "0600 0700 d204 0000" + "0500 0800 03 000000")
	got, err := encodeDaemon(d)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(hex.EncodeToString(want), hex.EncodeToString(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if back, err := decodeDaemon(got); err != nil || back != d {
		t.Errorf("%+v, %v", back, err)
	}
}

func TestRefusalsAreSentences(t *testing.T) {
	add := model.Change{Op: model.ServiceAdd, Service: model.VirtualService{Key: tcp("[2001:db8::1]:80"), Scheduler: "twos"}}
	real := model.Change{Op: model.RealAdd, Service: add.Service,
		Real: model.RealServer{Addr: netip.MustParseAddrPort("[2001:db8::2]:80"), Forward: model.Masq, Weight: 1}}
	for name, c := range map[string]struct {
		change    model.Change
		answer    unix.Errno
		want      string
		supported bool
		all       bool // the whole call fails
	}{
		"unknown scheduler": {change: add, answer: unix.ENOENT,
			want: `service-add tcp [2001:db8::1]:80 twos: the kernel has no scheduler "twos": load its module (modprobe ip_vs_twos), or choose another: not supported`},
		"no IPv6": {change: add, answer: unix.EAFNOSUPPORT,
			want: "service-add tcp [2001:db8::1]:80 twos: the kernel's IPVS is built without IPv6 (CONFIG_IP_VS_IPV6): use the ebpf or the proxy plane for this service: not supported"},
		"no such service": {change: real, answer: unix.ESRCH, supported: true,
			want: "real-add tcp [2001:db8::1]:80 [2001:db8::2]:80 masq weight 1: no such service in the table"},
		"not permitted": {change: add, answer: unix.EPERM, all: true, supported: true,
			want: "service-add tcp [2001:db8::1]:80 twos: the kernel does not let this process use IPVS: run it as root, or with the capability NET_ADMIN"},
	} {
		t.Run(name, func(t *testing.T) {
			k := &kernel{answer: refuseAll(c.answer)}
			err := k.open(t).Apply(t.Context(), []model.Change{c.change})
			if err == nil || err.Error() != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
			var row *plane.RowError
			if errors.As(err, &row) == c.all || errors.Is(err, plane.ErrNotSupported) == c.supported {
				t.Errorf("row error: %v, not supported: %v", errors.As(err, &row), errors.Is(err, plane.ErrNotSupported))
			}
		})
	}
}

func TestAppliedTwiceIsAppliedOnce(t *testing.T) {
	service := model.VirtualService{Key: tcp("10.1.0.100:80"), Scheduler: "rr"}
	real := model.RealServer{Addr: netip.MustParseAddrPort("10.240.0.20:80"), Forward: model.Masq, Weight: 1}
	for name, c := range map[string]struct {
		op    model.ChangeOp
		first unix.Errno // the answer to the first command; the second is carried out
		want  []uint8
	}{
		"a service that is there":         {model.ServiceAdd, unix.EEXIST, []uint8{cmdNewService, cmdSetService}},
		"a service that is not":           {model.ServiceEdit, unix.ESRCH, []uint8{cmdSetService, cmdNewService}},
		"a real server that is there":     {model.RealAdd, unix.EEXIST, []uint8{cmdNewDest, cmdSetDest}},
		"a real server that is not":       {model.RealEdit, unix.ENOENT, []uint8{cmdSetDest, cmdNewDest}},
		"a service that is gone":          {model.ServiceDelete, unix.ESRCH, []uint8{cmdDelService}},
		"a real server that is gone":      {model.RealDelete, unix.ENOENT, []uint8{cmdDelDest}},
		"a real server of a service gone": {model.RealDelete, unix.ESRCH, []uint8{cmdDelDest}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []uint8
			k := &kernel{answer: func(command uint8, _ []byte) ([][]byte, error) {
				if got = append(got, command); len(got) == 1 {
					return nil, c.first
				}
				return nil, nil
			}}
			if err := k.open(t).Apply(t.Context(), []model.Change{{Op: c.op, Service: service, Real: real}}); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("commands %v, want %v", got, c.want)
			}
		})
	}
}

func TestWithoutIPVSOneSentenceSaysSo(t *testing.T) {
	for name, c := range map[string]struct {
		load func(*kernel) error
		want string
	}{
		"no module": {func(*kernel) error { return errors.New("modprobe ip_vs: Module ip_vs not found") },
			"this kernel has no IPVS: modprobe ip_vs: Module ip_vs not found: load the module ip_vs, or use the ebpf or the proxy plane: not supported"},
		"a module that brings nothing": {func(*kernel) error { return nil },
			"this kernel has no IPVS, although modprobe ip_vs succeeded: use the ebpf or the proxy plane: not supported"},
		"loaded": {func(k *kernel) error { k.loaded = true; return nil }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			k := &kernel{}
			conn, _ := k.conn()
			defer conn.Close()
			_, err := newPlane(conn, func() error { return c.load(k) })
			if c.want == "" && err == nil {
				return
			}
			if err == nil || err.Error() != c.want || !errors.Is(err, plane.ErrNotSupported) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}

func TestClosedPlaneSaysSo(t *testing.T) {
	k := &kernel{}
	p := k.open(t)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Read(context.Background()); !errors.Is(err, plane.ErrClosed) {
		t.Error(err)
	}
}

func TestConnectionsOfProc(t *testing.T) {
	// Recorded from Linux 6.1.
	const text = `Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP 2001:0db8:0000:0000:0000:0000:0000:0001 B482 2001:0db8:0000:0000:0000:0000:0000:0001 0050 2001:0db8:0000:0000:0000:0000:0000:0010 0050 CLOSE             9
TCP 0A010064 0000 0A010064 0050 7F000001 0050 NONE            299
TCP 0A010064 8F90 0A010064 0050 7F000001 0050 CLOSE             9
`
	flows, err := readFlows(strings.NewReader(text), everything)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range flows {
		got = append(got, fmt.Sprintf("%s %s %s %s %s %s", f.Proto, f.Client, f.Virtual, f.Real, f.State, f.Expires))
	}
	want := []string{
		"tcp [2001:db8::1]:46210 [2001:db8::1]:80 [2001:db8::10]:80 CLOSE 9s",
		"tcp 10.1.0.100:0 10.1.0.100:80 127.0.0.1:80 NONE 4m59s",
		"tcp 10.1.0.100:36752 10.1.0.100:80 127.0.0.1:80 CLOSE 9s",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := readFlows(strings.NewReader("TCP 0A010064 zzzz 0A010064 0050 7F000001 0050 NONE 299\n"), everything); err == nil {
		t.Error("a bad port is taken")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := readFlows(pages{ctx, strings.NewReader(text)}, everything); !errors.Is(err, context.Canceled) {
		t.Errorf("the list goes on after its context: %v", err)
	}
}

// Templates say which client has which real server: of a port, of FTP, of all
// ports, of a mark, of networks; what they name may be gone.
func TestBindingsOfTemplates(t *testing.T) {
	const text = `Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP 0A010032 0000 0A010064 0050 0AF00014 1F40 NONE            299
TCP 0A010032 8F90 0A010064 0050 0AF00014 1F40 ESTABLISHED     899
TCP 0A010033 0000 0A010064 0050 0AF00015 1F40 ASSURED          59
TCP 0A010034 0000 0A010064 0050 0AF00063 1F40 NONE            299
TCP 0A010032 0000 0A010064 0051 0AF00014 1F40 NONE            299
TCP 0A010032 0000 0A010065 0000 0AF00014 0000 NONE            299
UDP 0A010000 0000 0A010066 0000 0AF00014 0000 NONE            120
IP  0A010032 0000 00000007 0000 0AF00015 0000 NONE             30
UDP 0A010032 0000 0A010067 13C4 0AF00014 13C4 NONE            299 sip call-1
TCP 2001:0db8:0000:0000:0000:0000:0000:0050 0000 2001:0db8:0000:0000:0000:0000:0000:0100 0050 2001:0db8:0000:0000:0000:0000:0000:0020 0050 NONE             10
UDP 0A010035 0000 0A010066 0035 0AF00014 0035 UDP              10
`
	service := func(key, engine string, reals ...string) model.VirtualService {
		k, err := model.ParseServiceKey(key)
		if err != nil {
			t.Fatal(err)
		}
		v := model.VirtualService{Key: k, Scheduler: "rr", Persistence: model.Persistence{Enabled: true, Timeout: 5 * time.Minute, Engine: engine}}
		for _, r := range reals {
			v.Reals = append(v.Reals, model.RealServer{Addr: netip.MustParseAddrPort(r), Forward: model.Masq, Weight: 1})
		}
		return v
	}
	table := model.Table{Services: []model.VirtualService{
		service("tcp 10.1.0.100:80", "", "10.240.0.20:8000", "10.240.0.21:8000"),
		service("tcp 10.1.0.101:21", "", "10.240.0.20:21"),
		service("udp 10.1.0.102:0", "", "10.240.0.20:0"),
		{Key: model.ServiceKey{Mark: 7, MarkFamily: model.IPv4}, Persistence: model.Persistence{Enabled: true, Timeout: time.Minute}, Reals: []model.RealServer{{Addr: netip.MustParseAddrPort("10.240.0.21:0")}}},
		service("udp 10.1.0.103:5060", "sip", "10.240.0.20:5060"),
		service("tcp [2001:db8::100]:80", "", "[2001:db8::20]:80"),
		{Key: tcp("10.1.0.100:81")},
	}}
	templates, err := readFlows(strings.NewReader(text), isTemplate)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, b := range bindings(table, templates) {
		got = append(got, fmt.Sprintf("%s: %s has %s for %s", b.Service, b.Client, b.Real, b.Expires))
	}
	want := []string{
		"tcp 10.1.0.100:80: 10.1.0.50 has 10.240.0.20:8000 for 4m59s",
		"tcp 10.1.0.100:80: 10.1.0.51 has 10.240.0.21:8000 for 59s",
		"tcp 10.1.0.101:21: 10.1.0.50 has 10.240.0.20:21 for 4m59s",
		"udp 10.1.0.102:0: 10.1.0.0 has 10.240.0.20:0 for 2m0s",
		"fwm 7: 10.1.0.50 has 10.240.0.21:0 for 30s",
		"tcp [2001:db8::100]:80: 2001:db8::50 has [2001:db8::20]:80 for 10s",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Whatever the kernel says, decoding ends with a value or an error.
func FuzzDecode(f *testing.F) {
	key, err := encodeKey(tcp("10.1.0.100:80"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(key, "TCP 0A010064 8F90 0A010064 0050 7F000001 0050 CLOSE 9")
	f.Fuzz(func(_ *testing.T, message []byte, proc string) {
		_, _ = decodeService(message)
		_, _ = decodeDest(message, model.IPv4)
		_, _, _ = decodeInfo(message)
		_, _ = decodeDaemon(message)
		_, _ = decodeTimeouts(message)
		if flows, err := readFlows(strings.NewReader(proc), everything); err == nil {
			bindings(model.Table{}, flows)
		}
	})
}
