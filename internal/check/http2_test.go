package check

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/batuta-ha/batuta/internal/model"
)

// webServer speaks HTTP/1.1 and HTTP/2, with TLS if that is asked for.
func webServer(t *testing.T, secure bool, pages http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewUnstartedServer(pages)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetHTTP2(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	if secure {
		s.EnableHTTP2 = true
		s.TLS = &tls.Config{Certificates: []tls.Certificate{trusted.server(t, time.Now().Add(time.Hour))}}
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func TestHTTP2(t *testing.T) {
	pages := func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/moved":
			http.Redirect(w, r, "/alive.html", http.StatusFound)
		case "/around":
			http.Redirect(w, r, "/around", http.StatusFound)
		case "/missing":
			http.NotFound(w, r)
		case "/headers":
			w.Header().Set("X-Long", strings.Repeat("x", 8*headLimit))
		case "/endless":
			for b := []byte(strings.Repeat("x", 4096)); ; {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
		case "/silence":
			<-r.Context().Done()
		default:
			_, _ = io.WriteString(w, r.Method+" "+r.Proto+" "+r.Host+" "+r.UserAgent()+" alive")
		}
	}
	asks := func(path string) func(*model.Target) { return func(t *model.Target) { t.Request = path } }
	host := func(t *model.Target) { t.VirtualHost = "www.example.test" }
	for _, tc := range []struct {
		name   string
		opts   []func(*model.Target)
		status model.Status
		reason string
	}{
		{"a page", []func(*model.Target){receive(`^GET HTTP/2\.0 127\.0\.0\.1 libwww-perl/6\.68 alive$`)}, model.Up, "200"},
		{"of a virtual host", []func(*model.Target){host, receive("www.example.test")}, model.Up, "200"},
		{"the head of a page", []func(*model.Target){head}, model.Up, "200"},
		{"a redirect", []func(*model.Target){asks("/moved"), receive("alive")}, model.Up, "200"},
		{"redirects without end", []func(*model.Target){asks("/around")}, model.Down, "after 7 redirects"},
		{"no page", []func(*model.Target){asks("/missing")}, model.Down, "404"},
		{"another page", []func(*model.Target){receive("nobody")}, model.Down, "is not in the body"},
		{"headers that are too long", []func(*model.Target){asks("/headers")}, model.Down, "not an HTTP/2 answer"},
		{"a page without end", []func(*model.Target){asks("/endless"), receive("alive")}, model.Down, "(1048576 bytes)"},
		{"silence", []func(*model.Target){asks("/silence"), short}, model.Down, "no answer within 100ms"},
	} {
		for _, scheme := range []string{"http", "https"} {
			t.Run(tc.name+" by "+scheme, func(t *testing.T) {
				t.Parallel()
				addr := webServer(t, scheme == "https", pages)
				tg := target(addr, append([]func(*model.Target){func(t *model.Target) { t.Application, t.HTTP2 = scheme, true }}, tc.opts...)...)
				v := Perform(t.Context(), negotiateHTTP, tg)
				if v.Status != tc.status || !strings.Contains(v.Reason, tc.reason) {
					t.Errorf("verdict %v, want %v: ...%s...", v, tc.status, tc.reason)
				}
			})
		}
	}
}

// A server that does not choose HTTP/2 is asked as ever.
func TestHTTP2IsOffered(t *testing.T) {
	offered, asked := make(chan []string, 1), make(chan string, 1)
	config := &tls.Config{Certificates: []tls.Certificate{trusted.server(t, time.Now().Add(time.Hour))}, GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		offered <- h.SupportedProtos
		return nil, nil
	}}
	addr := script(t, func(c net.Conn) {
		s := tls.Server(c, config)
		asked <- readHead(s)
		_, _ = io.WriteString(s, "HTTP/1.1 200 OK\r\n\r\n")
	})
	v := Perform(t.Context(), negotiateHTTP, target(addr, func(t *model.Target) { t.Application, t.HTTP2 = "https", true }))
	if v.Status != model.Up {
		t.Fatal(v)
	}
	if d := cmp.Diff([]string{"h2", "http/1.1"}, <-offered); d != "" {
		t.Errorf("offered (-want +got)\n%s", d)
	}
	if line, _, _ := strings.Cut(<-asked, "\r\n"); line != "GET /alive.html HTTP/1.1" {
		t.Errorf("asked %q", line)
	}
}

// Where a URL leads, its host's name is sent and verified, and no other's.
func TestElsewhere(t *testing.T) {
	here := target("127.0.0.1:443", func(t *model.Target) { t.ServerName = "here.example.test" })
	for _, tc := range []struct{ to, name, addr string }{
		{"www.example.test:443", "www.example.test", "127.0.0.1:443"},
		{"192.0.2.1:8443", "", "192.0.2.1:0"},
		{"[2001:db8::1]:443", "", "[2001:db8::1]:0"},
		{"no port", "here.example.test", "127.0.0.1:443"},
	} {
		got := elsewhere(&here, tc.to)
		if got.ServerName != tc.name || got.Addr != netip.MustParseAddrPort(tc.addr) {
			t.Errorf("%s: name %q at %v, want %q at %s", tc.to, got.ServerName, got.Addr, tc.name, tc.addr)
		}
	}
}

// Nothing that a check starts outlives it, whatever the server does.
func TestChecksLeaveNothingBehind(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("checks", func(t *testing.T) {
		for _, play := range []func(net.Conn){silent, abruptly, hangsUp("220 hello\r\n"), pours("x"), says("HTTP/1.1 200 OK\r\n\r\n")} {
			for _, p := range byTCP {
				tg := target(script(t, play), p.alter, short)
				Perform(t.Context(), For(tg), tg)
			}
		}
	})
}
