package model

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// StepKind is what one step of a dialogue does.
type StepKind uint8

// Steps of a dialogue.
const (
	StepNone      StepKind = iota
	StepSend               // send Text as it is
	StepExpect             // read until the regular expression Text matches
	StepExpectNot          // read one line, in which Text must not match
	StepStartTLS           // go on with TLS
	StepClose              // end the connection; nothing follows
)

var stepText = [...]string{"none", "send", "expect", "expect-not", "starttls", "close"}

func (k StepKind) String() string { return stepText[min(int(k), len(stepText)-1)] }

// Step is one step of a dialogue.
type Step struct {
	Kind    StepKind
	Text    string
	Timeout time.Duration // 0: the check's own
}

// StepsText is the canonical text of a dialogue, one step a line: "send
// \"HELO\\r\\n\" 2s". It is what Target.Steps holds, which has to be comparable.
func StepsText(steps []Step) string {
	var b strings.Builder
	for _, s := range steps {
		b.WriteString(s.Kind.String())
		if s.Kind == StepSend || s.Kind == StepExpect || s.Kind == StepExpectNot {
			b.WriteString(" " + strconv.Quote(s.Text))
		}
		if s.Timeout != 0 {
			b.WriteString(" " + s.Timeout.String())
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// ParseSteps reads what StepsText writes.
func ParseSteps(text string) ([]Step, error) {
	var steps []Step
	for line := range strings.Lines(text) {
		word, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		s := Step{Kind: StepKind(max(0, slices.Index(stepText[:], word)))}
		if s.Kind == StepNone {
			return nil, fmt.Errorf("%q is no step of a dialogue", word)
		}
		if quoted, err := strconv.QuotedPrefix(rest); err == nil {
			s.Text, _ = strconv.Unquote(quoted)
			rest = strings.TrimPrefix(rest[len(quoted):], " ")
		}
		if rest != "" {
			d, err := time.ParseDuration(rest)
			if err != nil {
				return nil, fmt.Errorf("step %s of a dialogue: %w", word, err)
			}
			s.Timeout = d
		}
		steps = append(steps, s)
	}
	return steps, nil
}
