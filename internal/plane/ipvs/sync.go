package ipvs

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// What the kernel takes where nothing is said (ipvsadm(8), --start-daemon).
var defaultGroup = netip.AddrFrom4([4]byte{224, 0, 0, 81})

const (
	defaultSyncPort = 8848
	defaultSyncTTL  = 1
)

// SyncDaemons returns the connection synchronization daemons that run in this
// namespace, the master first, whoever started them.
func (p *Plane) SyncDaemons(context.Context) ([]model.SyncDaemon, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, plane.ErrClosed
	}
	return p.syncDaemons()
}

func (p *Plane) syncDaemons() ([]model.SyncDaemon, error) {
	answers, err := p.dump(cmdGetDaemon, nil)
	if err != nil {
		return nil, fmt.Errorf("list the sync daemons of IPVS: %w", err)
	}
	list := make([]model.SyncDaemon, len(answers))
	for i, a := range answers {
		if list[i], err = decodeDaemon(a); err != nil {
			return nil, fmt.Errorf("list the sync daemons of IPVS: %w", err)
		}
	}
	return list, nil
}

// StartSync makes the daemon of d's role run as d says. One that does already
// goes on; one with other settings is stopped first, which loses nothing but
// what is on its way at that moment.
func (p *Plane) StartSync(_ context.Context, d model.SyncDaemon) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return plane.ErrClosed
	}
	return p.startSync(d)
}

func (p *Plane) startSync(d model.SyncDaemon) error {
	list, err := p.syncDaemons()
	if err != nil {
		return err
	}
	for _, have := range list {
		switch {
		case have.Role != d.Role:
		case sameDaemon(have, d):
			return nil
		default:
			if err := p.stopSync(d.Role); err != nil {
				return err
			}
		}
	}
	message, err := encodeDaemon(d)
	if err != nil {
		return err
	}
	return refusedDaemon(d, p.tell(cmdNewDaemon, message))
}

// StopSync ends the daemon of that role; none is no error.
func (p *Plane) StopSync(_ context.Context, r model.SyncRole) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return plane.ErrClosed
	}
	return p.stopSync(r)
}

func (p *Plane) stopSync(r model.SyncRole) error {
	ae := netlink.NewAttributeEncoder()
	ae.Nested(attrDaemon, func(a *netlink.AttributeEncoder) error {
		a.Uint32(daemonState, uint32(r))
		return nil
	})
	message, err := ae.Encode()
	if err != nil {
		return err
	}
	if err := unless(p.tell(cmdDelDaemon, message), unix.ESRCH); err != nil {
		return fmt.Errorf("stop the %s sync daemon of IPVS: %w", r, err)
	}
	return nil
}

// sameDaemon tells whether a running daemon is the one that is wanted, which
// may leave members to the kernel.
func sameDaemon(have, want model.SyncDaemon) bool {
	if !want.Group.IsValid() {
		want.Group = defaultGroup
	}
	if want.Port == 0 {
		want.Port = defaultSyncPort
	}
	if want.TTL == 0 {
		want.TTL = defaultSyncTTL
	}
	if want.MaxLen == 0 {
		want.MaxLen = have.MaxLen
	}
	if have.Port == 0 { // a kernel that does not say
		have.MaxLen, have.Group, have.Port, have.TTL = want.MaxLen, want.Group, want.Port, want.TTL
	}
	return have == want
}

func encodeDaemon(d model.SyncDaemon) ([]byte, error) {
	if d.Role != model.SyncMaster && d.Role != model.SyncBackup || d.Interface == "" || len(d.Interface) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("%s: want master or backup, and an interface", d)
	}
	ae := netlink.NewAttributeEncoder()
	ae.Nested(attrDaemon, func(a *netlink.AttributeEncoder) error {
		a.Uint32(daemonState, uint32(d.Role))
		a.String(daemonInterface, d.Interface)
		a.Uint32(daemonID, uint32(d.ID))
		if d.MaxLen != 0 {
			a.Uint16(daemonMaxLen, d.MaxLen)
		}
		switch {
		case d.Group.Is4():
			a.Bytes(daemonGroup, d.Group.AsSlice())
		case d.Group.Is6():
			a.Bytes(daemonGroup6, d.Group.AsSlice())
		}
		if d.Port != 0 {
			a.Uint16(daemonPort, d.Port)
		}
		if d.TTL != 0 {
			a.Uint8(daemonTTL, d.TTL)
		}
		return nil
	})
	return ae.Encode()
}

func decodeDaemon(message []byte) (d model.SyncDaemon, err error) {
	err = nested(message, attrDaemon, func(a *netlink.AttributeDecoder) error {
		switch a.Type() {
		case daemonState:
			d.Role = model.SyncRole(a.Uint32())
		case daemonInterface:
			d.Interface = a.String()
		case daemonID:
			d.ID = uint8(a.Uint32())
		case daemonMaxLen:
			d.MaxLen = a.Uint16()
		case daemonGroup, daemonGroup6:
			group, ok := netip.AddrFromSlice(a.Bytes())
			if !ok {
				return fmt.Errorf("%w: multicast group", errForm)
			}
			d.Group = group
		case daemonPort:
			d.Port = a.Uint16()
		case daemonTTL:
			d.TTL = a.Uint8()
		}
		return nil
	})
	if err == nil && d.Role != model.SyncMaster && d.Role != model.SyncBackup {
		err = fmt.Errorf("%w: sync daemon of role %d", errForm, d.Role)
	}
	return d, err
}

func refusedDaemon(d model.SyncDaemon, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%s: there is no interface %s here: name the one of the heartbeats", d, d.Interface)
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("%s: one was started by somebody else at this moment: %w", d, err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("%s: the interface %s is down or has no address of the group's family: give it one before", d, d.Interface)
	}
	return fmt.Errorf("start the %s: %w", d, err)
}

// Timeouts asks the kernel how long silent connections stay.
func (p *Plane) Timeouts(context.Context) (model.Timeouts, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return model.Timeouts{}, plane.ErrClosed
	}
	answer, err := p.execute(cmdGetConfig, nil, netlink.Request)
	if err == nil && len(answer) == 0 {
		err = fmt.Errorf("%w: no answer", errForm)
	}
	if err != nil {
		return model.Timeouts{}, fmt.Errorf("ask IPVS for its timeouts: %w", err)
	}
	t, err := decodeTimeouts(answer[0].Data)
	if err != nil {
		return model.Timeouts{}, fmt.Errorf("ask IPVS for its timeouts: %w", err)
	}
	return t, nil
}
