package ebpf

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// maxRules is RULES of bpf/schedule.h.
const maxRules = 64

var _ plane.Classifier = (*Plane)(nil)

// SetMarks gives all rules that lead to services by mark, in order: the first
// that fits a packet decides. Where no such service is in the table, a rule
// fits nothing. Rules outlive the process, as the table does.
func (p *Plane) SetMarks(_ context.Context, rules []model.MarkRule) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return plane.ErrClosed
	case len(rules) > maxRules:
		return lacks("room for %d rules of marks, but for %d", len(rules), maxRules)
	}
	return p.setMarks(rules)
}

// setMarks does so with p.mu held.
func (p *Plane) setMarks(rules []model.MarkRule) error {
	rows := make([]tcRule, len(rules))
	for i, r := range rules {
		rows[i] = wireRule(r)
		if r.Interface != "" {
			rows[i].Ifindex = math.MaxUint32 // nobody's
			if l, err := p.net.LinkByName(r.Interface); err == nil {
				rows[i].Ifindex = uint32(l.Attrs().Index)
			}
		}
	}
	p.state.markRoles(rules, +1)
	p.state.markRoles(p.state.marks, -1)
	p.state.marks = slices.Clone(rules)
	p.state.rules = rows
	p.state.linkMarks(p.t)
	return p.state.tellRoles(p.t)
}

// resolveMarks sets them again, after interfaces have changed.
func (p *Plane) resolveMarks() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || !slices.ContainsFunc(p.state.marks, func(r model.MarkRule) bool { return r.Interface != "" }) {
		return
	}
	if err := p.setMarks(p.state.marks); err != nil {
		p.event(model.LevelWarning, "marks-failed", fmt.Sprintf("find the interfaces that rules of marks name: %v; it is tried again when interfaces change", err))
	}
}

// markRoles notes destinations that are single addresses.
func (s *state) markRoles(rules []model.MarkRule, by int) {
	for _, r := range rules {
		if r.Destination.IsSingleIP() {
			s.role(r.Destination.Addr(), roles{virtual: by})
		}
	}
}

// linkMarks leads each rule to the service of its mark, and writes what has
// changed. Meanwhile a new connection may be taken for one of no service: its
// client repeats.
func (s *state) linkMarks(t *tables) {
	for i := range s.rules {
		s.rules[i].Service = 0
		if v := s.services[s.marks[i].Key()]; v != nil {
			s.rules[i].Service = v.slot + 1
		}
	}
	if n := int(t.control.Rules); n != len(s.rules) || !slices.Equal(t.rules[:n], s.rules) {
		atomic.StoreUint32(&t.control.Rules, 0)
		copy(t.rules, s.rules)
		atomic.StoreUint32(&t.control.Rules, uint32(len(s.rules)))
	}
	s.setFeatures(t)
}

func wireRule(r model.MarkRule) tcRule {
	w := tcRule{First: r.First, Last: r.Last, Proto: r.Proto.Number(), Mark: r.Mark}
	if r.Last == 0 {
		w.Last = math.MaxUint16
	}
	if r.Family == model.IPv6 {
		w.V6 = 1
	}
	w.Src, w.SrcMask = wirePrefix(r.Source)
	w.Dst, w.DstMask = wirePrefix(r.Destination)
	return w
}

// wirePrefix is a prefix as address and mask; the zero one fits all.
func wirePrefix(p netip.Prefix) (addr, mask tcAddr) {
	if !p.IsValid() {
		return addr, mask
	}
	bits := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		bits[i/8] |= 0x80 >> (i % 8)
	}
	m, _ := netip.AddrFromSlice(bits)
	return wireAddr(p.Addr()), wireMask(m)
}

// markOfWire reads a row. What interface it names is not in it.
func markOfWire(w tcRule) model.MarkRule {
	r := model.MarkRule{Mark: w.Mark, Family: model.IPv4, Proto: protocolOf(w.Proto), First: w.First, Last: w.Last}
	if w.V6 != 0 {
		r.Family = model.IPv6
	}
	if r.First == 0 && r.Last == math.MaxUint16 {
		r.Last = 0
	}
	r.Source, r.Destination = prefixOfWire(w.Src, w.SrcMask, r.Family), prefixOfWire(w.Dst, w.DstMask, r.Family)
	return r
}

// adoptMarks takes over the rules of the maps.
func (s *state) adoptMarks(t *tables, rows []tcRule) {
	s.rules = slices.Clone(rows)
	for _, w := range rows {
		s.marks = append(s.marks, markOfWire(w))
	}
	s.linkMarks(t)
	s.markRoles(s.marks, +1)
}

func prefixOfWire(addr, mask tcAddr, f model.Family) netip.Prefix {
	if mask == (tcAddr{}) {
		return netip.Prefix{}
	}
	n := 0
	for _, b := range maskOfWire(mask, f).AsSlice() {
		for ; b != 0; b <<= 1 {
			n++
		}
	}
	return netip.PrefixFrom(addrOfWire(addr), n)
}
