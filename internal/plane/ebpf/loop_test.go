package ebpf

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

// Where the kernel refuses to tell any more, it is asked again, told once, and
// what it tells then counts.
func TestNewsAreAskedForAgain(t *testing.T) {
	var mu sync.Mutex
	said := 0
	o := testOptions()
	o.Sink = func(e model.Event) {
		if e.Kind == "subscribe" {
			mu.Lock()
			defer mu.Unlock()
			said++
		}
	}
	p := open(t, o)
	ended, refuse := news{routes: make(chan struct{}), stop: func() {}}, 2
	close(ended.routes)
	heard := news{routes: make(chan struct{}), stop: func() {}}
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		p.loop(ctx, ended, func() (news, error) {
			if refuse--; refuse >= 0 {
				return news{}, unix.EMFILE
			}
			return heard, nil
		}, p.fullness())
	})
	defer func() { stop(); all.Wait() }()
	for range 2 { // the second is taken after the loop is done with the first
		select {
		case heard.routes <- struct{}{}:
		case <-time.After(patience):
			t.Fatal("nobody listens")
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if said != 1 {
		t.Errorf("told %d times, want once", said)
	}
}

// Of all that the kernel tells of neighbors, routes are asked for again only
// when one has got another hardware address.
func TestNeighborHasMoved(t *testing.T) {
	heard := hardware{}
	for i, c := range []struct {
		kind uint16
		link int
		ip   string
		mac  string
		want bool
	}{
		{unix.RTM_NEWNEIGH, 2, "10.0.0.1", "", false}, // still looked for
		{unix.RTM_NEWNEIGH, 2, "10.0.0.1", "02:00:00:00:00:01", false},
		{unix.RTM_NEWNEIGH, 2, "10.0.0.1", "02:00:00:00:00:01", false}, // stale, reachable ...
		{unix.RTM_NEWNEIGH, 3, "10.0.0.1", "02:00:00:00:00:02", false}, // another link's
		{unix.RTM_NEWNEIGH, 2, "10.0.0.1", "02:00:00:00:00:03", true},
		{unix.RTM_NEWNEIGH, 2, "2001:db8::1", "02:00:00:00:00:01", false},
		{unix.RTM_DELNEIGH, 2, "10.0.0.1", "02:00:00:00:00:03", false},
		{unix.RTM_NEWNEIGH, 2, "10.0.0.1", "02:00:00:00:00:04", false},
	} {
		mac, _ := net.ParseMAC(c.mac)
		u := netlink.NeighUpdate{Type: c.kind, Neigh: netlink.Neigh{LinkIndex: c.link, IP: net.ParseIP(c.ip), HardwareAddr: mac}}
		if got := heard.moved(u); got != c.want {
			t.Errorf("update %d (%s is %s): %v, want %v", i, c.ip, c.mac, got, c.want)
		}
	}
	if len(heard) != 3 {
		t.Errorf("%d neighbors remembered, want 3", len(heard))
	}
}
