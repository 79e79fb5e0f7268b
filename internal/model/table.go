package model

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Table is what a data plane carries: virtual services and their real
// servers, sorted by key and address. The zero value is the empty table.
type Table struct {
	Services []VirtualService
}

// Sort puts services and real servers into canonical order.
func (t *Table) Sort() {
	slices.SortFunc(t.Services, func(a, b VirtualService) int { return a.Key.Compare(b.Key) })
	for i := range t.Services {
		SortReals(t.Services[i].Reals)
	}
}

// SortReals orders real servers by address and port.
func SortReals(r []RealServer) {
	slices.SortFunc(r, func(a, b RealServer) int { return a.Addr.Compare(b.Addr) })
}

// Find returns the service with that key, or nil.
func (t *Table) Find(k ServiceKey) *VirtualService {
	for i := range t.Services {
		if t.Services[i].Key == k {
			return &t.Services[i]
		}
	}
	return nil
}

// Find returns the real server with that address, or nil.
func (v *VirtualService) Find(a netip.AddrPort) *RealServer {
	for i := range v.Reals {
		if v.Reals[i].Addr == a {
			return &v.Reals[i]
		}
	}
	return nil
}

// Clone returns a table that shares nothing with t.
func (t Table) Clone() Table {
	out := Table{Services: slices.Clone(t.Services)}
	for i := range out.Services {
		out.Services[i].Reals = slices.Clone(out.Services[i].Reals)
	}
	return out
}

// String is the canonical text of a table: one line a service, one indented
// line a real server.
//
//	tcp 10.1.0.100:80 rr
//	  10.240.0.20:80 masq weight 1
func (t Table) String() string {
	var b strings.Builder
	for _, s := range t.Services {
		b.WriteString(s.Key.String() + " " + s.describe() + "\n")
		for _, r := range s.Reals {
			b.WriteString("  " + r.Addr.String() + " " + r.describe() + "\n")
		}
	}
	return b.String()
}

func (v VirtualService) describe() string {
	s := v.Scheduler
	if v.Persistence.Enabled {
		s += " persistent " + strconv.Itoa(int(v.Persistence.Timeout/time.Second))
		if m := v.Persistence.MaskText(); m != "" {
			s += " mask " + m
		}
		if e := v.Persistence.Engine; e != "" {
			s += " pe " + e
		}
	}
	if v.SchedFlags != "" {
		s += " flags " + v.SchedFlags
	}
	if v.OnePacket {
		s += " ops"
	}
	return s
}

func (r RealServer) describe() string {
	s := r.Forward.String()
	if r.Tunnel != (Tunnel{}) {
		s += " tunnel " + r.Tunnel.String()
	}
	s += " weight " + strconv.Itoa(r.Weight)
	if r.Upper != 0 || r.Lower != 0 {
		s += fmt.Sprintf(" upper %d lower %d", r.Upper, r.Lower)
	}
	return s
}

// MaskText is the mask as ldirectord.cf writes it: dotted for IPv4, the
// prefix length for IPv6, "" for single hosts.
func (p Persistence) MaskText() string {
	switch {
	case !p.Netmask.IsValid():
		return ""
	case p.Netmask.Is4():
		return p.Netmask.String()
	}
	bits := 0
	for _, b := range p.Netmask.As16() {
		for ; b&0x80 != 0; b <<= 1 {
			bits++
		}
	}
	return strconv.Itoa(bits)
}

// ChangeOp says what a Change does.
type ChangeOp uint8

// Changes of a table.
const (
	ChangeNone ChangeOp = iota
	ServiceAdd
	ServiceEdit
	ServiceDelete
	RealAdd
	RealEdit
	RealDelete
)

var changeOpText = [...]string{"none", "service-add", "service-edit", "service-del", "real-add", "real-edit", "real-del"}

func (o ChangeOp) String() string {
	if int(o) < len(changeOpText) {
		return changeOpText[o]
	}
	return "change(" + strconv.Itoa(int(o)) + ")"
}

// Change is one step from one table to another. Service changes use Service
// (its Reals are ignored), real changes use Service.Key and Real. Applying a
// change twice is the same as applying it once: adding what is there edits
// it, deleting what is gone is no error.
type Change struct {
	Op      ChangeOp
	Service VirtualService
	Real    RealServer
}

