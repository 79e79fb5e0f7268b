package node

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/doctor"
	"github.com/batuta-ha/batuta/internal/model"
)

// Facts looks at this machine for the doctor. Table and status are those of
// the running daemon, zero where none runs; then the kernel's IPVS is looked at
// if it is loaded already. What cannot be found out stays unknown.
func Facts(ctx context.Context, t api.Table, st api.Status) (doctor.Facts, error) {
	f := doctor.Facts{IPVS: map[string]string{}, Forward: map[model.Family]string{}, All: interfaceConf("all")}
	if _, err := os.Stat("/proc/net/ip_vs"); err == nil && t.Plane.Name == "" {
		k, err := OpenKernel()
		if err == nil {
			t, err = k.Table(ctx)
			_ = k.Close() // nothing was written
		}
		if err != nil {
			return f, fmt.Errorf("look at the kernel's IPVS: %w", err)
		}
	}
	if t.Plane.Name == "ipvs" { // the rules are its own
		f.Services, f.Sync = t.Services, t.Sync
		for _, s := range t.Sysctls {
			f.IPVS[s.Name] = s.Value
		}
	}
	f.Silent, f.NoBPF = st.KernelSilent, !onBPF("/sys/fs/bpf")
	if t.Plane.Name == "ebpf" {
		f.EBPF = ebpfFacts(ctx, t.Services)
	}
	f.Forward[model.IPv4] = setting("ipv4/ip_forward")
	f.Forward[model.IPv6] = setting("ipv6/conf/all/forwarding")
	for _, p := range st.Peers {
		for _, l := range p.Links {
			if !slices.Contains(f.Heartbeat, l.Name) {
				f.Heartbeat = append(f.Heartbeat, l.Name)
			}
		}
		if !p.Self {
			f.Peers = append(f.Peers, addressesOf(ctx, string(p.Name))...)
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		return f, fmt.Errorf("list the interfaces: %w", err)
	}
	for _, l := range links {
		f.Interfaces = append(f.Interfaces, interfaceOf(l))
	}
	return f, nil
}

// onBPF tells whether a directory is that of a BPF file system.
func onBPF(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && uint32(st.Type) == unix.BPF_FS_MAGIC
}

func interfaceOf(l netlink.Link) doctor.Interface {
	a := l.Attrs()
	i := doctor.Interface{Name: a.Name, MTU: a.MTU, Conf: interfaceConf(a.Name), Loopback: a.Flags&net.FlagLoopback != 0 || l.Type() == "dummy",
		Tunnel: slices.Contains([]string{"ipip", "ip6tnl", "gre", "ip6gre", "sit"}, l.Type())}
	addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return i // it is gone meanwhile
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			ones, _ := a.Mask.Size()
			i.Addrs = append(i.Addrs, netip.PrefixFrom(ip.Unmap(), ones))
		}
	}
	return i
}

// interfaceConf reads what the doctor's rules need of net.ipv4.conf.
func interfaceConf(name string) map[string]string {
	conf := map[string]string{}
	for _, s := range []string{"rp_filter", "arp_ignore", "arp_announce", "send_redirects"} {
		if v := setting(filepath.Join("ipv4/conf", name, s)); v != "" {
			conf[s] = v
		}
	}
	return conf
}

func setting(name string) string {
	b, err := os.ReadFile(filepath.Join("/proc/sys/net", name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// addressesOf is what a node's name means here; nothing where nobody knows.
func addressesOf(ctx context.Context, name string) []netip.Addr {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	if err != nil {
		return nil
	}
	for i := range found {
		found[i] = found[i].Unmap()
	}
	return found
}
