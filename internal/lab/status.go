package lab

// LinkStatus is one network card of a node, as its kernel sees it.
type LinkStatus struct {
	Device    string   `json:"device"`
	Bridge    string   `json:"bridge"`
	Cut       bool     `json:"cut"`
	Carrier   bool     `json:"carrier"`
	Addresses []string `json:"addresses"` // the drawing's, and the resources that are here now
}

// NodeStatus is one node.
type NodeStatus struct {
	Name    string       `json:"name"`
	Role    string       `json:"role"`
	Up      bool         `json:"up"`
	BootID  string       `json:"boot_id,omitempty"`
	Links   []LinkStatus `json:"links"`
	Service string       `json:"service"` // running, exited N, stopped, none
}

// Status is the whole lab, in the order of the drawing.
type Status struct {
	Nodes []NodeStatus `json:"nodes"`
}

// Status asks every node.
func (l *Lab) Status() Status {
	var s Status
	for _, name := range l.topology.names() {
		s.Nodes = append(s.Nodes, l.nodes[name].status())
	}
	return s
}
