package ipvs

import (
	"context"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/batuta-ha/batuta/internal/model"
)

// ftp is the one port whose service IPVS remembers clients of for all ports,
// since the data connection goes to another.
const ftp = 21

// Bindings reads which clients of persistent services have which real servers
// from the templates among the kernel's connections. Clients that a persistence
// engine tells apart are left out: an address says nothing about them.
func (p *Plane) Bindings(ctx context.Context) ([]model.Binding, error) {
	t, err := p.Read(ctx)
	if err != nil || !slices.ContainsFunc(t.Services, remembers) {
		return nil, err
	}
	templates, err := p.Search(ctx, isTemplate)
	if err != nil {
		return nil, err
	}
	return bindings(t, templates), nil
}

func remembers(v model.VirtualService) bool {
	return v.Persistence.Enabled && v.Persistence.Engine == ""
}

// isTemplate tells templates from connections: no packet comes from port 0,
// and none gives a connection these states.
func isTemplate(f model.Flow) bool {
	return f.Client.Port() == 0 && (f.State == "NONE" || f.State == "ASSURED") && f.Engine == ""
}

// bindings finds the services and real servers of templates. Those of services
// for all ports have port 0 for both the virtual and the real one.
func bindings(t model.Table, templates []model.Flow) (all []model.Binding) {
	services := map[model.ServiceKey]model.VirtualService{}
	for _, v := range t.Services {
		if remembers(v) {
			services[v.Key] = v
		}
	}
	for _, f := range templates {
		for _, k := range keysOf(f) {
			v, ok := services[k]
			if !ok {
				continue
			}
			at := slices.IndexFunc(v.Reals, func(r model.RealServer) bool {
				return r.Addr == f.Real || f.Real.Port() == 0 && r.Addr.Addr() == f.Real.Addr()
			})
			if at >= 0 {
				all = append(all, model.Binding{Service: k, Client: f.Client.Addr(), Real: v.Reals[at].Addr, Expires: f.Expires})
			}
			break
		}
	}
	return all
}

// keysOf are the services that a template may be of, the likelier first.
func keysOf(f model.Flow) []model.ServiceKey {
	at := f.Virtual.Addr()
	if f.Proto == model.ProtocolNone { // of a mark, which is the first word of the address
		k := model.ServiceKey{Mark: binary.BigEndian.Uint32(at.AsSlice()), MarkFamily: model.IPv4}
		if f.Client.Addr().Is6() {
			k.MarkFamily = model.IPv6
		}
		return []model.ServiceKey{k}
	}
	k := []model.ServiceKey{{Proto: f.Proto, Addr: f.Virtual}}
	if f.Proto == model.TCP && f.Virtual.Port() == 0 {
		k = append(k, model.ServiceKey{Proto: model.TCP, Addr: netip.AddrPortFrom(at, ftp)})
	}
	return k
}
