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
	Fallback  bool       `json:"fallback"` // traffic goes to the fallback now
	Reals     []RealView `json:"reals"`    // in file order
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
	Checked  time.Time     `json:"checked"`
	Took     time.Duration `json:"took_ns"`
}
