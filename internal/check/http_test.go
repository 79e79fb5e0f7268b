package check

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

// trusted signs certificates that the process trusts, by way of SSL_CERT_FILE.
var trusted authority

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "check")
	if err != nil {
		log.Fatal(err)
	}
	trusted = newAuthority()
	file := filepath.Join(dir, "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: trusted.cert.Raw})
	if err := os.WriteFile(file, block, 0o600); err != nil {
		log.Fatal(err)
	}
	_ = os.Setenv("SSL_CERT_FILE", file)
	_ = os.Setenv("SSL_CERT_DIR", dir)
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority() authority {
	a := authority{}
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		log.Fatal(err)
	}
	a.cert, _ = x509.ParseCertificate(der)
	return a
}

// server makes a server certificate for a name that nobody asks for.
func (a authority) server(t *testing.T, until time.Time) tls.Certificate {
	t.Helper()
	return a.serverAt(t, until)
}

// serverAt makes one that is for addresses, too.
func (a authority) serverAt(t *testing.T, until time.Time, addresses ...net.IP) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{"other.example.test"}, IPAddresses: addresses,
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// target is an http target with room for a slow test machine: only checks
// that must run into their time-out get a short one.
func target(addr string, opts ...func(*model.Target)) model.Target {
	t := model.Target{Kind: model.CheckNegotiate, Application: "http", Proto: model.TCP, Addr: netip.MustParseAddrPort(addr),
		CheckTimeout: 10 * time.Second, NegotiateTimeout: 10 * time.Second, Request: "/alive.html"}
	for _, o := range opts {
		o(&t)
	}
	return t
}

func receive(re string) func(*model.Target) { return func(t *model.Target) { t.Receive = re } }
func head(t *model.Target)                  { t.Method = "HEAD" }
func short(t *model.Target) {
	t.CheckTimeout, t.NegotiateTimeout = 100*time.Millisecond, 100*time.Millisecond
}

// script listens on loopback and plays one function for each connection.
func script(t *testing.T, play func(net.Conn)) string {
	t.Helper()
	return scriptAt(t, "127.0.0.1", play)
}

func scriptAt(t *testing.T, host string, play func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				play(c)
			}()
		}
	}()
	return l.Addr().String()
}

// says answers every request with the same bytes.
func says(answer string) func(net.Conn) {
	return func(c net.Conn) {
		readHead(c)
		_, _ = io.WriteString(c, answer)
	}
}

func readHead(c net.Conn) string {
	var b strings.Builder
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		b.WriteString(line)
		if err != nil || line == "\r\n" {
			return b.String()
		}
	}
}

