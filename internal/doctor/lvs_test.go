package doctor_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/batuta-ha/batuta/internal/doctor"
	"github.com/batuta-ha/batuta/internal/model"
)

type conf = map[string]string

func card(name string, c conf, addrs ...string) doctor.Interface {
	i := doctor.Interface{Name: name, MTU: 1500, Conf: c}
	for _, a := range addrs {
		i.Addrs = append(i.Addrs, netip.MustParsePrefix(a))
	}
	return i
}

func lo(addrs ...string) doctor.Interface {
	i := card("lo", nil, append([]string{"127.0.0.1/8"}, addrs...)...)
	i.Loopback = true
	return i
}

func tunnel(c conf) doctor.Interface {
	i := card("tunl0", c, "10.1.0.100/32")
	i.Tunnel = true
	return i
}

// service is 10.1.0.100:80 with these real servers.
func service(reals ...model.RealServer) []model.VirtualService {
	return []model.VirtualService{{Key: model.ServiceKey{Proto: model.TCP, Addr: netip.MustParseAddrPort("10.1.0.100:80")}, Scheduler: "wlc", Reals: reals}}
}

func real(f model.Forward, addr string, weight int) model.RealServer {
	return model.RealServer{Addr: netip.MustParseAddrPort(addr), Forward: f, Weight: weight}
}

// persistent makes the services persistent.
func persistent(list []model.VirtualService) []model.VirtualService {
	for i := range list {
		list[i].Persistence.Enabled = true
	}
	return list
}

