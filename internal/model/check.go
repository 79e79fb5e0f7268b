package model

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"
)

// CheckType is the kind of a health check (ldirectord.cf checktype).
type CheckType uint8

// Kinds of health checks.
const (
	CheckNone         CheckType = iota
	CheckNegotiate              // a request and its answer, by the service's protocol
	CheckConnect                // a TCP connection; ICMP echo for UDP services
	CheckCombined               // Connects times connect after each successful negotiate
	CheckPing                   // ICMP echo
	CheckExternal               // a program's exit status
	CheckExternalPerl           // a Perl file's exit status
	CheckOff                    // never checked, always down
	CheckOn                     // never checked, always up
)

var checkTypeText = [...]string{"none", "negotiate", "connect", "combined", "ping", "external", "external-perl", "off", "on"}

func (c CheckType) String() string {
	if int(c) < len(checkTypeText) {
		return checkTypeText[c]
	}
	return "checktype(" + strconv.Itoa(int(c)) + ")"
}

// Target is one thing to check, complete: two equal targets share one check.
// All of it comes from the configuration; it is comparable.
type Target struct {
	Kind        CheckType
	Application string         // ldirectord.cf service: "http", "dns", ..., "none"
	Proto       Protocol       // transport of the virtual service; ProtocolNone for marks
	Addr        netip.AddrPort // real server and check port; port 0 where none is known
	Connects    int            // CheckCombined only

	CheckTimeout     time.Duration // connect, ping, external
	NegotiateTimeout time.Duration // negotiate
	Tries            int           // ping: echo requests at most

	Request     string // path, name, query ... as configured, with its leading "/"
	RequestURL  string // http(s): absolute URL of a per-real request; replaces Addr and Request
	Receive     string // Perl-style regular expression; "" matches all
	Method      string // GET or HEAD
	VirtualHost string
	Login       string
	Password    string
	Database    string
	Secret      string

	// What ldirectord.cf has no words for; the zero values are what
	// ldirectord does.
	TLSVerify  TLSVerify // what of the server's certificate is verified
	ServerName string    // TLS server name (SNI, RFC 6066) to send, and to verify instead of the address; "": none
	HTTP2      bool      // http, https: HTTP/2; on https HTTP/1.1 if the server prefers it, on http with prior knowledge
	RecordType string    // dns: "A", "AAAA", "PTR"; "": PTR where the request is an address, else A

	CAFile string // PEM file of the authorities to verify against; "": the machine's

	// ExpiryWarning is how long before the end of the server's certificate a
	// warning comes with the verdict; 0: never.
	ExpiryWarning time.Duration

	Headers      string // http, https: further request headers, a "Name: value\n" each
	StatusCodes  string // http, https: answers that are good, as "200-299,301"; "": 200-299
	WeightHeader string // http, https: response header that reports a Load; "": none
	Steps        string // dialogue: what ParseSteps reads
	TLS          bool   // dialogue: TLS from the first byte on
	AgentPort    uint16 // where an agent on the real server reports a Load by TCP; 0: there is none
	Via          Via    // which way the check goes

	// Set for external checks only, so that others can be shared between
	// services; VirtualAddr for ViaVirtual and ViaTunnel, too.
	Command     string
	VirtualAddr netip.AddrPort
	Mark        uint32
	RealPort    uint16 // the real server's port as configured
}

// Via is the way that a check's packets take to the real server.
type Via uint8

// Ways of checks.
const (
	ViaReal    Via = iota // to the real server's own address
	ViaVirtual            // to the virtual address, by the real server's link address, as gate does
	ViaTunnel             // to the virtual address, in a tunnel to the real server, as ipip does
)

func (v Via) String() string {
	return [...]string{"real", "vip", "vip in a tunnel"}[min(int(v), 2)]
}

// TLSVerify is how much of a server's certificate a check verifies.
type TLSVerify uint8

// Ways to verify.
const (
	VerifyAsEver  TLSVerify = iota // what ldirectord does for the application
	VerifyNothing                  // any certificate will do
	VerifyChain                    // signed by an authority of this machine, and in its time
	VerifyName                     // that, and issued for the server name or address
)

var tlsVerifyText = [...]string{"as-ever", "nothing", "chain", "name"}

func (v TLSVerify) String() string {
	if int(v) < len(tlsVerifyText) {
		return tlsVerifyText[v]
	}
	return "tlsverify(" + strconv.Itoa(int(v)) + ")"
}

// Status is what a check says of a real server.
type Status uint8

// Check results. Unknown is not Down: it changes nothing.
const (
	Unknown Status = iota
	Up
	Down
)

func (s Status) String() string {
	switch s {
	case Up:
		return "up"
	case Down:
		return "down"
	case Unknown:
	}
	return "unknown"
}

// MarshalText writes up, down or unknown.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText writes; any other word is an error.
func (s *Status) UnmarshalText(b []byte) error {
	for v := Unknown; v <= Down; v++ {
		if v.String() == string(b) {
			*s = v
			return nil
		}
	}
	return fmt.Errorf("%q is no status: want up, down or unknown", b)
}

// Verdict is the result of one check, with the reason in words.
type Verdict struct {
	Status   Status
	Reason   string        // "200 OK", "connection refused", ...; never empty unless Unknown
	At       time.Time     // when the check ended
	Duration time.Duration // how long it took
	Warning  string        // what to mend soon although the server is up; "" for nothing
	Load     Load          // what the real server says of itself
}

// String is the canonical text: "down: connection refused (1.2ms)".
func (v Verdict) String() string {
	return v.Status.String() + ": " + v.Reason + " (" + v.Duration.Round(100*time.Microsecond).String() + ")"
}
