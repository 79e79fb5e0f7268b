package check

import (
	"context"
	"net/netip"
	"time"
)

// datagramSize is the longest answer by datagram: of RADIUS (RFC 2865 section
// 3); of DNS it is 512 bytes (RFC 1035 section 4.2.1). A longer one is no answer.
const datagramSize = 4096

// exchangeDatagrams sends a question to a real server and sends it again each
// time that no answer has come within retry, until read takes one of the
// datagrams that come back from that address, or ctx ends. A refusal (ICMP
// port unreachable) is an error at once.
func exchangeDatagrams[T any](ctx context.Context, a netip.AddrPort, retry time.Duration, question []byte, read func([]byte) (T, bool)) (T, error) {
	var none T
	conn, err := dialer().DialContext(ctx, "udp", a.String()) // connected: other senders are not heard
	if err != nil {
		return none, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	buf := make([]byte, datagramSize)
	for {
		if _, err := conn.Write(question); err != nil {
			return none, err
		}
		if err := conn.SetReadDeadline(time.Now().Add(retry)); err != nil {
			return none, err
		}
		for {
			n, err := conn.Read(buf)
			if isTimeout(err) && ctx.Err() == nil {
				break // ask again
			}
			if err != nil {
				return none, err
			}
			if answer, ok := read(buf[:n]); ok {
				return answer, nil
			}
		}
	}
}
