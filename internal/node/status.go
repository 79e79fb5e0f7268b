package node

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

var _ api.Daemon = (*clusterNode)(nil)

// Status describes the node, its cluster and its services.
func (n *clusterNode) Status(context.Context) (api.Status, error) {
	view := n.messenger.View()
	st := api.Status{
		Version: api.Version, Node: n.hb.Self, Mode: "classic", PID: os.Getpid(),
		Peers: []api.Peer{}, Resources: n.crm.Resources(), Services: []model.ServiceView{}, Sentences: []string{},
	}
	st.Packets, st.LinkPackets = n.messenger.Packets()
	st.BadPackets = st.Packets.Bad
	for _, v := range view.Nodes {
		if !time.Now().Before(v.Quarantine) {
			v.Quarantine = time.Time{}
		}
		if v.Name == n.hb.Self {
			v.Key = n.messenger.Key()
		}
		st.Peers = append(st.Peers, api.Peer{Name: v.Name, State: v.State.String(), Self: v.Name == n.hb.Self, Ping: v.Ping, Links: notNil(v.Links), Key: v.Key.String(),
			Suspect: v.Suspect, Kernel: v.Kernel || v.Name == n.hb.Self && n.responder != nil, LastBeat: v.LastBeat, Quarantine: v.Quarantine, Margin: v.Margin})
	}
	if n.silent != nil {
		st.KernelSilent = n.silent.Error()
	}
	if n.plane != nil {
		st.PlaneInfo = n.plane.Info()
		st.Plane = st.PlaneInfo.Name
	}
	if n.directors != nil {
		st.Services = n.directors.services()
	}
	st.State = n.state(view, st.Resources)
	for _, d := range n.network.Duplicates() {
		st.Sentences = append(st.Sentences, d.String())
	}
	st.Sentences = append(st.Sentences, sentences(st)...)
	return st, nil
}

// state is the node's own: what it does for the cluster now.
func (n *clusterNode) state(v model.View, resources []model.ResourceView) string {
	select {
	case <-n.stopping:
		return "stopping"
	default:
	}
	if self := v.Find(n.hb.Self); self == nil || self.State != model.NodeActive {
		return "starting"
	}
	if slices.ContainsFunc(resources, func(r model.ResourceView) bool { return r.Here == model.ResourceRunning }) {
		return "active"
	}
	return "standby"
}

// sentences say what an operator should know, most urgent first.
func sentences(st api.Status) []string {
	var urgent, later []string
	for _, r := range st.Resources {
		switch {
		case r.Here == model.ResourceFailed:
			urgent = append(urgent, fmt.Sprintf("resource %s failed here: %s", r.Name, r.Error))
		case r.Node == "" && st.State != "starting":
			urgent = append(urgent, fmt.Sprintf("resource %s runs nowhere", r.Name))
		}
	}
	for _, s := range st.Services {
		up := 0
		for _, r := range s.Reals {
			if r.Status == model.Up {
				up++
			}
		}
		refused := 0
		for _, r := range s.Reals {
			if r.Status == model.Up && !r.InTable {
				refused++
			}
		}
		switch {
		case refused > 0:
			urgent = append(urgent, fmt.Sprintf("service %s: the plane does not carry %d real servers that are up; the log says why", s.Key, refused))
		case s.Fallback:
			urgent = append(urgent, fmt.Sprintf("service %s: no real server is up, the fallback answers", s.Key))
		case up == 0 && len(s.Reals) > 0:
			urgent = append(urgent, fmt.Sprintf("service %s: no real server is up", s.Key))
		case up < len(s.Reals):
			later = append(later, fmt.Sprintf("service %s: %d of %d real servers are up", s.Key, up, len(s.Reals)))
		}
	}
	for _, l := range st.LinkPackets {
		if l.Flooded {
			urgent = append(urgent, fmt.Sprintf("heartbeat link %s is flooded: the kernel has dropped %d packets; find who sends them (tcpdump -ni %s), and keep that network to the nodes", l.Name, l.Kernel, l.Name))
		}
	}
	if st.BadPackets > 0 {
		later = append(later, fmt.Sprintf("%d heartbeat packets failed authentication: do all nodes have the same authkeys?", st.BadPackets))
	}
	own := ""
	for _, p := range st.Peers {
		if p.Self {
			own = p.Key
		}
	}
	for _, p := range st.Peers {
		if p.Self {
			continue
		}
		if p.Key != "" && own != "" && p.Key != own && p.State != model.NodeDead.String() {
			later = append(later, fmt.Sprintf("node %s signs with key %s, this one with %s: both must stay in authkeys on all nodes until all sign with one", p.Name, p.Key, own))
		}
		switch {
		case p.Ping && p.State != model.NodePing.String():
			later = append(later, fmt.Sprintf("ping node %s does not answer this node", p.Name))
			continue
		case p.State == model.NodeDead.String():
			later = append(later, fmt.Sprintf("node %s is dead: nobody is left to take over from this one", p.Name))
			continue
		case p.Suspect:
			urgent = append(urgent, fmt.Sprintf("node %s is suspect: its daemon has been silent since %s, its kernel answers; nothing is taken over unless that lasts for suspecttime",
				p.Name, p.LastBeat.Local().Format("15:04:05.000")))
			continue
		case !p.Quarantine.IsZero():
			later = append(later, fmt.Sprintf("node %s is in quarantine until %s: it has failed too often, and is given nothing back before; hb_standby foreign gives it back at once",
				p.Name, p.Quarantine.Local().Format(time.TimeOnly)))
		}
		for _, l := range p.Links {
			if !l.Up {
				later = append(later, fmt.Sprintf("heartbeat link %s to %s is dead", l.Name, p.Name))
			}
		}
	}
	return append(append([]string{}, urgent...), later...)
}

