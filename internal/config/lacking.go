package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
)

// lacking warns of negotiate checks that can never succeed because something
// is missing. ldirectord takes such files, too, and its servers stay down.
func (l *cfLower) lacking(v *rawVirtual, c checks) {
	if c.kind != model.CheckNegotiate && c.kind != model.CheckCombined {
		return
	}
	at := v.pos
	if s, ok := v.settings["service"]; ok {
		at = s.pos
	}
	warn := func(what, hint string) {
		l.warn(at, fmt.Sprintf("service=%s without %s: its real servers are never up", c.application, what), hint)
	}
	// A real server may have a request and a receive of its own.
	every := slices.ContainsFunc(v.reals, func(r rawReal) bool { return r.request == "" })
	noReceive, noRequest := every && c.receive == "", every && c.request == "/"
	switch c.application {
	case "dns":
		if noRequest {
			warn("request", `add request="a name or an address" to ask for`)
		}
		if noReceive {
			warn("receive", `add receive="the address or name that the answer must have"`)
		}
	case "mysql", "pgsql", "oracle":
		if c.login == "" {
			warn("login", `add login="a user of the database"`)
		}
		if noRequest {
			warn("request", `add request="SELECT ..." with a query that gives a row`)
		}
		if c.application == "oracle" {
			l.warn(at, "service=oracle asks the listener for a connection to the database; the query is not run", "use checktype=external to run it with Oracle's own client")
		}
	case "ftp":
		if noRequest && c.receive != "" {
			warn("request", `add request="the file that receive is looked for in"`)
		}
	case "simpletcp":
		if noRequest && c.proto == model.UDP {
			warn("request", `add request="what a UDP server answers to"`)
		}
	case "http_proxy":
		if every && !strings.HasPrefix(strings.TrimPrefix(c.request, "/"), "http://") {
			warn("an absolute URL in request", `add request="http://HOST/PATH" to ask the proxy for`)
		}
	case "radius":
		if c.secret == "" {
			warn("secret", `add secret="what the server shares with this director"`)
		}
	}
}
