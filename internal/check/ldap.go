package check

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/go-ldap/ldap/v3"

	"github.com/batuta-ha/batuta/internal/model"
)

// ldapLimit is how many bytes of one connection are read. Little is asked for,
// and what is read takes up to 300 times that in memory once it is decoded.
const ldapLimit = 32 << 10

// negotiateLDAP binds, as Login if that and Password are given, else
// anonymously, and reads the entry that Request names. Up is exactly one entry
// whose DN the receive expression matches. CheckTimeout covers everything, and
// NegotiateTimeout the connection.
func negotiateLDAP(ctx context.Context, t model.Target) model.Verdict {
	re, err := compile(t.Receive)
	if err != nil {
		return down(err.Error())
	}
	if err := portOf(t); err != nil {
		return down(err.Error())
	}
	within, cancel := context.WithTimeout(ctx, t.CheckTimeout)
	defer cancel()
	conn, v := openLDAP(ctx, within, t)
	if conn == nil {
		return v
	}
	defer conn.Close()

	base := strings.TrimPrefix(t.Request, "/")
	found, err := findLDAP(conn, t.Login, t.Password, base)
	switch {
	case err != nil:
		return failed(ctx, within, err, t.CheckTimeout)
	case len(found) != 1:
		return down(fmt.Sprintf("%d entries for %q, want exactly one", len(found), base))
	case !re.MatchString(found[0]):
		return down(fmt.Sprintf("receive=%q is not in the entry's DN %q", t.Receive, clean(found[0])))
	}
	return up(fmt.Sprintf("found %q", clean(found[0])))
}

// findLDAP binds and searches, and returns the DNs of what it finds.
func findLDAP(conn *ldap.Conn, login, password, base string) (names []string, err error) {
	who := "anonymously"
	if login != "" && password != "" {
		who = "as " + login
		err = conn.Bind(login, password)
	} else {
		err = conn.UnauthenticatedBind("")
	}
	if err != nil {
		return nil, ldapFault("bind "+who, err)
	}
	found, err := conn.Search(&ldap.SearchRequest{
		BaseDN: base, Scope: ldap.ScopeBaseObject, DerefAliases: ldap.DerefFindingBaseObj, Filter: "(objectClass=*)",
		Attributes: []string{"1.1"}, // none: the DN is enough (RFC 4511 section 4.5.1.8)
	})
	if err != nil {
		return nil, ldapFault(fmt.Sprintf("search %q", base), err)
	}
	for _, e := range found.Entries {
		names = append(names, e.DN)
	}
	return names, nil
}

// openLDAP connects, for ldaps with TLS; without a connection it has the verdict.
func openLDAP(ctx, within context.Context, t model.Target) (*ldap.Conn, model.Verdict) {
	connecting, cancel := context.WithTimeout(within, t.NegotiateTimeout)
	defer cancel()
	raw, err := dial(connecting, t.Addr)
	if err != nil {
		return nil, failed(ctx, connecting, err, min(t.NegotiateTimeout, t.CheckTimeout))
	}
	conn := net.Conn(bound(within, raw, ldapLimit))
	if t.Application == "ldaps" {
		if conn, err = secure(connecting, conn, t); err != nil {
			return nil, failed(ctx, connecting, err, min(t.NegotiateTimeout, t.CheckTimeout))
		}
	}
	l := ldap.NewConn(conn, t.Application == "ldaps")
	l.Start() // what it starts ends with the connection
	return l, model.Verdict{}
}

// ldapFault says what went wrong in a reader's words.
func ldapFault(what string, err error) error {
	le, answered := errors.AsType[*ldap.Error](err)
	if !answered || le.ResultCode == ldap.ErrorNetwork {
		text := err.Error()
		switch {
		case errors.Is(err, errTooMuch), isTimeout(err):
			return fmt.Errorf("%s: %w", what, err)
		case strings.HasSuffix(text, "EOF"), strings.HasSuffix(text, "connection closed"):
			return fmt.Errorf("%s: connection closed before an LDAP answer was complete", what)
		}
		return fmt.Errorf("%s: not an LDAP answer: %s", what, clean(plain(err)))
	}
	if le.ResultCode > ldap.ErrorNetwork { // the library's own codes
		return fmt.Errorf("%s: not an LDAP answer: %s", what, clean(le.Error()))
	}
	text := fmt.Sprintf("%s: %s (%d)", what, ldap.LDAPResultCodeMap[le.ResultCode], le.ResultCode)
	if le.Err != nil && le.Err.Error() != "" {
		text += ": " + clean(le.Err.Error())
	}
	return errors.New(text)
}
