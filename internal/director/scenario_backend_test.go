package director_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// backendSpec is a scripted server of a scenario, as its timeline has it.
type backendSpec struct {
	Name, Type, Listen, State string

	TLS  bool
	Cert string // name of its certificate, "tls" by default

	httpAnswer              // http, simpletcp (the body)
	Rules      []httpAnswer // the first that fits answers instead

	Banner string     // tcp
	Script [][]string // tcp: pattern, answer, "close"

	File     *string // ftp; none: no such file
	DN       *string // ldap
	BindCode byte    `json:"bind_code"` // ldap

	Records map[string][][2]string // dns: name to type and value
}

type httpAnswer struct {
	Path, Host, Method string // what a rule is for; "" for all
	Status             int
	Body               *string
	Headers            map[string]string
}

// backend is a running one. It can change its mind at any time.
type backend struct {
	certs certificates
	mail  func(rcpt []string, subject string) // smtpsink

	mu    sync.Mutex
	raw   map[string]json.RawMessage
	spec  backendSpec
	ln    net.Listener
	udp   net.PacketConn
	conns map[net.Conn]bool
}

func newBackend(raw map[string]json.RawMessage, certs certificates, mail func([]string, string)) (*backend, error) {
	b := &backend{certs: certs, mail: mail, raw: raw, conns: map[net.Conn]bool{}}
	if err := b.set(nil); err != nil {
		return nil, err
	}
	if b.spec.Type == "https" || b.spec.TLS {
		if _, err := certs.get(b.certName()); err != nil {
			return nil, err
		}
	}
	state := b.spec.State
	if state == "" {
		state = "up"
	}
	return b, b.become(state)
}

func (b *backend) certName() string {
	if b.spec.Cert == "" {
		return "tls"
	}
	return b.spec.Cert
}

// set changes properties.
func (b *backend) set(change map[string]json.RawMessage) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.Copy(b.raw, change)
	whole, err := json.Marshal(b.raw)
	if err != nil {
		return err
	}
	state := b.spec.State
	b.spec = backendSpec{}
	if err := json.Unmarshal(whole, &b.spec); err != nil {
		return err
	}
	if state != "" {
		b.spec.State = state
	}
	if b.spec.Type == "" {
		b.spec.Type = "http"
	}
	return nil
}

// now is a copy of what it is to do.
func (b *backend) now() backendSpec {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.spec
}

// become makes it up, down (nothing listens), hang or reset.
func (b *backend) become(state string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.spec.State = state
	if state == "down" {
		if b.ln != nil {
			_ = b.ln.Close()
		}
		if b.udp != nil {
			_ = b.udp.Close()
		}
		for c := range b.conns {
			_ = c.Close()
		}
		b.ln, b.udp, b.conns = nil, nil, map[net.Conn]bool{}
		return nil
	}
	var err error
	if b.ln == nil {
		if b.ln, err = net.Listen("tcp", b.spec.Listen); err != nil {
			return err
		}
		go b.accept(b.ln)
	}
	if b.udp == nil && b.spec.Type == "dns" {
		if b.udp, err = net.ListenPacket("udp", b.spec.Listen); err != nil {
			return err
		}
		go b.answerUDP(b.udp)
	}
	return nil
}

func (b *backend) accept(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		s := b.now()
		switch s.State {
		case "reset":
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
		case "hang":
			b.mu.Lock()
			b.conns[c] = true
			b.mu.Unlock()
		default:
			go b.serve(c, s)
		}
	}
}

func (b *backend) serve(c net.Conn, s backendSpec) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if s.Type == "https" || s.TLS {
		cert, err := b.certs.get(b.certName())
		if err != nil {
			return
		}
		t := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
		if t.Handshake() != nil {
			return
		}
		defer t.Close()
		c = t
	}
	switch s.Type {
	case "http", "https":
		serveHTTP(c, s)
	case "tcp":
		serveLines(c, s)
	case "simpletcp":
		_, _ = io.ReadAll(c)
		fmt.Fprint(c, text(s.Body, "pong\n"))
	case "ftp":
		serveFTP(c, s)
	case "ldap":
		serveLDAP(c, s)
	case "dns":
		serveDNS(c, s)
	case "smtpsink":
		b.serveSMTP(c)
	}
}

func text(s *string, otherwise string) string {
	if s == nil {
		return otherwise
	}
	return *s
}

