package model

import "time"

// Care is how gently a service treats real servers that come and go. The zero
// value is ldirectord's way: none of it.
type Care struct {
	// Flapping: a real server that went down Flaps times within FlapWindow
	// serves again only when it has been well for FlapHold without a break.
	// Flaps 0: never.
	Flaps                int
	FlapWindow, FlapHold time.Duration

	// Slow start: the weight of a real server that comes back grows to its
	// full size over SlowStart; 0: at once. SlowFirst is the part that it
	// begins with, 0 for a tenth; with Aggression above 1 it grows faster at
	// first, 0 is 1, a straight line.
	SlowStart  time.Duration
	SlowFirst  float64
	Aggression float64

	// Panic: when fewer than Panic percent of the real servers are up, but not
	// none, all are used as if they were: the last ones would not carry it all,
	// and the checks may be wrong. 0: never.
	Panic int
}