// String is the canonical text, for instance
// "real-edit tcp 10.1.0.100:80 10.240.0.20:80 masq weight 0".
func (c Change) String() string {
	s := c.Op.String() + " " + c.Service.Key.String()
	switch c.Op {
	case ServiceAdd, ServiceEdit:
		s += " " + c.Service.describe()
	case RealAdd, RealEdit:
		s += " " + c.Real.Addr.String() + " " + c.Real.describe()
	case RealDelete:
		s += " " + c.Real.Addr.String()
	case ServiceDelete, ChangeNone:
	}
	return s
}

type changeJSON struct {
	Op         string     `json:"op"`
	Service    ServiceKey `json:"service"`
	Real       string     `json:"real,omitempty"`
	Scheduler  string     `json:"scheduler,omitempty"`
	Persistent *int       `json:"persistent,omitempty"`
	Netmask    string     `json:"netmask,omitempty"`
	Engine     string     `json:"pe,omitempty"`
	SchedFlags string     `json:"schedflags,omitempty"`
	OnePacket  bool       `json:"ops,omitempty"`
	Forward    string     `json:"forward,omitempty"`
	Tunnel     Tunnel     `json:"tunnel,omitzero"`
	Weight     *int       `json:"weight,omitempty"`
	Upper      *uint32    `json:"upper,omitempty"`
	Lower      *uint32    `json:"lower,omitempty"`
}

// MarshalJSON writes the change with only the members that its kind has.
func (c Change) MarshalJSON() ([]byte, error) {
	j := changeJSON{Op: c.Op.String(), Service: c.Service.Key}
	switch c.Op {
	case ServiceAdd, ServiceEdit:
		j.Scheduler, j.SchedFlags, j.OnePacket = c.Service.Scheduler, c.Service.SchedFlags, c.Service.OnePacket
		if p := c.Service.Persistence; p.Enabled {
			secs := int(p.Timeout / time.Second)
			j.Persistent, j.Netmask, j.Engine = &secs, p.MaskText(), p.Engine
		}
	case RealAdd, RealEdit:
		j.Real, j.Forward, j.Tunnel, j.Weight = c.Real.Addr.String(), c.Real.Forward.String(), c.Real.Tunnel, &c.Real.Weight
		if c.Real.Upper != 0 || c.Real.Lower != 0 {
			j.Upper, j.Lower = &c.Real.Upper, &c.Real.Lower
		}
	case RealDelete:
		j.Real = c.Real.Addr.String()
	case ServiceDelete, ChangeNone:
	}
	return json.Marshal(j)
}

// Perform carries a change out on a table, in memory: the meaning of a
// change that every plane must agree with. It keeps the table sorted.
// A real server's change for an absent service is an error.
func (t *Table) Perform(c Change) error {
	at, found := slices.BinarySearchFunc(t.Services, c.Service.Key,
		func(s VirtualService, k ServiceKey) int { return s.Key.Compare(k) })
	switch c.Op {
	case ServiceAdd, ServiceEdit:
		v := c.Service
		v.Reals = nil
		if found {
			v.Reals = t.Services[at].Reals
			t.Services[at] = v
			return nil
		}
		t.Services = slices.Insert(t.Services, at, v)
	case ServiceDelete:
		if found {
			t.Services = slices.Delete(t.Services, at, at+1)
		}
	case RealAdd, RealEdit, RealDelete:
		if !found {
			if c.Op == RealDelete {
				return nil
			}
			return fmt.Errorf("%s: no such service in the table", c)
		}
		s := &t.Services[at]
		i, have := slices.BinarySearchFunc(s.Reals, c.Real.Addr,
			func(r RealServer, a netip.AddrPort) int { return cmp.Or(r.Addr.Compare(a)) })
		switch {
		case c.Op == RealDelete && have:
			s.Reals = slices.Delete(s.Reals, i, i+1)
		case c.Op == RealDelete:
		case have:
			s.Reals[i] = c.Real
		default:
			s.Reals = slices.Insert(s.Reals, i, c.Real)
		}
	case ChangeNone:
	}
	return nil
}
