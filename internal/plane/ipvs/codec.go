package ipvs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

// errForm is wrapped by whatever the kernel says that is not of the form of
// linux/ip_vs.h.
var errForm = errors.New("the kernel's answer is not of the form of linux/ip_vs.h")

// encodeKey is a message that names a service.
func encodeKey(k model.ServiceKey) ([]byte, error) {
	ae := netlink.NewAttributeEncoder()
	ae.Nested(attrService, func(s *netlink.AttributeEncoder) error { return putKey(s, k) })
	return ae.Encode()
}

// encodeService is a message with all of a service but its real servers.
func encodeService(v model.VirtualService) ([]byte, error) {
	flags, err := serviceFlags(v)
	if err != nil {
		return nil, err
	}
	if v.Scheduler == "" || len(v.Scheduler) >= 16 { // IP_VS_SCHEDNAME_MAXLEN
		return nil, noScheduler(v.Scheduler)
	}
	seconds, mask, err := persistence(v)
	if err != nil {
		return nil, err
	}
	ae := netlink.NewAttributeEncoder()
	ae.Nested(attrService, func(s *netlink.AttributeEncoder) error {
		if err := putKey(s, v.Key); err != nil {
			return err
		}
		s.String(svcSched, v.Scheduler)
		s.Bytes(svcFlags, append(native(flags), 0xff, 0xff, 0xff, 0xff)) // all flags are meant
		s.Uint32(svcTimeout, seconds)
		s.Bytes(svcNetmask, mask)
		if e := v.Persistence.Engine; v.Persistence.Enabled && e != "" {
			if len(e) >= 16 { // IP_VS_PENAME_MAXLEN
				return noEngine(e)
			}
			s.String(svcEngine, e)
		}
		return nil
	})
	return ae.Encode()
}

// encodeDest is a message with a real server of a service; to name one for
// deletion the address is enough.
func encodeDest(k model.ServiceKey, r model.RealServer, whole bool) ([]byte, error) {
	ae := netlink.NewAttributeEncoder()
	ae.Nested(attrService, func(s *netlink.AttributeEncoder) error { return putKey(s, k) })
	ae.Nested(attrDest, func(d *netlink.AttributeEncoder) error {
		family, err := familyOf(model.FamilyOf(r.Addr.Addr()))
		if err != nil {
			return fmt.Errorf("real server %s: %w", r.Addr, err)
		}
		d.Uint16(destFamily, family)
		d.Bytes(destAddr, addrBytes(r.Addr.Addr()))
		d.Bytes(destPort, binary.BigEndian.AppendUint16(nil, r.Addr.Port()))
		if !whole {
			return nil
		}
		forward, err := forwardNumber(r.Forward)
		if err != nil {
			return err
		}
		if r.Weight < 0 || r.Weight > math.MaxInt32 {
			return fmt.Errorf("weight %d: want 0 to %d", r.Weight, math.MaxInt32)
		}
		d.Uint32(destForward, forward)
		d.Uint32(destWeight, uint32(r.Weight))
		d.Uint32(destUpper, r.Upper)
		d.Uint32(destLower, r.Lower)
		return putTunnel(d, r)
	})
	return ae.Encode()
}

// putTunnel says how a tunnel wraps, where that is not plain IP in IP.
func putTunnel(d *netlink.AttributeEncoder, r model.RealServer) error {
	if r.Tunnel == (model.Tunnel{}) {
		return nil
	}
	if _, err := model.ParseTunnel(r.Tunnel.String()); err != nil || r.Forward != model.IPIP {
		return fmt.Errorf("tunnel %s with forwarding method %s: want ipip, gue with a port, or gre, and ipip", r.Tunnel, r.Forward)
	}
	d.Uint8(destTunKind, uint8(r.Tunnel.Kind))
	d.Bytes(destTunPort, binary.BigEndian.AppendUint16(nil, r.Tunnel.Port))
	var flags uint16
	switch r.Tunnel.Checksum {
	case model.TunnelNoChecksum:
	case model.TunnelSum:
		flags = tunFlagSum
	case model.TunnelRemoteChecksum:
		flags = tunFlagRemoteChecksum
	}
	d.Uint16(destTunFlags, flags)
	return nil
}

