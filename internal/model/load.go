package model

import (
	"strconv"
	"strings"
)

// Load is what a real server reports of itself, by an agent or a header: how
// much of its weight it wants, and whether it wants new connections at all.
// The zero value is no report. It is comparable.
type Load struct {
	Weighted bool     // Percent was reported
	Percent  int      // of the configured weight, 0 to MaxLoadPercent
	Mode     LoadMode // what else was reported
	Reason   string   // in the server's words; "" for none
}

// MaxLoadPercent bounds what a real server may ask for.
const MaxLoadPercent = 1000

// LoadMode is a word of a report.
type LoadMode uint8

// Words of a report, as HAProxy's agents say them.
const (
	LoadUnsaid LoadMode = iota
	LoadReady           // "ready", "up": serve
	LoadDrain           // "drain": no new connections
	LoadMaint           // "maint": none at all
	LoadDown            // "down", "fail", "stopped": does not serve
)

var loadModeText = [...]string{"", "ready", "drain", "maint", "down"}

func (m LoadMode) String() string { return loadModeText[min(int(m), len(loadModeText)-1)] }

// String is the canonical text: "75% drain", "" for no report.
func (l Load) String() string {
	var words []string
	if l.Weighted {
		words = append(words, strconv.Itoa(l.Percent)+"%")
	}
	if l.Mode != LoadUnsaid {
		words = append(words, l.Mode.String())
	}
	s := strings.Join(words, " ")
	if l.Reason != "" {
		s += " (" + l.Reason + ")"
	}
	return s
}

// Weight is what the report makes of a configured weight: at least 1, unless
// that is 0 or nothing is wanted.
func (l Load) Weight(configured int) int {
	if !l.Weighted {
		return configured
	}
	w := (configured*l.Percent + 50) / 100
	if configured > 0 && l.Percent > 0 {
		w = max(w, 1)
	}
	return min(w, maxWeight)
}

// maxWeight is the kernel's: ip_vs stores no more.
const maxWeight = 65535

// ParseLoad reads a line of an agent: words between blanks or commas, as
// "75%", "up", "ready 50%", "down # disk full". It follows the agent-check of
// HAProxy's configuration manual; maxconn, which it also has, is passed over.
// ok is false where no word is understood.
func ParseLoad(line string) (l Load, ok bool) {
	said, reason, _ := strings.Cut(line, "#")
	for _, w := range strings.FieldsFunc(said, func(r rune) bool { return r == ' ' || r == '\t' || r == ',' || r == '\r' || r == '\n' }) {
		mode := LoadUnsaid
		switch strings.ToLower(w) {
		case "up", "ready":
			mode = LoadReady
		case "drain":
			mode = LoadDrain
		case "maint":
			mode = LoadMaint
		case "down", "fail", "failed", "stopped":
			mode = LoadDown
		default:
			n, found := strings.CutSuffix(w, "%")
			if percent, err := strconv.Atoi(n); found && err == nil && percent >= 0 {
				l.Weighted, l.Percent = true, min(percent, MaxLoadPercent)
			}
		}
		l.Mode = max(l.Mode, mode) // of several words the sternest
	}
	l.Reason = strings.TrimSpace(reason)
	ok = l.Weighted || l.Mode != LoadUnsaid
	if !ok {
		return Load{}, false
	}
	return l, true
}
