package check

import (
	"context"

	"github.com/batuta-ha/batuta/internal/model"
)

// helo is the name that ldirectord's checks give themselves.
const helo = "localhost.localdomain"

// negotiateSMTP wants a greeting and EHLO, or else HELO, accepted, for smtp
// and for submission (RFC 5321). Nothing is mailed.
func negotiateSMTP(ctx context.Context, t model.Target) model.Verdict {
	return converse(ctx, t, func(d *dialogue) (string, error) {
		greeting, err := d.must(d.reply())
		if err != nil {
			return "", err
		}
		hello, err := d.ask("EHLO " + helo)
		if err == nil && !hello.ok() {
			_, err = d.must(d.ask("HELO " + helo))
		}
		if err != nil {
			return "", err
		}
		d.part("QUIT")
		return greeting.text, nil
	})
}
