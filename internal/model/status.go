package model

import "time"

// ResourceView is one resource as status shows it.
type ResourceView struct {
	Name  string        `json:"name"`  // as haresources writes it
	Group string        `json:"group"` // key of its group
	Owner NodeName      `json:"owner"` // the node that has it when all are well
	State ResourceState `json:"state"` // where it is as far as this node knows
	Here  ResourceState `json:"here"`  // on this node
	Node  NodeName      `json:"node"`  // where it runs as far as this node knows; "" for nowhere
	Error string        `json:"error,omitempty"`
}

// ServiceView is one configured service as status shows it.
type ServiceView struct {
	Key       ServiceKey `json:"service"`
	Name      string     `json:"name,omitempty"`
	Scheduler string     `json:"scheduler"`
	Fallback  bool       `json:"fallback"`          // traffic goes to the fallback now
	Reals     []RealView `json:"reals"`             // in file order
	Refused   string     `json:"refused,omitempty"` // why the plane did not take the service; "": it did
}

// RealView is one configured real server as status shows it.
type RealView struct {
	Addr     string        `json:"addr"`
	Forward  string        `json:"forward"`
	Weight   int           `json:"weight"`  // in the table now
	InTable  bool          `json:"intable"` // has a row now
	Status   Status        `json:"status"`  // what the director acts on
	Failures int           `json:"failures"`
	Reason   string        `json:"reason"` // of the last check
	Last     Status        `json:"last"`   // what the last check said
	Checked  time.Time     `json:"checked"`
	Took     time.Duration `json:"took_ns"`

	Since   time.Time       `json:"since"`                // when Status became what it is
	Latency []time.Duration `json:"latency_ns,omitempty"` // of the last checks, the newest last
	Drain   *DrainView      `json:"drain,omitempty"`      // nil: it is not taken out of service
	Refused string          `json:"refused,omitempty"`    // why the plane did not take its row as it should be; "": it did
	Load    string          `json:"load,omitempty"`       // what the real server reports of itself: "75%", "drain"
	Warning string          `json:"warning,omitempty"`    // what to mend soon although it is up
}

// DrainView tells how far a real server is that an operator takes out of
// service: it gets no new connections, and those that it has may end.
type DrainView struct {
	Since     time.Time `json:"since"`
	Deadline  time.Time `json:"deadline"`  // when the rest is cut; zero for never
	Remaining int       `json:"remaining"` // connections; -1 where they are not counted yet
	Out       bool      `json:"out"`       // the deadline has passed: its row is gone
}
