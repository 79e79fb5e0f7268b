package director

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

const (
	maintainEvery = time.Second     // how often the maintenance directory is looked at
	nameFresh     = 5 * time.Minute // for so long the names of an address are believed
	nameLimit     = 2 * time.Second // for one round of looking names up
	namesAtOnce   = 16              // look-ups at the same time
)

// inMaintenance is the reason of a verdict that nobody asked the server for.
const inMaintenance = "Server in maintenance"

// maintenance finds real servers that a file in maintenancedir takes out. The
// files of 10.0.0.1:80 that count are "10.0.0.1:80", "10.0.0.1" and, with its
// reverse name www.example.test, "www.example.test:80", "www.example.test",
// "www:80" and "www". What is in the files does not matter.
type maintenance struct {
	lookup func(ctx context.Context, addr string) (names []string, err error)

	mu    sync.Mutex
	names map[netip.Addr]knownNames
}

// knownNames are the names of an address, as they were found.
type knownNames struct {
	names []string
	until time.Time
}

// maintenanceJob is what the director's configuration asks for.
type maintenanceJob struct {
	dir   string
	reals []netip.AddrPort
}

// files lists the directory. One that is not there has none.
func (j *maintenanceJob) files() (map[string]bool, error) {
	if j.dir == "" {
		return nil, nil
	}
	list, err := os.ReadDir(j.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := make(map[string]bool, len(list))
	for _, f := range list {
		out[f.Name()] = true
	}
	return out, nil
}

// byName tells whether any file can be named after a host.
func byName(files map[string]bool) bool {
	for f := range files {
		host, _, _ := strings.Cut(f, ":")
		if _, err := netip.ParseAddr(host); err != nil && !strings.HasPrefix(f, "[") && !strings.HasPrefix(f, ".") {
			return true
		}
	}
	return false
}

// find tells which real servers are in maintenance, and the file that says so.
// Names count as far as they are known.
func (m *maintenance) find(reals []netip.AddrPort, files map[string]bool) map[netip.AddrPort]string {
	if len(files) == 0 {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[netip.AddrPort]string{}
	for _, a := range reals {
		for _, f := range maintenanceFiles(a, m.names[a.Addr()].names) {
			if files[f] {
				out[a] = f
				break
			}
		}
	}
	return out
}

// stale lists the addresses whose names have to be looked up.
func (m *maintenance) stale(reals []netip.AddrPort, now time.Time) []netip.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[netip.Addr]bool{}
	for _, a := range reals {
		if k, ok := m.names[a.Addr()]; !ok || now.After(k.until) {
			out[a.Addr()] = true
		}
	}
	return slices.SortedFunc(maps.Keys(out), netip.Addr.Compare)
}

// resolve looks the names of one address up. A failure keeps the old ones.
func (m *maintenance) resolve(ctx context.Context, a netip.Addr) {
	names, err := m.lookup(ctx, a.String())
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		names = m.names[a].names
	}
	if m.names == nil {
		m.names = map[netip.Addr]knownNames{}
	}
	m.names[a] = knownNames{names, time.Now().Add(nameFresh)}
}

// maintenanceFiles are the files that take a real server out, in the order in
// which they are looked for.
func maintenanceFiles(a netip.AddrPort, names []string) []string {
	ip := a.Addr().String()
	if a.Addr().Is6() {
		ip = "[" + ip + "]"
	}
	_, port, _ := strings.Cut(a.String()[len(ip):], ":")
	out := []string{ip + ":" + port, ip}
	for _, name := range names {
		name = strings.TrimSuffix(name, ".")
		out = append(out, name+":"+port, name)
		if short, _, ok := strings.Cut(name, "."); ok && short != "" && short[0] >= 'a' && short[0] <= 'z' {
			out = append(out, short+":"+port, short)
		}
	}
	return out
}

// setMaintenance gives maintain the configuration to work with.
func (r *run) setMaintenance() {
	j := &maintenanceJob{dir: r.st.director.MaintenanceDir}
	for i := range r.st.director.Services {
		for _, real := range r.st.director.Services[i].Reals {
			j.reals = append(j.reals, real.Addr)
		}
	}
	r.job.Store(j)
}

// takeOut acts on a change in the maintenance directory.
func (r *run) takeOut(out map[netip.AddrPort]string) {
	var events []model.Event
	r.mu.Lock()
	r.st.maintain(out, func(e model.Event) { events = append(events, e) })
	r.mu.Unlock()
	for _, e := range events {
		r.emit(e)
	}
	r.apply()
}
