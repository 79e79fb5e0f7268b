package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// IPVS is what a director wants of the kernel's IPVS besides its table.
type IPVS struct {
	Sync     *SyncDaemon // the daemons of both roles run with this; Role is ignored. nil: left as they are
	Timeouts Timeouts    // of silent connections; zero members are left as they are
	Sysctls  []Setting   // below net.ipv4.vs: {"conn_reuse_mode", "0"}
}

// Timeouts say how long a connection is remembered of which nothing is heard,
// in whole seconds (ipvsadm(8), --set).
type Timeouts struct {
	TCP    time.Duration // established; the kernel begins with 15 min
	TCPFin time.Duration // after a FIN; 2 min
	UDP    time.Duration // 5 min
}

// timeoutsJSON are seconds, as ipvsadm counts them.
type timeoutsJSON struct {
	TCP    int64 `json:"tcp"`
	TCPFin int64 `json:"tcpfin"`
	UDP    int64 `json:"udp"`
}

// MarshalJSON writes seconds.
func (t Timeouts) MarshalJSON() ([]byte, error) {
	return json.Marshal(timeoutsJSON{int64(t.TCP / time.Second), int64(t.TCPFin / time.Second), int64(t.UDP / time.Second)})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (t *Timeouts) UnmarshalJSON(b []byte) error {
	var j timeoutsJSON
	err := json.Unmarshal(b, &j)
	*t = Timeouts{time.Duration(j.TCP) * time.Second, time.Duration(j.TCPFin) * time.Second, time.Duration(j.UDP) * time.Second}
	return err
}

// SyncRole is what a connection synchronization daemon of IPVS does.
type SyncRole uint8

// Roles of sync daemons; a director may have one of each.
const (
	SyncNone   SyncRole = iota
	SyncMaster          // tells the others of this director's connections
	SyncBackup          // learns of theirs
)

var syncRoleText = [...]string{"none", "master", "backup"}

func (r SyncRole) String() string {
	if int(r) < len(syncRoleText) {
		return syncRoleText[r]
	}
	return "syncrole(" + strconv.Itoa(int(r)) + ")"
}

// MarshalText writes master or backup.
func (r SyncRole) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (r *SyncRole) UnmarshalText(b []byte) error {
	for q := SyncNone; q <= SyncBackup; q++ {
		if q.String() == string(b) {
			*r = q
			return nil
		}
	}
	return fmt.Errorf("%q is no role of a sync daemon: want master or backup", b)
}

// SyncDaemon is a connection synchronization daemon of IPVS. What it sends and
// believes is neither authenticated nor encrypted (ipvsadm(8) has no option for
// it), so its interface should be one that only the directors share.
type SyncDaemon struct {
	Role      SyncRole   `json:"role"`
	Interface string     `json:"interface"`        // whose multicast packets are sent and heard
	ID        uint8      `json:"syncid"`           // directors with one ID share connections; 0 hears all
	MaxLen    uint16     `json:"maxlen,omitempty"` // bytes of payload a packet; 0: what the interface carries
	Group     netip.Addr `json:"group,omitzero"`   // multicast group; zero: 224.0.0.81
	Port      uint16     `json:"port,omitempty"`   // UDP; 0: 8848
	TTL       uint8      `json:"ttl,omitempty"`    // 0: 1
}

// String is the line of ipvsadm -L --daemon.
func (d SyncDaemon) String() string {
	s := fmt.Sprintf("%s sync daemon (mcast=%s, syncid=%d", d.Role, d.Interface, d.ID)
	if d.MaxLen != 0 {
		s += fmt.Sprintf(", maxlen=%d", d.MaxLen)
	}
	if d.Group.IsValid() {
		s += fmt.Sprintf(", group=%s", d.Group)
	}
	if d.Port != 0 {
		s += fmt.Sprintf(", port=%d", d.Port)
	}
	if d.TTL != 0 {
		s += fmt.Sprintf(", ttl=%d", d.TTL)
	}
	return s + ")"
}

// ParseSyncDaemon reads INTERFACE[,id=N][,maxlen=N][,group=ADDR][,port=N][,ttl=N],
// the words of keepalived's lvs_sync_daemon in one argument.
func ParseSyncDaemon(s string) (d SyncDaemon, err error) {
	words := strings.Split(s, ",")
	if d.Interface = words[0]; d.Interface == "" || len(d.Interface) > 15 || strings.ContainsAny(d.Interface, "= /") {
		return d, fmt.Errorf("sync daemon %q: want INTERFACE[,id=N][,maxlen=N][,group=ADDRESS][,port=N][,ttl=N]", s)
	}
	for _, w := range words[1:] {
		name, value, _ := strings.Cut(w, "=")
		number := func(bits int) uint64 {
			n, e := strconv.ParseUint(value, 10, bits)
			if e != nil {
				err = errors.Join(err, fmt.Errorf("sync daemon: %s=%q: want a number up to %d", name, value, uint64(1)<<bits-1))
			}
			return n
		}
		switch name {
		case "id":
			d.ID = uint8(number(8))
		case "maxlen":
			d.MaxLen = uint16(number(16))
		case "port":
			d.Port = uint16(number(16))
		case "ttl":
			d.TTL = uint8(number(8))
		case "group":
			a, e := netip.ParseAddr(value)
			if e != nil || !a.IsMulticast() {
				err = errors.Join(err, fmt.Errorf("sync daemon: group=%q: want a multicast address", value))
			}
			d.Group = a
		default:
			err = errors.Join(err, fmt.Errorf("sync daemon: %q: want id, maxlen, group, port or ttl", name))
		}
	}
	return d, err
}

// Tunnel is how a packet of the forwarding method ipip is wrapped. The zero
// value is IP in IP (RFC 2003).
type Tunnel struct {
	Kind     TunnelKind
	Port     uint16 // GUE: the UDP port of the real server
	Checksum TunnelChecksum
}

// TunnelKind is the protocol of a tunnel (ipvsadm(8), --tun-type).
type TunnelKind uint8

// Kinds of tunnels.
const (
	TunnelIPIP TunnelKind = iota // RFC 2003, RFC 2473
	TunnelGUE                    // Generic UDP Encapsulation
	TunnelGRE                    // RFC 2784
)

// TunnelChecksum is what of a tunnel's packet is summed.
type TunnelChecksum uint8

// Checksums of tunnels.
const (
	TunnelNoChecksum     TunnelChecksum = iota
	TunnelSum                           // GUE, GRE: the outer header has a checksum
	TunnelRemoteChecksum                // GUE: the receiver makes the inner one
)

var (
	tunnelKindText     = [...]string{"ipip", "gue", "gre"}
	tunnelChecksumText = [...]string{"", "csum", "remcsum"}
)

func (k TunnelKind) String() string {
	if int(k) < len(tunnelKindText) {
		return tunnelKindText[k]
	}
	return "tunnel(" + strconv.Itoa(int(k)) + ")"
}

// String is the canonical text: "ipip", "gue:6080", "gue:6080:remcsum", "gre:csum".
func (t Tunnel) String() string {
	s := t.Kind.String()
	if t.Port != 0 {
		s += ":" + strconv.Itoa(int(t.Port))
	}
	if int(t.Checksum) < len(tunnelChecksumText) && t.Checksum != TunnelNoChecksum {
		s += ":" + tunnelChecksumText[t.Checksum]
	}
	return s
}

// ErrBadTunnel is wrapped by ParseTunnel for text that is no tunnel.
var ErrBadTunnel = errors.New("not a tunnel: want ipip, gue:PORT, gre, and of the last two with :csum, or gue:PORT:remcsum")

// ParseTunnel reads what String writes.
func ParseTunnel(s string) (t Tunnel, err error) {
	bad := fmt.Errorf("%q: %w", s, ErrBadTunnel)
	words := strings.Split(s, ":")
	switch words[0] {
	case "ipip":
		if len(words) > 1 {
			return t, bad
		}
		return t, nil
	case "gre":
		t.Kind = TunnelGRE
		words = words[1:]
	case "gue":
		t.Kind = TunnelGUE
		if len(words) < 2 {
			return t, bad
		}
		port, err := strconv.ParseUint(words[1], 10, 16)
		if err != nil || port == 0 {
			return t, bad
		}
		t.Port, words = uint16(port), words[2:]
	default:
		return t, bad
	}
	switch strings.Join(words, ":") {
	case "":
	case "csum":
		t.Checksum = TunnelSum
	case "remcsum":
		if t.Checksum = TunnelRemoteChecksum; t.Kind != TunnelGUE {
			return t, bad
		}
	default:
		return t, bad
	}
	return t, nil
}

// MarshalText writes the canonical text.
func (t Tunnel) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (t *Tunnel) UnmarshalText(b []byte) (err error) {
	*t, err = ParseTunnel(string(b))
	return err
}
