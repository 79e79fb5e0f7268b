package ebpf

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// ringKind is what a service's ring is made of.
type ringKind uint8

const (
	ringUnset  ringKind = iota
	ringEqual           // a turn for each real server
	ringShares          // turns by weight
	ringMaglev          // a Maglev table
)

// schedulers are those that this plane has. Their places in this list are in
// the services map: append only.
var schedulers = []struct {
	name   string
	choice tcChoice
	ring   ringKind
}{
	{},
	{"rr", tcChoiceCHOOSE_TURN, ringEqual},
	{"wrr", tcChoiceCHOOSE_TURN, ringShares},
	{"lc", tcChoiceCHOOSE_LC, ringEqual},
	{"wlc", tcChoiceCHOOSE_WLC, ringEqual},
	{"sed", tcChoiceCHOOSE_SED, ringEqual},
	{"nq", tcChoiceCHOOSE_NQ, ringEqual},
	{"fo", tcChoiceCHOOSE_FO, ringEqual},
	{"ovf", tcChoiceCHOOSE_OVF, ringEqual},
	{"sh", tcChoiceCHOOSE_SOURCE, ringMaglev},
	{"mh", tcChoiceCHOOSE_SOURCE, ringMaglev},
	{"dh", tcChoiceCHOOSE_DESTINATION, ringMaglev},
	{"twos", tcChoiceCHOOSE_TWO, ringShares},
	{"p2c", tcChoiceCHOOSE_TWO, ringShares}, // what the rest of the world calls it
}

func schedulerNumber(name string) (uint8, error) {
	for i, s := range schedulers[1:] {
		if s.name == name {
			return uint8(i + 1), nil
		}
	}
	var have []string
	for _, s := range schedulers[1:] {
		have = append(have, s.name)
	}
	return 0, fmt.Errorf("scheduler %q: the eBPF plane has %s: %w", name, strings.Join(have, " "), plane.ErrNotSupported)
}

// schedFlags are the texts of scheduler flags, as written by people; their
// places in this list are in the services map. A ring leaves out real servers
// that take no connections, so the fallback of sh and mh is always there.
var schedFlags = []string{"", "sh-port", "sh-fallback", "sh-fallback,sh-port", "sh-port,sh-fallback",
	"mh-port", "mh-fallback", "mh-fallback,mh-port", "mh-port,mh-fallback"}

func flagsNumber(text string) (uint8, error) {
	i := slices.Index(schedFlags, text)
	if i < 0 {
		return 0, lacks("scheduler flags %q; it has %s", text, strings.Join(schedFlags[1:], " "))
	}
	return uint8(i), nil
}

// writeService fills in a row but for its ring. What it holds has been accepted.
func writeService(row *tcService, v model.VirtualService) {
	row.Scheduler, _ = schedulerNumber(v.Scheduler)
	row.SchedFlags, _ = flagsNumber(v.SchedFlags)
	row.Choice = uint8(schedulers[row.Scheduler].choice)
	var flags tcServiceFlag
	if v.OnePacket {
		flags |= tcServiceFlagSERVICE_ONE_PACKET
	}
	if strings.Contains(v.SchedFlags, "-port") {
		flags |= tcServiceFlagSERVICE_HASH_PORT
	}
	row.PersistSeconds, row.Masked = 0, 0
	if p := v.Persistence; p.Enabled {
		flags |= tcServiceFlagSERVICE_STAYS
		row.Stays, row.PersistSeconds = toTicks(p.Timeout), uint32(p.Timeout/time.Second)
		row.Mask = tcAddr{D: [2]uint64{math.MaxUint64, math.MaxUint64}}
		if p.Netmask.IsValid() {
			row.Mask, row.Masked = wireMask(p.Netmask), 1
		}
	}
	row.Flags = uint8(flags)
}

// wireMask is a mask as it lies on addresses; IPv4's leaves the mapped part alone.
func wireMask(m netip.Addr) tcAddr {
	w := wireAddr(m)
	if m.Is4() {
		w.D[0] = math.MaxUint64
	}
	return w
}

func maskOfWire(w tcAddr, f model.Family) netip.Addr {
	if f == model.IPv4 {
		var b [8]byte
		binary.NativeEndian.PutUint64(b[:], w.D[1])
		return netip.AddrFrom4([4]byte(b[4:]))
	}
	var b [16]byte
	binary.NativeEndian.PutUint64(b[:], w.D[0])
	binary.NativeEndian.PutUint64(b[8:], w.D[1])
	return netip.AddrFrom16(b)
}

// serviceOf reads a row.
func serviceOf(row *tcService) model.VirtualService {
	v := model.VirtualService{Key: keyOfWire(row.Key), OnePacket: row.Flags&uint8(tcServiceFlagSERVICE_ONE_PACKET) != 0}
	if int(row.Scheduler) < len(schedulers) {
		v.Scheduler = schedulers[row.Scheduler].name
	}
	if int(row.SchedFlags) < len(schedFlags) {
		v.SchedFlags = schedFlags[row.SchedFlags]
	}
	if row.PersistSeconds > 0 {
		v.Persistence = model.Persistence{Enabled: true, Timeout: time.Duration(row.PersistSeconds) * time.Second}
		if row.Masked != 0 {
			v.Persistence.Netmask = maskOfWire(row.Mask, v.Key.Family())
		}
	}
	return v
}
