package check

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/batuta-ha/batuta/internal/model"
)

const (
	headLimit     = 64 << 10                    // bytes of status line and headers, informational answers included
	bodyLimit     = 1 << 20                     // bytes of body that receive is looked for in
	httpLimit     = 2 * (headLimit + bodyLimit) // bytes of one connection, framing and encryption included
	redirectLimit = 7                           // what ldirectord follows
	interimLimit  = 8                           // 1xx answers before the real one

	// userAgent is what ldirectord's checks say of themselves: access logs
	// are filtered by it, and some pages are served by it.
	userAgent = "libwww-perl/6.68"
)

// httpRequest is one request of a check: the configured one, or one that a
// redirect asks for.
type httpRequest struct {
	scheme   string         // http or https
	host     string         // host and port of the URL
	path     string         // path and query, escaped
	header   string         // Host header
	via      netip.AddrPort // connect here instead of to host; not valid for none
	absolute bool           // a proxy's request line
	target   *model.Target  // its TLS settings and HTTP version
}

// negotiateHTTP asks for a page by http or https, or of an HTTP proxy, and is
// content with a 2xx answer in whose body the receive expression is found.
// NegotiateTimeout covers the whole exchange, redirects included.
func negotiateHTTP(ctx context.Context, t model.Target) model.Verdict {
	c, err := newHTTPCheck(&t)
	if err != nil {
		return down(err.Error())
	}
	within, cancel := context.WithTimeout(ctx, t.NegotiateTimeout)
	defer cancel()
	return c.run(ctx, within)
}

// httpCheck is a check under way: the request that is to be made next, and
// what is wanted of its answer.
type httpCheck struct {
	target  *model.Target
	method  string
	receive *regexp.Regexp
	req     httpRequest
	hops    int // redirects followed so far
}

func newHTTPCheck(t *model.Target) (*httpCheck, error) {
	re, err := compile(t.Receive)
	if err != nil {
		return nil, err
	}
	req, err := firstRequest(t)
	if err != nil {
		return nil, err
	}
	return &httpCheck{target: t, method: cmp.Or(t.Method, http.MethodGet), receive: re, req: req}, nil
}

// run makes what is left of the check. within is ctx with the check's time-out.
func (c *httpCheck) run(ctx, within context.Context) model.Verdict {
	for {
		a, err := exchange(within, c.method, c.req)
		if err != nil {
			return failed(ctx, within, err, c.target.NegotiateTimeout)
		}
		if v, ended := c.judge(a); ended {
			return v
		}
	}
}

// judge tells what follows from an answer: the verdict, or that the check has
// not ended, because there is another request to make.
func (c *httpCheck) judge(a answer) (v model.Verdict, ended bool) {
	if a.location != "" {
		if c.hops == redirectLimit {
			return down(fmt.Sprintf("%s, after %d redirects", a.status, redirectLimit)), true
		}
		next, err := c.req.follow(a.location)
		if err != nil {
			return down(err.Error()), true
		}
		c.req, c.hops = next, c.hops+1
		return v, false
	}
	load, _ := model.ParseLoad(a.load)
	switch {
	case !good(*c.target, a.code):
		return down(a.status), true
	case c.target.Receive != "" && !c.receive.Match(a.body):
		return down(fmt.Sprintf("%s, but receive=%q is not in the body (%d bytes)", a.status, c.target.Receive, len(a.body))), true
	case load.Mode == model.LoadDown:
		return down(fmt.Sprintf("%s, and it reports %s", a.status, load)), true
	}
	v = up(a.status)
	load.Reason = clean(load.Reason)
	v.Load = load
	return v, true
}

