package check

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

const (
	sipCSeq = "63104 OPTIONS"

	// sipRetry is how long an answer over UDP is waited for until the request
	// is sent again, at first; then twice as long, up to sipRetryMost (T1 and
	// T2 of RFC 3261 section 17.1.2.2).
	sipRetry     = 500 * time.Millisecond
	sipRetryMost = 4 * time.Second
)

// negotiateSIP sends OPTIONS and wants it answered with 200 (RFC 3261 section
// 11), over TCP to the servers of TCP services and else over UDP.
func negotiateSIP(ctx context.Context, t model.Target) model.Verdict {
	if err := portOf(t); err != nil {
		return down(err.Error())
	}
	if strings.ContainsFunc(t.Login, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
		return down("login contains a blank or a control character: it is no SIP user")
	}
	within, cancel := context.WithTimeout(ctx, t.NegotiateTimeout)
	defer cancel()
	network := "udp"
	if t.Proto == model.TCP {
		network = "tcp"
	}
	conn, err := dialer().DialContext(within, network, t.Addr.String())
	if err != nil {
		return failed(ctx, within, err, t.NegotiateTimeout)
	}
	defer conn.Close()
	defer context.AfterFunc(within, func() { _ = conn.Close() })()
	callID := rand.Text()
	var answer sipAnswer
	if request := sipOptions(t, conn, callID); network == "tcp" {
		answer, err = sipTCP(within, conn, request)
	} else {
		answer, err = sipUDP(within, conn, request, callID)
	}
	switch {
	case err != nil:
		return failed(ctx, within, err, t.NegotiateTimeout)
	case answer.code != 200:
		return down(clean(answer.status))
	}
	return up(clean(answer.status))
}

// sipOptions is the request. The address of record is the login, which
// ldirectord makes ldirectord@HOST; without one the server itself is asked.
func sipOptions(t model.Target, conn net.Conn, callID string) string {
	uri := "sip:" + cmp.Or(t.Login, hostText(t.Addr.Addr()))
	via := conn.LocalAddr().String()
	return strings.Join([]string{
		"OPTIONS " + uri + " SIP/2.0",
		"Via: SIP/2.0/" + strings.ToUpper(conn.LocalAddr().Network()) + " " + via + ";branch=z9hG4bK" + callID,
		"Max-Forwards: 70",
		"To: <" + uri + ">",
		"From: <" + uri + ">;tag=" + callID[:8],
		"Call-ID: " + callID,
		"CSeq: " + sipCSeq,
		"Contact: <sip:" + via + ">",
		"Accept: application/sdp",
		"Content-Length: 0",
		"", "",
	}, "\r\n")
}

func sipTCP(ctx context.Context, conn net.Conn, request string) (sipAnswer, error) {
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	if _, err := conn.Write([]byte(request)); err != nil {
		return sipAnswer{}, err
	}
	l := newLines(conn)
	for {
		a, err := l.sip()
		if err != nil || a.code >= 200 {
			return a, err
		}
		if a.length > 0 {
			return a, errors.New("a provisional answer with a body") // nobody sends one to OPTIONS
		}
	}
}

// sipUDP repeats the request until an answer to it comes, or ctx ends, which
// closes the connection.
func sipUDP(ctx context.Context, conn net.Conn, request, callID string) (sipAnswer, error) {
	buf := make([]byte, 1<<16) // the largest datagram
	for wait := sipRetry; ; wait = min(2*wait, sipRetryMost) {
		if _, err := conn.Write([]byte(request)); err != nil {
			return sipAnswer{}, err
		}
		_ = conn.SetReadDeadline(time.Now().Add(wait)) // an error shows at the next read
		for {
			n, err := conn.Read(buf)
			if isTimeout(err) && ctx.Err() == nil {
				break // ask again
			}
			if err != nil {
				return sipAnswer{}, err
			}
			a, err := newLines(bytes.NewReader(buf[:n])).sip()
			if err != nil {
				return a, err
			}
			// An answer to an earlier check that came late says nothing.
			if a.code >= 200 && (a.callID == "" || a.callID == callID) {
				return a, nil
			}
		}
	}
}

// sipAnswer is what matters of a response.
type sipAnswer struct {
	status string // "SIP/2.0 200 OK"
	code   int
	callID string
	length int // of the body
}

// sip reads the status line and the headers of a response (RFC 3261 section 7.2).
func (l lines) sip() (sipAnswer, error) {
	status, err := l.line()
	if err != nil {
		return sipAnswer{}, err
	}
	a := sipAnswer{status: status}
	rest, ok := strings.CutPrefix(status, "SIP/2.0 ")
	if a.code, _, _ = replyCode(rest); !ok || a.code < 100 || a.code > 699 {
		return a, fmt.Errorf("not an answer: %q", clean(status))
	}
	for {
		line, err := l.line()
		if err != nil || line == "" {
			return a, err
		}
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "call-id", "i":
			a.callID = value
		case "content-length", "l":
			if _, err := fmt.Sscanf(value, "%d", &a.length); err != nil {
				return a, fmt.Errorf("not an answer: %q", clean(line))
			}
		}
	}
}
