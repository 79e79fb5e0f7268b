package api

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/model"
)

// serveMetrics answers GET /metrics for Prometheus: text exposition format,
// version 0.0.4. It is written by hand: two hundred lines, where the client
// library would be a tenth of the program.
func serveMetrics(d Daemon) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var b bytes.Buffer
		st, err := d.Status(r.Context())
		if err == nil {
			var t Table
			if t, err = d.Table(r.Context()); err != nil {
				st.Sentences = append(st.Sentences, err.Error())
				err = nil // the checks and the cluster have something to tell all the same
			}
			WriteMetrics(&b, st, t)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = w.Write(b.Bytes()) // the client is gone: nobody to tell
	}
}

// WriteMetrics writes what a daemon knows as Prometheus reads it. What
// node_exporter tells of the kernel's IPVS has its names here, too, whatever
// carries the packets; the checks' results are named as blackbox_exporter's.
func WriteMetrics(w io.Writer, st Status, t Table) {
	m := &metrics{w: bufio.NewWriter(w)}
	m.cluster(st)
	m.services(st)
	m.plane(t)
	_ = m.w.Flush() // to a buffer, or to somebody who has gone
}

// metrics writes families of samples, one after the other.
type metrics struct {
	w    *bufio.Writer
	name string
	seen map[string]bool // of this family: a sample twice makes the whole answer invalid
}