func serveHTTP(c net.Conn, s backendSpec) {
	in := bufio.NewReader(c)
	first, _ := in.ReadString('\n')
	host := ""
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		if line = strings.TrimRight(line, "\r\n"); line == "" {
			break
		}
		if name, value, _ := strings.Cut(line, ":"); strings.EqualFold(name, "host") {
			host = strings.TrimSpace(value)
		}
	}
	words := append(strings.Fields(first), "", "")
	answer := s.httpAnswer
	for _, r := range s.Rules {
		if (r.Path == "" || r.Path == words[1]) && (r.Host == "" || r.Host == host) && (r.Method == "" || r.Method == words[0]) {
			answer = r
			break
		}
	}
	if answer.Status == 0 {
		answer.Status = 200
	}
	body := text(answer.Body, "OK alive\n")
	fmt.Fprintf(c, "HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n", answer.Status, len(body))
	for k, v := range answer.Headers {
		fmt.Fprintf(c, "%s: %s\r\n", k, v)
	}
	fmt.Fprint(c, "\r\n")
	if words[0] != "HEAD" {
		fmt.Fprint(c, body)
	}
}

func serveLines(c net.Conn, s backendSpec) {
	fmt.Fprint(c, s.Banner)
	for in := bufio.NewScanner(c); in.Scan(); {
		line := in.Text()
		for _, rule := range s.Script {
			if !regexp.MustCompile(rule[0]).MatchString(line) {
				continue
			}
			tag, _, _ := strings.Cut(line, " ")
			fmt.Fprint(c, strings.ReplaceAll(rule[1], "{tag}", tag))
			if len(rule) > 2 {
				return
			}
			break
		}
	}
}

func serveFTP(c net.Conn, s backendSpec) {
	fmt.Fprint(c, "220 ready\r\n")
	var active string
	var passive net.Listener
	for in := bufio.NewScanner(c); in.Scan(); {
		word, rest, _ := strings.Cut(in.Text(), " ")
		switch strings.ToUpper(word) {
		case "USER":
			fmt.Fprint(c, "331 password\r\n")
		case "PASS":
			fmt.Fprint(c, "230 in\r\n")
		case "PORT":
			n := strings.Split(rest, ",")
			hi, _ := strconv.Atoi(n[4])
			lo, _ := strconv.Atoi(n[5])
			active = fmt.Sprintf("%s:%d", strings.Join(n[:4], "."), hi<<8+lo)
			fmt.Fprint(c, "200 ok\r\n")
		case "PASV", "EPSV":
			host, _, _ := net.SplitHostPort(s.Listen)
			ln, err := net.Listen("tcp", host+":0")
			if err != nil {
				return
			}
			defer ln.Close()
			active, passive = "", ln
			p := ln.Addr().(*net.TCPAddr).Port
			if word == "EPSV" {
				fmt.Fprintf(c, "229 Entering (|||%d|)\r\n", p)
				break
			}
			fmt.Fprintf(c, "227 Entering (%s,%d,%d)\r\n", strings.ReplaceAll(host, ".", ","), p>>8, p&255)
		case "RETR":
			if s.File == nil {
				fmt.Fprint(c, "550 none\r\n")
				break
			}
			fmt.Fprint(c, "150 here\r\n")
			var data net.Conn
			var err error
			if active != "" {
				data, err = net.DialTimeout("tcp", active, 5*time.Second)
			} else {
				data, err = passive.Accept()
			}
			if err != nil {
				return
			}
			fmt.Fprint(data, *s.File)
			_ = data.Close()
			fmt.Fprint(c, "226 done\r\n")
		case "QUIT":
			fmt.Fprint(c, "221 bye\r\n")
			return
		case "CWD", "ALLO":
			fmt.Fprint(c, "250 ok\r\n")
		default:
			fmt.Fprint(c, "200 ok\r\n")
		}
	}
}

// serveLDAP knows bind and search (RFC 4511), in messages of up to 127 bytes.
func serveLDAP(c net.Conn, s backendSpec) {
	tlv := func(tag byte, v []byte) []byte { return append([]byte{tag, byte(len(v))}, v...) }
	in := bufio.NewReader(c)
	for {
		head := make([]byte, 2)
		if _, err := io.ReadFull(in, head); err != nil || head[1] > 127 {
			return
		}
		body := make([]byte, head[1])
		if _, err := io.ReadFull(in, body); err != nil || len(body) < 4 {
			return
		}
		id, op := body[2], body[3]
		message := func(o []byte) []byte { return tlv(0x30, append(tlv(2, []byte{id}), o...)) }
		result := func(tag, code byte) []byte {
			return message(tlv(tag, append(tlv(0x0a, []byte{code}), 4, 0, 4, 0)))
		}
		switch op {
		case 0x60:
			_, _ = c.Write(result(0x61, s.BindCode))
		case 0x63:
			if s.DN == nil {
				_, _ = c.Write(result(0x65, 32))
				break
			}
			_, _ = c.Write(message(tlv(0x64, append(tlv(4, []byte(*s.DN)), 0x30, 0))))
			_, _ = c.Write(result(0x65, 0))
		default:
			return
		}
	}
}

