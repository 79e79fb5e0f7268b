package ipvs

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/balance"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
	"github.com/batuta-ha/batuta/internal/plane/planetest"
)

func virtual(key model.ServiceKey, scheduler string, reals ...model.RealServer) model.VirtualService {
	return model.VirtualService{Key: key, Scheduler: scheduler, Reals: reals}
}

func masq(addr string, weight int) model.RealServer {
	return model.RealServer{Addr: netip.MustParseAddrPort(addr), Forward: model.Masq, Weight: weight}
}

// own opens a plane in a network namespace of its own.
func own(t *testing.T, o Options) (*Plane, *planetest.Host) {
	t.Helper()
	h := planetest.NewHost(t, "director")
	var p *Plane
	var err error
	h.Do(t, func() { p, err = Open(o) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil && !errors.Is(err, plane.ErrClosed) {
			t.Error(err)
		}
	})
	return p, h
}

// What the kernel refuses it refuses row by row, each with a sentence; the rest
// is carried out, also what comes after in the same batch.
func TestRefusedRowsDoNotStopTheOthers(t *testing.T) {
	requireKernel(t)
	p, _ := own(t, Options{})
	mixed := virtual(tcp("[2001:db8::1]:80"), "rr", masq("10.240.0.20:80", 1),
		model.RealServer{Addr: netip.MustParseAddrPort("10.240.0.21:80"), Forward: model.IPIP, Weight: 1}, masq("[2001:db8::20]:80", 1))
	want := model.Table{Services: []model.VirtualService{
		virtual(tcp("10.1.0.100:80"), "rr", masq("10.240.0.20:80", 1)),
		virtual(tcp("10.1.0.101:80"), "nosuch", masq("10.240.0.20:80", 1)),
		virtual(tcp("10.1.0.102:80"), "wlc", masq("10.240.0.20:80", 1)),
		mixed,
	}}
	want.Services[2].Persistence = model.Persistence{Enabled: true, Timeout: time.Minute, Engine: "nosuch"}
	want.Sort()
	err := p.Apply(t.Context(), balance.Diff(model.Table{}, want))
	const sentences = `service-add tcp 10.1.0.101:80 nosuch: the kernel has no scheduler "nosuch": load its module (modprobe ip_vs_nosuch), or choose another: not supported
real-add tcp 10.1.0.101:80 10.240.0.20:80 masq weight 1: no such service in the table
service-add tcp 10.1.0.102:80 wlc persistent 60 pe nosuch: the kernel lacks the scheduler "wlc" or the persistence engine "nosuch": load their modules (modprobe -a ip_vs_wlc ip_vs_pe_nosuch): not supported
real-add tcp 10.1.0.102:80 10.240.0.20:80 masq weight 1: no such service in the table
real-add tcp [2001:db8::1]:80 10.240.0.20:80 masq weight 1: the service and the real server are of different address families, which this kernel's IPVS carries by ipip alone: not supported`
	if err == nil {
		t.Fatal("all was carried out")
	}
	if diff := cmp.Diff(sentences, err.Error()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	got, err := p.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const table = `tcp 10.1.0.100:80 rr
  10.240.0.20:80 masq weight 1
tcp [2001:db8::1]:80 rr
  10.240.0.21:80 ipip weight 1
  [2001:db8::20]:80 masq weight 1
`
	if diff := cmp.Diff(table, got.String()); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
}

// Somebody flushes the table, deletes a service, puts a row of his own in:
// reading shows it, and the difference mends what is ours and nothing else.
func TestTheTableIsMendedBehindOurBack(t *testing.T) {
	requireKernel(t)
	p, h := own(t, Options{})
	ours := model.Table{Services: []model.VirtualService{
		virtual(tcp("10.1.0.100:80"), "rr", masq("10.240.0.20:80", 1), masq("10.240.0.21:80", 2)),
		virtual(tcp("10.1.0.101:80"), "lc", masq("10.240.0.20:80", 1)),
	}}
	if err := p.Apply(t.Context(), balance.Diff(model.Table{}, ours)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		harm string
		want string // the changes that mend it
	}{
		{"ipvsadm -C", "service-add tcp 10.1.0.100:80 rr\nreal-add tcp 10.1.0.100:80 10.240.0.20:80 masq weight 1\nreal-add tcp 10.1.0.100:80 10.240.0.21:80 masq weight 2\n" +
			"service-add tcp 10.1.0.101:80 lc\nreal-add tcp 10.1.0.101:80 10.240.0.20:80 masq weight 1"},
		{"ipvsadm -D -t 10.1.0.101:80", "service-add tcp 10.1.0.101:80 lc\nreal-add tcp 10.1.0.101:80 10.240.0.20:80 masq weight 1"},
		{"ipvsadm -E -t 10.1.0.100:80 -s sh -b sh-port", "service-edit tcp 10.1.0.100:80 rr"},
		{"ipvsadm -e -t 10.1.0.100:80 -r 10.240.0.21:80 -g -w 7", "real-edit tcp 10.1.0.100:80 10.240.0.21:80 masq weight 2"},
		{"ipvsadm -a -t 10.1.0.100:80 -r 10.240.0.99:80 -m", "real-del tcp 10.1.0.100:80 10.240.0.99:80"},
		{"ipvsadm -A -t 192.0.2.1:80 -s rr", ""}, // a service of somebody else
	} {
		h.Do(t, func() {
			if out, err := exec.Command("sh", "-c", c.harm).CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", c.harm, err, out)
			}
		})
		have, err := p.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		foreign := slices.DeleteFunc(have.Clone().Services, func(v model.VirtualService) bool { return ours.Find(v.Key) != nil })
		want := model.Table{Services: slices.Concat(ours.Services, foreign)}
		var needed []string
		changes := balance.Diff(have, want)
		for _, x := range changes {
			needed = append(needed, x.String())
		}
		if diff := cmp.Diff(c.want, strings.Join(needed, "\n")); diff != "" {
			t.Errorf("after %s (-want +got):\n%s", c.harm, diff)
		}
		if err := p.Apply(t.Context(), changes); err != nil {
			t.Errorf("after %s: %v", c.harm, err)
		}
	}
	got, err := p.Read(t.Context())
	if err != nil || got.Find(tcp("192.0.2.1:80")) == nil {
		t.Errorf("%v: the service of somebody else is gone:\n%s", err, got)
	}
}

