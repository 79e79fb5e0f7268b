package check

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
)

// simpleLimit is how much of an answer receive is looked for in, in bytes.
const simpleLimit = bodyLimit

// negotiateSimple sends the request, ends its side of the connection, and
// looks for receive in each line of the answer, all within NegotiateTimeout.
// Servers of UDP services get one datagram.
func negotiateSimple(ctx context.Context, t model.Target) model.Verdict {
	re, err := compile(t.Receive)
	if err == nil {
		err = portOf(t)
	}
	if err != nil {
		return down(err.Error())
	}
	within, cancel := context.WithTimeout(ctx, t.NegotiateTimeout)
	defer cancel()
	// The first character is the "/" that every request gets.
	request := strings.ReplaceAll(strings.TrimPrefix(t.Request, "/"), `\n`, "\n")
	var found string
	if t.Proto == model.UDP {
		found, err = simpleUDP(within, t, request, re)
	} else {
		found, err = simpleTCP(within, t, request, re)
	}
	if err != nil {
		return failed(ctx, within, err, t.NegotiateTimeout)
	}
	return up(clean(found))
}

func simpleTCP(ctx context.Context, t model.Target, request string, receive *regexp.Regexp) (string, error) {
	conn, err := dial(ctx, t.Addr)
	if err != nil {
		return "", err
	}
	bounded := bound(ctx, conn, simpleLimit)
	defer bounded.Close()
	if _, err := io.WriteString(bounded, request); err != nil {
		return "", err
	}
	if c, ok := conn.(*net.TCPConn); ok {
		_ = c.CloseWrite() // a server that is gone already may have answered before
	}
	return matchLine(bounded, t.Receive, receive)
}

// matchLine returns the first line that receive matches. Lines keep their
// ends, which "$" looks past.
func matchLine(r io.Reader, pattern string, receive *regexp.Regexp) (string, error) {
	in := bufio.NewReader(r)
	var last string
	for {
		line, err := in.ReadString('\n')
		if line != "" && receive.MatchString(line) {
			return strings.TrimRight(line, "\r\n"), nil
		}
		if line != "" {
			last = line
		}
		switch {
		case errors.Is(err, io.EOF) && last == "":
			return "", errors.New("connection closed without an answer")
		case errors.Is(err, io.EOF):
			return "", fmt.Errorf("receive=%q is in no line, the last one is %q", pattern, clean(strings.TrimRight(last, "\r\n")))
		case err != nil:
			return "", err
		}
	}
}

func simpleUDP(ctx context.Context, t model.Target, request string, receive *regexp.Regexp) (string, error) {
	if request == "" {
		return "", errors.New("request is missing: a UDP server that is not asked does not answer")
	}
	conn, err := dialer().DialContext(ctx, "udp", t.Addr.String())
	if err != nil {
		return "", err
	}
	bounded := bound(ctx, conn, simpleLimit)
	defer bounded.Close()
	if _, err := io.WriteString(bounded, request); err != nil {
		return "", err
	}
	buf := make([]byte, 1<<16) // the largest datagram
	for {
		n, err := bounded.Read(buf)
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(string(buf[:n])) {
			if receive.MatchString(line) {
				return strings.TrimRight(line, "\r\n"), nil
			}
		}
	}
}