func serveDNS(c net.Conn, s backendSpec) {
	var n uint16
	if binary.Read(c, binary.BigEndian, &n) != nil {
		return
	}
	q := make([]byte, n)
	if _, err := io.ReadFull(c, q); err != nil {
		return
	}
	a := dnsAnswer(q, s)
	_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...))
}

func (b *backend) answerUDP(p net.PacketConn) {
	q := make([]byte, 4096)
	for {
		n, from, err := p.ReadFrom(q)
		if err != nil {
			return
		}
		if s := b.now(); s.State == "up" {
			_, _ = p.WriteTo(dnsAnswer(q[:n], s), from)
		}
	}
}

// dnsAnswer answers one question (RFC 1035) out of the records.
func dnsAnswer(q []byte, s backendSpec) []byte {
	i := 12
	var labels []string
	for i < len(q) && q[i] != 0 {
		end := i + 1 + int(q[i])
		labels = append(labels, string(q[i+1:end]))
		i = end
	}
	kind := binary.BigEndian.Uint16(q[i+1:])
	records, known := s.Records[strings.ToLower(strings.Join(labels, "."))]
	var out []byte
	var n uint16
	for _, r := range records {
		var code uint16
		var data []byte
		switch r[0] {
		case "A":
			code, data = 1, netip.MustParseAddr(r[1]).AsSlice()
		case "AAAA":
			code, data = 28, netip.MustParseAddr(r[1]).AsSlice()
		case "PTR":
			code = 12
			for l := range strings.SplitSeq(r[1], ".") {
				data = append(append(data, byte(len(l))), l...)
			}
			data = append(data, 0)
		}
		if code != kind {
			continue
		}
		out = append(out, 0xc0, 0x0c)
		out = binary.BigEndian.AppendUint16(out, code)
		out = binary.BigEndian.AppendUint16(out, 1)
		out = binary.BigEndian.AppendUint32(out, 60)
		out = binary.BigEndian.AppendUint16(out, uint16(len(data)))
		out = append(out, data...)
		n++
	}
	flags := uint16(0x8580)
	if !known {
		flags |= 3
	}
	a := append([]byte{}, q[:2]...)
	for _, w := range []uint16{flags, 1, n, 0, 0} {
		a = binary.BigEndian.AppendUint16(a, w)
	}
	return append(append(a, q[12:i+5]...), out...)
}

func (b *backend) serveSMTP(c net.Conn) {
	fmt.Fprint(c, "220 sink\r\n")
	var rcpt []string
	for in := bufio.NewScanner(c); in.Scan(); {
		line := in.Text()
		switch word := strings.ToUpper(line); {
		case strings.HasPrefix(word, "RCPT"):
			rcpt = append(rcpt, line)
			fmt.Fprint(c, "250 ok\r\n")
		case word == "DATA":
			fmt.Fprint(c, "354 go\r\n")
			subject := ""
			for in.Scan() && in.Text() != "." {
				if s, ok := strings.CutPrefix(in.Text(), "Subject: "); ok {
					subject = s
				} else if subject != "" && strings.HasPrefix(in.Text(), " ") && !strings.HasSuffix(subject, "\n") {
					subject += in.Text() // folded
				}
				if in.Text() == "" {
					subject += "\n" // the header ends
				}
			}
			b.mail(rcpt, strings.TrimSpace(subject))
			rcpt = nil
			fmt.Fprint(c, "250 taken\r\n")
		case word == "QUIT":
			fmt.Fprint(c, "221 bye\r\n")
			return
		default:
			fmt.Fprint(c, "250 ok\r\n")
		}
	}
}

// certificates are made when first asked for: all of them are self-signed for
// CN=self-signed.test; "ip-ADDRESS" carries that address.
type certificates struct {
	dir string
	mu  *sync.Mutex
}

func (cs certificates) get(name string) (tls.Certificate, error) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	crt, key := filepath.Join(cs.dir, name+".crt"), filepath.Join(cs.dir, name+".key")
	if _, err := os.Stat(crt); err == nil {
		return tls.LoadX509KeyPair(crt, key)
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return tls.Certificate{}, err
	}
	c := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "self-signed.test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour)}
	if ip, ok := strings.CutPrefix(name, "ip-"); ok {
		c.IPAddresses = []net.IP{net.ParseIP(ip)}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &k.PublicKey, k)
	if err != nil {
		return tls.Certificate{}, err
	}
	pk, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return tls.Certificate{}, err
	}
	if err := os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk}), 0o600); err != nil {
		return tls.Certificate{}, err
	}
	if err := os.WriteFile(crt, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		return tls.Certificate{}, err
	}
	return tls.LoadX509KeyPair(crt, key)
}
