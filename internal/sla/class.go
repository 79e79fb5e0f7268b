package sla

import (
	"fmt"
)

// Class is one of the four classes of systems that the literature tells apart
// by what they are for.
type Class uint8

// Classes of systems.
const (
	ClassNone       Class = iota
	General               // short outages are a nuisance
	HighlyAvailable       // outages must be rare and short
	Critical              // no outage at all during a mission
	LongLived             // must last where nobody can repair
)

// Classes lists all.
var Classes = []Class{General, HighlyAvailable, Critical, LongLived}

func (c Class) String() string {
	return [...]string{"none", "general", "highly-available", "critical", "long-lived"}[min(int(c), 4)]
}

// MarshalText writes general, highly-available, critical or long-lived.
func (c Class) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// ParseClass reads general, highly-available, critical or long-lived.
func ParseClass(text string) (Class, error) {
	for _, c := range Classes {
		if text == c.String() {
			return c, nil
		}
	}
	return ClassNone, fmt.Errorf("%q is no class of systems: general, highly-available, critical, long-lived", text)
}

// ClassFigures says whose the figures of the classes are.
const ClassFigures = "the figures are Batuta's, as examples; --target takes yours"

// classTarget is the figure that stands for a class. The classes are told
// apart by their purpose (B. W. Johnson, "Fault Tolerance", chapter 93 of The
// Electrical Engineering Handbook, 2000: high availability as in banking,
// critical computations as in flight control, long life as in satellites) and
// have no figures of their own. These were chosen here, of the size that such
// systems are built for, and no standard stands behind them: whoever has a
// figure sets it as a target.
type classTarget struct {
	most    Unavailability
	mission Span   // 0 = availability in the long run
	means   string // in words
}

var classTargets = map[Class]classTarget{
	General:         {1e-2, 0, "available 99 % of the time"},
	HighlyAvailable: {1e-5, 0, "available 99.999 % of the time"},
	Critical:        {1e-7, 3 * Hour, "no outage within 3 hours, with a probability of 99.99999 %"},
	LongLived:       {0.05, 10 * Year, "still serves after 10 years without repair, with a probability of 95 %"},
}

// ClassCheck is how a model stands to a class.
type ClassCheck struct {
	Class    Class  `json:"class"`
	Means    string `json:"means"`
	Met      bool   `json:"met"`
	Verdict  string `json:"verdict"`  // met, missed, or unknown
	Expected bool   `json:"expected"` // the model is meant to be of this class

	// Value is the availability, or the probability that the class is about;
	// nil if unknown. Unless Exact it is at least that.
	Value *Unavailability `json:"value"`
	Exact bool            `json:"exact"`
}

func (n *node) classes(wanted Class) []ClassCheck {
	var all []ClassCheck
	for _, c := range Classes {
		target := classTargets[c]
		check := ClassCheck{Class: c, Means: target.means, Expected: c == wanted, Exact: true, Verdict: "missed"}
		var value float64
		known := true
		switch c {
		case Critical:
			value, check.Exact = n.outage(target.mission)
		case LongLived:
			value, known = n.worn(target.mission)
		default:
			value = n.downOf(steadyDown)
		}
		if !known {
			check.Verdict = "unknown"
			all = append(all, check)
			continue
		}
		u := Unavailability(value)
		check.Value = &u
		// An availability of exactly the target arrives with its last bit
		// rounded either way.
		if value <= float64(target.most)*(1+1e-12) {
			check.Met, check.Verdict = true, "met"
		} else if !check.Exact {
			check.Verdict = "unknown"
		}
		all = append(all, check)
	}
	return all
}
