package link

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

// Network is an imaginary broadcast medium for tests, in memory. What it does
// to packets follows from its seed alone. It works inside testing/synctest:
// delays are timers, and nothing but Receive waits.
type Network struct {
	mu    sync.Mutex
	rand  *rand.Rand
	ports []*port
	fault Fault
	cut   map[[2]string]bool
}

// Fault is what a Network does to each packet on its way to each receiver.
type Fault struct {
	Loss      float64       // probability that it vanishes
	Duplicate float64       // probability that it arrives twice
	Delay     time.Duration // how long it takes
	Jitter    time.Duration // up to so much longer; packets can overtake each other
}

// NewNetwork makes a network that loses nothing.
func NewNetwork(r *rand.Rand) *Network {
	return &Network{rand: r, cut: map[[2]string]bool{}}
}

// Join adds a station and returns its link, called name. A station hears its
// own packets, as on a real broadcast medium.
func (n *Network) Join(station, name string) Link {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := &port{net: n, station: station, name: name, in: make(chan Packet, 4096), done: make(chan struct{})}
	n.ports = append(n.ports, p)
	return p
}

// SetFault changes what happens to packets from now on.
func (n *Network) SetFault(f Fault) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fault = f
}

// Cut drops packets from one station to another from now on; Heal ends that.
// Packets in the other direction are not concerned.
func (n *Network) Cut(from, to string) { n.set(from, to, true) }

// Heal ends a Cut.
func (n *Network) Heal(from, to string) { n.set(from, to, false) }

func (n *Network) set(from, to string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]string{from, to}] = cut
}

// port is one station's end.
type port struct {
	net     *Network
	station string
	name    string
	in      chan Packet
	done    chan struct{}
	once    sync.Once
}

var _ Link = (*port)(nil)

func (p *port) Name() string { return p.name }

func (p *port) Send(b []byte) error {
	n := p.net
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-p.done:
		return fmt.Errorf("link %s: %w", p.name, ErrClosed)
	default:
	}
	for _, to := range n.ports {
		if n.cut[[2]string{p.station, to.station}] {
			continue
		}
		if to == p { // one's own packet does not travel
			to.arrive(b)
			continue
		}
		copies := 1
		if n.rand.Float64() < n.fault.Duplicate {
			copies = 2
		}
		for range copies {
			lost, wait := n.rand.Float64() < n.fault.Loss, n.fault.Delay
			if n.fault.Jitter > 0 {
				wait += time.Duration(n.rand.Int64N(int64(n.fault.Jitter)))
			}
			switch {
			case lost:
			case wait == 0:
				to.arrive(b)
			default:
				late := bytes.Clone(b)
				time.AfterFunc(wait, func() { to.arrive(late) })
			}
		}
	}
	return nil
}

// arrive puts a copy into the receiver's queue; a full queue drops, as sockets do.
func (p *port) arrive(b []byte) {
	select {
	case p.in <- Packet{Data: append([]byte(nil), b...), From: netip.AddrPort{}, At: time.Now()}:
	default:
	}
}

func (p *port) Receive() (Packet, error) {
	select {
	case <-p.done: // closed wins over what is still queued
		return Packet{}, ErrClosed
	default:
	}
	select {
	case pkt := <-p.in:
		return pkt, nil
	case <-p.done:
		return Packet{}, ErrClosed
	}
}

func (p *port) Close() error {
	p.once.Do(func() {
		close(p.done)
		p.net.mu.Lock()
		defer p.net.mu.Unlock()
		for i, o := range p.net.ports {
			if o == p {
				p.net.ports = append(p.net.ports[:i], p.net.ports[i+1:]...)
				break
			}
		}
	})
	return nil
}
