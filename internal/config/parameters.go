package config

import (
	"fmt"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// Parameter is a directive of ha.cf with one value, as Heartbeat knows it.
type Parameter struct {
	Name    string
	Default string // "" for none, or one that is computed
	Text    string // what it means, in Heartbeat's words (heartbeat -D)
}

// HaParameters are Heartbeat's parameters, in the order in which it prints them.
var HaParameters = []Parameter{
	{"cluster", "linux-ha", "the name of cluster"},
	{"hopfudge", "1", "# of hops above cluster size"},
	{"keepalive", "1000ms", "keepalive time"},
	{"deadtime", "30000ms", "node deadtime"},
	{"deadping", "", "ping deadtime"},
	{"initdead", "", "initial deadtime"},
	{"warntime", "", "warning time"},
	{"watchdog", "", "watchdog device"},
	{"baud", "19200", "baud rate"},
	{"udpport", "", "UDP port number"},
	{"logfacility", "", "log facility"},
	{"logfile", "", "log file"},
	{"debugfile", "", "debug file"},
	{"auto_failback", "legacy", "auto failback"},
	{"hbgenmethod", "file", "protocol generation computation method"},
	{"realtime", "true", "enable realtime behavior?"},
	{"debug", "", "debug level"},
	{"rtprio", "", "realtime priority"},
	{"msgfmt", "classic", "message format in the wire"},
	{"use_logd", "", "use logging daemon"},
	{"conn_logd_time", "60", "the interval to reconnect to logd"},
	{"log_badpack", "true", "warn about bad packets"},
	{"syslogmsgfmt", "true", "log to files in syslog format"},
	{"coredumps", "true", "enable Linux-HA core dumps"},
	{"coreroot", "", "set root directory for core dumps"},
	{"pacemaker", "false", "enable Pacemaker resource management"},
	{"autojoin", "none", "set automatic join mode/style"},
	{"uuidfrom", "file", "set the source for uuid"},
	{"compression", "zlib", "set compression module"},
	{"compression_threshold", "2", "set compression threshold"},
	{"traditional_compression", "no", "set traditional_compression"},
	{"max_rexmit_delay", "250", "set the maximum rexmit delay time"},
	{"record_config_changes", "on", "record changes to the cib (valid only with: pacemaker on)"},
	{"record_pengine_inputs", "on", "record the input used by the policy engine (valid only with: pacemaker on)"},
	{"enable_config_writes", "on", "write configuration changes to disk (valid only with: pacemaker on)"},
	{"memreserve", "6500", "number of kbytes to preallocate in heartbeat"},
}

// Parameters are the parameters of a cluster, those that have a value, in
// Heartbeat's order: as written, or else the default. They are what cl_status
// hbparameter tells and what scripts find as HA_<name>.
func Parameters(h *model.Heartbeat) []model.Setting {
	written := map[string]string{}
	for _, s := range h.Recorded {
		value := s.Value
		if words := fields(word{text: value}, ","); len(words) > 0 {
			value = words[len(words)-1].text
		}
		name := s.Name
		if name == "crm" {
			name = "pacemaker"
		}
		written[name] = value
	}
	computed := map[string]string{
		"deadping": millis(h.DeadPing), "initdead": millis(h.InitDead), "warntime": millis(h.WarnTime), "debug": "0",
		"udpport": fmt.Sprint(defaultUDPPort),
	}
	var out []model.Setting
	for _, p := range HaParameters {
		value, ok := written[p.Name]
		if !ok {
			if value = p.Default; value == "" {
				value = computed[p.Name]
			}
		}
		if value != "" {
			out = append(out, model.Setting{Name: p.Name, Value: value})
		}
	}
	return out
}

// Environment are the NAME=VALUE words of the env lines of ha.cf. Programs
// that Heartbeat starts find each as HA_NAME.
func Environment(h *model.Heartbeat) []string {
	var out []string
	for _, s := range h.Recorded {
		if s.Name != "env" {
			continue
		}
		for _, w := range fields(word{text: s.Value}, ",") {
			out = append(out, w.text)
		}
	}
	return out
}

func millis(d time.Duration) string { return fmt.Sprintf("%dms", d.Milliseconds()) }
