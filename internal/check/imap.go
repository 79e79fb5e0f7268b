package check

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
)

// negotiateIMAP wants a greeting, and with a login configured its LOGIN
// accepted (RFC 9051 sections 7.1 and 6.2.3), for imap and for imaps.
func negotiateIMAP(ctx context.Context, t model.Target) model.Verdict {
	return converse(ctx, t, func(d *dialogue) (string, error) {
		said, err := d.line()
		if err != nil {
			return "", err
		}
		switch status, _, _ := strings.Cut(strings.TrimPrefix(said, "* "), " "); {
		case !strings.HasPrefix(said, "* "), status != "OK" && status != "PREAUTH":
			return "", fmt.Errorf("%q", clean(said))
		case t.Login != "" && status == "OK":
			d.begin("LOGIN")
			if err := d.write("0 LOGIN " + imapString(t.Login) + " " + imapString(t.Password)); err != nil {
				return "", err
			}
			if err := d.tagged("0"); err != nil {
				return "", err
			}
			said = "logged in"
		}
		d.part("1 LOGOUT")
		return said, nil
	})
}

// tagged reads up to the completion of the command with a tag; other than OK
// it is an error (RFC 9051 section 2.2.2).
func (l lines) tagged(tag string) error {
	for {
		line, err := l.line()
		if err != nil {
			return err
		}
		result, ok := strings.CutPrefix(line, tag+" ")
		if !ok {
			if strings.HasPrefix(line, "* BYE") {
				return errors.New(clean(line))
			}
			if !strings.HasPrefix(line, "* ") {
				return fmt.Errorf("not an answer: %q", clean(line))
			}
			continue
		}
		if status, _, _ := strings.Cut(result, " "); strings.EqualFold(status, "OK") {
			return nil
		}
		return errors.New(clean(result))
	}
}

// imapString is a quoted string (RFC 9051 section 4.3).
func imapString(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}
