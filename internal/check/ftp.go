package check

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
)

// negotiateFTP logs in, fetches the file that request names, and looks for
// receive in it (RFC 959). Without a request the login is enough. Data comes
// over an active connection, as ldirectord has it, or over a passive one where
// the server wants none of the former.
func negotiateFTP(ctx context.Context, t model.Target) model.Verdict {
	re, err := compile(t.Receive)
	if err != nil {
		return down(err.Error())
	}
	return converse(ctx, t, func(d *dialogue) (string, error) {
		if _, err := d.must(d.reply()); err != nil {
			return "", err
		}
		if err := d.ftpLogin(cmp.Or(t.Login, "anonymous"), cmp.Or(t.Password, "ldirectord@")); err != nil {
			return "", err
		}
		said := "logged in"
		if t.Request != "" && t.Request != "/" {
			content, err := d.retrieve(t)
			if err != nil {
				return "", err
			}
			if !re.Match(content) {
				return "", fmt.Errorf("receive=%q is not in the file (%d bytes)", t.Receive, len(content))
			}
			said = fmt.Sprintf("%d bytes of %s", len(content), t.Request)
		} else if t.Receive != "" {
			return "", errors.New("receive is looked for in a file: name it with request")
		}
		d.part("QUIT")
		return said, nil
	})
}

func (d *dialogue) ftpLogin(login, password string) error {
	r, err := d.ask("USER " + login)
	if err == nil && r.code == 331 {
		r, err = d.ask("PASS " + password)
	}
	_, err = d.must(r, err)
	return err
}

// errDataRefused is wrapped where the server does not open data connections of
// one kind: there is another.
var errDataRefused = errors.New("no data connection")

// retrieve returns the beginning of the file that request names, up to
// bodyLimit.
func (d *dialogue) retrieve(t model.Target) ([]byte, error) {
	name := t.Request
	if strings.ContainsFunc(name, func(c rune) bool { return c < ' ' }) {
		return nil, errors.New("request contains a control character: it cannot be sent")
	}
	if _, err := d.ask("TYPE I"); err != nil { // if it is refused, text will do
		return nil, err
	}
	if t.Via == model.ViaReal { // by the virtual address the server's own connections do not arrive
		content, err := d.transfer(name, d.active)
		if !errors.Is(err, errDataRefused) {
			return content, err
		}
	}
	return d.transfer(name, d.passive)
}

// transfer fetches a file over a data connection of one kind.
func (d *dialogue) transfer(name string, prepare func() (dataPort, error)) ([]byte, error) {
	port, err := prepare()
	if err != nil {
		return nil, err
	}
	defer port.Close()
	r, err := d.ask("RETR " + name)
	switch {
	case err != nil:
		return nil, err
	case r.code == 425: // can't open data connection
		return nil, fmt.Errorf("%w: %s", errDataRefused, clean(r.text))
	case r.code/100 != 1:
		return nil, errors.New(clean(r.text))
	}
	conn, err := port.open()
	if err != nil {
		return nil, fmt.Errorf("data connection: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(d.ctx, func() { _ = conn.Close() })()
	_ = conn.SetDeadline(d.end)
	content, err := io.ReadAll(io.LimitReader(conn, bodyLimit))
	if err != nil {
		return nil, fmt.Errorf("data connection: %w", err)
	}
	if len(content) == bodyLimit {
		return content, nil // there may be more, for long
	}
	r, err = d.reply()
	if err == nil && r.code == 425 {
		return nil, fmt.Errorf("%w: %s", errDataRefused, clean(r.text))
	}
	_, err = d.must(r, err)
	return content, err
}

// dataPort is one end of a data connection that is not open yet.
type dataPort struct {
	open func() (net.Conn, error)
	io.Closer
}

// active lets the server connect to us (RFC 959 section 4.1.2, RFC 2428).
func (d *dialogue) active() (dataPort, error) {
	local := d.conn.LocalAddr().(*net.TCPAddr)
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: local.IP, Zone: local.Zone})
	if err != nil {
		return dataPort{}, err
	}
	address := l.Addr().(*net.TCPAddr).AddrPort()
	r, err := d.ask(portCommand(netip.AddrPortFrom(address.Addr().Unmap().WithZone(""), address.Port())))
	if err == nil && !r.ok() {
		err = fmt.Errorf("%w: %s", errDataRefused, clean(r.text))
	}
	if err != nil {
		_ = l.Close()
		return dataPort{}, err
	}
	return dataPort{Closer: l, open: func() (net.Conn, error) {
		defer context.AfterFunc(d.ctx, func() { _ = l.Close() })()
		_ = l.SetDeadline(d.end)
		return l.Accept() // from any address: servers have several
	}}, nil
}

// passive connects to the server again, at the port that it names (RFC 959
// section 4.1.2, RFC 2428). It may not send us to another host.
func (d *dialogue) passive() (dataPort, error) {
	command, read := "PASV", pasvPort
	if d.peer().IP.To4() == nil {
		command, read = "EPSV", epsvPort
	}
	r, err := d.must(d.ask(command))
	if err != nil {
		return dataPort{}, err
	}
	port, ok := read(r.text)
	if !ok {
		return dataPort{}, fmt.Errorf("not an answer: %q", clean(r.text))
	}
	to := d.peer().AddrPort()
	opening := dialer()
	opening.Deadline = d.end
	conn, err := opening.DialContext(d.ctx, "tcp", netip.AddrPortFrom(to.Addr(), port).String())
	if err != nil {
		return dataPort{}, fmt.Errorf("data connection: %w", err)
	}
	return dataPort{Closer: conn, open: func() (net.Conn, error) { return conn, nil }}, nil
}

func (d *dialogue) peer() *net.TCPAddr { return d.conn.RemoteAddr().(*net.TCPAddr) }

// portCommand names an address to the server: "PORT 127,0,0,1,4,210" or
// "EPRT |2|::1|1234|".
func portCommand(a netip.AddrPort) string {
	if a.Addr().Is6() {
		return fmt.Sprintf("EPRT |2|%s|%d|", a.Addr(), a.Port())
	}
	return fmt.Sprintf("PORT %s,%d,%d", strings.ReplaceAll(a.Addr().String(), ".", ","), a.Port()>>8, a.Port()&0xff)
}

var (
	pasvText = regexp.MustCompile(`\d+,\d+,\d+,\d+,(\d+),(\d+)`)
	epsvText = regexp.MustCompile(`\(\|\|\|(\d+)\|\)`)
)

// pasvPort reads "227 Entering Passive Mode (127,0,0,1,4,210)".
func pasvPort(text string) (uint16, bool) {
	m := pasvText.FindStringSubmatch(text)
	if m == nil {
		return 0, false
	}
	high, err1 := strconv.ParseUint(m[1], 10, 8)
	low, err2 := strconv.ParseUint(m[2], 10, 8)
	return uint16(high<<8 | low), err1 == nil && err2 == nil && high|low != 0
}

// epsvPort reads "229 Entering Extended Passive Mode (|||1234|)".
func epsvPort(text string) (uint16, bool) {
	m := epsvText.FindStringSubmatch(text)
	if m == nil {
		return 0, false
	}
	port, err := strconv.ParseUint(m[1], 10, 16)
	return uint16(port), err == nil && port != 0
}
