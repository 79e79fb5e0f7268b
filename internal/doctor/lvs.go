package doctor

import (
	"fmt"
	"slices"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
)

// rules are all that the doctor knows: LVS0xx are a director's, LVS1xx a real
// server's.
var rules = []rule{
	{"LVS001", model.LevelError, forwardOff},
	{"LVS002", model.LevelWarning, redirects},
	{"LVS003", model.LevelError, gateTooFar},
	{"LVS004", model.LevelError, tunnelWithoutDiscovery},
	{"LVS005", model.LevelNotice, tunnelMTU},
	{"LVS006", model.LevelWarning, strictFilter},
	{"LVS007", model.LevelError, loop},
	{"LVS008", model.LevelWarning, reusedPorts},
	{"LVS009", model.LevelWarning, reuseWithConntrack},
	{"LVS010", model.LevelWarning, lingering},
	{"LVS011", model.LevelWarning, boundToQuiescent},
	{"LVS012", model.LevelWarning, syncInTheOpen},
	{"LVS013", model.LevelWarning, syncIDs},
	{"LVS014", model.LevelWarning, droppingAlways},
	{"LVS015", model.LevelNotice, silentKernel},
	{"LVS101", model.LevelError, answersARP},
	{"LVS102", model.LevelError, announcesHidden},
	{"LVS103", model.LevelError, strictTunnel},
	{"LVS104", model.LevelError, wideHidden},
}

func sysctl(name string, value int) string { return fmt.Sprintf("sysctl -w %s=%d", name, value) }

func vs(name string, value int) string { return sysctl("net.ipv4.vs."+name, value) }

// forwardOff: answers of masq servers are forwarded packets.
func forwardOff(f Facts) (found []Finding) {
	for _, c := range []struct {
		family  model.Family
		setting string
	}{{model.IPv4, "net.ipv4.ip_forward"}, {model.IPv6, "net.ipv6.conf.all.forwarding"}} {
		if f.Forward[c.family] == "0" && f.uses(model.Masq, c.family) {
			found = append(found, Finding{Fix: sysctl(c.setting, 1),
				Text: c.setting + " is 0: answers of masq real servers are not passed on to the clients"})
		}
	}
	return found
}

// redirects: with one network for all, the director would tell the servers to
// answer past it.
func redirects(f Facts) (found []Finding) {
	told := map[string]bool{}
	f.each(func(v model.VirtualService, r model.RealServer) {
		i := f.towards(r.Addr.Addr())
		if r.Forward != model.Masq || i == nil || told[i.Name] || !i.has(v.Key.Addr.Addr()) {
			return
		}
		// Either setting is enough to send them.
		if number(f.All, "send_redirects") == 1 || number(i.Conf, "send_redirects") == 1 {
			told[i.Name] = true
			found = append(found, Finding{Fix: sysctl("net.ipv4.conf.all.send_redirects", 0) + " " + fmt.Sprintf("net.ipv4.conf.%s.send_redirects=0", i.Name),
				Text: fmt.Sprintf("%s has both the virtual address %s and masq real server %s: the director redirects the server's answers past itself, where clients do not know them",
					i.Name, v.Key.Addr.Addr(), r.Addr.Addr())})
		}
	})
	return found
}

// gateTooFar: gate changes the Ethernet address only.
func gateTooFar(f Facts) (found []Finding) {
	f.each(func(v model.VirtualService, r model.RealServer) {
		a := r.Addr.Addr()
		if r.Forward == model.Gate && len(f.Interfaces) > 0 && !f.own(a) && f.towards(a) == nil {
			found = append(found, Finding{
				Text: fmt.Sprintf("service %s: gate real server %s is on no network of this machine's: a router in between does not know what to do with a packet for the virtual address; use ipip, or masq", v.Key, r.Addr)})
		}
	})
	return found
}