// firstRequest is the request as configured.
func firstRequest(t *model.Target) (httpRequest, error) {
	ownAddress := hostText(t.Addr.Addr())
	switch {
	case t.Application == "http_proxy":
		req, err := absoluteRequest(strings.TrimPrefix(t.Request, "/"))
		if err != nil || req.scheme != "http" {
			return req, fmt.Errorf("request=%q: a proxy is asked for an absolute http:// URL", t.Request)
		}
		if t.VirtualHost != "" {
			req.header = t.VirtualHost
		}
		req.via, req.absolute, req.target = t.Addr, true, t
		return req, portOf(*t)
	case t.RequestURL != "":
		req, err := absoluteRequest(t.RequestURL)
		req.header = cmp.Or(t.VirtualHost, ownAddress)
		req.target = elsewhere(t, req.host)
		return req, err
	}
	return httpRequest{
		scheme: t.Application,
		host:   ownAddress + ":" + strconv.Itoa(int(t.Addr.Port())),
		path:   "/" + escape(strings.TrimLeft(t.Request, "/")),
		header: cmp.Or(t.VirtualHost, ownAddress),
		via:    t.Addr,
		target: t,
	}, portOf(*t)
}

// elsewhere is the target for a URL of its own, at any host: a name is sent
// to that server and verified as that name, an address as that address.
func elsewhere(t *model.Target, hostPort string) *model.Target {
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		return t
	}
	there := *t
	if a, err := netip.ParseAddr(host); err == nil {
		there.Addr, there.ServerName = netip.AddrPortFrom(a, 0), ""
	} else {
		there.ServerName = host
	}
	return &there
}

func portOf(t model.Target) error {
	if t.Addr.Port() == 0 {
		return errors.New("no port to connect to: set checkport, or give the real server a port")
	}
	return nil
}

// absoluteRequest reads an http or https URL. The Host header names the port
// unless it is the usual one.
func absoluteRequest(text string) (httpRequest, error) {
	u, err := url.Parse(text)
	if err != nil {
		return httpRequest{}, fmt.Errorf("%q is no URL: %w", text, err)
	}
	usual := map[string]string{"http": "80", "https": "443"}[u.Scheme]
	if usual == "" || u.Hostname() == "" {
		return httpRequest{}, fmt.Errorf("%q is no http:// or https:// URL", text)
	}
	req := httpRequest{scheme: u.Scheme, path: escape(u.RequestURI()), header: u.Host}
	if port := u.Port(); port == "" || port == usual {
		req.header = strings.TrimSuffix(strings.TrimSuffix(u.Host, ":"+usual), ":")
	}
	req.host = net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), usual))
	return req, nil
}

// follow is the request that a redirect asks for: at any host, and without
// the configured virtual host.
func (r httpRequest) follow(location string) (httpRequest, error) {
	base, err := url.Parse(r.scheme + "://" + r.host + r.path)
	if err != nil {
		base = &url.URL{Scheme: r.scheme, Host: r.host, Path: "/"}
	}
	u, err := base.Parse(location)
	if err != nil {
		return r, fmt.Errorf("redirected to %q, which is no URL: %w", location, err)
	}
	next, err := absoluteRequest(u.String())
	if err != nil {
		return r, fmt.Errorf("redirected: %w", err)
	}
	next.target = elsewhere(r.target, next.host)
	if next.host != r.host && next.target.Headers != "" {
		bare := *next.target
		bare.Headers = "" // they may let in, and are for the configured server alone
		next.target = &bare
	}
	if r.absolute && next.scheme == "http" { // a proxy is asked for the next page, too
		next.via, next.absolute = r.via, true
	}
	return next, nil
}

// String is the request as it goes over the wire: the header set of
// ldirectord's, and nothing else.
func (r httpRequest) String(method string) string {
	target := r.path
	if r.absolute {
		target = r.scheme + "://" + r.header + r.path
	}
	return method + " " + target + " HTTP/1.1\r\n" +
		"TE: deflate,gzip;q=0.3\r\n" +
		"Connection: TE, close\r\n" +
		"Host: " + escape(r.header) + "\r\n" +
		"User-Agent: " + userAgent + "\r\n" + headerLines(*r.target) + "\r\n"
}

