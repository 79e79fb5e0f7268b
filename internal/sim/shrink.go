package sim

import "slices"

// Shrink leaves out of a failing schedule, one by one, the faults without
// which it fails, too. A schedule that does not fail is returned as it is.
func Shrink(s Schedule) Schedule {
	fails := func(s Schedule) bool { return len(Run(s, nil).Broken) > 0 }
	if !fails(s) {
		return s
	}
	for i := 0; i < len(s.Faults); {
		less := s
		less.Faults = slices.Delete(slices.Clone(s.Faults), i, i+1)
		if fails(less) {
			s = less
		} else {
			i++
		}
	}
	return s
}