// Table reads the plane's table with counters.
func (n *clusterNode) Table(ctx context.Context) (api.Table, error) {
	if n.plane == nil {
		return api.Table{}, errNoPlane
	}
	return tableOf(ctx, n.plane, n.rates)
}

// Flows lists the plane's connections.
func (n *clusterNode) Flows(ctx context.Context) (api.Flows, error) {
	if n.plane == nil {
		return api.Flows{}, errNoPlane
	}
	return flowsOf(ctx, n.plane)
}

var errNoPlane = fmt.Errorf("this node balances nothing: no resource of haresources is ldirectord")

func tableOf(ctx context.Context, p plane.Plane, m *rateMeter) (api.Table, error) {
	t, err := p.Read(ctx)
	if err != nil {
		return api.Table{}, fmt.Errorf("read the table: %w", err)
	}
	counters, err := p.Counters(ctx)
	if err != nil {
		return api.Table{}, fmt.Errorf("read the counters: %w", err)
	}
	doc := api.Table{Version: api.Version, Plane: p.Info(), Services: notNil(t.Services), Counters: notNil(counters)}
	if k, ok := plane.As[plane.RateKeeper](p); ok {
		doc.Rates, err = k.Rates(ctx)
	} else {
		doc.Rates = m.last()
	}
	if err != nil {
		return api.Table{}, fmt.Errorf("read the rates: %w", err)
	}
	doc.Rates = notNil(doc.Rates)
	if k, ok := plane.As[plane.TimeoutKeeper](p); ok {
		if doc.Timeouts, err = k.Timeouts(ctx); err != nil {
			return api.Table{}, err
		}
	}
	if k, ok := plane.As[plane.Syncer](p); ok {
		if doc.Sync, err = k.SyncDaemons(ctx); err != nil {
			return api.Table{}, err
		}
	}
	if k, ok := plane.As[plane.Tuned](p); ok {
		if doc.Sysctls, err = k.Sysctls(ctx); err != nil {
			return api.Table{}, err
		}
	}
	return doc, nil
}

func flowsOf(ctx context.Context, p plane.Plane) (api.Flows, error) {
	flows, err := p.Flows(ctx)
	if err != nil {
		return api.Flows{}, fmt.Errorf("list the connections: %w", err)
	}
	if p.Info().Name != "ipvs" { // whose order is the kernel's, and ipvsadm's
		slices.SortFunc(flows, func(a, b model.Flow) int {
			return cmp.Or(cmp.Compare(a.Proto, b.Proto), a.Client.Compare(b.Client), a.Virtual.Compare(b.Virtual))
		})
	}
	return api.Flows{Version: api.Version, Flows: notNil(flows)}, nil
}

// notNil makes an absent list an empty one, which JSON shows as [].
func notNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// loneDirector answers for `batuta director`.
type loneDirector struct {
	node      model.NodeName
	directors *directors
	plane     plane.Plane
	rates     *rateMeter
	windows   *windowKeeper
	sink      model.Sink
}

var _ api.Daemon = (*loneDirector)(nil)

// Status describes the director's services.
func (d *loneDirector) Status(context.Context) (api.Status, error) {
	info := d.plane.Info()
	st := api.Status{
		Version: api.Version, Node: d.node, State: "active", Plane: info.Name, PlaneInfo: info, Mode: "director", PID: os.Getpid(),
		Peers: []api.Peer{}, Resources: []model.ResourceView{}, Services: d.directors.services(),
	}
	st.Sentences = sentences(st)
	return st, nil
}

// Table reads the plane's table with counters.
func (d *loneDirector) Table(ctx context.Context) (api.Table, error) {
	return tableOf(ctx, d.plane, d.rates)
}

// Flows lists the plane's connections.
func (d *loneDirector) Flows(ctx context.Context) (api.Flows, error) { return flowsOf(ctx, d.plane) }
