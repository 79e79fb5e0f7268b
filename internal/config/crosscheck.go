package config

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
)

// crossCheck reads the directors that haresources names and looks for what no
// file shows alone. Its problems are those of haresources.
type crossCheck struct {
	Reader
	*problems
	resolver *resolver
	dir      string
	cluster  *model.Cluster
	lines    []rawGroup
}

// ldirectordDefault is the configuration that ldirectord takes without an
// argument; the instance is then called ldirectord.
const ldirectordDefault = "ldirectord.cf"

// run returns the problems of each ldirectord.cf, in order of appearance.
func (x *crossCheck) run() []*problems {
	var files []*problems
	places := map[string]word{} // of each resource's text
	for _, g := range x.lines {
		for _, w := range g.resources {
			if _, seen := places[w.text]; !seen {
				places[w.text] = w
			}
		}
	}
	if len(x.cluster.Groups) == 0 && !Failed(x.list) {
		x.warn(top, "there is no resource: the cluster has nothing to do", "add a line: NODE ADDRESS ldirectord")
	}
	x.sharedDisks(places)
	known := map[string]int{} // index into Directors, by file
	for _, g := range x.cluster.Groups {
		for _, r := range g.Resources {
			if r.Agent != "ldirectord" {
				continue
			}
			name, argument := "ldirectord", ldirectordDefault
			if len(r.Args) > 0 && r.Args[0] != "" {
				argument = r.Args[0]
				name = path.Base(argument)
			}
			file := x.findDirector(argument)
			i, read := known[file]
			if !read {
				d, p := x.director(file, x.resolver)
				d.Name = name
				i = len(x.cluster.Directors)
				known[file] = i
				x.cluster.Directors = append(x.cluster.Directors, *d)
				files = append(files, p)
			}
			d := &x.cluster.Directors[i]
			d.Arguments = append(d.Arguments, strings.Join(r.Args, "::"))
			x.addresses(places[r.Text], g, x.cluster.Directors[i])
		}
	}
	if f := path.Join(x.dir, ldirectordDefault); len(x.cluster.Directors) == 0 {
		if _, err := x.stat(f); err == nil {
			x.note(top, f+" is not named by any line: nothing here starts it", "add the word ldirectord behind the addresses")
		}
	}
	return files
}

// diskAgents are scripts whose resource two nodes must never have at once. Of
// file systems only those on a device that is not replicated are meant.
var diskAgents = []string{"Filesystem", "LVM", "Raid1", "ServeRAID", "ICP", "LinuxSCSI"}

// sharedDisks refuses disks that two nodes could write to after a split, unless
// the other node is fenced first; a watchdog resets a hung machine at least.
func (x *crossCheck) sharedDisks(places map[string]word) {
	if x.cluster.Heartbeat != nil && x.cluster.Heartbeat.Fence.Type != "" {
		return
	}
	for _, g := range x.cluster.Groups {
		for _, r := range g.Resources {
			if !slices.Contains(diskAgents, r.Agent) {
				continue
			}
			if r.Agent == "Filesystem" {
				if len(r.Args) == 0 || !strings.HasPrefix(r.Args[0], "/dev/") && !strings.HasPrefix(r.Args[0], "-") || strings.HasPrefix(r.Args[0], "/dev/drbd") {
					continue
				}
			}
			text := r.Text + ": after a split both nodes may write to this disk, and destroy what is on it: nothing fences the other node"
			if x.cluster.Heartbeat != nil && x.cluster.Heartbeat.Watchdog != "" {
				x.warn(places[r.Text].pos, text+"; the watchdog resets a hung machine, not one that is cut off", "replicate with drbd, or mount from a file server")
				continue
			}
			x.error(places[r.Text].pos, text, "give ha.cf a stonith_host line that resets the other node, or replicate with drbd, or mount from a file server; or give each node a watchdog (ha.cf: watchdog /dev/watchdog) and two heartbeat paths, and accept the rest")
		}
	}
}

// findDirector looks where ldirectord does: in the directory, in conf below
// it, then the path as it is.
func (x *crossCheck) findDirector(argument string) string {
	first := path.Join(x.dir, argument)
	for _, f := range []string{first, path.Join(x.dir, "conf", argument)} {
		if _, err := x.stat(f); err == nil {
			return f
		}
	}
	if path.IsAbs(argument) {
		return argument
	}
	return first
}

// addresses holds the addresses of a group's line against what its director
// needs: each virtual address, and an inside gateway for masq servers.
func (x *crossCheck) addresses(at word, g model.ResourceGroup, d model.Director) {
	here, anywhere := x.held(g), []netip.Prefix{}
	for _, other := range x.cluster.Groups {
		anywhere = append(anywhere, x.held(other)...)
	}
	missing := newList()
	lost := newList()
	for _, s := range d.Services {
		if a := s.Virtual.Key.Addr.Addr(); a.IsValid() && !slices.ContainsFunc(anywhere, func(p netip.Prefix) bool { return p.Addr() == a }) {
			missing.add(a.String())
		}
		for _, r := range s.Reals {
			a := r.Addr.Addr()
			if r.Forward == model.Masq && !a.IsLoopback() && !slices.ContainsFunc(here, func(p netip.Prefix) bool { return p.Contains(a) }) {
				lost.add(a.String())
			}
		}
	}
	if missing.n > 0 {
		x.warn(at.pos, fmt.Sprintf("no line has the virtual address %s of %s: no node will answer for it", missing, d.File), "add it before "+at.text)
	}
	if lost.n > 0 {
		x.warn(at.pos, fmt.Sprintf("replies of the masq real servers %s will not find their way back after a failover: their inside gateway is no resource of this line", lost),
			"add the gateway address of each of their networks before "+at.text)
	}
}

// held are the addresses of a group with the networks they are in: by the
// resource's prefix length, else by an interface of this host, else /24 as
// the smallest usual one (/64 for IPv6).
func (x *crossCheck) held(g model.ResourceGroup) []netip.Prefix {
	var out []netip.Prefix
	for _, r := range g.Resources {
		if !isAddress(r) {
			continue
		}
		a, _, err := parseAddress(addressArgument(r))
		if err != nil {
			continue // reported where it stands
		}
		bits := a.Bits
		if bits == 0 {
			bits = x.networkBits(a.Addr)
		}
		out = append(out, netip.PrefixFrom(a.Addr, bits))
	}
	return out
}

func (x *crossCheck) networkBits(a netip.Addr) int {
	best := 0
	for _, i := range x.Host.Interfaces {
		for _, p := range i.Addrs {
			if p.Contains(a) && p.Bits() > best && p.Bits() < a.BitLen() {
				best = p.Bits()
			}
		}
	}
	if best == 0 {
		if best = 64; a.Is4() {
			best = 24
		}
	}
	return best
}

// shortList prints its first members, each once.
type shortList struct {
	seen  map[string]bool
	words []string
	n     int
}

func newList() *shortList { return &shortList{seen: map[string]bool{}} }

func (l *shortList) add(s string) {
	if l.seen[s] {
		return
	}
	l.seen[s] = true
	if l.n++; l.n <= 4 {
		l.words = append(l.words, s)
	}
}

func (l *shortList) String() string {
	s := strings.Join(l.words, ", ")
	if more := l.n - len(l.words); more > 0 {
		s += fmt.Sprintf(" and %d more", more)
	}
	return s
}
