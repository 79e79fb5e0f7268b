package lab

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
)

// Role is what a machine is for.
type Role int

// The roles of the tutorial's drawing.
const (
	RoleUnset Role = iota
	RoleClient
	RoleDirector
	RoleRealServer
)

func (r Role) String() string {
	switch r {
	case RoleClient:
		return "client"
	case RoleDirector:
		return "director"
	case RoleRealServer:
		return "real server"
	case RoleUnset:
	}
	return "unset"
}

// Topology is a drawing: switches and the machines plugged into them.
type Topology struct {
	Bridges  []string
	Machines []Machine
}

// Machine is one computer of the drawing.
type Machine struct {
	Name       string // node name, at most 10 characters
	Role       Role   // RoleDirector: packets are forwarded, /etc/ha.d is filled
	Interfaces []Interface
	Gateway    netip.Addr // default route; invalid: none

	// Service is the command that the machine starts at boot; nil: none.
	// Its output is the node's console (Options.Log).
	Service []string

	// Root is a directory used as root file system, as DebianTree makes it;
	// empty: the host's own, read-only.
	Root string

	// Files are written to the disk before the first boot: absolute path to
	// content. A path must lie in /etc or /var.
	Files map[string]File
}

// File is the content and the permission bits of a file on a node's disk.
type File struct {
	Data []byte
	Mode uint32 // 0: 0644
}

// Interface is one network card with its cable.
type Interface struct {
	Name      string // as the machine calls it: eth0
	Bridge    string // the switch at the other end of the cable
	Addresses []netip.Prefix
}

// hardwareAddr derives the card's address from its first IPv4 address, so that
// a capture can be read: 10.1.0.2 has 02:00:0a:01:00:02.
func (i Interface) hardwareAddr() net.HardwareAddr {
	for _, p := range i.Addresses {
		if p.Addr().Is4() {
			a := p.Addr().As4()
			return net.HardwareAddr{2, 0, a[0], a[1], a[2], a[3]}
		}
	}
	return nil // the kernel draws one
}

// Addresses of the tutorial.
const (
	TutorialVIP  = "10.1.0.100"
	TutorialPort = 80
)

// Tutorial is the drawing of the tutorial:
//
//	client ── eth0 ──┬── eth0  lvs01  eth1 ──┬── web1 10.240.0.20   10.240.0.0/24
//	10.1.0.10/24     │   VIP 10.1.0.100      ├── web2 10.240.0.21
//	                 └── eth0  lvs02  eth1 ──┼── web3 10.240.1.20   10.240.1.0/24
//	     outside           heartbeat: eth1   └── web4 10.240.1.21
//	                                      inside
//
// The VIP and the inside gateways 10.240.0.1 and 10.240.1.1 are resources of
// the cluster: nobody has them until the directors agree on an owner.
func Tutorial() Topology {
	t := Topology{Bridges: []string{"outside", "inside"}}
	t.Machines = append(t.Machines, Machine{
		Name: "client", Role: RoleClient,
		Interfaces: []Interface{card("eth0", "outside", "10.1.0.10/24")},
	})
	for i, name := range []string{"lvs01", "lvs02"} {
		t.Machines = append(t.Machines, Machine{
			Name: name, Role: RoleDirector,
			Interfaces: []Interface{
				card("eth0", "outside", fmt.Sprintf("10.1.0.%d/24", 1+i)),
				card("eth1", "inside", fmt.Sprintf("10.240.0.%d/24", 2+i), fmt.Sprintf("10.240.1.%d/24", 2+i)),
			},
			Service: []string{"batuta", "run", "--ha.d", "/etc/ha.d"},
		})
	}
	for i, address := range []string{"10.240.0.20", "10.240.0.21", "10.240.1.20", "10.240.1.21"} {
		name := fmt.Sprintf("web%d", i+1)
		gateway := netip.MustParsePrefix(address + "/24").Masked().Addr().Next()
		t.Machines = append(t.Machines, Machine{
			Name: name, Role: RoleRealServer,
			Interfaces: []Interface{card("eth0", "inside", address+"/24")},
			Gateway:    gateway,
			Service:    []string{"batuta", "lab", "serve", "--listen", ":80", "--name", name},
		})
	}
	return t
}

func card(name, bridge string, addresses ...string) Interface {
	i := Interface{Name: name, Bridge: bridge}
	for _, a := range addresses {
		i.Addresses = append(i.Addresses, netip.MustParsePrefix(a))
	}
	return i
}

// Machine returns the machine of that name, to be changed before Start; nil
// when the drawing has none.
func (t *Topology) Machine(name string) *Machine {
	for i := range t.Machines {
		if t.Machines[i].Name == name {
			return &t.Machines[i]
		}
	}
	return nil
}

// names lists the machines in the order of the drawing.
func (t *Topology) names() []string {
	var names []string
	for _, m := range t.Machines {
		names = append(names, m.Name)
	}
	return names
}

// hosts is the /etc/hosts that every node gets.
func (t *Topology) hosts() []byte {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for _, m := range t.Machines {
		for i, card := range m.Interfaces {
			for j, p := range card.Addresses {
				name := m.Name
				if i+j > 0 { // the first address is the name's; others are told apart
					name = fmt.Sprintf("%s-%s", m.Name, card.Name)
					if j > 0 {
						name = fmt.Sprintf("%s-%d", name, j)
					}
				}
				fmt.Fprintf(&b, "%s\t%s\n", p.Addr(), name)
			}
		}
	}
	return []byte(b.String())
}

var nameRule = regexp.MustCompile(`^[a-z][a-z0-9-]{0,9}$`)

// validate finds what the kernel would refuse later with less grace: the port
// of a card on its switch is called NODE-CARD and must fit IFNAMSIZ.
func (t *Topology) validate() error {
	bridges, machines := map[string]bool{}, map[string]bool{}
	for _, b := range t.Bridges {
		if !nameRule.MatchString(b) || bridges[b] {
			return fmt.Errorf("lab: bridge %q: names are unique, at most 10 of a-z 0-9 -", b)
		}
		bridges[b] = true
	}
	for _, m := range t.Machines {
		if !nameRule.MatchString(m.Name) || machines[m.Name] || bridges[m.Name] {
			return fmt.Errorf("lab: machine %q: names are unique, at most 10 of a-z 0-9 -", m.Name)
		}
		machines[m.Name] = true
		cards := map[string]bool{}
		for _, i := range m.Interfaces {
			if !bridges[i.Bridge] {
				return fmt.Errorf("lab: %s %s: no bridge %q in the drawing", m.Name, i.Name, i.Bridge)
			}
			if i.Name == "" || i.Name == "lo" || len(i.Name) > 4 || cards[i.Name] {
				return fmt.Errorf("lab: %s: interface %q: names are unique, at most 4 characters", m.Name, i.Name)
			}
			cards[i.Name] = true
		}
		for p := range m.Files {
			if !strings.HasPrefix(p, "/etc/") && !strings.HasPrefix(p, "/var/") || strings.Contains(p, "..") {
				return fmt.Errorf("lab: %s: file %s: only /etc and /var are on a node's disk", m.Name, p)
			}
		}
	}
	return nil
}

// port names the end of a cable at the switch.
func port(node, device string) string { return node + "-" + device }
