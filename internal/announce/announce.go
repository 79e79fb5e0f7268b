// Package announce puts service addresses on this machine's interfaces and
// tells the network where they are: gratuitous ARP for IPv4, unsolicited
// neighbor advertisements for IPv6. What comes in is a resource of haresources
// (IPaddr, IPaddr2, IPv6addr); what goes out is an address that can be started,
// stopped and looked at, and frames. It never decides who holds an address.
//
// Addresses of 127.0.0.0/8 are on every machine already: they are held in name
// only, without privilege, for trying a cluster on one machine.
package announce

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/batuta-ha/batuta/internal/config"
	"github.com/batuta-ha/batuta/internal/model"
)

// Options configure a Network.
type Options struct {
	Sink model.Sink // hears what was added, removed, and could not be announced; may be nil
}

// Network is this machine's interfaces. Its methods may be called from any goroutine.
type Network struct {
	opt   Options
	ctx   context.Context // ends the announcements
	end   context.CancelFunc
	wait  sync.WaitGroup
	again chan struct{} // asks for a Reannounce
	wire  wire
	here  picture

	mu   sync.Mutex // one change of addresses at a time
	held map[netip.Addr]*Address
	ears ears
}

// New returns a Network that holds nothing. Nothing is touched before an address is started.
func New(opt Options) *Network {
	n := &Network{opt: opt, again: make(chan struct{}, 1), held: map[netip.Addr]*Address{},
		ears: ears{files: map[bool]*os.File{}, known: map[netip.Addr]bool{}}}
	n.ctx, n.end = context.WithCancel(context.Background())
	n.wait.Go(n.repeat)
	return n
}

// Close ends the announcements that still run. Addresses stay as they are.
func (n *Network) Close() error {
	n.end()
	n.deafen()
	closed := n.here.close()
	n.wait.Wait()
	return errors.Join(n.wire.close(), closed)
}

// Reannounce has the network told again where every held address is: after a
// split, when another machine has answered for them meanwhile. It does not wait.
func (n *Network) Reannounce() {
	select {
	case n.again <- struct{}{}:
	default: // it is about to begin
	}
}

// repeat does what Reannounce asks for.
func (n *Network) repeat() {
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-n.again:
		}
		n.mu.Lock()
		for _, a := range n.held {
			a.other = nil // who had it has released it, or is found again
			a.announce()
		}
		n.mu.Unlock()
	}
}

// Address parses an address resource. Nothing is touched yet.
func (n *Network) Address(res model.Resource) (*Address, error) {
	a, err := config.ParseAddress(res)
	if err != nil {
		return nil, err
	}
	auto := res.Agent == "IPaddr" && a.Addr.Is4() && a.Label == ""
	n.mu.Lock()
	defer n.mu.Unlock()
	n.know(a.Addr)
	return &Address{network: n, wish: wish{Address: a, autoLabel: auto}, text: res.Text}, nil
}

// Address is a service address that this machine may hold. It has the methods
// of an agent.
type Address struct {
	network *Network
	wish    wish
	text    string

	// Guarded by network.mu.
	place    place // where it was put; zero while it is not held
	silence  context.CancelFunc
	since    time.Time  // when it came
	other    *Duplicate // nil for none
	defended time.Time
}

// Addr is the address itself.
func (a *Address) Addr() netip.Addr { return a.wish.Addr }

// Start puts the address on its interface and returns once the first
// announcement is out; the others follow by themselves at 0.2, 1 and 5 s. An
// address that is there already is adopted; one that is on another interface
// is an error that says so.
func (a *Address) Start(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("resource %s: %w", a.text, err)
	}
	n := a.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if a.wish.told {
		return a.startTelling()
	}
	if !a.wish.Addr.IsLoopback() {
		n.listen(a.wish.Addr.Is6())
		p, err := n.here.put(a.wish)
		a.since, a.other = time.Now(), nil
		if err != nil {
			return fmt.Errorf("resource %s: %w", a.text, explain(err))
		}
		a.place = p
		a.announce() // first of all: people are told later
		if p.added {
			if p.announces() {
				_ = n.wire.ask(p, a.wish.Addr) // the announcement has said why it cannot be sent
			}
			n.say(model.LevelInfo, "address-added", a.wish.Addr, "address %s added to %s", p.prefix, p.where())
		}
		if p.flags&net.FlagUp == 0 {
			n.say(model.LevelWarning, "interface-down", a.wish.Addr, "interface %s is down: nobody can reach %s; bring it up (ip link set %s up)", p.name, a.wish.Addr, p.name)
		}
	}
	n.held[a.wish.Addr] = a
	return nil
}

