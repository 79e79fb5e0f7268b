package agent

import "github.com/batuta-ha/batuta/internal/model"

// Kind says what carries out a resource.
type Kind uint8

// Kinds of resources.
const (
	KindUnset    Kind = iota
	KindAddress       // an address on an interface: built in
	KindDirector      // the balancer: built in
	KindScript        // a script of resource.d or init.d, or a systemd unit
	KindSource        // the source address of what this node sends: built in
	KindARP           // an address that is announced and not held: built in
	KindMail          // a mail at each move: built in
	KindDelay         // nothing but time: built in
	KindPorts         // ports that are closed while a group moves: built in
)

func (k Kind) String() string {
	return [...]string{"unset", "address", "director", "script", "source", "arp", "mail", "delay", "ports"}[min(int(k), 8)]
}

// Kinds lists the agents of haresources that are built in; every other name is
// a script. The names are those of Heartbeat's own resource scripts.
var Kinds = map[string]Kind{
	"IPaddr":     KindAddress,
	"IPaddr2":    KindAddress,
	"IPv6addr":   KindAddress,
	"ldirectord": KindDirector,
	"IPsrcaddr":  KindSource,
	"SendArp":    KindARP,
	"MailTo":     KindMail,
	"Delay":      KindDelay,
	"portblock":  KindPorts,
}

// KindOf tells what carries out the resource.
func KindOf(r model.Resource) Kind {
	if k, ok := Kinds[r.Agent]; ok {
		return k
	}
	return KindScript
}

// Repeats tells whether a start means something for a resource of this kind
// that runs already: an address is announced again, for one. The others are
// started only when their status says that they do not run.
func (k Kind) Repeats() bool { return k == KindAddress || k == KindDirector || k == KindARP }