func silent(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

func reset(c net.Conn) {
	readHead(c)
	_ = c.(*net.TCPConn).SetLinger(0)
}

// forever says something and then never stops.
func forever(first, piece string) func(net.Conn) {
	return func(c net.Conn) {
		says(first)(c)
		for {
			if _, err := io.WriteString(c, piece); err != nil {
				return
			}
		}
	}
}

func TestHTTPAnswers(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for _, tc := range []struct {
		name   string
		play   func(net.Conn)
		opts   []func(*model.Target)
		status model.Status
		reason string // a part of it
	}{
		{"200", says(ok + "\r\nalive"), nil, model.Up, "200 OK"},
		{"201 is fine as well", says("HTTP/1.1 201 Created\r\n\r\nalive"), nil, model.Up, "201 Created"},
		{"204 has no body", says("HTTP/1.1 204 No Content\r\n\r\n"), []func(*model.Target){receive("alive")}, model.Down, "is not in the body (0 bytes)"},
		{"HTTP/1.0", says("HTTP/1.0 200 OK\r\n\r\nalive"), []func(*model.Target){receive("alive")}, model.Up, "200 OK"},
		{"body matches", says(ok + "Content-Length: 14\r\n\r\nI am alive now"), []func(*model.Target){receive("al.ve")}, model.Up, "200 OK"},
		{"body does not match", says(ok + "\r\nsorry"), []func(*model.Target){receive("alive")}, model.Down, `200 OK, but receive="alive" is not in the body (5 bytes)`},
		{"5xx is down though the body matches", says("HTTP/1.1 503 Service Unavailable\r\n\r\nalive"), []func(*model.Target){receive("alive")}, model.Down, "503 Service Unavailable"},
		{"401 is down", says("HTTP/1.1 401 Unauthorized\r\n\r\n"), nil, model.Down, "401 Unauthorized"},
		{"304 is no success", says("HTTP/1.1 304 Not Modified\r\n\r\n"), nil, model.Down, "304 Not Modified"},
		{"informational answers first", says("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok + "\r\nalive"), []func(*model.Target){receive("alive")}, model.Up, "200 OK"},
		{"chunked", says(ok + "Transfer-Encoding: chunked\r\n\r\n3\r\nali\r\n2\r\nve\r\n0\r\n\r\n"), []func(*model.Target){receive("^alive$")}, model.Up, "200 OK"},
		{"chunked and cut short", says(ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nalive\r\n"), []func(*model.Target){receive("^alive$")}, model.Up, "200 OK"},
		{"shorter than it said", says(ok + "Content-Length: 100\r\n\r\nalive"), []func(*model.Target){receive("alive")}, model.Up, "200 OK"},
		{"dollar is also before a last newline", says(ok + "\r\nload: 7 ok\n"), []func(*model.Target){receive("^load: [0-9]{1,2} (ok|fine)$")}, model.Up, "200 OK"},
		{"but not before any newline", says(ok + "\r\nok\nmore"), []func(*model.Target){receive("ok$")}, model.Down, "is not in the body"},
		{"dot is no newline", says(ok + "\r\na\nb"), []func(*model.Target){receive("a.b")}, model.Down, "is not in the body"},
		{"no regular expression", says(ok + "\r\nalive"), []func(*model.Target){receive("(alive")}, model.Down, "missing closing"},
		{"HEAD", says(ok + "Content-Length: 5\r\n\r\n"), []func(*model.Target){head}, model.Up, "200 OK"},
		{"HEAD never has a body", says(ok + "Content-Length: 5\r\n\r\n"), []func(*model.Target){head, receive("alive")}, model.Down, "is not in the body"},
		{"silent", silent, []func(*model.Target){short}, model.Down, "no answer within 100ms"},
		{"slow body", func(c net.Conn) { says(ok + "Content-Length: 10\r\n\r\nalive")(c); silent(c) }, []func(*model.Target){short}, model.Down, "no answer within 100ms"},
		{"reset", reset, nil, model.Down, "connection reset by peer"},
		{"closes without a word", func(c net.Conn) { readHead(c) }, nil, model.Down, "connection closed before an HTTP answer was complete"},
		{"closes in the headers", says(ok + "Content-Type: text/plain\r\n"), nil, model.Down, "connection closed before an HTTP answer was complete"},
		{"garbage", says("SSH-2.0-OpenSSH_9.2\r\n\r\n"), nil, model.Down, "not an HTTP answer"},
		{"binary garbage", says("\x15\x03\x01\x00\x02\x02\x0a\n\n"), nil, model.Down, "not an HTTP answer"},
		{"a header without end", forever(ok+"X-Long: ", strings.Repeat("x", 4096)), nil, model.Down, "no end of the HTTP headers in 65536 bytes"},
		{"headers without end", forever(ok, "X: y\r\n"), nil, model.Down, "no end of the HTTP headers"},
		{"informational answers without end", forever("", "HTTP/1.1 100 Continue\r\n\r\n"), nil, model.Down, "only informational"},
		{"a body without end is looked at up to a point", forever(ok+"\r\nalive ", strings.Repeat("x", 4096)), []func(*model.Target){receive("^alive")}, model.Up, "200 OK"},
		{"and no further", forever(ok+"\r\n", strings.Repeat("x", 4096)), []func(*model.Target){receive("alive")}, model.Down, "(1048576 bytes)"},
		{"a redirect to itself", says("HTTP/1.1 302 Found\r\nLocation: /alive.html\r\n\r\n"), nil, model.Down, "302 Found, after 7 redirects"},
		{"a redirect to nowhere", says("HTTP/1.1 302 Found\r\n\r\n"), nil, model.Down, "302 Found"},
		{"a redirect to something else", says("HTTP/1.1 301 Moved\r\nLocation: ftp://127.0.0.1/\r\n\r\n"), nil, model.Down, `"ftp://127.0.0.1/" is no http:// or https:// URL`},
		{"a redirect to garbage", says("HTTP/1.1 301 Moved\r\nLocation: http://[::1\r\n\r\n"), nil, model.Down, "which is no URL"},
	} {
		for way, make := range ways {
			t.Run(tc.name+way, func(t *testing.T) {
				t.Parallel()
				v := make(t, target(script(t, tc.play), tc.opts...))
				if v.Status != tc.status || !strings.Contains(v.Reason, tc.reason) {
					t.Errorf("verdict %v, want %v: ...%s...", v, tc.status, tc.reason)
				}
			})
		}
	}
}

func TestHTTPRequests(t *testing.T) {
	const tail = " HTTP/1.1\r\nTE: deflate,gzip;q=0.3\r\nConnection: TE, close\r\nHost: %s\r\nUser-Agent: libwww-perl/6.68\r\n\r\n"
	for _, tc := range []struct {
		name  string
		alter func(t *model.Target, addr string)
		line  string
		host  string // "ADDR" is the real server's address with port
	}{
		{"plain", func(*model.Target, string) {}, "GET /alive.html", "127.0.0.1"},
		{"leading slashes are one", func(t *model.Target, _ string) { t.Request = "///a//b?c=d" }, "GET /a//b?c=d", "127.0.0.1"},
		{"no request", func(t *model.Target, _ string) { t.Request = "/" }, "GET /", "127.0.0.1"},
		{"what no URL contains is escaped", func(t *model.Target, _ string) { t.Request = "/a b\r\nX: é%20" }, "GET /a%20b%0D%0AX:%20%C3%A9%20", "127.0.0.1"},
		{"virtual host", func(t *model.Target, _ string) { t.VirtualHost = "www.example.test" }, "GET /alive.html", "www.example.test"},
		{"head", func(t *model.Target, _ string) { t.Method = "HEAD" }, "HEAD /alive.html", "127.0.0.1"},
		{"absolute URL: another place, the real server's name", func(t *model.Target, addr string) {
			t.RequestURL, t.Addr = "http://"+addr+"/c?d", netip.MustParseAddrPort("127.9.1.3:8080")
		}, "GET /c?d", "127.9.1.3"},
		{"proxy", func(t *model.Target, _ string) {
			t.Application, t.Request = "http_proxy", "/http://www.example.test:8080/page"
		}, "GET http://www.example.test:8080/page", "www.example.test:8080"},
		{"proxy, usual port", func(t *model.Target, _ string) {
			t.Application, t.Request = "http_proxy", "/http://www.example.test:80"
		}, "GET http://www.example.test/", "www.example.test"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			seen := make(chan string, 1)
			addr := script(t, func(c net.Conn) {
				seen <- readHead(c)
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
			})
			tg := target(addr)
			tc.alter(&tg, addr)
			if v := Perform(t.Context(), negotiateHTTP, tg); v.Status != model.Up {
				t.Fatal(v)
			}
			if d := cmp.Diff(tc.line+fmt.Sprintf(tail, tc.host), <-seen); d != "" {
				t.Errorf("request (-want +got)\n%s", d)
			}
		})
	}
}

func TestHTTPFollowsToAnyHostWithoutTheVirtualHost(t *testing.T) {
	seen := make(chan string, 1)
	there := script(t, func(c net.Conn) {
		seen <- readHead(c)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nalive")
	})
	here := script(t, says("HTTP/1.1 307 Temporary Redirect\r\nLocation: http://"+there+"/s#part\r\n\r\n"))
	v := Perform(t.Context(), negotiateHTTP, target(here, receive("alive"), func(t *model.Target) { t.VirtualHost = "www.example.test" }))
	if v.Status != model.Up {
		t.Fatal(v)
	}
	want := "GET /s HTTP/1.1\r\nTE: deflate,gzip;q=0.3\r\nConnection: TE, close\r\nHost: " + there + "\r\nUser-Agent: libwww-perl/6.68\r\n\r\n"
	if d := cmp.Diff(want, <-seen); d != "" {
		t.Errorf("second request (-want +got)\n%s", d)
	}
}

func TestHTTPSVerifiesTheChainAndNothingElse(t *testing.T) {
	for _, tc := range []struct {
		name   string
		cert   tls.Certificate
		status model.Status
		reason string
	}{
		{"trusted, for another name", trusted.server(t, time.Now().Add(time.Hour)), model.Up, "200 OK"},
		{"expired", trusted.server(t, time.Now().Add(-time.Hour)), model.Down, "expired"},
		{"of an unknown authority", newAuthority().server(t, time.Now().Add(time.Hour)), model.Down, "unknown authority"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			sni := make(chan string, 1)
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "alive") }))
			s.Config.ErrorLog = log.New(io.Discard, "", 0)
			s.TLS = &tls.Config{Certificates: []tls.Certificate{tc.cert}, GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
				sni <- h.ServerName
				return nil, nil
			}}
			s.StartTLS()
			defer s.Close()
			v := Perform(t.Context(), negotiateHTTP, target(s.Listener.Addr().String(), receive("alive"), func(t *model.Target) {
				t.Application, t.VirtualHost = "https", "www.example.test"
			}))
			if v.Status != tc.status || !strings.Contains(v.Reason, tc.reason) {
				t.Errorf("verdict %v, want %v: ...%s...", v, tc.status, tc.reason)
			}
			if got := <-sni; got != "" {
				t.Errorf("server name %q was sent, want none", got)
			}
		})
	}
	t.Run("plain http on the port", func(t *testing.T) {
		v := Perform(t.Context(), negotiateHTTP, target(script(t, says("HTTP/1.1 200 OK\r\n\r\n")), short, func(t *model.Target) { t.Application = "https" }))
		if v.Status != model.Down {
			t.Errorf("verdict %v, want down", v)
		}
	})
}

func TestAnInterruptedCheckKnowsNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	addr := script(t, func(c net.Conn) {
		readHead(c)
		cancel()
		silent(c)
	})
	if v := Perform(ctx, negotiateHTTP, target(addr)); v.Status != model.Unknown {
		t.Errorf("http: verdict %v, want unknown", v)
	}
	for name, f := range map[string]Func{"connect": connect, "ping": ping} { // ctx has ended
		if v := Perform(ctx, f, target(addr)); v.Status != model.Unknown {
			t.Errorf("%s: verdict %v, want unknown", name, v)
		}
	}
}

func FuzzHTTPAnswer(f *testing.F) {
	for _, s := range []string{"HTTP/1.1 200 OK\r\n\r\nalive", "HTTP/1.1 302 Found\r\nLocation: http://x/\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nalive\r\n0\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200\r\n\r\n", "\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		resp, err := readResponse(bufio.NewReader(strings.NewReader(string(b))), "GET")
		if err != nil {
			return
		}
		_, _ = io.ReadAll(io.LimitReader(resp.Body, bodyLimit))
		if s := clean(resp.Status); strings.ContainsAny(s, "\r\n") {
			t.Errorf("status %q would break a log line", s)
		}
		if l := resp.Header.Get("Location"); l != "" {
			if next, err := (httpRequest{scheme: "http", host: "127.0.0.1:80", path: "/", target: &model.Target{}}).follow(l); err == nil {
				if n := strings.Count(next.String("GET"), "\n"); n != 6 {
					t.Errorf("location %q makes a request of %d lines", l, n)
				}
			}
		}
	})
}
