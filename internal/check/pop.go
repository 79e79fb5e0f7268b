package check

import (
	"context"
	"crypto/hmac"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
)

// negotiatePOP wants a greeting, and with a login configured that it is
// accepted (RFC 1939), for pop and for pops.
func negotiatePOP(ctx context.Context, t model.Target) model.Verdict {
	return converse(ctx, t, func(d *dialogue) (string, error) {
		said, err := d.pop()
		if err != nil {
			return "", err
		}
		if t.Login != "" {
			if err := d.popLogin(said, t.Login, t.Password); err != nil {
				return "", err
			}
			said = "logged in"
		}
		d.part("QUIT")
		return said, nil
	})
}

// refusal is what a server answered that understood and said no.
type refusal string

func (r refusal) Error() string { return string(r) }

// pop reads a status line; other than +OK it is an error, a refusal if -ERR.
func (l lines) pop() (string, error) {
	line, err := l.line()
	switch word, _, _ := strings.Cut(line, " "); {
	case err != nil:
		return "", err
	case word == "+OK" || word == "+": // the latter asks for more (RFC 5034 section 4)
		return line, nil
	case word == "-ERR":
		return "", refusal(clean(line))
	}
	return "", fmt.Errorf("not an answer: %q", clean(line))
}

// popList reads the lines after a status, up to a single dot.
func (l lines) popList() ([]string, error) {
	var list []string
	for {
		line, err := l.line()
		if err != nil || line == "." {
			return list, err
		}
		list = append(list, line)
	}
}

func (d *dialogue) askPOP(line string) (string, error) {
	if err := d.send(line); err != nil {
		return "", err
	}
	return d.pop()
}

// timestamp is what APOP needs of a greeting (RFC 1939 section 7).
var timestamp = regexp.MustCompile(`<[^<>\s]+@[^<>\s]*>`)

// popLogin logs in without showing the password if the server offers a way.
// If it then refuses, it may know this user's password in another form only:
// USER and PASS are tried, too.
func (d *dialogue) popLogin(greeting, login, password string) error {
	var capabilities []string
	_, err := d.askPOP("CAPA")
	if err == nil {
		capabilities, err = d.popList()
	}
	if err = unlessRefused(err); err != nil {
		return err
	}
	stamp := timestamp.FindString(greeting)
	if stamp != "" || slices.ContainsFunc(capabilities, offersCRAM) {
		if stamp != "" {
			sum := md5.Sum([]byte(stamp + password))
			_, err = d.askPOP("APOP " + login + " " + hex.EncodeToString(sum[:]))
		} else {
			err = d.popCRAM(login, password)
		}
		if err == nil {
			return nil
		}
		if err = unlessRefused(err); err != nil {
			return err
		}
	}
	if _, err := d.askPOP("USER " + login); err != nil {
		return err
	}
	_, err = d.askPOP("PASS " + password)
	return err
}

// unlessRefused lets a refusal pass: there is another way.
func unlessRefused(err error) error {
	if _, no := errors.AsType[refusal](err); no {
		return nil
	}
	return err
}

// offersCRAM tells whether a line of CAPA offers CRAM-MD5 (RFC 2449 section 6.3).
func offersCRAM(line string) bool {
	words := strings.Fields(strings.ToUpper(line))
	return len(words) > 1 && words[0] == "SASL" && slices.Contains(words[1:], "CRAM-MD5")
}

// popCRAM logs in as RFC 2195 says.
func (d *dialogue) popCRAM(login, password string) error {
	challenge, err := d.askPOP("AUTH CRAM-MD5")
	if err != nil {
		return err
	}
	text, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(challenge, "+ "))
	if err != nil {
		return fmt.Errorf("not a challenge: %q", clean(challenge))
	}
	mac := hmac.New(md5.New, []byte(password))
	mac.Write(text)
	answer := login + " " + hex.EncodeToString(mac.Sum(nil))
	if err := d.write(base64.StdEncoding.EncodeToString([]byte(answer))); err != nil {
		return err
	}
	_, err = d.pop()
	return err
}
