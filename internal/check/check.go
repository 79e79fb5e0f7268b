// Package check asks real servers whether they are well. A target comes in,
// a verdict goes out; every protocol has its own file. A check never decides
// what follows from its verdict, keeps no state between calls, and never
// panics on what a server sends.
package check

import (
	"context"

	"github.com/batuta-ha/batuta/internal/model"
)

// Func performs one check and returns its verdict. It keeps to the target's
// time-outs, or to ctx if that ends first: then the verdict is Unknown, not
// Down, because nothing was learnt. Everything else that goes wrong is Down
// with the reason, except what this machine could not do (no permission, no
// sockets left): Unknown with the reason.
type Func func(ctx context.Context, t model.Target) model.Verdict
