package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/config"
	"github.com/batuta-ha/batuta/internal/model"
)

// portBlock closes ports while the resources between its two lines move:
//
//	NODE portblock::tcp::2049::block ADDRESS nfs portblock::tcp::2049::unblock
//
// Its state is in the kernel, so that a restarted daemon finds it: no table of
// that name (neither line has started), a table that drops (blocked), a table
// without rules (blocked and released again: both lines run). What both lines
// have in common names the table.
type portBlock struct {
	res   model.Resource
	block config.PortBlock
	nft   *nftables.Conn
	table *nftables.Table
	chain *nftables.Chain
}

// PortBlock returns the agent of portblock::PROTOCOL::PORTS::ACTION[::ADDRESS]:
// packets to these ports at that address are dropped by a table of nftables of
// their own, in this process's network namespace.
func PortBlock(r model.Resource) (Agent, error) { return newPortBlock(r) }

func newPortBlock(r model.Resource, opts ...nftables.ConnOption) (*portBlock, error) {
	b, err := config.ParsePortBlock(r)
	if err != nil {
		return nil, err
	}
	conn, err := nftables.New(opts...)
	if err != nil {
		return nil, fmt.Errorf("resource %s: nftables: %w", r.Text, err)
	}
	protocol, to := "udp", "all"
	if b.TCP {
		protocol = "tcp"
	}
	if b.To.IsValid() {
		to = b.To.String()
	}
	var ports strings.Builder
	for _, p := range b.Ports {
		fmt.Fprintf(&ports, "%d-", p)
	}
	p := &portBlock{res: r, block: b, nft: conn}
	p.table = &nftables.Table{Name: "portblock-" + protocol + "-" + ports.String() + to, Family: nftables.TableFamilyINet}
	p.chain = &nftables.Chain{Name: "input", Table: p.table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter}
	return p, nil
}

// phase is how far a group with a portblock has come.
type phase uint8

const (
	_          phase = iota
	phaseNone        // nothing has started
	phaseBlock       // packets are dropped
	phaseOpen        // and are let in again
)

// Start blocks, or lets in again. To block what has been let in would cut a
// service that runs: that is no start.
func (p *portBlock) Start(context.Context) error {
	now, err := p.phase()
	switch {
	case err != nil:
		return err
	case p.block.Unblock && now != phaseOpen:
		return p.set(phaseOpen)
	case !p.block.Unblock && now == phaseNone:
		return p.set(phaseBlock)
	}
	return nil
}

// Stop undoes what Start did: a stopped unblock drops until its block stops,
// too, which leaves nothing behind.
func (p *portBlock) Stop(context.Context) error {
	now, err := p.phase()
	switch {
	case err != nil:
		return err
	case p.block.Unblock && now == phaseOpen:
		return p.set(phaseBlock)
	case !p.block.Unblock && now != phaseNone:
		return p.set(phaseNone)
	}
	return nil
}

// Status tells how far the group has come.
func (p *portBlock) Status(context.Context) (model.ResourceState, error) {
	now, err := p.phase()
	switch {
	case err != nil:
		return model.ResourceUnknown, err
	case now == phaseOpen, now == phaseBlock && !p.block.Unblock:
		return model.ResourceRunning, nil
	}
	return model.ResourceStopped, nil
}

func (p *portBlock) phase() (phase, error) {
	tables, err := p.nft.ListTablesOfFamily(p.table.Family)
	if err != nil {
		return 0, p.failed("list the tables", err)
	}
	if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == p.table.Name }) {
		return phaseNone, nil
	}
	rules, err := p.nft.GetRules(p.table, p.chain)
	switch {
	case err != nil:
		return 0, p.failed("read table "+p.table.Name, err)
	case len(rules) == 0:
		return phaseOpen, nil
	}
	return phaseBlock, nil
}

// set makes the table what the phase wants, in one step.
func (p *portBlock) set(to phase) error {
	p.nft.AddTable(p.table) // so that there is one to delete
	p.nft.DelTable(p.table)
	if to != phaseNone {
		p.nft.AddTable(p.table)
		p.nft.AddChain(p.chain)
	}
	if to == phaseBlock {
		for _, port := range p.block.Ports {
			p.nft.AddRule(&nftables.Rule{Table: p.table, Chain: p.chain, Exprs: p.drop(port)})
		}
	}
	if err := p.nft.Flush(); err != nil {
		return p.failed("write table "+p.table.Name, err)
	}
	return nil
}

func (p *portBlock) failed(what string, err error) error {
	return fmt.Errorf("resource %s: nftables: %s: %w; it needs nf_tables in the kernel (modprobe nf_tables) and CAP_NET_ADMIN", p.res.Text, what, err)
}

// drop is a rule: such packets to that port are dropped.
func (p *portBlock) drop(port uint16) []expr.Any {
	protocol := byte(unix.IPPROTO_UDP)
	if p.block.TCP {
		protocol = unix.IPPROTO_TCP
	}
	is := func(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }
	rule := []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, is([]byte{protocol})}
	if to := p.block.To; to.IsValid() {
		// Where the destination address is: RFC 791 section 3.1, RFC 8200 section 3.
		family, offset := byte(unix.NFPROTO_IPV4), uint32(16)
		if to.Addr().Is6() {
			family, offset = unix.NFPROTO_IPV6, 24
		}
		size := uint32(to.Addr().BitLen() / 8)
		rule = append(rule,
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, is([]byte{family}),
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask(to), Xor: make([]byte, size)},
			is(to.Addr().AsSlice()))
	}
	return append(rule,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, is(binaryutil.BigEndian.PutUint16(port)),
		&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
}

// mask has the bits of the prefix set.
func mask(p netip.Prefix) []byte {
	m := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return m
}

var _ Agent = (*portBlock)(nil)
