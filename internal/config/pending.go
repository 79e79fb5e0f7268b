package config

import "slices"

// pending is one directive that is understood and accepted, but does nothing
// yet. The list below is the only place that says so: taking an entry out is
// part of putting its directive in force. Of ldirectord.cf all is in force.
type pending struct {
	consequence string                  // what happens, or does not, meanwhile
	fine        func(value string) bool // values with nothing to miss; nil: none
}

// pendingHaCf are the directives of ha.cf.
var pendingHaCf = map[string]pending{
	"hbaping": {"no heartbeats go over it", nil},
	"rds":     {"no heartbeats go over it", nil},
	"tipc":    {"no heartbeats go over it", nil},

	"stonith":      {"a dead node is not fenced before its resources are taken over", nil},
	"stonith_host": {"a dead node is not fenced before its resources are taken over", nil},
	"watchdog":     {"a hung machine is not reset", nil},

	"respawn":  {"the program is not started", nil},
	"failfast": {"the program is not started", nil},
	"apiauth":  {"there is no client interface to guard", nil},
	"env":      {"there are no clients to get it", nil},

	"use_logd":       {"messages go to the log files and standard error, not to the logging daemon", isFalse},
	"conn_logd_time": {"there is no logging daemon", nil},
	"debug":          {"debug messages are as many as ever", oneOfFunc("0")},
	"realtime":       {"memory is not locked and the priority is an ordinary one", isFalse},
	"rtprio":         {"the priority is an ordinary one", nil},
	"memreserve":     {"memory is not reserved", nil},
	"coredumps":      {"the system's own setting decides on core dumps", nil},
	"coreroot":       {"the system's own setting decides on core dumps", nil},
	"use_apphbd":     {"there is no application heartbeat", isFalse},
	"autojoin":       {"only nodes that the file names are members", oneOfFunc("none")},
	"uuidfrom":       {"the node's identity comes from its file", oneOfFunc("file")},

	"compression":             {"large messages are sent as they are", nil},
	"compression_threshold":   {"large messages are sent as they are", nil},
	"traditional_compression": {"large messages are sent as they are", isFalse},

	"crm":                   {"there is no such cluster manager, and haresources is not used with it: no resource is managed", isFalse},
	"pacemaker":             {"there is no such cluster manager, and haresources is not used with it: no resource is managed", isFalse},
	"crm_daemon_dir":        {"it is for crm only", nil},
	"crmd_spawns_pengine":   {"it is for crm only", nil},
	"record_config_changes": {"it is for crm only", nil},
	"record_pengine_inputs": {"it is for crm only", nil},
	"enable_config_writes":  {"it is for crm only", nil},
	"quorum_server":         {"there is no quorum server", nil},
}

func oneOfFunc(words ...string) func(string) bool {
	return func(v string) bool { return slices.Contains(words, v) }
}

func isFalse(v string) bool {
	b, ok := boolean(v)
	return ok && !b
}

// report warns of a directive that is pending.
func (p pending) report(to *problems, at pos, name, value string) {
	if p.fine != nil && p.fine(value) {
		return
	}
	if p.fine != nil {
		name += "=" + clip(value)
	}
	to.warn(at, name+" is not yet in force: "+p.consequence, "")
}
