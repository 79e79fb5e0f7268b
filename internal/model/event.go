package model

import (
	"fmt"
	"strings"
	"time"
)

// Level is how much an Event matters to a person.
type Level uint8

// Levels, in Heartbeat's order.
const (
	LevelDebug Level = iota
	LevelInfo
	LevelNotice
	LevelWarning
	LevelError
	LevelCritical
)

func (l Level) String() string {
	return [...]string{"debug", "info", "notice", "WARN", "ERROR", "CRIT"}[min(int(l), 5)]
}

// MarshalText writes the level in lower case, for JSON.
func (l Level) MarshalText() ([]byte, error) { return []byte(strings.ToLower(l.String())), nil }

// UnmarshalText reads what MarshalText writes; any other word is an error.
func (l *Level) UnmarshalText(b []byte) error {
	for i := LevelDebug; i <= LevelCritical; i++ {
		if strings.EqualFold(i.String(), string(b)) {
			*l = i
			return nil
		}
	}
	return fmt.Errorf("%q is no level", b)
}

// Event is one thing that happened and that someone may ask about later.
type Event struct {
	At      time.Time `json:"at"`
	Level   Level     `json:"level"`
	Source  string    `json:"source"`            // director, heartbeat, resources, announce, ...
	Kind    string    `json:"kind"`              // stable word for machines: "real-down", "takeover", ...
	Subject string    `json:"subject,omitempty"` // canonical text of what it is about
	Text    string    `json:"text"`              // one sentence for people
}

// String is the canonical text: "director real-down: Quiescent real server: ...".
func (e Event) String() string { return e.Source + " " + e.Kind + ": " + e.Text }

// Sink takes events. It does not block for long and may be called from any goroutine.
type Sink func(Event)
