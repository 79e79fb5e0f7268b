package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// machineNames are those that this machine knows: /etc/hosts, DNS and
// /etc/services.
type machineNames struct {
	ctx      context.Context
	hosts    map[netip.Addr]string
	services map[string]string // "80/tcp": "http"
	numbers  map[string]uint16 // "http/tcp": 80
}

// askPatience is how long a name server may take for one name.
const askPatience = 5 * time.Second

func newMachineNames(ctx context.Context) *machineNames {
	m := &machineNames{ctx: ctx, hosts: map[netip.Addr]string{}, services: map[string]string{}, numbers: map[string]uint16{}}
	f, err := os.Open("/etc/services")
	if err != nil {
		return m // ports stay numbers
	}
	defer f.Close()
	in := bufio.NewScanner(f)
	for in.Scan() {
		line, _, _ := strings.Cut(in.Text(), "#")
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		port, proto, _ := strings.Cut(words[1], "/")
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			continue
		}
		if _, known := m.services[words[1]]; !known {
			m.services[words[1]] = words[0]
		}
		for i, name := range words {
			if i != 1 {
				m.numbers[name+"/"+proto] = uint16(n)
			}
		}
	}
	return m
}

func (m *machineNames) host(a netip.Addr) string {
	if name, known := m.hosts[a]; known {
		return name
	}
	ctx, cancel := context.WithTimeout(m.ctx, askPatience)
	defer cancel()
	name := a.String()
	if found, err := net.DefaultResolver.LookupAddr(ctx, name); err == nil && len(found) > 0 {
		name = strings.TrimSuffix(found[0], ".")
	}
	m.hosts[a] = name
	return name
}

func (m *machineNames) port(p model.Protocol, port uint16) string {
	n := strconv.Itoa(int(port))
	if name, known := m.services[n+"/"+p.String()]; known {
		return name
	}
	return n
}

func (m *machineNames) addr(host string) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(m.ctx, askPatience)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", host)
	if err != nil {
		return netip.Addr{}, err
	}
	if len(found) == 0 {
		return netip.Addr{}, errors.New("no address")
	}
	return found[0].Unmap(), nil
}

func (m *machineNames) number(p model.Protocol, service string) (uint16, error) {
	if n, known := m.numbers[service+"/"+p.String()]; known {
		return n, nil
	}
	return 0, fmt.Errorf("no %s port of that name in /etc/services", p)
}