// overhead is how many bytes a tunnel adds to a packet.
func overhead(r model.RealServer) int {
	n := 20 // RFC 2003
	if r.Addr.Addr().Is6() {
		n = 40 // RFC 2473
	}
	switch r.Tunnel.Kind {
	case model.TunnelGUE:
		n += 8 + 4 // UDP, GUE
	case model.TunnelGRE:
		n += 4 // RFC 2784
	case model.TunnelIPIP:
		return n
	}
	if r.Tunnel.Checksum != model.TunnelNoChecksum && r.Tunnel.Kind == model.TunnelGRE {
		n += 4
	}
	return n
}

// tunnelWithoutDiscovery: clients never hear that their packets are too big.
func tunnelWithoutDiscovery(f Facts) []Finding {
	if number(f.IPVS, "pmtu_disc") != 0 || !f.uses(model.IPIP, model.IPv4) {
		return nil
	}
	return []Finding{{Fix: vs("pmtu_disc", 1),
		Text: "net.ipv4.vs.pmtu_disc is 0 and there are ipip real servers: full-size packets do not fit into the tunnel and clients are not told"}}
}

// tunnelMTU: what fits into the tunnel.
func tunnelMTU(f Facts) (found []Finding) {
	told := map[string]bool{}
	f.each(func(_ model.VirtualService, r model.RealServer) {
		i := f.towards(r.Addr.Addr())
		if r.Forward != model.IPIP || i == nil || i.MTU == 0 || i.MTU >= 1500+overhead(r) {
			return
		}
		key := fmt.Sprint(i.Name, overhead(r))
		if told[key] {
			return
		}
		told[key] = true
		found = append(found, Finding{Fix: fmt.Sprintf("ip link set %s mtu %d", i.Name, 1500+overhead(r)),
			Text: fmt.Sprintf("%s tunnels over %s carry packets of up to %d bytes: clients behind routers that drop ICMP hang with 1500; raise the MTU on both ends if the switch can, or have the real servers announce an MSS of %d",
				r.Tunnel.Kind, i.Name, i.MTU-overhead(r), i.MTU-overhead(r)-40)})
	})
	return found
}

// strictFilter: a strict filter on the side of the clients.
func strictFilter(f Facts) (found []Finding) {
	for _, i := range f.Interfaces {
		holds := slices.ContainsFunc(f.Services, func(v model.VirtualService) bool { return !v.Key.IsMark() && i.has(v.Key.Addr.Addr()) })
		if !i.Loopback && holds && f.effective(i, "rp_filter") == 1 {
			found = append(found, Finding{Fix: sysctl("net.ipv4.conf."+i.Name+".rp_filter", 2),
				Text: i.Name + " has a virtual address and a strict rp_filter: packets of clients to whom the route leads by another interface are dropped without a word"})
		}
	}
	return found
}

// loop: two directors that are each other's real servers.
func loop(f Facts) (found []Finding) {
	backup := slices.ContainsFunc(f.Sync, func(d model.SyncDaemon) bool { return d.Role == model.SyncBackup })
	if !backup || number(f.IPVS, "backup_only") != 0 {
		return nil
	}
	f.each(func(v model.VirtualService, r model.RealServer) {
		if len(found) == 0 && r.Forward != model.Masq && slices.Contains(f.Peers, r.Addr.Addr()) {
			found = append(found, Finding{Fix: vs("backup_only", 1),
				Text: fmt.Sprintf("service %s: real server %s is a director too, and net.ipv4.vs.backup_only is 0: while it is the backup it balances what it is sent back to this one, round and round", v.Key, r.Addr)})
		}
	})
	return found
}

func quiescent(f Facts, of func(model.VirtualService) bool) (where string) {
	f.each(func(v model.VirtualService, r model.RealServer) {
		if where == "" && r.Weight == 0 && of(v) {
			where = fmt.Sprintf("%s of service %s", r.Addr, v.Key)
		}
	})
	return where
}

