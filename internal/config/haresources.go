package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
)

// rawGroup is one line of haresources, with its continuations.
type rawGroup struct {
	node      word
	resources []word
}

// parseHaresources splits the lines into words. # begins a comment, and a
// backslash at the end of a line joins the next one to it.
func parseHaresources(p *problems, data []byte) []rawGroup {
	var groups []rawGroup
	var words []word
	flush := func() {
		if len(words) > 0 {
			groups = append(groups, rawGroup{words[0], words[1:]})
		}
		words = nil
	}
	for i, line := range splitLines(p, data) {
		line, _, _ = strings.Cut(line, "#")
		text, continued := strings.CutSuffix(line, `\`)
		words = append(words, fields(word{pos{i + 1, 1}, text}, "")...)
		if !continued {
			flush()
		}
	}
	flush()
	return groups
}

// lowerHaresources makes groups of the lines. known are the nodes of ha.cf,
// nil where they are not known.
func lowerHaresources(p *problems, raw []rawGroup, known []model.NodeName) []model.ResourceGroup {
	var out []model.ResourceGroup
	lines := map[string]int{}
	names := make([]string, len(known))
	for i, n := range known {
		names[i] = string(n)
	}
	for _, g := range raw {
		owner := model.NodeName(strings.ToLower(g.node.text))
		if known != nil && !slices.Contains(known, owner) {
			p.error(g.node.pos, fmt.Sprintf("%q is no node of the cluster", clip(g.node.text)),
				orElse(didYouMean(g.node.text, names), "each line begins with a node of ha.cf: "+strings.Join(names, ", ")))
		}
		if len(g.resources) == 0 {
			p.warn(g.node.pos, "the line has no resource and is ignored", "write NODE RESOURCE...")
			continue
		}
		group := model.ResourceGroup{Owner: owner}
		for _, r := range g.resources {
			group.Resources = append(group.Resources, resource(p, r))
		}
		if first, twice := lines[group.Key()]; twice {
			p.warn(g.resources[0].pos, fmt.Sprintf("resource %s already begins the group of line %d; this line is ignored", group.Key(), first),
				"the first resource names the group: begin each line with another one, or join the lines")
			continue
		}
		lines[group.Key()] = g.node.line
		out = append(out, group)
	}
	return out
}

// resource reads one word: AGENT::ARG::ARG, or an address that is short for
// IPaddr::ADDRESS.
func resource(p *problems, w word) model.Resource {
	r := model.Resource{Text: w.text}
	if looksLikeAddress(w.text) {
		r.Agent, r.Args = "IPaddr", []string{w.text}
	} else {
		parts := strings.Split(w.text, "::")
		r.Agent, r.Args = parts[0], parts[1:]
	}
	if strings.Contains(r.Agent, ":") {
		p.warn(w.pos, fmt.Sprintf("%q has a single colon", clip(w.text)), "arguments are separated by two: "+strings.ReplaceAll(strings.ReplaceAll(w.text, "::", ":"), ":", "::"))
	}
	if r.Agent == "" || strings.Contains(r.Agent, "/") {
		p.error(w.pos, fmt.Sprintf("%q names no resource script", clip(w.text)), "write the name of a script of resource.d or /etc/init.d")
	}
	if isAddress(r) {
		arg := addressArgument(r)
		if _, at, err := parseAddress(arg); err != nil {
			p.error(w.after(len(w.text)-len(arg)+at), fmt.Sprintf("%s: %v", r.Agent, err), "write "+r.Agent+"::"+AddressUsage)
		}
	}
	if r.Agent == "portblock" {
		reportPortBlock(p, w, r)
	}
	return r
}

// looksLikeAddress is Heartbeat's test: four numbers with dots, whatever
// follows.
func looksLikeAddress(s string) bool {
	for i := range 4 {
		j := 0
		for j < len(s) && s[j] >= '0' && s[j] <= '9' {
			j++
		}
		if j == 0 || i < 3 && (j == len(s) || s[j] != '.') {
			return false
		}
		if i < 3 {
			j++
		}
		s = s[j:]
	}
	return true
}