// escape writes every byte that no URL may contain as %XX: what is in the
// configuration cannot end a request line. Escapes that are there stay.
func escape(s string) string {
	if !needsEscape(s) {
		return s
	}
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; belongsInURL(c) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func needsEscape(s string) bool {
	for i := range len(s) {
		if !belongsInURL(s[i]) {
			return true
		}
	}
	return false
}

func belongsInURL(c byte) bool {
	return c > ' ' && c < 0x7f && strings.IndexByte("\"<>\\^`{|}", c) < 0
}

// readers are buffers for answers: a new one for each check would be most of
// what a check allocates.
var readers = sync.Pool{New: func() any { return bufio.NewReader(nil) }}

// answer is what matters of an HTTP response.
type answer struct {
	code     int
	status   string // "200 OK"
	location string // where to go on, "" unless this is a redirect that says so
	body     []byte // at most bodyLimit bytes, "" for redirects
	load     string // the header that reports one, "" for none
}

// exchange makes one request on a connection of its own. What it reads is
// bounded, whatever the server sends.
func exchange(ctx context.Context, method string, req httpRequest) (answer, error) {
	conn, err := req.open(ctx)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	if s, ok := conn.(*tls.Conn); ok && s.ConnectionState().NegotiatedProtocol == "h2" || !ok && req.target.HTTP2 && !req.absolute {
		return exchange2(ctx, conn, method, req)
	}
	if _, err := io.WriteString(conn, req.String(method)); err != nil {
		return answer{}, err
	}
	return readAnswer(conn, method, req.target)
}

// readAnswer reads one answer from conn, as far as it matters.
func readAnswer(conn io.Reader, method string, t *model.Target) (answer, error) {
	head := &io.LimitedReader{R: conn, N: headLimit}
	r := readers.Get().(*bufio.Reader)
	r.Reset(head)
	defer func() { // nothing of the answer points into it: gist copies
		r.Reset(nil)
		readers.Put(r)
	}()
	resp, err := readResponse(r, method)
	switch {
	case err != nil && head.N <= 0:
		return answer{}, fmt.Errorf("no end of the HTTP headers in %d bytes", headLimit)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return answer{}, errors.New("connection closed before an HTTP answer was complete")
	case err != nil:
		return answer{}, err
	}
	// Framing of chunks needs room beside the body itself.
	head.N = 2 * bodyLimit
	return gist(resp, t)
}

// gist takes what matters out of a response.
func gist(resp *http.Response, t *model.Target) (answer, error) {
	defer resp.Body.Close()
	a := answer{code: resp.StatusCode, status: clean(resp.Status)}
	if t.WeightHeader != "" {
		a.load = resp.Header.Get(t.WeightHeader)
	}
	switch a.code {
	case 301, 302, 303, 307, 308:
		if expected(*t, a.code) {
			break // and is not followed
		}
		if a.location = resp.Header.Get("Location"); a.location != "" {
			return a, nil
		}
	}
	var err error
	a.body, err = io.ReadAll(io.LimitReader(resp.Body, bodyLimit))
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil // cut short: judged by what came, as ldirectord does
	}
	return a, err
}

// readResponse reads the answer, past informational ones.
func readResponse(r *bufio.Reader, method string) (*http.Response, error) {
	for range interimLimit {
		resp, err := http.ReadResponse(r, &http.Request{Method: method})
		var ne net.Error
		switch {
		case err == nil && resp.StatusCode >= 100 && resp.StatusCode < 200:
			continue
		case err == nil, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &ne):
			return resp, err
		}
		return nil, fmt.Errorf("not an HTTP answer: %s", clean(err.Error()))
	}
	return nil, errors.New("not an HTTP answer: only informational ones")
}

// open connects, for https with TLS, and binds the connection to ctx.
func (r httpRequest) open(ctx context.Context) (net.Conn, error) {
	var conn net.Conn
	var err error
	if r.via.IsValid() {
		conn, err = dial(ctx, r.via)
	} else {
		conn, err = dialer().DialContext(ctx, "tcp", r.host)
	}
	if err != nil {
		return nil, err
	}
	conn = bound(ctx, conn, httpLimit)
	switch {
	case r.scheme != "https":
		return conn, nil
	case r.target.HTTP2:
		return secure(ctx, conn, *r.target, "h2", "http/1.1")
	}
	return secure(ctx, conn, *r.target)
}
