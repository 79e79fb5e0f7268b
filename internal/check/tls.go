package check

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// verifies is what ldirectord 4.12 on Debian 12 verifies of a certificate,
// found by running it. What is not in the map is not verified.
var verifies = map[string]model.TLSVerify{
	"https": model.VerifyChain,
	"imaps": model.VerifyName,
	"pops":  model.VerifyName,

	// What ldirectord does not have.
	"dialogue": model.VerifyChain,
	"ldaps":    model.VerifyNothing,
}

// secure makes the TLS handshake on conn, which it closes if that fails.
// protocols are offered by ALPN (RFC 7301).
func secure(ctx context.Context, conn net.Conn, t model.Target, protocols ...string) (*tls.Conn, error) {
	config, err := tlsConfig(t, protocols...)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	c := tls.Client(conn, config)
	if err := c.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	warnOfExpiry(ctx, c.ConnectionState().PeerCertificates[0], t.ExpiryWarning)
	return c, nil
}

// warnOfExpiry notes that a certificate ends soon.
func warnOfExpiry(ctx context.Context, c *x509.Certificate, early time.Duration) {
	left := time.Until(c.NotAfter)
	if early <= 0 || left > early {
		return
	}
	day := c.NotAfter.UTC().Format(time.DateOnly)
	if left < 0 {
		warn(ctx, "its certificate ended on "+day)
		return
	}
	warn(ctx, fmt.Sprintf("its certificate ends on %s, in %d days", day, int(left/(24*time.Hour))))
}

// tlsConfig is the target's: what is verified, and which name is sent. The
// original sends none, as it connects to addresses.
func tlsConfig(t model.Target, protocols ...string) (*tls.Config, error) {
	config := &tls.Config{
		ServerName:         t.ServerName,
		NextProtos:         protocols,
		InsecureSkipVerify: true, // crypto/tls can verify all or nothing: done below
	}
	name := ""
	switch cmp.Or(t.TLSVerify, verifies[t.Application]) {
	case model.VerifyChain:
	case model.VerifyName:
		name = cmp.Or(t.ServerName, hostText(t.Addr.Addr()))
	case model.VerifyAsEver, model.VerifyNothing:
		return config, nil
	}
	roots, err := authorities(t.CAFile)
	if err != nil {
		return nil, err
	}
	config.VerifyConnection = func(cs tls.ConnectionState) error { return verifyChain(cs.PeerCertificates, roots, name) }
	return config, nil
}

// verifyChain holds a server's certificate against authorities, nil for the
// system's (SSL_CERT_FILE and SSL_CERT_DIR are honored), and, unless it is "",
// a name or an address.
func verifyChain(certs []*x509.Certificate, roots *x509.CertPool, name string) error {
	opts := x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: x509.NewCertPool()}
	for _, c := range certs[1:] {
		opts.Intermediates.AddCert(c)
	}
	_, err := certs[0].Verify(opts)
	return err
}

// errHere is wrapped by what is wrong on this machine.
var errHere = errors.New("this machine lacks something")

// bundle is a file of authorities as it was when it was read.
type bundle struct {
	modified time.Time
	size     int64
	pool     *x509.CertPool
}

// bundles remembers files of authorities: path to bundle. Configurations name
// few of them.
var bundles sync.Map

// authorities reads a PEM file of certificates, again when it has changed; nil
// for no file.
func authorities(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("%w: the file of authorities: %w", errHere, err)
	}
	if b, ok := bundles.Load(file); ok && b.(bundle).modified.Equal(info.ModTime()) && b.(bundle).size == info.Size() {
		return b.(bundle).pool, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%w: the file of authorities: %w", errHere, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%w: there is no certificate in %s", errHere, file)
	}
	bundles.Store(file, bundle{info.ModTime(), info.Size(), pool})
	return pool, nil
}