// encodeTimeouts is a message with the timeouts that are set.
func encodeTimeouts(t model.Timeouts) ([]byte, error) {
	ae := netlink.NewAttributeEncoder()
	for _, x := range []struct {
		attr uint16
		d    time.Duration
	}{{attrTimeoutTCP, t.TCP}, {attrTimeoutTCPFin, t.TCPFin}, {attrTimeoutUDP, t.UDP}} {
		// The kernel takes whole seconds, and 0 for "as it is".
		seconds := (x.d + time.Second - 1) / time.Second
		if x.d < 0 || seconds > math.MaxInt32 {
			return nil, fmt.Errorf("timeout %s: want 0 to %d seconds", x.d, math.MaxInt32)
		}
		ae.Uint32(x.attr, uint32(seconds))
	}
	return ae.Encode()
}

func putKey(s *netlink.AttributeEncoder, k model.ServiceKey) error {
	family, err := familyOf(k.Family())
	if err != nil {
		return err
	}
	s.Uint16(svcFamily, family)
	if k.IsMark() {
		s.Uint32(svcMark, k.Mark)
		return nil
	}
	s.Uint16(svcProtocol, uint16(k.Proto.Number()))
	s.Bytes(svcAddr, addrBytes(k.Addr.Addr()))
	s.Bytes(svcPort, binary.BigEndian.AppendUint16(nil, k.Addr.Port()))
	return nil
}

func familyOf(f model.Family) (uint16, error) {
	switch f {
	case model.IPv4:
		return unix.AF_INET, nil
	case model.IPv6:
		return unix.AF_INET6, nil
	case model.FamilyNone:
	}
	return 0, errors.New("no address family")
}

// addrBytes is union nf_inet_addr: 16 bytes, of which IPv4 uses the first 4.
func addrBytes(a netip.Addr) []byte { return append(a.AsSlice(), make([]byte, 16)...)[:16] }

