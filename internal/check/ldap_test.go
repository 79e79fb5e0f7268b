package check

import (
	"io"
	"net"
	"strings"
	"testing"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"

	"github.com/batuta-ha/batuta/internal/model"
)

// ldapMessage is an LDAPMessage (RFC 4511 section 4.1.1) with one operation.
func ldapMessage(id int64, op ber.Tag, parts ...*ber.Packet) []byte {
	message := ber.Encode(ber.ClassUniversal, ber.TypeConstructed, ber.TagSequence, nil, "")
	message.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagInteger, id, ""))
	operation := ber.Encode(ber.ClassApplication, ber.TypeConstructed, op, nil, "")
	for _, p := range parts {
		operation.AppendChild(p)
	}
	message.AppendChild(operation)
	return message.Bytes()
}

func ldapText(s string) *ber.Packet {
	return ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, s, "")
}

// ldapResult ends an operation.
func ldapResult(id int64, op ber.Tag, code int64, text string) []byte {
	return ldapMessage(id, op, ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagEnumerated, code, ""), ldapText(""), ldapText(text))
}

func ldapEntry(id int64, dn string) []byte {
	return ldapMessage(id, ldap.ApplicationSearchResultEntry, ldapText(dn), ber.NewSequence(""))
}

// directory plays an LDAP server: what it says to the bind and to the search.
func directory(bind func(id int64) []byte, search func(id int64) []byte) func(net.Conn) {
	return func(c net.Conn) {
		for _, says := range []func(int64) []byte{bind, search} {
			p, err := ber.ReadPacket(c)
			if err != nil || len(p.Children) == 0 {
				return
			}
			id, ok := p.Children[0].Value.(int64)
			if !ok {
				return
			}
			if _, err := c.Write(says(id)); err != nil {
				return
			}
		}
		_, _ = io.Copy(io.Discard, c)
	}
}

func TestLDAPAnswers(t *testing.T) {
	welcome := func(id int64) []byte { return ldapResult(id, ldap.ApplicationBindResponse, 0, "") }
	finds := func(names ...string) func(int64) []byte {
		return func(id int64) []byte {
			var b []byte
			for _, n := range names {
				b = append(b, ldapEntry(id, n)...)
			}
			return append(b, ldapResult(id, ldap.ApplicationSearchResultDone, 0, "")...)
		}
	}
	for _, tc := range []struct {
		name         string
		bind, search func(int64) []byte
		receive      string
		status       model.Status
		reason       string
	}{
		{"one entry", welcome, finds("dc=example,dc=test"), "", model.Up, `found "dc=example,dc=test"`},
		{"its name matches", welcome, finds("dc=example,dc=test"), "^dc=ex", model.Up, `found "dc=example,dc=test"`},
		{"its name does not match", welcome, finds("dc=other"), "^dc=ex", model.Down, `receive="^dc=ex" is not in the entry's DN "dc=other"`},
		{"no entry", welcome, finds(), "", model.Down, `0 entries for "alive.html", want exactly one`},
		{"two entries", welcome, finds("dc=a", "dc=b"), "", model.Down, "2 entries for"},
		{"a name that would break a line", welcome, finds("dc=a\r\nfake: up"), "x", model.Down, `"dc=a??fake: up"`},
		{"bind refused, in its own words", func(id int64) []byte { return ldapResult(id, ldap.ApplicationBindResponse, 48, "no\nanonymous bind") }, nil, "",
			model.Down, "bind anonymously: Inappropriate Authentication (48): no?anonymous bind"},
		{"busy", welcome, func(id int64) []byte { return ldapResult(id, ldap.ApplicationSearchResultDone, 51, "") }, "", model.Down, `search "alive.html": Busy (51)`},
		{"another's answer first", func(id int64) []byte {
			return append(ldapResult(id+7, ldap.ApplicationBindResponse, 49, ""), welcome(id)...)
		}, finds("dc=a"), "", model.Up, "found"},
		{"a bind answered by a search", func(id int64) []byte { return ldapEntry(id, "dc=a") }, nil, "", model.Down, "LDAP answer"},
		{"a search answered by an endless number of entries", welcome, func(id int64) []byte {
			var b []byte
			for range 4096 {
				b = append(b, ldapEntry(id, "dc=example,dc=test")...)
			}
			return b
		}, "", model.Down, "too long: more than 32768 bytes"},
		{"a notice of disconnection", func(int64) []byte { return ldapResult(0, ldap.ApplicationExtendedResponse, 52, "") }, nil, "", model.Down, "LDAP answer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			play := directory(tc.bind, func(id int64) []byte {
				if tc.search == nil {
					return nil
				}
				return tc.search(id)
			})
			if tc.search == nil { // nothing more is said
				play = func(c net.Conn) {
					directory(tc.bind, func(int64) []byte { return nil })(&oneQuestion{c})
				}
			}
			v := Perform(t.Context(), negotiateLDAP, target(script(t, play), receive(tc.receive), func(t *model.Target) { t.Application = "ldap" }))
			if v.Status != tc.status || !strings.Contains(v.Reason, tc.reason) {
				t.Errorf("verdict %v, want %v: ...%s...", v, tc.status, tc.reason)
			}
		})
	}
}

// oneQuestion is a connection that ends once something was said on it.
type oneQuestion struct{ net.Conn }

func (c *oneQuestion) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err == nil {
		err = io.ErrClosedPipe
	}
	return n, err
}

// FuzzLDAPAnswer gives whatever bytes to the decoder, which runs on a
// goroutine of its own: a panic there would end the daemon.
func FuzzLDAPAnswer(f *testing.F) {
	ok := ldapResult(1, ldap.ApplicationBindResponse, 0, "")
	f.Add(append(append(ok, ldapEntry(2, "dc=a")...), ldapResult(2, ldap.ApplicationSearchResultDone, 0, "")...))
	f.Add(ldapResult(1, ldap.ApplicationBindResponse, 49, "no"))
	f.Add(ldapResult(0, ldap.ApplicationExtendedResponse, 52, "bye"))
	f.Add([]byte("\x30\x84\x7f\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ours, theirs := net.Pipe()
		go func() {
			go func() { _, _ = io.Copy(io.Discard, theirs) }()
			_, _ = theirs.Write(b)
			theirs.Close()
		}()
		conn := ldap.NewConn(bound(t.Context(), ours, ldapLimit), false)
		conn.Start()
		defer conn.Close()
		if _, err := findLDAP(conn, "", "", "dc=a"); err != nil && strings.ContainsAny(err.Error(), "\r\n") {
			t.Errorf("%q would break a log line", err)
		}
	})
}
