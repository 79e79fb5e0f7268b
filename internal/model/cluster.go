package model

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// NodeName is a cluster node's name, in lower case.
type NodeName string

// Cluster is everything the configuration says, in Batuta's own words. Parts
// that were not configured are nil or empty.
type Cluster struct {
	Heartbeat *Heartbeat
	Groups    []ResourceGroup // haresources, in file order
	Directors []Director      // one for each ldirectord.cf in use
	IPVS      IPVS            // of the kernel, besides its table
}

// FailbackMode is auto_failback of ha.cf.
type FailbackMode uint8

// Failback modes.
const (
	FailbackUnset FailbackMode = iota
	FailbackOn
	FailbackOff
	FailbackLegacy
)

func (f FailbackMode) String() string {
	return [...]string{"unset", "on", "off", "legacy"}[min(int(f), 3)]
}

// Heartbeat is the content of ha.cf and authkeys.
type Heartbeat struct {
	Self     NodeName
	Nodes    []NodeName // configured nodes, in file order, Self among them
	Keys     Keyring
	Media    []Medium
	Failback FailbackMode

	Keepalive      time.Duration // between two beats
	WarnTime       time.Duration // silence that is worth a warning
	DeadTime       time.Duration // silence that means death
	InitDead       time.Duration // the same while the cluster starts
	DeadPing       time.Duration // the same for ping nodes
	SuspectTime    time.Duration // silence that means death although the machine's kernel answers; 0: never waited for
	Flaps          int           // deaths within FlapWindow that put a node into quarantine; 0: never
	FlapWindow     time.Duration // see Flaps
	FlapHold       time.Duration // how long a node must be well to leave quarantine
	MaxRexmitDelay time.Duration // between two requests for the same missing message
	HopFudge       int           // added to the ttl field
	InnerAuth      bool          // msgfmt classic: netstring packets carry the text signature too

	LogFile        string
	DebugFile      string
	LogFacility    string // syslog facility, "" or "none" for none
	SyslogFormat   bool   // syslogmsgfmt: the log files look like syslog
	LogBadPackets  bool
	GenerationTime bool // hbgenmethod time

	Debug      int         // debug messages are logged from 1 on
	LockMemory bool        // realtime: nothing of the daemon is ever swapped out
	Priority   int         // rtprio: of the beats, where realtime is on: SCHED_RR, 1 to 99
	Watchdog   string      // device that resets the machine unless it is fed; "" for none
	CoreDumps  Choice      // of the daemon; unset leaves it to the system
	Programs   []Program   // respawn and failfast, in file order
	Fence      FenceDevice // resets the other node's machine before its resources are taken over

	// Recorded is every directive as written, for HA_<directive> in scripts.
	Recorded []Setting
}

// Choice is yes, no, or nobody said.
type Choice uint8

// Choices.
const (
	ChoiceUnset Choice = iota
	ChoiceYes
	ChoiceNo
)

func (c Choice) String() string { return [...]string{"unset", "yes", "no"}[min(int(c), 2)] }

// Program runs beside the daemon: from when the cluster can talk until the
// daemon's end, again and again.
type Program struct {
	User     string   // whose it is
	Command  []string // absolute path and arguments
	Failfast bool     // the node does not go on without it
}

// FenceDevice is the stonith or stonith_host line that counts on this node.
type FenceDevice struct {
	Type       string   // fence_NAME, external/NAME, or a plug-in of cluster-glue; "" for no fencing
	File       string   // its parameters; "" where the line has them
	Parameters []string // as written
}

// Setting is one directive with its text.
type Setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// MediumKind is the kind of a heartbeat medium.
type MediumKind uint8

// Heartbeat media.
const (
	MediumNone MediumKind = iota
	Broadcast
	Unicast
	Multicast
	Serial
	Ping
	PingGroup
)

func (m MediumKind) String() string {
	return [...]string{"none", "bcast", "ucast", "mcast", "serial", "ping", "ping_group"}[min(int(m), 6)]
}

// Medium is one heartbeat path of ha.cf.
type Medium struct {
	Kind      MediumKind
	Interface string         // network interface, or the device of a serial line
	Peer      netip.AddrPort // where to send: broadcast address, peer, multicast group; with port
	TTL       int            // multicast
	Loop      bool           // multicast
	Baud      int            // serial
	Name      string         // link name in cl_status: interface, device, ping host or group
	Hosts     []netip.Addr   // ping, ping_group
}

