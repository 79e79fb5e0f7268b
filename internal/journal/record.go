package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/sla"
)

// Kind is what a Record tells.
type Kind uint8

// Kinds of records.
const (
	KindNone   Kind = iota
	KindOpen        // a file of the journal begins: who records, in which boot
	KindEvent       // something happened
	KindState       // a thing is in another state from an instant on
	KindStep        // the wall clock was stepped
	KindGap         // records were lost
	KindCut         // the end of a file was torn by a crash and has been cut
	KindPlan        // somebody declared a maintenance window
	KindAlive       // the recorder was there at that instant
	KindClose       // the recorder stopped in good order
	KindCancel      // somebody took a maintenance window back
)

var kindNames = []string{"none", "open", "event", "state", "step", "gap", "cut", "plan", "alive", "close", "cancel"}

func (k Kind) String() string { return kindNames[min(int(k), len(kindNames)-1)%len(kindNames)] }

// MarshalText writes the kind's word.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads what MarshalText writes; any other word is an error.
func (k *Kind) UnmarshalText(b []byte) error {
	i := slices.Index(kindNames, string(b))
	if i <= 0 {
		return fmt.Errorf("%q is no kind of record", b)
	}
	*k = Kind(i)
	return nil
}

// Record is one line of a journal.
type Record struct {
	Seq    uint64        `json:"seq"`   // counts the node's records, across restarts
	At     time.Time     `json:"at"`    // by the wall clock of the recorder
	Uptime time.Duration `json:"up_ns"` // since the boot of the machine (CLOCK_BOOTTIME): lengths are differences of it
	Kind   Kind          `json:"kind"`

	Open   *Opening      `json:"open,omitempty"`
	Event  *model.Event  `json:"event,omitempty"`
	State  *Change       `json:"state,omitempty"`
	Plan   *Window       `json:"plan,omitempty"`
	Cancel *Cancel       `json:"cancel,omitempty"`
	Step   time.Duration `json:"step_ns,omitempty"` // forward is positive
	Lost   uint64        `json:"lost,omitempty"`    // records of a gap, bytes of a cut
	Text   string        `json:"text,omitempty"`
}

// Opening says who records.
type Opening struct {
	Node model.NodeName `json:"node"`
	Boot string         `json:"boot"` // id of the machine's boot: uptimes of one boot are on one line
	Run  string         `json:"run"`  // differs between two lives of the daemon
}

// Thing is what has a state: "service tcp 10.1.0.100:80", "node lvs01".
type Thing struct{ Kind, Name string }

// Kinds of things.
const (
	ThingService  = "service"
	ThingAddress  = "vip"
	ThingResource = "resource"
	ThingNode     = "node"
	ThingLink     = "link"
	ThingReal     = "real" // a real server of a service
)

// ThingKinds lists all, in the order in which status shows them.
var ThingKinds = []string{ThingNode, ThingLink, ThingResource, ThingAddress, ThingService, ThingReal}

// String is the canonical text: kind and name.
func (t Thing) String() string { return t.Kind + " " + t.Name }

// MarshalText writes the canonical text.
func (t Thing) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads the canonical text.
func (t *Thing) UnmarshalText(b []byte) error {
	kind, name, ok := strings.Cut(string(b), " ")
	if !ok || !slices.Contains(ThingKinds, kind) || name == "" {
		return fmt.Errorf("%q names no thing: it begins with one of %s", b, strings.Join(ThingKinds, ", "))
	}
	*t = Thing{kind, name}
	return nil
}

// Change says that a thing is in a state from an instant on.
type Change struct {
	Thing Thing         `json:"thing"`
	State sla.State     `json:"state"`
	Since time.Duration `json:"since_ns"`        // uptime; may lie before the record: a silence is noticed late
	Where string        `json:"where,omitempty"` // node on which it runs
	Why   string        `json:"why,omitempty"`   // one sentence
	Ended *Repair       `json:"ended,omitempty"` // what the outage consisted of that this change ends
	Again bool          `json:"again,omitempty"` // said before: repeated so that each file can be read alone
}

// Repair is sla.Repair with its JSON form.
type Repair struct {
	Detect time.Duration `json:"detect_ns"`
	Decide time.Duration `json:"decide_ns"`
	Switch time.Duration `json:"switch_ns"`
	Verify time.Duration `json:"verify_ns"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// maxLine bounds a line of a journal; a longer one is damage.
const maxLine = 1 << 20

// appendLine appends the line of a record: checksum (CRC-32C, eight hex
// digits), space, JSON, newline.
func appendLine(b []byte, r *Record) ([]byte, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return b, fmt.Errorf("record %d: %w", r.Seq, err)
	}
	b = fmt.Appendf(b, "%08x ", crc32.Checksum(text, castagnoli))
	b = append(b, text...)
	return append(b, '\n'), nil
}

var errChecksum = errors.New("checksum does not fit")

// parseLine reads a line without its newline.
func parseLine(line []byte) (r Record, err error) {
	if len(line) < 10 || line[8] != ' ' {
		return r, errors.New("no checksum")
	}
	sum, err := strconv.ParseUint(string(line[:8]), 16, 32)
	if err != nil {
		return r, errors.New("no checksum")
	}
	if uint32(sum) != crc32.Checksum(line[9:], castagnoli) {
		return r, errChecksum
	}
	if err := json.Unmarshal(line[9:], &r); err != nil {
		return r, fmt.Errorf("line with a good checksum: %w", err)
	}
	return r, nil
}
