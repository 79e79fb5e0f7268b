package agent

import "github.com/batuta-ha/batuta/internal/model"

// Kind says what carries out a resource.
type Kind uint8

// Kinds of resources.
const (
	KindUnset    Kind = iota
	KindAddress       // an address on an interface: built in
	KindDirector      // the balancer: built in
	KindScript        // a script of resource.d or init.d
)

func (k Kind) String() string {
	return [...]string{"unset", "address", "director", "script"}[min(int(k), 3)]
}

// Kinds lists the agents of haresources that are built in; every other name is
// a script. The names are those of Heartbeat's own resource scripts.
var Kinds = map[string]Kind{
	"IPaddr":     KindAddress,
	"IPaddr2":    KindAddress,
	"IPv6addr":   KindAddress,
	"ldirectord": KindDirector,
}

// KindOf tells what carries out the resource.
func KindOf(r model.Resource) Kind {
	if k, ok := Kinds[r.Agent]; ok {
		return k
	}
	return KindScript
}