// AuthMethod is how a key of authkeys makes packets authentic.
type AuthMethod uint8

// Methods: signatures, and one that also encrypts.
const (
	AuthNone AuthMethod = iota
	AuthCRC
	AuthMD5
	AuthSHA1
	AuthSHA256 // between Batuta nodes only: the original knows none of these
	AuthSHA384
	AuthSHA512
	AuthXChaCha20 // XChaCha20-Poly1305: encrypted; between Batuta nodes only
)

// KeyUse is the line of authkeys that a node signs with. The zero value: nothing is known.
type KeyUse struct {
	Number int        `json:"number"`
	Method AuthMethod `json:"method"`
}

// String is the line's beginning: "2 sha256"; "" if nothing is known.
func (k KeyUse) String() string {
	if k.Method == AuthNone {
		return ""
	}
	return strconv.Itoa(k.Number) + " " + k.Method.String()
}

// Encrypts tells whether packets under such a key are secret, too.
func (a AuthMethod) Encrypts() bool { return a == AuthXChaCha20 }

func (a AuthMethod) String() string {
	return [...]string{"none", "crc", "md5", "sha1", "sha256", "sha384", "sha512", "xchacha20"}[min(int(a), 7)]
}

// Keyring is the content of an authkeys file: Keys[Send] signs or encrypts, all verify.
type Keyring struct {
	Send int
	Keys map[int]AuthKey // index 0 to 15
}

// AuthKey is one line of authkeys. Its secret never appears in text.
type AuthKey struct {
	Method AuthMethod
	Secret string
}

// String names the method only.
func (k AuthKey) String() string { return k.Method.String() }

// GoString hides the secret from %#v too.
func (k AuthKey) GoString() string { return "AuthKey(" + k.Method.String() + ")" }

// ResourceGroup is one line of haresources: resources that live together on
// one node, started in order and stopped in reverse.
type ResourceGroup struct {
	Owner     NodeName // the node that has it when both are well
	Resources []Resource
}

// Key is the text of the first resource, the group's name on the wire.
func (g ResourceGroup) Key() string {
	if len(g.Resources) == 0 {
		return ""
	}
	return g.Resources[0].Text
}

// String is the group as haresources writes it, without the owner.
func (g ResourceGroup) String() string {
	s := make([]string, len(g.Resources))
	for i, r := range g.Resources {
		s[i] = r.Text
	}
	return strings.Join(s, " ")
}

// Resource is one word of a haresources line: an agent and its arguments.
type Resource struct {
	Agent string   // "IPaddr", "ldirectord", "apache2"
	Args  []string // what follows, split at "::"
	Text  string   // as written; identifies the resource
}

// ResourceState says what an agent found.
type ResourceState uint8

// States of a resource on a node.
const (
	ResourceUnknown ResourceState = iota
	ResourceStarting
	ResourceRunning
	ResourceStopping
	ResourceStopped
	ResourceFailed
)

var resourceStateText = [...]string{"unknown", "starting", "running", "stopping", "stopped", "failed"}

func (s ResourceState) String() string {
	if int(s) < len(resourceStateText) {
		return resourceStateText[s]
	}
	return "resource(" + strconv.Itoa(int(s)) + ")"
}

// MarshalText writes the state's word.
func (s ResourceState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText writes; any other word is an error.
func (s *ResourceState) UnmarshalText(b []byte) error {
	i := slices.Index(resourceStateText[:], string(b))
	if i < 0 {
		return fmt.Errorf("%q is no resource state", b)
	}
	*s = ResourceState(i)
	return nil
}

// Host is a snapshot of the machine, taken once so that configuration can be
// understood without touching it again.
type Host struct {
	NodeName   NodeName
	Interfaces []Interface
	// LookupAddr resolves a host name to its addresses (files and DNS).
	LookupAddr func(name string) ([]netip.Addr, error)
	// LookupPort resolves a service name of /etc/services for "tcp" or "udp".
	LookupPort func(network, service string) (uint16, error)
}

// Interface is one network interface of a Host.
type Interface struct {
	Name      string
	Addrs     []netip.Prefix // own address with the length of its network
	Broadcast netip.Addr     // IPv4 broadcast address; zero where there is none
}
