package check

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"

	"github.com/batuta-ha/batuta/internal/model"
)

// verifies is what ldirectord 4.12 on Debian 12 verifies of a certificate,
// found by running it. What is not in the map is not verified.
var verifies = map[string]model.TLSVerify{
	"https": model.VerifyChain,
	"imaps": model.VerifyName,
	"pops":  model.VerifyName,
	"ldaps": model.VerifyNothing,
}

// secure makes the TLS handshake on conn, which it closes if that fails.
// protocols are offered by ALPN (RFC 7301).
func secure(ctx context.Context, conn net.Conn, t model.Target, protocols ...string) (*tls.Conn, error) {
	c := tls.Client(conn, tlsConfig(t, protocols...))
	if err := c.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return c, nil
}

// tlsConfig is the target's: what is verified, and which name is sent. The
// original sends none, as it connects to addresses.
func tlsConfig(t model.Target, protocols ...string) *tls.Config {
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
		return config
	}
	config.VerifyConnection = func(cs tls.ConnectionState) error { return verifyChain(cs.PeerCertificates, name) }
	return config
}

// verifyChain holds a server's certificate against the system's authorities
// (SSL_CERT_FILE and SSL_CERT_DIR are honored) and, unless it is "", a name or
// an address.
func verifyChain(certs []*x509.Certificate, name string) error {
	opts := x509.VerifyOptions{DNSName: name, Intermediates: x509.NewCertPool()}
	for _, c := range certs[1:] {
		opts.Intermediates.AddCert(c)
	}
	_, err := certs[0].Verify(opts)
	return err
}