// Stop takes the address from its interface and ends its announcements. An
// address that is not there is no error.
func (a *Address) Stop(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("resource %s: %w", a.text, err)
	}
	n := a.network
	n.mu.Lock()
	defer n.mu.Unlock()
	a.hush()
	if a.wish.told {
		a.place = place{}
		return nil
	}
	delete(n.held, a.wish.Addr)
	a.other = nil
	if a.wish.Addr.IsLoopback() {
		return nil
	}
	removed, along, err := n.here.remove(a.wish, a.place)
	if err != nil {
		return fmt.Errorf("resource %s: %w", a.text, explain(err))
	}
	a.place = place{}
	if removed.name != "" {
		n.say(model.LevelInfo, "address-removed", a.wish.Addr, "address %s removed from %s", removed.prefix, removed.where())
		n.restore(along)
	}
	return nil
}

// Status looks whether the address is on its interface.
func (a *Address) Status(context.Context) (model.ResourceState, error) {
	n := a.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if a.wish.told {
		return a.tellingState(), nil
	}
	found := n.held[a.wish.Addr] == a
	if !a.wish.Addr.IsLoopback() {
		n.listen(a.wish.Addr.Is6()) // so that it need not be done when the address comes
		p, err := n.here.where(a.wish)
		if err != nil {
			return model.ResourceUnknown, fmt.Errorf("resource %s: %w", a.text, explain(err))
		}
		found = p.name != ""
	}
	if found {
		return model.ResourceRunning, nil
	}
	return model.ResourceStopped, nil
}

// restore puts back what the kernel took along with an address. It is away too
// briefly for anyone to miss it, so nobody is told.
func (n *Network) restore(along []netip.Addr) {
	for _, addr := range along {
		a := n.held[addr]
		if a == nil {
			continue // not ours to put anywhere
		}
		if err := n.here.again(a.wish, a.place); err != nil {
			n.say(model.LevelError, "address-lost", addr, "address %s was lost with another of its network: %v", addr, explain(err))
		}
	}
}

// burst is when an address is announced, counted from its start. ARP caches
// that missed the first frames, because a port of a switch was not yet
// forwarding, are reached by the later ones.
var burst = [...]time.Duration{0, 200 * time.Millisecond, time.Second, 5 * time.Second}

// announce sends the first announcement and lets the others follow.
func (a *Address) announce() {
	a.hush()
	p, addr, n := a.place, a.wish.Addr, a.network
	if !p.announces() || n.ctx.Err() != nil {
		return
	}
	if err := n.wire.send(p, addr); err != nil {
		n.say(model.LevelWarning, "announce-failed", addr, "address %s is up but was not announced on %s: %v", addr, p.name, explain(err))
	}
	ctx, cancel := context.WithCancel(n.ctx)
	a.silence = cancel
	n.wait.Go(func() {
		defer cancel()
		began := time.Now()
		for _, at := range burst[1:] {
			t := time.NewTimer(time.Until(began.Add(at)))
			select {
			case <-ctx.Done():
				t.Stop()
				return
			case <-t.C:
			}
			n.mu.Lock() // else a word that is late would claim what is another's by now
			if ctx.Err() == nil {
				_ = n.wire.ask(p, addr)
				_ = n.wire.send(p, addr) // the first failure was reported; the next try may succeed
			}
			n.mu.Unlock()
		}
	})
}

// hush ends the announcements of this address.
func (a *Address) hush() {
	if a.silence != nil {
		a.silence()
		a.silence = nil
	}
}

// explain adds the way out where permission is missing.
func explain(err error) error {
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w: run batuta as root or with the capabilities CAP_NET_ADMIN and CAP_NET_RAW, or try with addresses of 127.0.0.0/8", err)
	}
	return err
}

func (n *Network) say(l model.Level, kind string, addr netip.Addr, format string, args ...any) {
	if n.opt.Sink != nil {
		n.opt.Sink(model.Event{At: time.Now(), Level: l, Source: "announce", Kind: kind, Subject: addr.String(), Text: fmt.Sprintf(format, args...)})
	}
}
