// Package plane is the contract of a data plane: the part that carries
// packets of virtual services to real servers. What comes in is a list of
// changes of the table, what goes out is the table as it is, counters and
// connections. A plane never decides which real server is well, and never
// computes a difference between tables: balance does.
//
// The implementations are in the packages below; planetest is the one suite
// that all of them pass.
package plane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/batuta-ha/batuta/internal/model"
)

// Plane is a data plane.
//
// All methods may be called from any goroutine. After Close all return
// ErrClosed. Closing leaves what is in force in force wherever the plane
// lives outside the process (kernel planes): a restart adopts it with Read.
type Plane interface {
	// Info names the plane and says how it works here, for people.
	Info() model.PlaneInfo

	// Read returns the whole table as the plane carries it now, sorted. It
	// is asked, not remembered: changes made by others are seen.
	Read(ctx context.Context) (model.Table, error)

	// Apply carries out changes in the order given. It is idempotent: adding
	// what is there edits it, deleting what is gone is no error, so a call
	// may be repeated after any failure. Rows that are refused do not stop
	// the others: the error joins one *RowError for each of them. Any other
	// error means that nothing is known to be done.
	//
	// A real server with weight 0 gets no new connections and keeps those it
	// has. Deleting a real server or a service ends their connections: later
	// packets of them are dropped, and a new connection is scheduled anew.
	Apply(ctx context.Context, changes []model.Change) error

	// Counters returns totals for each service and real server of the table.
	Counters(ctx context.Context) ([]model.ServiceCounters, error)

	// Flows lists the connections that the plane knows, in no set order.
	Flows(ctx context.Context) ([]model.Flow, error)

	// Close releases what belongs to this process.
	Close() error
}

// AddressHolder is implemented by planes that answer on the virtual addresses
// themselves (proxy): they serve a service only while its address is held
// here. For planes in the kernel the address on the interface decides, and
// they do not implement it.
type AddressHolder interface {
	// SetAddresses gives the whole set of held addresses. Letting go of one
	// closes its listeners and connections before the call returns. Services
	// that cannot be served do not stop the others: the error joins one
	// *AddressError for each of them. Any other error means that nothing is
	// known to be done.
	SetAddresses(ctx context.Context, held []netip.Addr) error
}

// AddressError says why a service cannot be served on an address that is held.
type AddressError struct {
	Addr netip.Addr
	Err  error
}

func (e *AddressError) Error() string { return e.Err.Error() }

// Unwrap gives the reason.
func (e *AddressError) Unwrap() error { return e.Err }

// ErrClosed is returned by every method after Close.
var ErrClosed = errors.New("plane is closed")

// ErrNotSupported is wrapped when a plane cannot work on this machine, or
// cannot carry a row (scheduler, forwarding method, protocol). The text around
// it says what is missing and what to do about it.
var ErrNotSupported = errors.New("not supported")

// RowError says which change was refused, and why.
type RowError struct {
	Change model.Change
	Err    error
}

func (e *RowError) Error() string { return fmt.Sprintf("%s: %v", e.Change, e.Err) }

// Unwrap gives the reason.
func (e *RowError) Unwrap() error { return e.Err }