// Each rule: the mistake that it finds, and beside it what is right.
func TestRules(t *testing.T) {
	two := []doctor.Interface{lo(), card("eth0", nil, "10.1.0.1/24", "10.1.0.100/32"), card("eth1", nil, "10.240.0.1/24")}
	with := func(i int, c conf) []doctor.Interface {
		list := slices.Clone(two)
		list[i].Conf = c
		return list
	}
	server := func(c conf, hidden string) []doctor.Interface {
		return []doctor.Interface{lo(hidden), card("eth0", c, "10.240.0.20/24")}
	}
	masq, gate, ipip := real(model.Masq, "10.240.0.20:80", 1), real(model.Gate, "10.240.0.20:80", 1), real(model.IPIP, "10.240.0.20:80", 1)
	quiet := real(model.Masq, "10.240.0.21:80", 0)
	daemons := func(iface string, master, backup uint8) []model.SyncDaemon {
		return []model.SyncDaemon{{Role: model.SyncMaster, Interface: iface, ID: master}, {Role: model.SyncBackup, Interface: iface, ID: backup}}
	}
	for _, c := range []struct {
		name         string
		wrong, right doctor.Facts
		code         string
		text, fix    string // parts of them
	}{
		{"masq without forwarding",
			doctor.Facts{Services: service(masq), Forward: map[model.Family]string{model.IPv4: "0"}},
			doctor.Facts{Services: service(gate, real(model.Masq, "127.0.0.1:80", 1)), Forward: map[model.Family]string{model.IPv4: "0"}},
			"LVS001", "net.ipv4.ip_forward is 0: answers of masq", "sysctl -w net.ipv4.ip_forward=1"},
		{"masq without forwarding of IPv6",
			doctor.Facts{Services: service(real(model.Masq, "[2001:db8::1]:80", 1)), Forward: map[model.Family]string{model.IPv6: "0"}},
			doctor.Facts{Services: service(masq), Forward: map[model.Family]string{model.IPv6: "0"}},
			"LVS001", "net.ipv6.conf.all.forwarding is 0", "sysctl -w net.ipv6.conf.all.forwarding=1"},
		{"redirects where all are on one network",
			doctor.Facts{Services: service(real(model.Masq, "10.1.0.20:80", 1)), Interfaces: with(1, conf{"send_redirects": "0"}), All: conf{"send_redirects": "1"}},
			doctor.Facts{Services: service(masq), Interfaces: with(1, conf{"send_redirects": "1"}), All: conf{"send_redirects": "1"}},
			"LVS002", "eth0 has both the virtual address 10.1.0.100 and masq real server 10.1.0.20", "net.ipv4.conf.eth0.send_redirects=0"},
		{"gate behind a router",
			doctor.Facts{Services: service(real(model.Gate, "192.0.2.20:80", 1)), Interfaces: two},
			doctor.Facts{Services: service(gate, real(model.Gate, "127.0.0.1:80", 1)), Interfaces: two},
			"LVS003", "192.0.2.20:80 is on no network of this machine's", ""},
		{"a tunnel without path MTU discovery",
			doctor.Facts{Services: service(ipip), IPVS: conf{"pmtu_disc": "0"}}, doctor.Facts{Services: service(ipip), IPVS: conf{"pmtu_disc": "1"}},
			"LVS004", "do not fit into the tunnel", "sysctl -w net.ipv4.vs.pmtu_disc=1"},
		{"what fits into a tunnel",
			doctor.Facts{Services: service(ipip), Interfaces: two}, doctor.Facts{Services: service(gate), Interfaces: two},
			"LVS005", "carry packets of up to 1480 bytes", "ip link set eth1 mtu 1520"},
		{"a strict filter where clients come in",
			doctor.Facts{Services: service(masq), Interfaces: with(1, conf{"rp_filter": "0"}), All: conf{"rp_filter": "1"}},
			doctor.Facts{Services: service(masq), Interfaces: with(1, conf{"rp_filter": "2"}), All: conf{"rp_filter": "1"}},
			"LVS006", "eth0 has a virtual address and a strict rp_filter", "sysctl -w net.ipv4.conf.eth0.rp_filter=2"},
		{"directors that are each other's real servers",
			doctor.Facts{Services: service(gate), Peers: []netip.Addr{netip.MustParseAddr("10.240.0.20")}, Sync: daemons("eth1", 1, 1), IPVS: conf{"backup_only": "0"}},
			doctor.Facts{Services: service(gate), Peers: []netip.Addr{netip.MustParseAddr("10.240.0.20")}, Sync: daemons("eth1", 1, 1), IPVS: conf{"backup_only": "1"}},
			"LVS007", "round and round", "sysctl -w net.ipv4.vs.backup_only=1"},
		{"reused ports come back to a quiescent server",
			doctor.Facts{Services: service(quiet), IPVS: conf{"conn_reuse_mode": "0"}}, doctor.Facts{Services: service(masq), IPVS: conf{"conn_reuse_mode": "0"}},
			"LVS008", "10.240.0.21:80 of service tcp 10.1.0.100:80, which has weight 0", "sysctl -w net.ipv4.vs.conn_reuse_mode=1"},
		{"reused ports and conntrack",
			doctor.Facts{IPVS: conf{"conn_reuse_mode": "1", "conntrack": "1"}}, doctor.Facts{IPVS: conf{"conn_reuse_mode": "1", "conntrack": "0"}},
			"LVS009", "waits a second", "sysctl -w net.ipv4.vs.conn_reuse_mode=0"},
		{"connections of deleted servers linger",
			doctor.Facts{Services: service(masq), IPVS: conf{"expire_nodest_conn": "0"}}, doctor.Facts{Services: service(masq), IPVS: conf{"expire_nodest_conn": "1"}},
			"LVS010", "clients of a real server that is removed hang", "sysctl -w net.ipv4.vs.expire_nodest_conn=1"},
		{"persistence leads to a quiescent server",
			doctor.Facts{Services: persistent(service(quiet)), IPVS: conf{"expire_quiescent_template": "0"}},
			doctor.Facts{Services: service(quiet), IPVS: conf{"expire_quiescent_template": "0"}},
			"LVS011", "bound by persistence", "sysctl -w net.ipv4.vs.expire_quiescent_template=1"},
		{"sync where clients are",
			doctor.Facts{Services: service(masq), Interfaces: two, Sync: daemons("eth0", 1, 1), Heartbeat: []string{"eth1"}},
			doctor.Facts{Services: service(masq), Interfaces: two, Sync: daemons("eth1", 1, 1), Heartbeat: []string{"eth1"}},
			"LVS012", "the master sync daemon uses eth0, the clients' network", "--mcast-interface eth1 --syncid 1"},
		{"sync IDs that differ",
			doctor.Facts{Sync: daemons("eth1", 1, 2)}, doctor.Facts{Sync: daemons("eth1", 1, 0)},
			"LVS013", "master 1 and backup 2", "--start-daemon backup --mcast-interface eth1 --syncid 1"},
		{"a defense that is always on",
			doctor.Facts{IPVS: conf{"drop_entry": "3"}}, doctor.Facts{IPVS: conf{"drop_entry": "1"}},
			"LVS014", "always on and harms real clients", "sysctl -w net.ipv4.vs.drop_entry=1"},
		{"no file system for the kernel's answers",
			doctor.Facts{Silent: "it is on no BPF file system", NoBPF: true}, doctor.Facts{NoBPF: true},
			"LVS015", "(it is on no BPF file system): they take over at the dead time", "mount -t bpf bpf /sys/fs/bpf"},
		{"no right to the kernel's answers",
			doctor.Facts{Silent: "operation not permitted"}, doctor.Facts{},
			"LVS015", "does not answer the other directors when the daemon here is silent (operation not permitted)", ""},
		{"a real server answers ARP",
			doctor.Facts{Interfaces: server(conf{"arp_ignore": "0"}, "10.1.0.100/32")}, doctor.Facts{Interfaces: server(conf{"arp_ignore": "0"}, "10.1.0.100/32"), All: conf{"arp_ignore": "1"}},
			"LVS101", "eth0 answers ARP for 10.1.0.100", "net.ipv4.conf.eth0.arp_ignore=1"},
		{"a real server announces itself",
			doctor.Facts{Interfaces: server(conf{"arp_announce": "1"}, "10.1.0.100/32")}, doctor.Facts{Interfaces: server(conf{"arp_announce": "2"}, "10.1.0.100/32")},
			"LVS102", "uses 10.1.0.100 in its own ARP requests", "net.ipv4.conf.eth0.arp_announce=2"},
		{"a tunnel with a strict filter",
			doctor.Facts{Interfaces: []doctor.Interface{lo("10.1.0.100/32"), tunnel(conf{"rp_filter": "1"})}},
			doctor.Facts{Interfaces: []doctor.Interface{lo("10.1.0.100/32"), tunnel(conf{"rp_filter": "2"})}},
			"LVS103", "every packet that comes out of the tunnel is dropped", "net.ipv4.conf.tunl0.rp_filter=0"},
		{"a network on the loopback",
			doctor.Facts{Interfaces: server(nil, "10.1.0.100/24")}, doctor.Facts{Interfaces: server(nil, "10.1.0.100/32")},
			"LVS104", "takes all of 10.1.0.0/24 for itself", "ip addr add 10.1.0.100/32 dev lo && ip addr del 10.1.0.100/24 dev lo"},
	} {
		t.Run(c.name, func(t *testing.T) {
			of := func(f doctor.Facts) (same []doctor.Finding) {
				for _, x := range doctor.Examine(f) {
					if x.Code == c.code {
						same = append(same, x)
					}
				}
				return same
			}
			wrong := of(c.wrong)
			if len(wrong) != 1 || !strings.Contains(wrong[0].Text, c.text) || !strings.Contains(wrong[0].Fix, c.fix) || (c.fix == "") != (wrong[0].Fix == "") {
				t.Errorf("wrong: %+v, want %s %q with %q", wrong, c.code, c.text, c.fix)
			}
			if right := of(c.right); len(right) != 0 {
				t.Errorf("right: %+v, want nothing", right)
			}
		})
	}
}

// Nothing is known: nothing is said.
func TestNoFactsNoFindings(t *testing.T) {
	if found := doctor.Examine(doctor.Facts{Services: service(real(model.Masq, "10.240.0.20:80", 1), real(model.IPIP, "10.240.0.21:80", 0))}); len(found) != 0 {
		t.Errorf("%+v", found)
	}
}

func TestTheMostUrgentComesFirst(t *testing.T) {
	found := doctor.Examine(doctor.Facts{Services: service(real(model.Masq, "10.240.0.20:80", 1)), IPVS: conf{"drop_entry": "3"},
		Forward: map[model.Family]string{model.IPv4: "0"}})
	if len(found) != 2 || found[0].Code != "LVS001" || found[0].Level != model.LevelError || found[1].Code != "LVS014" {
		t.Errorf("%+v", found)
	}
}
