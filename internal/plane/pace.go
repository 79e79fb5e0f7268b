package plane

import "time"

// Pace is how long to wait before something is done again that took so long:
// a second, and longer where it would take more than a hundredth of a
// processor's time, but a minute at most.
func Pace(took time.Duration) time.Duration {
	return min(max(time.Second, 100*took), time.Minute)
}
