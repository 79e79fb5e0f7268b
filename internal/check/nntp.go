package check

import (
	"context"
	"fmt"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
)

// negotiateNNTP wants a greeting that begins with 2: 200 posting allowed, 201
// posting prohibited (RFC 3977 section 5.1).
func negotiateNNTP(ctx context.Context, t model.Target) model.Verdict {
	return converse(ctx, t, func(d *dialogue) (string, error) {
		greeting, err := d.line()
		if err != nil {
			return "", err
		}
		if !strings.HasPrefix(greeting, "2") {
			return "", fmt.Errorf("%q", clean(greeting))
		}
		d.part("QUIT")
		return greeting, nil
	})
}
