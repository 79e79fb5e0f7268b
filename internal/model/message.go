package model

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Message is one cluster message as those who decide see it: authenticated,
// in its type's own fields, without transport fields (sequence, generation,
// signature). Field order is kept. The fields of each type are those of the
// Heartbeat protocol ("rsc_hold", "isstable", "info", ...).
type Message struct {
	Type   string // "resource", "starting", "ask_resources", "shutdone", ...
	From   NodeName
	To     NodeName // "" for everyone
	Fields []Field
	// Number grows with each message of the sender's life, so that one that had
	// to be sent again can be told from newer ones that came first; 0: not known.
	Number uint32
}

// Field is one named value of a message.
type Field struct {
	Name  string
	Value string
}

// Get returns the first field of that name, "" where there is none.
func (m Message) Get(name string) string {
	v, _ := m.Lookup(name)
	return v
}

// Lookup returns the first field of that name and whether there is one.
func (m Message) Lookup(name string) (string, bool) {
	for _, f := range m.Fields {
		if f.Name == name {
			return f.Value, true
		}
	}
	return "", false
}

// String is the canonical text: "lvs01: resource rsc_hold=all isstable=1".
func (m Message) String() string {
	var b strings.Builder
	b.WriteString(string(m.From) + ": " + m.Type)
	for _, f := range m.Fields {
		b.WriteString(" " + f.Name + "=" + f.Value)
	}
	if m.To != "" {
		b.WriteString(" -> " + string(m.To))
	}
	return b.String()
}

// NodeState is a node's status as its cluster sees it (Heartbeat's words).
type NodeState uint8

// Node states.
const (
	NodeUnknown NodeState = iota
	NodeInit              // never heard
	NodeUp                // heard, not yet ready
	NodeActive            // ready to hold resources
	NodeDead              // silent for its deadtime
	NodePing              // a ping node that answers
)

var nodeStateText = [...]string{"unknown", "init", "up", "active", "dead", "ping"}

func (s NodeState) String() string {
	if int(s) < len(nodeStateText) {
		return nodeStateText[s]
	}
	return "node(" + strconv.Itoa(int(s)) + ")"
}

// MarshalText writes the state's word.
func (s NodeState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// ParseNodeState reads a status word of the wire; unknown words are NodeUnknown.
func ParseNodeState(s string) NodeState {
	for i, t := range nodeStateText {
		if t == s {
			return NodeState(i)
		}
	}
	return NodeUnknown
}

// View is the cluster as one node sees it at one moment.
type View struct {
	Self  NodeName   `json:"self"`
	Nodes []NodeView `json:"nodes"` // sorted by name, Self among them
}

// NodeView is one node in a View.
type NodeView struct {
	Name       NodeName   `json:"name"`
	State      NodeState  `json:"state"`
	Generation uint32     `json:"generation"` // life of its daemon; 0 while never heard
	DeadTime   Millis     `json:"deadtime_ms"`
	LastBeat   time.Time  `json:"last_beat"`
	Batuta     bool       `json:"batuta"` // the peer announced Batuta's extra fields
	Ping       bool       `json:"ping"`   // a ping node: a host that answers or not, no member
	Links      []LinkView `json:"links"`
	Kernel     bool       `json:"kernel,omitempty"`  // its kernel answers when it is asked
	Suspect    bool       `json:"suspect,omitempty"` // silent for its deadtime, but its kernel answers
	Quarantine time.Time  `json:"quarantine"`        // it died too often: until then it is given nothing back; zero: no quarantine
	Delay      Millis     `json:"delay_ms"`          // by how much its own loop was late at worst, lately
	Margin     Margin     `json:"margin"`            // what its beats would have allowed
	Key        KeyUse     `json:"key,omitzero"`      // what it signs with
}

// LinkView is one heartbeat path to a node.
type LinkView struct {
	Name string `json:"name"`
	Up   bool   `json:"up"`
}

// Millis is a duration that JSON shows in milliseconds.
type Millis time.Duration

// MarshalJSON writes milliseconds as a number.
func (m Millis) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, float64(m)/1e6, 'f', -1, 64), nil
}

// UnmarshalJSON reads what MarshalJSON writes.
func (m *Millis) UnmarshalJSON(b []byte) error {
	ms, err := strconv.ParseFloat(string(b), 64)
	if err != nil {
		return fmt.Errorf("%.40q is no number of milliseconds", b)
	}
	*m = Millis(math.Round(ms * 1e6))
	return nil
}

// Find returns the node of that name, or nil.
func (v *View) Find(n NodeName) *NodeView {
	for i := range v.Nodes {
		if v.Nodes[i].Name == n {
			return &v.Nodes[i]
		}
	}
	return nil
}

// ClusterEventKind says what a ClusterEvent reports.
type ClusterEventKind uint8

// What the messenger tells the resource manager, in the order it happened.
const (
	ClusterNone     ClusterEventKind = iota
	CommunicationUp                  // own status is active: resources may be negotiated
	MessageReceived                  // a new Message of another node, each once
	NodeDied                         // Node has been silent for its deadtime
	NodeRestarted                    // Node came back with a higher generation before it was declared dead
	NodeJoined                       // Node is heard again after death (new generation), or for the first time
	PartitionHealed                  // Node is heard again after death with its old generation: it never died
	LinkChanged                      // a link to Node went up or down
	Renewed                          // the others see a new life of this node: what it said before is lost
)

// ClusterEvent is one fact about the cluster, from messenger to crm.
type ClusterEvent struct {
	At      time.Time
	Kind    ClusterEventKind
	Node    NodeName
	Message Message // MessageReceived
	View    View    // as it is after the event
}
