package check

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// exchange2 makes one request by HTTP/2 (RFC 9113) on an open connection:
// after ALPN on a TLS one, with prior knowledge on a plain one.
func exchange2(ctx context.Context, conn net.Conn, method string, req httpRequest) (answer, error) {
	u, err := url.Parse(req.scheme + "://" + req.host + req.path)
	if err != nil {
		return answer{}, err
	}
	var protocols http.Protocols
	protocols.SetHTTP2(req.scheme == "https")
	protocols.SetUnencryptedHTTP2(req.scheme == "http")
	given := func(context.Context, string, string) (net.Conn, error) { return conn, nil }
	transport := &http.Transport{
		DialContext:            given,
		DialTLSContext:         given,
		Protocols:              &protocols,
		DisableKeepAlives:      true, // one request, and the connection is closed
		DisableCompression:     true, // compressed bodies are matched as they are, as by HTTP/1.1
		MaxResponseHeaderBytes: headLimit,
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerConnection: bodyLimit,
			MaxReceiveBufferPerStream:     bodyLimit,
		},
	}
	r := (&http.Request{
		Method: method, URL: u, Host: escape(req.header),
		Header: http.Header{"User-Agent": {userAgent}},
	}).WithContext(ctx)
	for name, value := range headers(*req.target) {
		r.Header.Add(name, value)
	}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return answer{}, http2Fault(err)
	}
	return gist(resp, req.target)
}

// http2Fault says what a server did that ended an exchange by HTTP/2.
func http2Fault(err error) error {
	if errors.Is(err, errTooMuch) || isTimeout(err) {
		return err
	}
	text := err.Error()
	if strings.Contains(text, "EOF") {
		return errors.New("connection closed before an HTTP/2 answer was complete")
	}
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return err
	}
	return errors.New("not an HTTP/2 answer: " + clean(text))
}
