package model

// Agreement is what was promised about a service, in the words of the
// configuration. Members that are "" promise nothing.
type Agreement struct {
	Target string `json:"target,omitempty"` // availability in percent: "99.95"
	Hours  string `json:"hours,omitempty"`  // when it counts: "Mon-Fri 08:00-18:00"; "" for always
	Zone   string `json:"tz,omitempty"`     // of the hours: "Europe/Berlin"; "" for that of the machine
}