func native(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

// flagNames are the scheduler flags, in the words and the order of ipvsadm(8).
func flagNames(scheduler string) [3]string {
	switch scheduler {
	case "sh":
		return [3]string{"sh-fallback", "sh-port", "flag-3"}
	case "mh":
		return [3]string{"mh-fallback", "mh-port", "flag-3"}
	}
	return [3]string{"flag-1", "flag-2", "flag-3"}
}

func serviceFlags(v model.VirtualService) (flags uint32, err error) {
	if v.Persistence.Enabled {
		flags |= flagPersistent
	}
	if v.OnePacket {
		flags |= flagOnePacket
	}
	if v.SchedFlags == "" {
		return flags, nil
	}
	names := flagNames(v.Scheduler)
	for word := range strings.SplitSeq(v.SchedFlags, ",") {
		i := slices.Index(names[:], word)
		if i < 0 {
			i = slices.Index([]string{"flag-1", "flag-2", "flag-3"}, word)
		}
		if i < 0 {
			return 0, fmt.Errorf("scheduler flag %q: scheduler %s has %s", word, v.Scheduler, strings.Join(names[:], ", "))
		}
		flags |= flagSched1 << i
	}
	return flags, nil
}

// persistence gives timeout and netmask as the kernel wants them, which are
// "no time" and "one host" where there is none.
func persistence(v model.VirtualService) (seconds uint32, mask []byte, err error) {
	p, four := v.Persistence, v.Key.Family() == model.IPv4
	if !p.Enabled {
		p = model.Persistence{}
	}
	if p.Timeout < 0 || p.Timeout/time.Second > math.MaxInt32 {
		return 0, nil, fmt.Errorf("persistence of %s: want 0 to %d seconds", p.Timeout, math.MaxInt32)
	}
	seconds = uint32(p.Timeout / time.Second)
	switch {
	case !p.Netmask.IsValid() && four:
		return seconds, []byte{255, 255, 255, 255}, nil
	case !p.Netmask.IsValid():
		return seconds, native(128), nil
	case four != p.Netmask.Is4():
		return 0, nil, fmt.Errorf("persistence netmask %s is of the other address family than the service", p.Netmask)
	case four:
		return seconds, p.Netmask.AsSlice(), nil
	}
	ones := 0
	for _, b := range p.Netmask.As16() {
		ones += bits.OnesCount8(b)
	}
	return seconds, native(uint32(ones)), nil
}

func forwardNumber(f model.Forward) (uint32, error) {
	switch f {
	case model.Masq:
		return forwardMasq, nil
	case model.Gate:
		return forwardRoute, nil
	case model.IPIP:
		return forwardTunnel, nil
	case model.ForwardNone:
	}
	return 0, errors.New("no forwarding method: want masq, gate or ipip")
}

// service is a service as the kernel describes it.
type service struct {
	model.VirtualService
	counts
}

// dest is a real server as the kernel describes it.
type dest struct {
	model.RealServer
	counts
	active, inactive, persistent uint32
}

// decodeService reads a service out of one message of a dump.
func decodeService(message []byte) (s service, err error) {
	var (
		raw      rawAddr
		protocol uint16
		flags    uint32
		seconds  uint32
		mask     []byte
		mark     uint32
		engine   string
	)
	err = nested(message, attrService, func(d *netlink.AttributeDecoder) error {
		switch d.Type() {
		case svcFamily:
			raw.family = d.Uint16()
		case svcProtocol:
			protocol = d.Uint16()
		case svcAddr:
			raw.addr = d.Bytes()
		case svcPort:
			raw.port = d.Bytes()
		case svcMark:
			mark = d.Uint32()
		case svcSched:
			s.Scheduler = d.String()
		case svcFlags:
			b := d.Bytes()
			if len(b) != 8 {
				return fmt.Errorf("%w: flags of %d bytes", errForm, len(b))
			}
			flags = binary.NativeEndian.Uint32(b)
		case svcTimeout:
			seconds = d.Uint32()
		case svcNetmask:
			if mask = d.Bytes(); len(mask) != 4 {
				return fmt.Errorf("%w: netmask of %d bytes", errForm, len(mask))
			}
		case svcEngine:
			engine = d.String()
		case svcStats, svcStats64:
			return stats(d, &s.counts)
		}
		return nil
	})
	if err != nil {
		return s, fmt.Errorf("service: %w", err)
	}
	if s.Key, err = raw.key(protocol, mark); err != nil {
		return s, fmt.Errorf("service: %w", err)
	}
	s.OnePacket = flags&flagOnePacket != 0
	s.SchedFlags = schedFlags(s.Scheduler, flags)
	if flags&flagPersistent != 0 {
		s.Persistence = model.Persistence{Enabled: true, Timeout: time.Duration(seconds) * time.Second,
			Netmask: netmask(s.Key.Family(), mask), Engine: engine}
	}
	return s, nil
}

// decodeDest reads a real server out of one message of a dump; the service's
// family is its own where an old kernel does not say.
func decodeDest(message []byte, family model.Family) (r dest, err error) {
	raw := rawAddr{family: unix.AF_INET}
	if family == model.IPv6 {
		raw.family = unix.AF_INET6
	}
	var forward, weight uint32
	var tunnel model.Tunnel
	err = nested(message, attrDest, func(d *netlink.AttributeDecoder) error {
		switch d.Type() {
		case destFamily:
			raw.family = d.Uint16()
		case destAddr:
			raw.addr = d.Bytes()
		case destPort:
			raw.port = d.Bytes()
		case destForward:
			forward = d.Uint32()
		case destWeight:
			weight = d.Uint32()
		case destUpper:
			r.Upper = d.Uint32()
		case destLower:
			r.Lower = d.Uint32()
		case destActive:
			r.active = d.Uint32()
		case destInactive:
			r.inactive = d.Uint32()
		case destPersist:
			r.persistent = d.Uint32()
		case destTunKind:
			tunnel.Kind = model.TunnelKind(d.Uint8())
		case destTunPort:
			b := d.Bytes()
			if len(b) != 2 {
				return fmt.Errorf("%w: tunnel port of %d bytes", errForm, len(b))
			}
			tunnel.Port = binary.BigEndian.Uint16(b)
		case destTunFlags:
			switch f := d.Uint16(); {
			case f&tunFlagRemoteChecksum != 0:
				tunnel.Checksum = model.TunnelRemoteChecksum
			case f&tunFlagSum != 0:
				tunnel.Checksum = model.TunnelSum
			}
		case destStats, destStats64:
			return stats(d, &r.counts)
		}
		return nil
	})
	if err != nil {
		return r, fmt.Errorf("real server: %w", err)
	}
	if r.Addr, err = raw.addrPort(); err != nil {
		return r, fmt.Errorf("real server: %w", err)
	}
	r.Weight = int(int32(weight))
	switch forward & forwardMask {
	case forwardMasq:
		r.Forward = model.Masq
	case forwardTunnel:
		r.Forward, r.Tunnel = model.IPIP, tunnel
	case forwardRoute, forwardLocal:
		r.Forward = model.Gate
	}
	return r, nil
}

// rawAddr is an address as attributes carry it.
type rawAddr struct {
	family     uint16
	addr, port []byte
}

func (a rawAddr) addrPort() (netip.AddrPort, error) {
	if len(a.addr) != 16 || len(a.port) != 2 {
		return netip.AddrPort{}, fmt.Errorf("%w: address of %d bytes, port of %d", errForm, len(a.addr), len(a.port))
	}
	port := binary.BigEndian.Uint16(a.port)
	switch a.family {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(a.addr)), port), nil
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(a.addr)), port), nil
	}
	return netip.AddrPort{}, fmt.Errorf("%w: address family %d", errForm, a.family)
}