func (m *metrics) family(name, kind, help string) {
	fmt.Fprintf(m.w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
	m.name, m.seen = name, map[string]bool{}
}

// sample writes one value; labels are names and values in turn.
func (m *metrics) sample(value float64, labels ...string) {
	var b strings.Builder
	for i := 0; i+1 < len(labels); i += 2 {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(labels[i] + `="` + labelEscapes.Replace(strings.ToValidUTF8(labels[i+1], "\uFFFD")) + `"`)
	}
	text := b.String()
	if m.seen[text] {
		return
	}
	m.seen[text] = true
	if text != "" {
		text = "{" + text + "}"
	}
	fmt.Fprintf(m.w, "%s%s %s\n", m.name, text, number(value))
}

var labelEscapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func number(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (m *metrics) cluster(st Status) {
	m.family("batuta_info", "gauge", "What this daemon is.")
	m.sample(1, "node", string(st.Node), "plane", st.Plane, "mode", st.Mode)
	m.family("batuta_state", "gauge", "The state that this daemon is in, by name.")
	m.sample(1, "state", st.State)
	m.family("batuta_warnings", "gauge", "Sentences of batuta status that somebody should read.")
	m.sample(float64(len(st.Sentences)))
	m.family("batuta_bad_packets_total", "counter", "Heartbeat packets that failed authentication.")
	m.sample(float64(st.BadPackets))
	m.packets(st)
	if len(st.Peers) > 0 {
		m.family("batuta_node_state", "gauge", "The state of each node of the cluster, by name.")
		for _, p := range st.Peers {
			m.sample(1, "node", string(p.Name), "state", p.State, "self", strconv.FormatBool(p.Self))
		}
		m.family("batuta_node_suspect", "gauge", "Whether a node's daemon is silent while its kernel answers.")
		for _, p := range st.Peers {
			m.sample(truth(p.Suspect), "node", string(p.Name))
		}
		m.family("batuta_node_quarantined", "gauge", "Whether a node failed too often, and is given nothing back by itself.")
		for _, p := range st.Peers {
			m.sample(truth(!p.Quarantine.IsZero()), "node", string(p.Name))
		}
		m.family("batuta_link_up", "gauge", "Whether heartbeats of a node come over a link.")
		for _, p := range st.Peers {
			for _, l := range p.Links {
				m.sample(truth(l.Up), "node", string(p.Name), "link", l.Name)
			}
		}
	}
	if len(st.Resources) > 0 {
		m.family("batuta_resource_here", "gauge", "The state of each resource on this node, by name.")
		for _, r := range st.Resources {
			m.sample(1, "resource", r.Name, "group", r.Group, "state", r.Here.String(), "node", string(r.Node))
		}
	}
}

// packets are the heartbeats' counters. They begin anew with their process.
func (m *metrics) packets(st Status) {
	if st.Packets == (heartbeat.Counters{}) {
		return
	}
	p := &st.Packets
	m.family("batuta_heartbeat_packets_total", "counter", "Heartbeat messages of this node, and packets of others, by what became of them.")
	for _, c := range []struct {
		what  string
		value uint64
	}{
		{"sent", p.Sent}, {"received", p.Received}, {"duplicate", p.Duplicates}, {"lost", p.Lost}, {"requested", p.Requests},
		{"retransmitted", p.Retransmitted}, {"kernel-asked", p.Questions}, {"kernel-answered", p.Answers},
	} {
		m.sample(float64(c.value), "what", c.what)
	}
	m.family("batuta_heartbeat_dropped_total", "counter", "Packets on the heartbeat ports that were dropped, by reason.")
	for _, c := range []struct {
		reason string
		value  uint64
	}{
		{"bad", p.Bad}, {"unknown-node", p.Unknown}, {"replayed", p.Replayed}, {"unproven", p.Unproven}, {"excess", p.Excess}, {"unseen", p.Dropped},
	} {
		m.sample(float64(c.value), "reason", c.reason)
	}
	m.family("batuta_link_dropped_total", "counter", "Packets that a heartbeat link dropped unseen, by reason.")
	for _, l := range st.LinkPackets {
		m.sample(float64(l.Kernel), "link", l.Name, "reason", "kernel")
		m.sample(float64(l.Again), "link", l.Name, "reason", "again")
		m.sample(float64(l.Bad), "link", l.Name, "reason", "bad")
	}
	m.family("batuta_link_flooded", "gauge", "Whether there is a flood on a heartbeat link.")
	for _, l := range st.LinkPackets {
		m.sample(truth(l.Flooded), "link", l.Name)
	}
}

func (m *metrics) services(st Status) {
	for _, f := range []struct {
		name, kind, help string
		value            func(*model.RealView) (float64, bool)
	}{
		{"probe_success", "gauge", "Whether the last check of a real server succeeded.",
			func(r *model.RealView) (float64, bool) { return truth(r.Last == model.Up), r.Last != model.Unknown }},
		{"probe_duration_seconds", "gauge", "How long the last check of a real server took.",
			func(r *model.RealView) (float64, bool) { return r.Took.Seconds(), !r.Checked.IsZero() }},
		{"batuta_probe_timestamp_seconds", "gauge", "When the last check of a real server ended.",
			func(r *model.RealView) (float64, bool) { return unixSeconds(r.Checked), !r.Checked.IsZero() }},
		{"batuta_real_server_up", "gauge", "Whether a real server counts as well, after failurecount and the like.",
			func(r *model.RealView) (float64, bool) { return truth(r.Status == model.Up), r.Status != model.Unknown }},
		{"batuta_real_server_failures", "gauge", "Checks that failed since the last that succeeded, up to the one that brought it down.",
			func(r *model.RealView) (float64, bool) { return float64(r.Failures), true }},
		{"batuta_real_server_draining", "gauge", "Whether an operator has taken a real server out of service.",
			func(r *model.RealView) (float64, bool) { return truth(r.Drain != nil), true }},
		{"batuta_real_server_refused", "gauge", "Whether the data plane has refused the row of a real server.",
			func(r *model.RealView) (float64, bool) { return truth(r.Refused != ""), true }},
	} {
		m.family(f.name, f.kind, f.help)
		for i := range st.Services {
			s := &st.Services[i]
			for j := range s.Reals {
				remote, _ := netip.ParseAddrPort(s.Reals[j].Addr) // it is one's text
				if v, known := f.value(&s.Reals[j]); known {
					m.sample(v, backend(s.Key, remote)...)
				}
			}
		}
	}
	m.family("batuta_service_fallback", "gauge", "Whether the fallback serves.")
	for _, s := range st.Services {
		m.sample(truth(s.Fallback), local(s.Key)...)
	}
	m.family("batuta_service_refused", "gauge", "Whether the data plane has refused a service.")
	for _, s := range st.Services {
		m.sample(truth(s.Refused != ""), local(s.Key)...)
	}
}

func (m *metrics) plane(t Table) {
	var all model.Counters
	for _, c := range t.Counters {
		all = all.Add(c.Counters)
	}
	for _, f := range []struct {
		name, help string
		value      uint64
	}{
		{"node_ipvs_connections_total", "The total number of connections made.", all.Connections},
		{"node_ipvs_incoming_packets_total", "The total number of incoming packets.", all.PacketsIn},
		{"node_ipvs_outgoing_packets_total", "The total number of outgoing packets.", all.PacketsOut},
		{"node_ipvs_incoming_bytes_total", "The total amount of incoming data.", all.BytesIn},
		{"node_ipvs_outgoing_bytes_total", "The total amount of outgoing data.", all.BytesOut},
	} {
		m.family(f.name, "counter", f.help)
		m.sample(float64(f.value))
	}
	for _, f := range []struct {
		name, help string
		value      func(*model.RealCounters) uint64
	}{
		{"node_ipvs_backend_connections_active", "The current active connections by local and remote address.", func(r *model.RealCounters) uint64 { return r.Active }},
		{"node_ipvs_backend_connections_inactive", "The current inactive connections by local and remote address.", func(r *model.RealCounters) uint64 { return r.Inactive }},
	} {
		m.family(f.name, "gauge", f.help)
		for _, c := range t.Counters {
			for j := range c.Reals {
				m.sample(float64(f.value(&c.Reals[j])), backend(c.Key, c.Reals[j].Addr)...)
			}
		}
	}
	m.family("node_ipvs_backend_weight", "gauge", "The current backend weight by local and remote address.")
	for _, s := range t.Services {
		for _, r := range s.Reals {
			m.sample(float64(r.Weight), backend(s.Key, r.Addr)...)
		}
	}
}

// local are node_exporter's labels of a service: of a mark its number in hex.
func local(k model.ServiceKey) []string {
	if k.IsMark() {
		return []string{"local_address", "", "local_port", "0", "local_mark", fmt.Sprintf("%08X", k.Mark), "proto", "FWM"}
	}
	return []string{"local_address", k.Addr.Addr().String(), "local_port", strconv.Itoa(int(k.Addr.Port())), "local_mark", "",
		"proto", strings.ToUpper(k.Proto.String())}
}

func backend(k model.ServiceKey, remote netip.AddrPort) []string {
	return append(local(k), "remote_address", remote.Addr().String(), "remote_port", strconv.Itoa(int(remote.Port())))
}

func unixSeconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
