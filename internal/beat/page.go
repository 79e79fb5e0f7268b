package beat

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// page is memory that both processes see, for as long as they live. A side that hangs is known by a
// number that stands still, not by a clock that both would have to agree on.
type page struct{ *numbers }

// numbers is what the page holds.
type numbers struct {
	decisions atomic.Uint64 // grows while the decision loop runs; 0: there is none to wait for
	pulse     atomic.Uint64 // grows with each beat
}

const pageSize = int(unsafe.Sizeof(numbers{}))

// newPage makes a page, and the file by which the other process finds it.
func newPage() (*page, *os.File, error) {
	fd, err := unix.MemfdCreate("batuta-beat", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, nil, fmt.Errorf("memory shared with the beat process: %w", err)
	}
	f := os.NewFile(uintptr(fd), "batuta-beat")
	if err = f.Truncate(int64(pageSize)); err == nil {
		var p *page
		if p, err = openPage(f); err == nil {
			return p, f, nil
		}
	}
	_ = f.Close()
	return nil, nil, err
}

// openPage is the page of that file.
func openPage(f *os.File) (*page, error) {
	b, err := unix.Mmap(int(f.Fd()), 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("memory shared with the beat process: %w", err)
	}
	return &page{(*numbers)(unsafe.Pointer(&b[0]))}, nil
}

// standstill measures for how long a number has not grown, as far as the one
// who looks was there to see it: a looker that was stopped itself, or a machine
// that was, counts no more than a step.
type standstill struct {
	step   time.Duration // the longest time between two looks that counts in full
	last   uint64
	looked time.Time
	lasts  time.Duration
}

// look enters the number of now and returns how long it has been the same.
func (s *standstill) look(now time.Time, n uint64) time.Duration {
	switch {
	case n != s.last || s.looked.IsZero():
		s.last, s.lasts = n, 0
	default:
		s.lasts += min(now.Sub(s.looked), s.step)
	}
	s.looked = now
	return s.lasts
}
