package model

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Protocol is the transport of a virtual service. The zero value means that
// the service is not selected by transport at all: a firewall-mark service.
type Protocol uint8

// Transports of virtual services.
const (
	ProtocolNone Protocol = iota
	TCP
	UDP
	SCTP
)

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	case ProtocolNone:
		return "none"
	}
	return "protocol(" + strconv.Itoa(int(p)) + ")"
}

// MarshalText writes tcp, udp, sctp or none.
func (p Protocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (p *Protocol) UnmarshalText(b []byte) error {
	for q := ProtocolNone; q <= SCTP; q++ {
		if q.String() == string(b) {
			*p = q
			return nil
		}
	}
	return fmt.Errorf("%q is no transport: want tcp, udp, sctp or none", b)
}

// Number is the IP protocol number (IANA), 0 for ProtocolNone.
func (p Protocol) Number() uint8 {
	switch p {
	case TCP:
		return 6
	case UDP:
		return 17
	case SCTP:
		return 132
	case ProtocolNone:
	}
	return 0
}

// Family is an IP address family.
type Family uint8

// Address families.
const (
	FamilyNone Family = iota
	IPv4
	IPv6
)

func (f Family) String() string {
	switch f {
	case IPv4:
		return "ipv4"
	case IPv6:
		return "ipv6"
	case FamilyNone:
	}
	return "none"
}

// FamilyOf tells the family of an address; an IPv4-mapped IPv6 address is IPv6.
func FamilyOf(a netip.Addr) Family {
	switch {
	case a.Is4():
		return IPv4
	case a.Is6():
		return IPv6
	}
	return FamilyNone
}

// ServiceKey is the identity of a virtual service: transport and virtual
// address, or firewall mark and family. It is comparable and usable as a map
// key. A mark service has Mark != 0, Proto == ProtocolNone, the zero Addr and
// its family in MarkFamily; an address service has the zero Mark and MarkFamily.
type ServiceKey struct {
	Proto      Protocol
	Addr       netip.AddrPort
	Mark       uint32
	MarkFamily Family
}

// IsMark tells a firewall-mark service from an address service.
func (k ServiceKey) IsMark() bool { return k.Proto == ProtocolNone }

// Family is the address family of the service.
func (k ServiceKey) Family() Family {
	if k.IsMark() {
		return k.MarkFamily
	}
	return FamilyOf(k.Addr.Addr())
}

// String is the canonical text: "tcp 10.1.0.100:80", "udp [2001:db8::1]:53",
// "fwm 4" or "fwm6 4".
func (k ServiceKey) String() string {
	if !k.IsMark() {
		return k.Proto.String() + " " + k.Addr.String()
	}
	if k.MarkFamily == IPv6 {
		return "fwm6 " + strconv.FormatUint(uint64(k.Mark), 10)
	}
	return "fwm " + strconv.FormatUint(uint64(k.Mark), 10)
}

// MarkRule says which packets have a firewall mark, for planes that see them
// before netfilter could mark them. Zero members fit all. It is comparable.
type MarkRule struct {
	Mark                uint32
	Family              Family   // of the packets, and of the service
	Proto               Protocol // ProtocolNone: any
	Source, Destination netip.Prefix
	First, Last         uint16 // destination ports; Last 0: up to the highest
	Interface           string // that the packets come in by
}

// Key is that of the service whose packets these are.
func (r MarkRule) Key() ServiceKey { return ServiceKey{Mark: r.Mark, MarkFamily: r.Family} }

// ErrBadServiceKey is wrapped by ParseServiceKey for text that is no key.
var ErrBadServiceKey = errors.New("not a virtual service: want \"tcp ADDR:PORT\", \"udp ADDR:PORT\", \"sctp ADDR:PORT\", \"fwm N\" or \"fwm6 N\"")

// ParseServiceKey reads the text that ServiceKey.String writes.
func ParseServiceKey(s string) (ServiceKey, error) {
	word, rest, _ := strings.Cut(s, " ")
	switch word {
	case "tcp", "udp", "sctp":
		a, err := netip.ParseAddrPort(rest)
		if err != nil {
			return ServiceKey{}, fmt.Errorf("%q: %w", s, ErrBadServiceKey)
		}
		k := ServiceKey{Addr: a}
		switch word {
		case "tcp":
			k.Proto = TCP
		case "udp":
			k.Proto = UDP
		default:
			k.Proto = SCTP
		}
		return k, nil
	case "fwm", "fwm6":
		n, err := strconv.ParseUint(rest, 10, 32)
		if err != nil {
			return ServiceKey{}, fmt.Errorf("%q: %w", s, ErrBadServiceKey)
		}
		k := ServiceKey{Mark: uint32(n), MarkFamily: IPv4}
		if word == "fwm6" {
			k.MarkFamily = IPv6
		}
		return k, nil
	}
	return ServiceKey{}, fmt.Errorf("%q: %w", s, ErrBadServiceKey)
}

// MarshalText and UnmarshalText make the canonical text the JSON form too,
// also where a key indexes a JSON object.
func (k ServiceKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (k *ServiceKey) UnmarshalText(b []byte) (err error) {
	*k, err = ParseServiceKey(string(b))
	return err
}

// Compare orders services as ipvsadm lists them: IPv4 before IPv6, within a
// family by transport, address and port; marks come last.
func (k ServiceKey) Compare(o ServiceKey) int {
	rank := func(k ServiceKey) int {
		if k.IsMark() {
			return 255
		}
		return int(k.Family())
	}
	return cmp.Or(
		cmp.Compare(rank(k), rank(o)),
		cmp.Compare(k.Proto, o.Proto),
		k.Addr.Compare(o.Addr),
		cmp.Compare(k.Mark, o.Mark),
		cmp.Compare(k.MarkFamily, o.MarkFamily),
	)
}

// Forward is the forwarding method: how a packet reaches its real server.
type Forward uint8

// Forwarding methods, in the words of ldirectord.cf.
const (
	ForwardNone Forward = iota
	Masq                // NAT: destination rewritten, replies pass the director
	Gate                // direct routing: MAC rewritten, replies go straight to the client
	IPIP                // tunnel: encapsulated, replies go straight to the client
)

func (f Forward) String() string {
	switch f {
	case Masq:
		return "masq"
	case Gate:
		return "gate"
	case IPIP:
		return "ipip"
	case ForwardNone:
	}
	return "none"
}

// ErrBadForward is wrapped by ParseForward for any other word.
var ErrBadForward = errors.New("not a forwarding method: want masq, gate or ipip")

// ParseForward reads masq, gate or ipip.
func ParseForward(s string) (Forward, error) {
	switch s {
	case "masq":
		return Masq, nil
	case "gate":
		return Gate, nil
	case "ipip":
		return IPIP, nil
	}
	return ForwardNone, fmt.Errorf("%q: %w", s, ErrBadForward)
}

// Persistence sends a client (or a network of clients) to the same real
// server for Timeout after its last connection.
type Persistence struct {
	Enabled bool
	Timeout time.Duration // whole seconds
	Netmask netip.Addr    // IPv4 mask as an address, or the IPv6 mask; the zero Addr means one host
	Engine  string        // what tells clients apart besides their address: "sip", "" for nothing
}

// VirtualService is one service of a table: identity, how to schedule, and
// the real servers it has now. Reals is sorted by address.
type VirtualService struct {
	Key         ServiceKey
	Scheduler   string // rr, wrr, lc, wlc, ... as the plane knows it
	SchedFlags  string // as given to ipvsadm -b, "" for none
	Persistence Persistence
	OnePacket   bool // one-packet scheduling: each UDP datagram is a connection of its own
	Reals       []RealServer
}

// SameParameters tells whether two services agree in everything but their reals.
func (v VirtualService) SameParameters(o VirtualService) bool {
	return v.Key == o.Key && v.Scheduler == o.Scheduler && v.SchedFlags == o.SchedFlags &&
		v.Persistence == o.Persistence && v.OnePacket == o.OnePacket
}

// RealServer is one row under a service of a table. Addr is the identity;
// its port is 0 where the service's own port is kept (marks).
type RealServer struct {
	Addr    netip.AddrPort
	Forward Forward
	Weight  int    // 0: no new connections
	Upper   uint32 // connections above which no new ones come; 0: no limit
	Lower   uint32 // connections below which new ones come again; 0: 3/4 of Upper
	Tunnel  Tunnel // ipip only
}

// Service is a configured virtual service: what the administrator wants, of
// which balance.Desired makes a VirtualService according to the verdicts.
type Service struct {
	Virtual         VirtualService // Reals is empty
	Reals           []CheckedReal  // in file order
	Fallback        *RealServer    // used while no real server is up; nil for none
	FallbackCommand string         // run with "start|stop ADDR:PORT tcp|udp|fwm"; "" for none
	Quiescent       bool           // a real server that is down keeps its row with weight 0
	ReaddQuiescent  bool           // such a row is put back when it vanished
	CleanStop       bool           // the service leaves the table when the director stops
	FailureCount    int            // consecutive failures until down, at least 1
	SuccessCount    int            // consecutive successes until up again; 0 is 1
	CheckInterval   time.Duration  // from the start of one check to the start of the next
	CheckJitter     time.Duration  // by which that is longer or shorter at most, by chance
	DrainDeadline   time.Duration  // after which a drain that names none cuts what is left; 0: never
	Care            Care           // of real servers that come and go
	MonitorFile     string         // one line for each check result; "" for none
	Alert           EmailAlert
	ServiceName     string // for messages to people
	Comment         string
	Agreed          *Agreement // what was promised about it; nil for nothing
	Marks           []MarkRule // which packets have its mark, for planes that mark them themselves
}

// CheckedReal is a configured real server with the check that decides on it.
type CheckedReal struct {
	RealServer
	Target Target
}

// EmailAlert says whom to tell by mail, and of what.
type EmailAlert struct {
	To       string
	From     string
	Relay    string        // SMTP host; "" for the local mail program
	Repeat   time.Duration // 0: each change once
	Statuses []string      // of all, none, starting, running, stopping, reloading
}

// Director is the content of one ldirectord.cf.
type Director struct {
	Name           string   // instance name, as in the log lines
	File           string   // where it was read from
	Arguments      []string // of the ldirectord resources that mean it, "" for none
	Services       []Service
	AutoReload     bool
	Callback       string   // program run after the file has changed on disk
	LogFile        string   // path, or a syslog facility name without "/"
	Execute        []string // further instances
	Supervised     bool
	Fork           bool
	MaintenanceDir string
}
