package check

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// selfSigned makes a certificate that nobody signed but itself.
func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(3), DNSNames: []string{"other.example.test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// pemFile writes authorities as ca_file wants them.
func pemFile(t *testing.T, ders ...[]byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "ca.pem")
	var text []byte
	for _, der := range ders {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// Each certificate against each switch: what is verified is what was asked for.
func TestTLSSwitches(t *testing.T) {
	soon, past, here := time.Now().Add(time.Hour), time.Now().Add(-time.Hour), net.IPv4(127, 0, 0, 1)
	const up, down = model.Up, model.Down
	private := newAuthority()
	own := selfSigned(t)
	certificates := []struct {
		name string
		cert tls.Certificate
		// What each switch says: nothing, chain, name; as ever for https (chain),
		// for imaps (name), for dialogue (chain).
		want [6]model.Status
	}{
		{"good", trusted.serverAt(t, soon, here), [6]model.Status{up, up, up, up, up, up}},
		{"expired", trusted.serverAt(t, past, here), [6]model.Status{up, down, down, down, down, down}},
		{"self-signed", own, [6]model.Status{up, down, down, down, down, down}},
		{"of an unknown authority", private.serverAt(t, soon, here), [6]model.Status{up, down, down, down, down, down}},
		{"for another name", trusted.server(t, soon), [6]model.Status{up, up, down, up, down, up}},
	}
	https := func(t *model.Target) { t.Application = "https" }
	imaps := func(t *model.Target) { t.Application, t.Request = "imaps", "/" }
	dialogue := func(t *model.Target) { steps(expect("^"))(t); t.TLS = true }
	verify := func(v model.TLSVerify, next func(*model.Target)) func(*model.Target) {
		return func(t *model.Target) { next(t); t.TLSVerify = v }
	}
	page := func(c net.Conn) {
		readHead(c)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nalive")
	}
	switches := []struct {
		name  string
		alter func(*model.Target)
		play  func(net.Conn)
	}{
		{"verify nothing", verify(model.VerifyNothing, https), page},
		{"verify chain", verify(model.VerifyChain, https), page},
		{"verify name", verify(model.VerifyName, https), page},
		{"https as ever", https, page},
		{"imaps as ever", imaps, scripted("* OK me\r\n", imapScript, nil)},
		{"dialogue as ever", dialogue, tells("hello\r\n")},
	}
	for _, c := range certificates {
		for i, s := range switches {
			t.Run(c.name+", "+s.name, func(t *testing.T) {
				t.Parallel()
				wantVerdict(t, target(tlsScript(t, c.cert, s.play), s.alter), c.want[i], "")
			})
		}
	}
	for _, c := range []struct {
		name   string
		cert   tls.Certificate
		alter  func(*model.Target)
		status model.Status
		reason string
	}{
		{"a file of authorities has its authority", private.serverAt(t, soon, here), func(tg *model.Target) { tg.CAFile = pemFile(t, private.cert.Raw) }, up, ""},
		{"a file of authorities takes the place of the machine's", trusted.serverAt(t, soon, here), func(tg *model.Target) { tg.CAFile = pemFile(t, private.cert.Raw) }, down, "unknown authority"},
		{"a self-signed certificate is its own authority", own, func(tg *model.Target) { tg.CAFile = pemFile(t, own.Certificate[0]) }, up, ""},
		{"the name is verified instead of the address", trusted.server(t, soon), func(tg *model.Target) { tg.TLSVerify, tg.ServerName = model.VerifyName, "other.example.test" }, up, ""},
		{"another name", trusted.serverAt(t, soon, here), func(tg *model.Target) { tg.TLSVerify, tg.ServerName = model.VerifyName, "www.example.test" }, down, "www.example.test"},
		{"a file that is not there says nothing of the server", trusted.serverAt(t, soon, here), func(tg *model.Target) { tg.CAFile = "/nonexistent/ca.pem" }, model.Unknown, "file of authorities"},
		{"nor does one without a certificate", trusted.serverAt(t, soon, here), func(tg *model.Target) { tg.CAFile = os.DevNull }, model.Unknown, "no certificate in /dev/null"},
	} {
		t.Run(c.name, func(t *testing.T) {
			wantVerdict(t, target(tlsScript(t, c.cert, page), https, c.alter), c.status, c.reason)
		})
	}
}

// A file of authorities is read again when it has changed.
func TestAuthoritiesAreReadAgain(t *testing.T) {
	old, next := newAuthority(), newAuthority()
	name := pemFile(t, old.cert.Raw)
	first, err := authorities(name)
	if err != nil {
		t.Fatal(err)
	}
	if same, _ := authorities(name); same != first {
		t.Error("a file that did not change was read again")
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: next.cert.Raw})
	if err := os.WriteFile(name, append(text, text...), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := authorities(name); err != nil || again == first {
		t.Error("a file that changed was not read again:", err)
	}
}

// A certificate that ends soon is worth a warning, whatever is verified.
func TestExpiryWarning(t *testing.T) {
	page := func(c net.Conn) {
		readHead(c)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
	}
	for _, c := range []struct {
		name  string
		until time.Duration
		early time.Duration
		want  string
	}{
		{"in time", 72 * time.Hour, 24 * time.Hour, ""},
		{"soon", 50 * time.Hour, 14 * 24 * time.Hour, ", in 2 days"},
		{"over", -time.Hour, 24 * time.Hour, "its certificate ended on "},
		{"nobody asked", time.Hour, 0, ""},
	} {
		tg := target(tlsScript(t, trusted.server(t, time.Now().Add(c.until)), page), func(t *model.Target) {
			t.Application, t.TLSVerify, t.ExpiryWarning = "https", model.VerifyNothing, c.early
		})
		v := Perform(t.Context(), For(tg), tg)
		if v.Status != model.Up || (v.Warning == "") != (c.want == "") || !strings.Contains(v.Warning, c.want) {
			t.Errorf("%s: %v, warning %q, want %q", c.name, v, v.Warning, c.want)
		}
	}
}
