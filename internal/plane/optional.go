package plane

import (
	"context"

	"github.com/batuta-ha/batuta/internal/model"
)

// The interfaces below are for planes that know more than the contract asks
// for. They are found with As, because a plane may be wrapped.

// RateKeeper is implemented by planes that estimate rates themselves.
type RateKeeper interface {
	// Rates returns what is counted per second, for each service and real
	// server of the table.
	Rates(ctx context.Context) ([]model.ServiceCounters, error)
}

// TimeoutKeeper is implemented by planes whose connections end after a silence
// that can be asked for.
type TimeoutKeeper interface {
	Timeouts(ctx context.Context) (model.Timeouts, error)
}

// Syncer is implemented by planes that share connections with other directors
// by daemons of the kernel's.
type Syncer interface {
	// SyncDaemons returns those that run, the master first.
	SyncDaemons(ctx context.Context) ([]model.SyncDaemon, error)
}

// Classifier is implemented by planes that see packets before netfilter marks
// them: services by mark are refused but for marks that rules here give.
type Classifier interface {
	// SetMarks gives the whole set of rules, in order: the first that fits
	// decides. It comes before the changes of the table that need it.
	SetMarks(ctx context.Context, rules []model.MarkRule) error
}

// Tuned is implemented by planes with settings of the kernel's.
type Tuned interface {
	// Sysctls returns them by name, in order.
	Sysctls(ctx context.Context) ([]model.Setting, error)
}

// Bound is implemented by planes that say which real servers the clients of
// persistent services have.
type Bound interface {
	// Bindings lists those in force, in no set order.
	Bindings(ctx context.Context) ([]model.Binding, error)
}

// Binder is implemented by planes that take bindings over from another plane.
// The kernel's IPVS has no interface for that.
type Binder interface {
	// Bind enters bindings and returns how many. It passes over those whose
	// service or real server is not in the table, or whose service is not
	// persistent; a client that is bound already stays where it is.
	Bind(ctx context.Context, bindings []model.Binding) (bound int, err error)
}

// Searcher is implemented by planes whose list of connections may be long, and
// of which only some are wanted.
type Searcher interface {
	// Search lists what Flows does, as far as wanted says yes.
	Search(ctx context.Context, wanted func(model.Flow) bool) ([]model.Flow, error)
}

// As finds an optional interface of a plane, or of a plane within it: a
// wrapper lets itself be looked through by a method Unwrap() Plane.
func As[T any](p Plane) (T, bool) {
	for {
		if t, ok := p.(T); ok {
			return t, true
		}
		w, ok := p.(interface{ Unwrap() Plane })
		if !ok {
			var none T
			return none, false
		}
		p = w.Unwrap()
	}
}