func TestTunnelsOfOtherKindsBringThePacketsThere(t *testing.T) {
	requireKernel(t)
	for name, c := range map[string]struct {
		tunnel  model.Tunnel
		receive string // what the real server does for it
	}{
		"gue": {model.Tunnel{Kind: model.TunnelGUE, Port: 6080}, "modprobe -a fou ipip && ip fou add port 6080 gue && ip link add tun1 type ipip local 10.240.0.20"},
		"gre": {model.Tunnel{Kind: model.TunnelGRE}, "modprobe ip_gre && ip link add tun1 type gre local 10.240.0.20"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(false)(t, planetest.Options{}).(*bench)
			vip, rack := b.Virtual(0), b.racks[0]
			rack.Do(t, func() {
				if out, err := exec.Command("sh", "-c", c.receive).CombinedOutput(); err != nil {
					t.Errorf("%s: %v\n%s", c.receive, err, out)
				}
			})
			rack.Up(t, "tun1")
			rack.Sysctl(t, "net/ipv4/conf/tun1/rp_filter", "0")
			rack.Sysctl(t, "net/ipv4/conf/all/rp_filter", "0")
			rack.Connect(t, "back", "10.9.0.20/24", b.client, "side", "10.9.0.50/24")
			rack.Route(t, "10.1.0.50/32", "10.9.0.50")
			rack.Address(t, "lo", vip.Addr().String()+"/32")
			rack.Do(t, func() { planetest.StartServer(t, model.TCP, vip) })
			row := model.RealServer{Addr: netip.MustParseAddrPort("10.240.0.20:80"), Forward: model.IPIP, Weight: 1, Tunnel: c.tunnel}
			want := model.Table{Services: []model.VirtualService{virtual(model.ServiceKey{Proto: model.TCP, Addr: vip}, "rr", row)}}
			if err := b.plane.Apply(t.Context(), balance.Diff(model.Table{}, want)); err != nil {
				t.Fatal(err)
			}
			if got, err := b.plane.Read(t.Context()); err != nil || got.String() != want.String() {
				t.Errorf("%v (-want +got):\n%s", err, cmp.Diff(want.String(), got.String()))
			}
			conn, err := b.Dial(t.Context(), model.TCP, vip)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close() //nolint:errcheck // the test is over
			if real, echo, err := conn.Exchange(t.Context(), []byte("hello")); err != nil || string(echo) != "hello" || real != vip {
				t.Errorf("%s says %q, %v", real, echo, err)
			}
		})
	}
}

// SCTP, which package net does not speak.
func TestSCTP(t *testing.T) {
	requireKernel(t)
	if out, err := exec.Command("modprobe", "sctp").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b := newBench(false)(t, planetest.Options{}).(*bench)
	vip := b.Virtual(0)
	socket := func(h *planetest.Host) (fd int) {
		h.Do(t, func() {
			var err error
			if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP); err != nil {
				t.Fatal(err)
			}
			limit := unix.Timeval{Sec: 30}
			if err := errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit)); err != nil {
				t.Fatal(err)
			}
		})
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	server := socket(b.racks[0])
	if err := errors.Join(unix.Bind(server, &unix.SockaddrInet4{Port: 9000, Addr: [4]byte{10, 240, 0, 20}}), unix.Listen(server, 5)); err != nil {
		t.Fatal(err)
	}
	key := model.ServiceKey{Proto: model.SCTP, Addr: vip}
	want := model.Table{Services: []model.VirtualService{virtual(key, "rr", masq("10.240.0.20:9000", 1))}}
	if err := b.plane.Apply(t.Context(), balance.Diff(model.Table{}, want)); err != nil {
		t.Fatal(err)
	}
	client := socket(b.client)
	if err := unix.Connect(client, &unix.SockaddrInet4{Port: int(vip.Port()), Addr: vip.Addr().As4()}); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(client, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	conn, _, err := unix.Accept(server)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(conn) //nolint:errcheck // the test is over
	buf := make([]byte, 16)
	if n, err := unix.Read(conn, buf); err != nil || string(buf[:n]) != "hello" {
		t.Errorf("the real server got %q, %v", buf[:max(n, 0)], err)
	}
	flows, err := b.plane.Flows(t.Context())
	if err != nil || len(flows) != 1 || flows[0].Proto != model.SCTP || flows[0].State != "ESTABLISHED" {
		t.Errorf("%v %+v", err, flows)
	}
}