func (a rawAddr) key(protocol uint16, mark uint32) (k model.ServiceKey, err error) {
	if mark != 0 {
		switch a.family {
		case unix.AF_INET:
			return model.ServiceKey{Mark: mark, MarkFamily: model.IPv4}, nil
		case unix.AF_INET6:
			return model.ServiceKey{Mark: mark, MarkFamily: model.IPv6}, nil
		}
		return k, fmt.Errorf("%w: address family %d", errForm, a.family)
	}
	for _, p := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
		if uint16(p.Number()) == protocol {
			k.Proto = p
		}
	}
	if k.Proto == model.ProtocolNone {
		return k, fmt.Errorf("%w: protocol %d", errForm, protocol)
	}
	k.Addr, err = a.addrPort()
	return k, err
}

func schedFlags(scheduler string, flags uint32) string {
	var words []string
	for i, name := range flagNames(scheduler) {
		if flags&(flagSched1<<i) != 0 {
			words = append(words, name)
		}
	}
	return strings.Join(words, ",")
}

// netmask is the zero address for a mask of single hosts.
func netmask(f model.Family, mask []byte) netip.Addr {
	if len(mask) != 4 {
		return netip.Addr{}
	}
	if f == model.IPv4 {
		a := netip.AddrFrom4([4]byte(mask))
		if a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
			return netip.Addr{}
		}
		return a
	}
	if n := binary.NativeEndian.Uint32(mask); n < 128 {
		return model.MaskOf(int(n))
	}
	return netip.Addr{}
}

// nested calls each for every attribute within the attribute of that type.
func nested(message []byte, typ uint16, each func(*netlink.AttributeDecoder) error) error {
	d, err := netlink.NewAttributeDecoder(message)
	if err != nil {
		return fmt.Errorf("%w: %w", errForm, err)
	}
	found := false
	for d.Next() {
		if d.Type() != typ {
			continue
		}
		found = true
		d.Nested(func(n *netlink.AttributeDecoder) error {
			for n.Next() {
				if err := each(n); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := d.Err(); err != nil {
		if errors.Is(err, errForm) {
			return err
		}
		return fmt.Errorf("%w: %w", errForm, err)
	}
	if !found {
		return fmt.Errorf("%w: attribute %d is missing", errForm, typ)
	}
	return nil
}

// decodeInfo reads the version, as 0x010201 for 1.2.1, and the number of
// buckets of the connection table.
func decodeInfo(message []byte) (version, size uint32, err error) {
	d, err := netlink.NewAttributeDecoder(message)
	if err != nil {
		return 0, 0, fmt.Errorf("%w: %w", errForm, err)
	}
	for d.Next() {
		switch d.Type() {
		case infoVersion:
			version = d.Uint32()
		case infoConnSize:
			size = d.Uint32()
		}
	}
	if err := d.Err(); err != nil {
		return 0, 0, fmt.Errorf("%w: %w", errForm, err)
	}
	return version, size, nil
}

func decodeTimeouts(message []byte) (t model.Timeouts, err error) {
	d, err := netlink.NewAttributeDecoder(message)
	if err != nil {
		return t, fmt.Errorf("%w: %w", errForm, err)
	}
	for d.Next() {
		switch d.Type() {
		case attrTimeoutTCP:
			t.TCP = time.Duration(d.Uint32()) * time.Second
		case attrTimeoutTCPFin:
			t.TCPFin = time.Duration(d.Uint32()) * time.Second
		case attrTimeoutUDP:
			t.UDP = time.Duration(d.Uint32()) * time.Second
		}
	}
	if err := d.Err(); err != nil {
		return t, fmt.Errorf("%w: %w", errForm, err)
	}
	return t, nil
}