// reusedPorts: ipvs-sysctl.rst, conn_reuse_mode 0.
func reusedPorts(f Facts) []Finding {
	where := quiescent(f, func(model.VirtualService) bool { return true })
	if number(f.IPVS, "conn_reuse_mode") != 0 || where == "" {
		return nil
	}
	return []Finding{{Fix: vs("conn_reuse_mode", 1),
		Text: "net.ipv4.vs.conn_reuse_mode is 0: a client that uses a port again comes back to the same real server, also to " + where + ", which has weight 0"}}
}

// reuseWithConntrack: ipvs-sysctl.rst, conn_reuse_mode 1.
func reuseWithConntrack(f Facts) []Finding {
	if number(f.IPVS, "conn_reuse_mode") != 1 || number(f.IPVS, "conntrack") != 1 {
		return nil
	}
	return []Finding{{Fix: vs("conn_reuse_mode", 0),
		Text: "net.ipv4.vs.conntrack and conn_reuse_mode are both 1: where a client uses a port again its first packet may be dropped, and it waits a second; without conntrack, or with conn_reuse_mode 0, it does not"}}
}

// lingering: connections of deleted real servers.
func lingering(f Facts) []Finding {
	if number(f.IPVS, "expire_nodest_conn") != 0 || len(f.Services) == 0 {
		return nil
	}
	return []Finding{{Fix: vs("expire_nodest_conn", 1),
		Text: "net.ipv4.vs.expire_nodest_conn is 0: clients of a real server that is removed hang until their own timeout instead of connecting anew"}}
}

// boundToQuiescent: persistence and weight 0.
func boundToQuiescent(f Facts) []Finding {
	where := quiescent(f, func(v model.VirtualService) bool { return v.Persistence.Enabled })
	if number(f.IPVS, "expire_quiescent_template") != 0 || where == "" {
		return nil
	}
	return []Finding{{Fix: vs("expire_quiescent_template", 1),
		Text: "net.ipv4.vs.expire_quiescent_template is 0: clients bound by persistence still get new connections to " + where + ", which has weight 0"}}
}

// syncInTheOpen: nobody checks who sends what the backup believes.
func syncInTheOpen(f Facts) (found []Finding) {
	told := map[string]bool{}
	for _, d := range f.Sync {
		n := slices.IndexFunc(f.Interfaces, func(i Interface) bool { return i.Name == d.Interface })
		if n < 0 || told[d.Interface] {
			continue
		}
		public := slices.ContainsFunc(f.Services, func(v model.VirtualService) bool { return !v.Key.IsMark() && f.Interfaces[n].has(v.Key.Addr.Addr()) })
		other := len(f.Heartbeat) > 0 && !slices.Contains(f.Heartbeat, d.Interface)
		if !public && !other {
			continue
		}
		told[d.Interface] = true
		where := "the clients' network"
		if !public {
			where = "no heartbeat's network (" + strings.Join(f.Heartbeat, ", ") + ")"
		}
		x := Finding{Text: fmt.Sprintf("the %s sync daemon uses %s, %s: what it sends and believes is not authenticated, and whoever is there can write into the connection table", d.Role, d.Interface, where)}
		if len(f.Heartbeat) > 0 {
			x.Fix = fmt.Sprintf("ipvsadm --stop-daemon %s; ipvsadm --start-daemon %s --mcast-interface %s --syncid %d", d.Role, d.Role, f.Heartbeat[0], d.ID)
		}
		found = append(found, x)
	}
	return found
}

// syncIDs: a backup hears the masters of its own ID.
func syncIDs(f Facts) []Finding {
	var master, backup *model.SyncDaemon
	for n := range f.Sync {
		switch f.Sync[n].Role {
		case model.SyncMaster:
			master = &f.Sync[n]
		case model.SyncBackup:
			backup = &f.Sync[n]
		case model.SyncNone:
		}
	}
	if master == nil || backup == nil || master.ID == backup.ID || backup.ID == 0 {
		return nil
	}
	return []Finding{{Fix: fmt.Sprintf("ipvsadm --stop-daemon backup; ipvsadm --start-daemon backup --mcast-interface %s --syncid %d", backup.Interface, master.ID),
		Text: fmt.Sprintf("the sync daemons have two IDs, master %d and backup %d: after a failover the connections would not come back", master.ID, backup.ID)}}
}

