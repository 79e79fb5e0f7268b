package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/batuta-ha/batuta/internal/model"
)

// echoSize is how much data an echo request carries: what ldirectord sends.
const echoSize = 64

// ping sends up to Tries echo requests (RFC 792, RFC 4443) and waits
// CheckTimeout for the answer to each.
func ping(ctx context.Context, t model.Target) model.Verdict {
	conn, to, err := listenICMP(t.Addr.Addr())
	if err != nil {
		return unknown(err.Error())
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	tries := max(t.Tries, 1)
	id := rand.IntN(1 << 16)
	for seq := 1; seq <= tries; seq++ {
		if err := echo(ctx, conn, to, t.Addr.Addr(), id, seq, t.CheckTimeout); err == nil {
			return up("echo reply")
		} else if ctx.Err() != nil || !isTimeout(err) {
			return failed(ctx, ctx, err, t.CheckTimeout)
		}
	}
	if tries == 1 {
		return down(fmt.Sprintf("no echo reply within %v", t.CheckTimeout))
	}
	return down(fmt.Sprintf("no reply to %d echo requests, %v each", tries, t.CheckTimeout))
}

// listenICMP opens the socket that needs the least: a datagram ICMP socket,
// which the kernel gives to groups in net.ipv4.ping_group_range, or else a raw
// one, which needs CAP_NET_RAW. The error says how to get either.
func listenICMP(a netip.Addr) (*icmp.PacketConn, net.Addr, error) {
	datagram, raw, any := "udp4", "ip4:icmp", "0.0.0.0"
	if a.Is6() {
		datagram, raw, any = "udp6", "ip6:ipv6-icmp", "::"
	}
	conn, err := icmp.ListenPacket(datagram, any)
	if err == nil {
		return conn, &net.UDPAddr{IP: a.AsSlice(), Zone: a.Zone()}, nil
	}
	if conn, rawErr := icmp.ListenPacket(raw, any); rawErr == nil {
		return conn, &net.IPAddr{IP: a.AsSlice(), Zone: a.Zone()}, nil
	} else if !localFault(rawErr) {
		err = errors.Join(err, rawErr)
	}
	return nil, nil, fmt.Errorf("cannot ping (%s): run as root or with CAP_NET_RAW, or let this group ping with "+
		"sysctl net.ipv4.ping_group_range=\"0 2147483647\", or use checktype=connect", plain(err))
}

// echo makes one exchange. On a raw socket every echo reply of the machine
// comes by, so sender, number and content all must be those of the request;
// the kernel chooses the identifier of a datagram socket, so there the
// content alone tells.
func echo(ctx context.Context, conn *icmp.PacketConn, to net.Addr, from netip.Addr, id, seq int, wait time.Duration) error {
	var request, reply icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	protocol := 1
	if from.Is6() {
		request, reply, protocol = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, 58
	}
	data := make([]byte, echoSize)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	packet, err := (&icmp.Message{Type: request, Body: &icmp.Echo{ID: id, Seq: seq, Data: data}}).Marshal(nil)
	if err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil { // its end may have come before the deadline above
		return err
	}
	if _, err := conn.WriteTo(packet, to); err != nil {
		return err
	}
	buf := make([]byte, 1500)
	for {
		n, peer, err := conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		m, err := icmp.ParseMessage(protocol, buf[:n])
		if err != nil || m.Type != reply || peerAddr(peer) != from.WithZone("") {
			continue
		}
		if e, ok := m.Body.(*icmp.Echo); ok && e.Seq == seq && bytes.Equal(e.Data, data) {
			return nil
		}
	}
}

func peerAddr(a net.Addr) netip.Addr {
	var ip net.IP
	switch a := a.(type) {
	case *net.UDPAddr:
		ip = a.IP
	case *net.IPAddr:
		ip = a.IP
	}
	out, _ := netip.AddrFromSlice(ip)
	return out.Unmap()
}
