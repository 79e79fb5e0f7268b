package config

import "slices"

// without is one directive that is understood and accepted but does nothing
// here. The list below is the only place that says so: taking an entry out is
// part of putting its directive in force. Of ldirectord.cf all is in force.
type without struct {
	consequence string                  // what happens, or does not, instead
	instead     string                  // what to write or use in its place
	fine        func(value string) bool // values with nothing to miss; nil: none
}

// unneeded is the replacement of what only the original's own parts need.
const unneeded = "remove the line when no original Heartbeat reads the file"

// withoutHaCf are the directives of ha.cf. docs/reference/heartbeat.md has them
// with the reasons.
var withoutHaCf = map[string]without{
	"hbaping": {"no heartbeats go over it", "use ping for hosts, and ucast, mcast or serial between the nodes", nil},
	"rds":     {"no heartbeats go over it", "use ucast", nil},
	"tipc":    {"no heartbeats go over it", "use mcast", nil},

	"apiauth": {"there is no client interface to guard: root alone asks this daemon, over its control socket", unneeded, nil},

	"use_logd":       {"messages go to the log files, syslog and standard error, not to the logging daemon", "name a logfile, debugfile or logfacility", isFalse},
	"conn_logd_time": {"there is no logging daemon to connect to", unneeded, nil},
	"memreserve":     {"memory comes as it is needed, and is locked then", unneeded, nil},
	"coreroot":       {"the kernel's core_pattern decides where core dumps go", "set kernel.core_pattern (sysctl)", nil},
	"use_apphbd":     {"there is no application heartbeat", "use the watchdog directive, or the WatchdogSec= of systemd units", isFalse},
	"autojoin":       {"only nodes that the file names are members", "name each node", oneOfFunc("none")},
	"uuidfrom":       {"the node's identity comes from its file", "write uuidfrom file", oneOfFunc("file")},

	"crm":                   {"there is no such cluster manager, and haresources is not used with it: no resource is managed", "write crm off, and the resources into haresources", isFalse},
	"pacemaker":             {"there is no such cluster manager, and haresources is not used with it: no resource is managed", "write pacemaker off, and the resources into haresources", isFalse},
	"crm_daemon_dir":        {"it is for crm only", unneeded, nil},
	"crmd_spawns_pengine":   {"it is for crm only", unneeded, nil},
	"record_config_changes": {"it is for crm only", unneeded, nil},
	"record_pengine_inputs": {"it is for crm only", unneeded, nil},
	"enable_config_writes":  {"it is for crm only", unneeded, nil},
	"quorum_server":         {"there is no quorum server to ask, and a node that is alone takes over", "name ping nodes for ipfail, and a stonith device, so that a split cannot take everything twice", nil},
}

func oneOfFunc(words ...string) func(string) bool {
	return func(v string) bool { return slices.Contains(words, v) }
}

func isFalse(v string) bool {
	b, ok := boolean(v)
	return ok && !b
}

// report warns of a directive that does nothing here.
func (w without) report(to *problems, at pos, name, value string) {
	if w.fine != nil && w.fine(value) {
		return
	}
	if w.fine != nil {
		name += "=" + clip(value)
	}
	to.warn(at, name+" does nothing here: "+w.consequence, w.instead)
}
