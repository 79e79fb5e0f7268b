package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/batuta-ha/batuta/internal/config"
	"github.com/batuta-ha/batuta/internal/model"
)

func (h *heartbeatCall) nodeName() model.NodeName { return model.NodeName(strings.ToLower(h.node)) }

// writeHaConfig prints a configuration as heartbeat -v does: as an ha.cf.
func writeHaConfig(w io.Writer, hb *model.Heartbeat) {
	rule := "#" + strings.Repeat("-", 51)
	fmt.Fprintf(w, "#\n#\tLinux-HA heartbeat configuration (on %s)\n#\n\n%s\n#\n#\tHA configuration and status\n#\n", hb.Self, rule)
	meaning := map[string]string{}
	for _, p := range config.HaParameters {
		meaning[p.Name] = p.Text
	}
	for _, p := range config.Parameters(hb) {
		fmt.Fprintf(w, "%s\t%s\t#\t%s\n", p.Name, p.Value, meaning[p.Name])
	}
	fmt.Fprint(w, "#\n#\tHA Cluster nodes:\n#\n")
	var names []string
	for _, n := range hb.Nodes {
		names = append(names, string(n))
	}
	for _, m := range hb.Media {
		if m.Kind == model.Ping || m.Kind == model.PingGroup {
			names = append(names, m.Name)
		}
	}
	slices.Sort(names)
	for _, n := range names {
		fmt.Fprintf(w, "node %s\t#\t current status: init\n", n)
	}
	fmt.Fprint(w, "#\n#\tCommunications media:\n")
	for _, s := range hb.Recorded {
		if what, ok := mediumText[s.Name]; ok {
			fmt.Fprintf(w, "#\n# %s -------------\n%s %s\n", what, s.Name, s.Value)
		}
	}
	fmt.Fprintln(w, rule)
}

// mediumText names the media in heartbeat's words.
var mediumText = map[string]string{
	"bcast":      "UDP/IP broadcast heartbeat channel",
	"udp":        "UDP/IP broadcast heartbeat channel",
	"ucast":      "UDP/IP unicast heartbeat channel",
	"ucast6":     "UDP/IPv6 unicast heartbeat channel",
	"mcast":      "UDP/IP multicast heartbeat channel",
	"mcast6":     "UDP/IPv6 multicast heartbeat channel",
	"serial":     "serial heartbeat channel",
	"ping":       "ping membership heartbeat channel",
	"ping6":      "ping membership heartbeat channel",
	"ping_group": "ping group membership heartbeat channel",
}
