package link

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxAge bounds what is believed of a kernel time stamp.
	maxAge = time.Minute
	// A wall clock that moved against the monotonic one by more than this, and
	// by more than an eighth of the time between, was set: programs that only
	// adjust it make it faster or slower by a twelfth at most (chrony.conf(5),
	// maxslewrate).
	clockStep   = time.Millisecond
	clockAdjust = 8
)

// stamps turns the kernel's time stamps into times on the caller's monotonic
// clock. They are wall time, which somebody may set between a packet's arrival
// and its reading: a beat must not move by that. The zero value is ready.
type stamps struct {
	base    time.Time // where mono begins
	offset  time.Duration
	mono    time.Duration // when offset was looked at
	stepped time.Duration // when it was last found changed; what came before has no known age
}

// arrived is when the kernel received a packet, by the stamp among its control
// messages (socket(7), SO_TIMESTAMPNS); now if there is none to believe.
func (s *stamps) arrived(now time.Time, oob []byte) time.Time {
	at, ok := stampOf(oob)
	if !ok {
		return now
	}
	if s.base.IsZero() {
		s.base = now
	}
	return now.Add(-s.age(time.Duration(now.UnixNano()), now.Sub(s.base), at))
}

// age is how long ago a stamp was made; 0 if that cannot be known.
func (s *stamps) age(wall, mono, stamp time.Duration) time.Duration {
	offset := wall - mono
	if s.offset != 0 && (offset-s.offset).Abs() > clockStep+(mono-s.mono)/clockAdjust {
		s.stepped = mono
	}
	s.offset, s.mono = offset, mono
	age := wall - stamp
	if age < 0 || age > maxAge || s.stepped != 0 && mono-age < s.stepped {
		return 0
	}
	return age
}

// stampOf finds the stamp, as the time since 1970.
func stampOf(oob []byte) (time.Duration, bool) {
	for len(oob) >= unix.SizeofCmsghdr {
		head, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return 0, false
		}
		if head.Level == unix.SOL_SOCKET && head.Type == unix.SO_TIMESTAMPNS && len(data) >= 16 {
			return time.Duration(binary.NativeEndian.Uint64(data))*time.Second + time.Duration(binary.NativeEndian.Uint64(data[8:])), true
		}
		oob = rest
	}
	return 0, false
}