// droppingAlways: defenses that are for an attack.
func droppingAlways(f Facts) (found []Finding) {
	for _, name := range []string{"drop_entry", "drop_packet", "secure_tcp"} {
		if number(f.IPVS, name) == 3 {
			found = append(found, Finding{Fix: vs(name, 1),
				Text: "net.ipv4.vs." + name + " is 3: this defense against attacks is always on and harms real clients; 1 switches it on when memory is short"})
		}
	}
	return found
}

// silentKernel: without its answers a daemon that hangs or is restarted looks
// like a machine that is lost.
func silentKernel(f Facts) []Finding {
	if f.Silent == "" {
		return nil
	}
	x := Finding{Text: "this machine's kernel does not answer the other directors when the daemon here is silent (" + f.Silent +
		"): they take over at the dead time also if only the daemon hangs or is restarted"}
	if f.NoBPF {
		x.Text += "; mount the file system, have it mounted at each boot, and restart the daemon"
		x.Fix = "mount -t bpf bpf /sys/fs/bpf"
	}
	return []Finding{x}
}

// answersARP: a real server of gate or ipip that tells the network where the
// virtual address is takes it away from the director.
func answersARP(f Facts) (found []Finding) {
	return eachOutside(f, "arp_ignore", 1, "answers ARP for %s, which is the director's: clients go past it to this one server")
}

func announcesHidden(f Facts) (found []Finding) {
	return eachOutside(f, "arp_announce", 2, "uses %s in its own ARP requests, and neighbors take it for its owner")
}

func eachOutside(f Facts, setting string, want int, sentence string) (found []Finding) {
	hidden := f.hidden()
	if len(hidden) == 0 {
		return nil
	}
	for _, i := range f.Interfaces {
		if e := f.effective(i, setting); !i.Loopback && !i.Tunnel && e >= 0 && e < want && len(i.Addrs) > 0 {
			found = append(found, Finding{Fix: sysctl("net.ipv4.conf.all."+setting, want) + " " + fmt.Sprintf("net.ipv4.conf.%s.%s=%d", i.Name, setting, want),
				Text: fmt.Sprintf("%s "+sentence, i.Name, hidden[0].Addr())})
		}
	}
	return found
}

// strictTunnel: what leaves a tunnel came from a client, to whom no route
// leads by the tunnel.
func strictTunnel(f Facts) (found []Finding) {
	if len(f.hidden()) == 0 {
		return nil
	}
	for _, i := range f.Interfaces {
		if i.Tunnel && f.effective(i, "rp_filter") == 1 {
			found = append(found, Finding{Fix: sysctl("net.ipv4.conf."+i.Name+".rp_filter", 0) + " net.ipv4.conf.all.rp_filter=0",
				Text: i.Name + " has a strict rp_filter: every packet that comes out of the tunnel is dropped, for the way back to the client leads elsewhere"})
		}
	}
	return found
}

// wideHidden: all of the network is the machine itself then.
func wideHidden(f Facts) (found []Finding) {
	for _, i := range f.Interfaces {
		for _, p := range i.Addrs {
			if i.Loopback && p.Addr().Is4() && !p.Addr().IsLoopback() && p.Bits() < 32 {
				found = append(found, Finding{Fix: fmt.Sprintf("ip addr add %s/32 dev %s && ip addr del %s dev %s", p.Addr(), i.Name, p, i.Name),
					Text: fmt.Sprintf("%s on %s: the machine takes all of %s for itself and does not reach its neighbors there", p, i.Name, p.Masked())})
			}
		}
	}
	return found
}
