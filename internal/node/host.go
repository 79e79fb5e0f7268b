package node

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/config"
	"github.com/batuta-ha/batuta/internal/model"
)

// Longest wait for one name while a configuration is read.
const lookupTimeout = 5 * time.Second

// Host takes the snapshot of this machine that config needs.
func Host() (model.Host, error) {
	h := model.Host{LookupAddr: lookupAddr, LookupPort: lookupPort}
	own, err := os.Hostname()
	if err != nil {
		return h, fmt.Errorf("read this machine's name: %w", err)
	}
	h.NodeName = model.NodeName(strings.ToLower(own))
	list, err := net.Interfaces()
	if err != nil {
		return h, fmt.Errorf("list the network interfaces: %w", err)
	}
	for _, i := range list {
		addrs, err := i.Addrs()
		if err != nil {
			return h, fmt.Errorf("list the addresses of %s: %w", i.Name, err)
		}
		h.Interfaces = append(h.Interfaces, describeInterface(i, addrs))
	}
	return h, nil
}

// Reader reads configuration files of this machine; a node name overrides
// what the machine calls itself.
func Reader(name model.NodeName) (config.Reader, error) {
	host, err := Host()
	if err != nil {
		return config.Reader{}, err
	}
	dir, err := os.Getwd()
	if err != nil {
		return config.Reader{}, fmt.Errorf("find the working directory: %w", err)
	}
	return config.Reader{Files: os.DirFS("/"), Dir: dir, Host: host, Node: name, Agreement: checkAgreement}, nil
}

func describeInterface(i net.Interface, addrs []net.Addr) model.Interface {
	out := model.Interface{Name: i.Name}
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		ip, _ := netip.AddrFromSlice(n.IP)
		bits, _ := n.Mask.Size()
		p := netip.PrefixFrom(ip.Unmap(), bits)
		out.Addrs = append(out.Addrs, p)
		if !out.Broadcast.IsValid() && p.Addr().Is4() && i.Flags&net.FlagBroadcast != 0 && bits < 31 {
			out.Broadcast = lastAddr(p)
		}
	}
	return out
}

// lastAddr is the broadcast address of an IPv4 network.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := range b {
		host := min(max((i+1)*8-p.Bits(), 0), 8)
		b[i] |= byte(1<<host - 1)
	}
	return netip.AddrFrom4(b)
}

func lookupAddr(name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	list, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	for i := range list {
		list[i] = list[i].Unmap()
	}
	return list, err
}

func lookupPort(network, service string) (uint16, error) {
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	p, err := net.DefaultResolver.LookupPort(ctx, network, service)
	return uint16(p), err
}