// Settings are put in force, adopted, and put back when nobody wants them.
func TestSettingsOfTheKernel(t *testing.T) {
	requireKernel(t)
	originals := filepath.Join(t.TempDir(), "ipvs-sysctls")
	wanted := model.IPVS{Timeouts: model.Timeouts{TCP: time.Hour, UDP: 10 * time.Second}, Sync: &model.SyncDaemon{Interface: "lo", ID: 7},
		Sysctls: []model.Setting{{Name: "conn_reuse_mode", Value: "0"}, {Name: "sync_threshold", Value: "2 20"}}}
	p, h := own(t, Options{IPVS: wanted, Originals: originals})
	state := func(p *Plane) string {
		t.Helper()
		timeouts, err1 := p.Timeouts(t.Context())
		daemons, err2 := p.SyncDaemons(t.Context())
		settings, err3 := p.Sysctls(t.Context())
		if err := errors.Join(err1, err2, err3); err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		b.WriteString(timeouts.TCP.String() + " " + timeouts.TCPFin.String() + " " + timeouts.UDP.String() + "\n")
		for _, d := range daemons {
			d.MaxLen = 0 // the interface's
			b.WriteString(d.String() + "\n")
		}
		for _, s := range settings {
			if slices.Contains([]string{"conn_reuse_mode", "sync_threshold", "expire_nodest_conn"}, s.Name) {
				b.WriteString(s.Name + "=" + s.Value + "\n")
			}
		}
		return b.String()
	}
	const daemons = `master sync daemon (mcast=lo, syncid=7, group=224.0.0.81, port=8848, ttl=1)
backup sync daemon (mcast=lo, syncid=7, group=224.0.0.81, port=8848, ttl=1)
`
	in := "1h0m0s 2m0s 10s\n" + daemons + "conn_reuse_mode=0\nexpire_nodest_conn=1\nsync_threshold=2 20\n"
	reopen := func(o Options) *Plane {
		t.Helper()
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		var err error
		h.Do(t, func() { p, err = Open(o) })
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	// Sysctls are those of the thread's namespace: look from there.
	h.Do(t, func() {
		if diff := cmp.Diff(in, state(p)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
	p = reopen(Options{IPVS: wanted, Originals: originals})
	h.Do(t, func() {
		if diff := cmp.Diff(in, state(p)); diff != "" {
			t.Errorf("a restart (-want +got):\n%s", diff)
		}
	})
	p = reopen(Options{Originals: originals})
	h.Do(t, func() {
		out := "1h0m0s 2m0s 10s\n" + daemons + "conn_reuse_mode=1\nexpire_nodest_conn=1\nsync_threshold=3 50\n"
		if diff := cmp.Diff(out, state(p)); diff != "" {
			t.Errorf("nothing is wanted any more (-want +got):\n%s", diff)
		}
	})
	if text, err := os.ReadFile(originals); err != nil || string(text) != "expire_nodest_conn=0\n" {
		t.Errorf("originals %q, %v", text, err)
	}
	for _, role := range []model.SyncRole{model.SyncMaster, model.SyncBackup, model.SyncBackup} {
		if err := p.StopSync(t.Context(), role); err != nil {
			t.Error(err)
		}
	}
	if got, err := p.SyncDaemons(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("%v %v", got, err)
	}
	for _, c := range []struct {
		o    model.IPVS
		want string
	}{
		{model.IPVS{Sync: &model.SyncDaemon{Interface: "eth9"}}, "master sync daemon (mcast=eth9, syncid=0): there is no interface eth9 here: name the one of the heartbeats"},
		{model.IPVS{Sysctls: []model.Setting{{Name: "nosuch", Value: "1"}}}, "sysctl net.ipv4.vs.nosuch: this kernel has none of that name; it has am_droprate, "},
		{model.IPVS{Sysctls: []model.Setting{{Name: "../ip_forward", Value: "1"}}}, "sysctl net.ipv4.vs.../ip_forward: no such name"},
	} {
		h.Do(t, func() {
			q, err := Open(Options{IPVS: c.o})
			if err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
			if err == nil {
				_ = q.Close()
			}
		})
	}
}
