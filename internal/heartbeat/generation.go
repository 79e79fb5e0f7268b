package heartbeat

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// NextGeneration returns the generation of a new life: one above the stored
// one, or above the current Unix time where none is stored (stored 0, or
// hbgenmethod time). A peer refuses anything not above what it has heard
// before (§6.1), so the result must be stored before the first packet.
func NextGeneration(stored uint32, now time.Time) uint32 {
	if stored == 0 {
		return uint32(now.Unix()) + 1
	}
	return stored + 1
}

// FormatGeneration writes a generation as the file hb_generation has it:
// decimal, right-aligned to 15 characters, newline (§19.1).
func FormatGeneration(g uint32) string { return fmt.Sprintf("%15d\n", g) }

// ParseGeneration reads the content of hb_generation.
func ParseGeneration(s string) (uint32, error) {
	g, err := strconv.ParseUint(strings.TrimSpace(s), 10, 32)
	if err != nil || g == 0 {
		return 0, fmt.Errorf("generation %.20q is not a decimal number from 1 to 4294967295", s)
	}
	return uint32(g), nil
}
