package check

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/md5"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"layeh.com/radius"

	"github.com/batuta-ha/batuta/internal/model"
)

// Attributes of RFC 2865 and RFC 3579.
const (
	radiusUserName             radius.Type = 1
	radiusUserPassword         radius.Type = 2
	radiusNASAddress           radius.Type = 4
	radiusReplyMessage         radius.Type = 18
	radiusMessageAuthenticator radius.Type = 80
	radiusNASIPv6Address       radius.Type = 95

	// radiusRetry is how long a server may take before the request is sent
	// again (RFC 5080 section 2.2.1).
	radiusRetry = 2 * time.Second
)

// negotiateRADIUS logs in as Login with Password and is up if a server that
// knows Secret accepts. CheckTimeout covers all tries.
func negotiateRADIUS(ctx context.Context, t model.Target) model.Verdict {
	if err := portOf(t); err != nil {
		return down(err.Error())
	}
	if t.Secret == "" {
		return down(`no secret to share with the RADIUS server: add secret="..."`)
	}
	request, packed, err := radiusRequest(t)
	if err != nil {
		return down(err.Error())
	}
	within, cancel := context.WithTimeout(ctx, t.CheckTimeout)
	defer cancel()
	forged := 0
	reply, err := exchangeDatagrams(within, t.Addr, radiusRetry, packed, func(b []byte) (*radius.Packet, bool) {
		p, ok := readRADIUS(b, request, packed)
		if !ok {
			forged++
		}
		return p, ok
	})
	switch {
	case err != nil && forged > 0 && ctx.Err() == nil && within.Err() != nil:
		return down(fmt.Sprintf("no answer signed with this secret within %v: the server's secret is another one", t.CheckTimeout))
	case err != nil:
		return failed(ctx, within, err, t.CheckTimeout)
	case reply.Code == radius.CodeAccessAccept:
		return up("Access-Accept")
	}
	reason := reply.Code.String()
	if text := reply.Get(radiusReplyMessage); len(text) > 0 {
		reason += ": " + clean(string(text))
	}
	return down(reason)
}

// radiusRequest makes the Access-Request. It carries a Message-Authenticator,
// as the first attribute: servers that know of the forgery of 2024
// (CVE-2024-3596, "Blast-RADIUS") insist on one.
func radiusRequest(t model.Target) (*radius.Packet, []byte, error) {
	p := radius.New(radius.CodeAccessRequest, []byte(t.Secret))
	p.Add(radiusMessageAuthenticator, make(radius.Attribute, md5.Size))
	name, err := radius.NewString(t.Login)
	if err != nil {
		return nil, nil, fmt.Errorf("login: %w", err)
	}
	password, err := radius.NewUserPassword([]byte(t.Password), p.Secret, p.Authenticator[:])
	if err != nil {
		return nil, nil, fmt.Errorf("passwd: %w", err)
	}
	p.Add(radiusUserName, name)
	p.Add(radiusUserPassword, password)
	if own := sourceAddr(t.Addr); own.Is4() {
		p.Add(radiusNASAddress, own.AsSlice())
	} else {
		p.Add(radiusNASIPv6Address, own.AsSlice())
	}
	packed, err := p.Encode()
	if err != nil {
		return nil, nil, err
	}
	// RFC 3579 section 3.2: the HMAC over the packet with zeros in its place.
	copy(packed[radiusHeader+2:], sign(packed, p.Secret))
	return p, packed, nil
}

// radiusHeader is code, identifier, length and authenticator (RFC 2865 section 3).
const radiusHeader = 20

func sign(packet, secret []byte) []byte {
	h := hmac.New(md5.New, secret)
	h.Write(packet)
	return h.Sum(nil)
}

// sourceAddr is the address that packets to a real server leave from: what a
// network access server calls its own. Nothing is sent to find it.
func sourceAddr(to netip.AddrPort) netip.Addr {
	conn, err := net.Dial("udp", to.String())
	if err == nil {
		defer conn.Close()
		if a, ok := conn.LocalAddr().(*net.UDPAddr); ok {
			return a.AddrPort().Addr().Unmap().WithZone("")
		}
	}
	if to.Addr().Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// readRADIUS reads an answer and tells whether it is one to this request, from
// a server that knows the secret. A Message-Authenticator in it must be right.
func readRADIUS(b []byte, request *radius.Packet, packed []byte) (*radius.Packet, bool) {
	p, err := radius.Parse(b, request.Secret)
	if err != nil {
		return nil, false
	}
	b = b[:binary.BigEndian.Uint16(b[2:4])] // what follows is padding (RFC 2865 section 3)
	if p.Identifier != request.Identifier || !radius.IsAuthenticResponse(b, packed, request.Secret) {
		return nil, false
	}
	signature, signed := p.Lookup(radiusMessageAuthenticator)
	if !signed {
		return p, true
	}
	if len(signature) != md5.Size {
		return nil, false
	}
	// Signed as if it had the request's authenticator, and zeros for the HMAC.
	blank := bytes.Clone(b)
	copy(blank[4:radiusHeader], request.Authenticator[:])
	at := bytes.Index(blank[radiusHeader:], append([]byte{byte(radiusMessageAuthenticator), 2 + md5.Size}, signature...))
	if at < 0 {
		return nil, false
	}
	clear(blank[radiusHeader+at+2 : radiusHeader+at+2+md5.Size])
	return p, hmac.Equal(signature, sign(blank, request.Secret))
}
