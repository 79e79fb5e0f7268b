package check

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

// hears notes the headers of each request and answers.
func hears(heard chan<- http.Header, answer string) func(net.Conn) {
	return func(c net.Conn) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		heard <- r.Header
		_, _ = io.WriteString(c, answer)
	}
}

// Headers that the configuration adds go to the configured server, and not to
// where it redirects: they may let in.
func TestHeadersStayAtHome(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
	at, there := make(chan http.Header, 2), make(chan http.Header, 2)
	elsewhere := script(t, hears(there, ok))
	home := script(t, hears(at, "HTTP/1.1 302 Found\r\nLocation: http://"+elsewhere+"/\r\nConnection: close\r\n\r\n"))
	tg := target(home, func(t *model.Target) { t.Headers = "Authorization: Basic c2VzYW1l\nX-Check: batuta\n" })
	wantVerdict(t, tg, model.Up, "200 OK")
	if h := <-at; h.Get("Authorization") != "Basic c2VzYW1l" || h.Get("X-Check") != "batuta" {
		t.Errorf("the configured server got %v", h)
	}
	if h := <-there; h.Get("Authorization") != "" || h.Get("X-Check") != "" {
		t.Errorf("another server got %v", h)
	}
}

func TestStatusCodes(t *testing.T) {
	answer := func(line string) func(net.Conn) { return says("HTTP/1.1 " + line + "\r\nConnection: close\r\n\r\n") }
	for _, c := range []struct {
		codes, line string
		want        model.Status
	}{
		{"", "204 No Content", model.Up},
		{"", "404 Not Found", model.Down},
		{"404", "404 Not Found", model.Up},
		{"404", "200 OK", model.Down},
		{"200-299,401-403", "403 Forbidden", model.Up},
		{"200-299,401-403", "404 Not Found", model.Down},
		{"301", "301 Moved\r\nLocation: http://127.0.0.1:1/", model.Up}, // expected, so not followed
		{"200,500", "301 Moved\r\nLocation: http://127.0.0.1:1/", model.Down},
	} {
		tg := target(script(t, answer(c.line)), func(t *model.Target) { t.StatusCodes = c.codes })
		if v := Perform(t.Context(), For(tg), tg); v.Status != c.want {
			t.Errorf("%q of %q: %v, want %v", c.line, c.codes, v, c.want)
		}
	}
}

// By HTTP/2 the same headers go out.
func TestHeadersByHTTP2(t *testing.T) {
	seen := make(chan http.Header, 1)
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Protocols: &protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case seen <- r.Header:
		default:
		}
		w.Header().Set("X-Load", "40% drain")
	})}
	go func() { _ = s.Serve(l) }()
	defer s.Close()
	tg := target(l.Addr().String(), func(t *model.Target) {
		t.HTTP2, t.Headers, t.WeightHeader = true, "X-A: 1\nX-B: 2\n", "X-Load"
	})
	v := Perform(t.Context(), For(tg), tg)
	if want := (model.Load{Weighted: true, Percent: 40, Mode: model.LoadDrain}); v.Status != model.Up || v.Load != want {
		t.Errorf("%v, %+v", v, v.Load)
	}
	h := <-seen
	if diff := cmp.Diff([]string{"1", "2"}, []string{h.Get("X-A"), h.Get("X-B")}); diff != "" || strings.Contains(h.Get("User-Agent"), "Go-http") {
		t.Errorf("%v", h)
	}
}
