package director

import (
	"os"
	"strconv"
	"strings"

	"github.com/batuta-ha/batuta/internal/logfile"
	"github.com/batuta-ha/batuta/internal/model"
)

// monitors are the monitorfiles in use, by their path.
type monitors map[string]*logfile.Monitor

// write adds the result of a check to the monitorfile of its service.
func (m monitors) write(svc *model.Service, real int, v model.Verdict, sink model.Sink) {
	if svc.MonitorFile == "" || !monitored(svc.Reals[real].Target.Kind, v) {
		return
	}
	f := m[svc.MonitorFile]
	if f == nil {
		f = logfile.NewMonitor(svc.MonitorFile, os.Getpid(), sink)
		m[svc.MonitorFile] = f
	}
	f.Line(v.At, checkIdentity(svc, real), v.Status, v.Reason)
}

func (m monitors) flush() {
	for _, f := range m {
		f.Flush()
	}
}

// monitored tells which results ldirectord writes down.
func monitored(k model.CheckType, v model.Verdict) bool {
	switch {
	case v.Status == model.Unknown:
		return false
	case v.Reason == inMaintenance:
		return true
	}
	switch k {
	case model.CheckNegotiate, model.CheckConnect, model.CheckCombined, model.CheckExternal:
		return true
	case model.CheckPing:
		return v.Status == model.Up
	case model.CheckNone, model.CheckExternalPerl, model.CheckOn, model.CheckOff:
	}
	return false
}

// checkIdentity is ldirectord's name for a check: its type, with the service
// or command, protocol, address, port, virtual host, check port, weight,
// forwarding method, request and answer, with colons between.
func checkIdentity(svc *model.Service, real int) string {
	r := &svc.Reals[real]
	t := &r.Target
	kind := t.Kind.String()
	switch t.Kind {
	case model.CheckNegotiate, model.CheckCombined:
		kind += ":" + t.Application
	case model.CheckExternal:
		kind += ":" + t.Command
	case model.CheckNone, model.CheckConnect, model.CheckPing, model.CheckExternalPerl, model.CheckOff, model.CheckOn:
	}
	proto := svc.Virtual.Key.Proto.String()
	if svc.Virtual.Key.IsMark() {
		proto = "fwm"
	}
	checkPort := ""
	if t.Addr.Port() != r.Addr.Port() && t.Addr.Port() != 0 {
		checkPort = strconv.Itoa(int(t.Addr.Port()))
	}
	return strings.Join([]string{kind, proto, r.Addr.Addr().String(), strconv.Itoa(int(r.Addr.Port())), t.VirtualHost, checkPort,
		strconv.Itoa(r.Weight), r.Forward.String(), t.Request, t.Receive}, ":")
}

// monitor writes a result to the monitorfiles of all services it is for.
func (r *run) monitor(h heard) {
	if !r.Active() {
		return
	}
	for _, at := range h.from.users {
		svc, v := &r.st.director.Services[at.service], h.verdict
		if _, out := r.st.maintained[svc.Reals[at.real].Addr]; out {
			v.Status, v.Reason = model.Down, inMaintenance
		}
		r.monitors.write(svc, at.real, v, r.emit)
	}
}

// debug tells of results as they are.
func (r *run) debug(list []heard) {
	for _, h := range list {
		for _, at := range h.from.users {
			if !h.from.gone {
				r.cfg.Debug(checkMade(realID(&r.st.director.Services[at.service], at.real), h.from.target, h.verdict))
			}
		}
	}
}
