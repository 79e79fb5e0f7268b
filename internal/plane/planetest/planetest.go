// Package planetest is the one conformance suite that every data plane
// passes. What comes in is a Harness: how to make a bench, that is a plane
// with clients on one side and answering real servers on the other. What comes
// out is a test verdict for each promise of the contract, in a sentence.
//
// The suite never looks inside a plane, never decides by timing that something
// is right, and never skips on its own: what a plane lacks is declared in
// Harness.Without, with the reason.
package planetest

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// Reals is how many real servers a bench has for each protocol.
const Reals = 4

// Virtuals is how many virtual addresses a bench has for each protocol.
const Virtuals = 3

// Feature is something that a plane may lack, with a reason.
type Feature string

// Features that a plane may declare in Harness.Without.
const (
	// KeepsTable: the table outlives the process; Reopen finds it.
	KeepsTable Feature = "keeps the table over a restart"
	// KeepsConnections: connections outlive the process too.
	KeepsConnections Feature = "keeps connections over a restart"
	// Expiry: Options.UDPTimeout is obeyed.
	Expiry Feature = "idle time of UDP flows can be set"
	// Gate: rows with the forwarding method gate are carried.
	Gate Feature = "forwarding method gate"
	// Persistent: services with persistence are carried.
	Persistent Feature = "persistence"
)

// Harness says how to test one plane.
type Harness struct {
	// New makes a fresh bench whose plane is open and empty, and registers
	// its end with t.Cleanup.
	New func(t *testing.T, o Options) Bench
	// Without names what the plane lacks, each with the reason.
	Without map[Feature]string
}

// Options are what a case asks of its bench.
type Options struct {
	// UDPTimeout is how long an idle UDP flow is kept. 0: so long that it
	// does not end during a test.
	UDPTimeout time.Duration
}

// Bench is a plane between clients and real servers. A virtual address serves
// TCP and UDP on the same port; real servers of the two protocols may share
// addresses or not.
type Bench interface {
	// Plane is the plane under test; after Reopen it is another value.
	Plane() plane.Plane
	// Reopen closes the plane and opens it again, as a restart of the daemon does.
	Reopen(t *testing.T)
	// Virtual is virtual address i, 0 ≤ i < Virtuals. It is held: nothing but
	// rows in the table is needed to serve it.
	Virtual(i int) netip.AddrPort
	// Real is real server i, 0 ≤ i < Reals. It runs ServeStream or
	// ServePackets, or behaves as if.
	Real(p model.Protocol, i int) netip.AddrPort
	// Dial opens a client connection with an address (port) of its own.
	Dial(ctx context.Context, p model.Protocol, virtual netip.AddrPort) (Conn, error)
	// Advance lets time pass as the plane sees it: a fake clock is moved, or
	// the call waits.
	Advance(d time.Duration)
}

// Conn is a client's connection, or a client's UDP socket. NewConn makes one
// of a net.Conn.
type Conn interface {
	// Local is the client's own address, as the plane sees it.
	Local() netip.AddrPort
	// Exchange sends a message and waits for its echo. It tells which real
	// server sent that.
	Exchange(ctx context.Context, msg []byte) (real netip.AddrPort, echo []byte, err error)
	// Finish closes the client's side only, and waits for what the server
	// says after it has seen that (TCP only).
	Finish(ctx context.Context) (Summary, error)
	// Close ends the connection.
	Close() error
}

// Summary is what a real server says after the client has finished.
type Summary struct {
	Bytes  uint64   // payload bytes of all messages
	SHA256 [32]byte // of the same
}

// Run holds a plane against its contract.
func Run(t *testing.T, h Harness) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for _, f := range c.needs {
				if why, lacks := h.Without[f]; lacks {
					t.Skipf("declared: the plane lacks %q: %s", f, why)
				}
			}
			c.run(&suite{T: t, Bench: h.New(t, c.options), without: h.Without})
		})
	}
}

type testCase struct {
	name    string
	needs   []Feature
	options Options
	run     func(*suite)
}

// suite is one case at work: the bench, with verbs that fail the test.
type suite struct {
	*testing.T
	Bench
	without map[Feature]string
}
