package model

import (
	"encoding/json"
	"fmt"
	"math/bits"
	"net/netip"
	"strconv"
	"time"
)

// The JSON form of a table's rows, shared by the API, --json and tests. The
// members are those of Change, so that a row and the change that makes it
// look alike.
type serviceJSON struct {
	Service    ServiceKey `json:"service"`
	Scheduler  string     `json:"scheduler"`
	SchedFlags string     `json:"schedflags,omitempty"`
	Persistent *int       `json:"persistent,omitempty"`
	Netmask    string     `json:"netmask,omitempty"`
	Engine     string     `json:"pe,omitempty"`
	OnePacket  bool       `json:"ops,omitempty"`
	Reals      []realJSON `json:"reals"`
}

type realJSON struct {
	Real    netip.AddrPort `json:"real"`
	Forward string         `json:"forward"`
	Tunnel  Tunnel         `json:"tunnel,omitzero"`
	Weight  int            `json:"weight"`
	Upper   uint32         `json:"upper,omitempty"`
	Lower   uint32         `json:"lower,omitempty"`
}

// MarshalJSON writes the row with its real servers.
func (v VirtualService) MarshalJSON() ([]byte, error) {
	j := serviceJSON{Service: v.Key, Scheduler: v.Scheduler, SchedFlags: v.SchedFlags, OnePacket: v.OnePacket,
		Reals: make([]realJSON, len(v.Reals))}
	if v.Persistence.Enabled {
		secs := int(v.Persistence.Timeout / time.Second)
		j.Persistent, j.Netmask, j.Engine = &secs, v.Persistence.MaskText(), v.Persistence.Engine
	}
	for i, r := range v.Reals {
		j.Reals[i] = realJSON{r.Addr, r.Forward.String(), r.Tunnel, r.Weight, r.Upper, r.Lower}
	}
	return json.Marshal(j)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (v *VirtualService) UnmarshalJSON(b []byte) error {
	var j serviceJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	out := VirtualService{Key: j.Service, Scheduler: j.Scheduler, SchedFlags: j.SchedFlags, OnePacket: j.OnePacket}
	if j.Persistent != nil {
		mask, err := ParseMask(j.Netmask)
		if err != nil {
			return fmt.Errorf("service %s: %w", j.Service, err)
		}
		out.Persistence = Persistence{Enabled: true, Timeout: time.Duration(*j.Persistent) * time.Second, Netmask: mask, Engine: j.Engine}
	}
	for _, r := range j.Reals {
		f, err := ParseForward(r.Forward)
		if err != nil {
			return fmt.Errorf("service %s, real server %s: %w", j.Service, r.Real, err)
		}
		out.Reals = append(out.Reals, RealServer{r.Real, f, r.Weight, r.Upper, r.Lower, r.Tunnel})
	}
	*v = out
	return nil
}

// ParseMask reads what Persistence.MaskText writes: a dotted IPv4 mask, an
// IPv6 prefix length from 1 to 128, or "" for no mask.
func ParseMask(s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	if n, err := strconv.Atoi(s); err == nil && n >= 1 && n <= 128 {
		return MaskOf(n), nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is4() {
		return netip.Addr{}, fmt.Errorf("netmask %q: want a dotted IPv4 mask or an IPv6 prefix length from 1 to 128", s)
	}
	return a, nil
}

// MaskOf is the IPv6 mask of a prefix length from 0 to 128.
func MaskOf(prefixLen int) netip.Addr {
	var m [16]byte
	for i := range prefixLen {
		m[i/8] |= bits.Reverse8(1 << (i % 8))
	}
	return netip.AddrFrom16(m)
}
