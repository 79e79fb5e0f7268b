package check

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"

	"github.com/batuta-ha/batuta/internal/model"
)

// promptLimit is the longest line without an end that an expect step looks at,
// in bytes: prompts have no end. A server that sends byte by byte would have
// longer ones looked at too often.
const promptLimit = 256

// negotiateDialogue holds the dialogue that the configuration has written out.
// Each step may take its own time-out, or NegotiateTimeout; all together may
// take as much longer as their own time-outs are.
func negotiateDialogue(ctx context.Context, t model.Target) model.Verdict {
	steps, err := model.ParseSteps(t.Steps)
	if err != nil {
		return down(err.Error())
	}
	whole := dialogueSteps * t.NegotiateTimeout
	patterns := make([]*regexp.Regexp, len(steps))
	for i, s := range steps {
		whole += s.Timeout
		if s.Kind == model.StepExpect || s.Kind == model.StepExpectNot {
			if patterns[i], err = compile(s.Text); err != nil {
				return down(err.Error())
			}
		}
	}
	return converseWithin(ctx, t, whole, func(d *dialogue) (string, error) {
		said := "connected"
		for i, s := range steps {
			d.step = t.NegotiateTimeout
			if s.Timeout > 0 {
				d.step = s.Timeout
			}
			d.begin(fmt.Sprintf("step %d, %s", i+1, s.Kind))
			line, err := d.perform(t, s, patterns[i])
			if err != nil {
				return "", err
			}
			if line != "" {
				said = line
			}
			if s.Kind == model.StepClose {
				break
			}
		}
		return said, nil
	})
}

// perform makes one step; line is what the server said that was looked for.
func (d *dialogue) perform(t model.Target, s model.Step, pattern *regexp.Regexp) (line string, err error) {
	switch s.Kind {
	case model.StepSend:
		_, err = io.WriteString(d.conn, s.Text)
	case model.StepExpect:
		line, err = d.expect(pattern, s.Text)
	case model.StepExpectNot:
		if line, err = d.line(); err == nil && pattern.MatchString(line) {
			err = fmt.Errorf("%q is in the answer %q", clean(s.Text), clean(line))
		}
	case model.StepStartTLS:
		at := d.at
		err = d.secure(t)
		d.at = at
	case model.StepClose, model.StepNone:
	}
	return line, err
}

// expect reads lines until one matches. A line that has not ended counts, too:
// it may be a prompt.
func (d *dialogue) expect(pattern *regexp.Regexp, text string) (string, error) {
	last := ""
	for seen := 0; ; {
		_, err := d.in.Peek(seen + 1) // waits
		b, _ := d.in.Peek(d.in.Buffered())
		line, _, ended := bytes.Cut(b, []byte("\n"))
		n := len(line)
		line = bytes.TrimSuffix(line, []byte("\r"))
		found := (ended || err != nil || len(b) <= promptLimit) && pattern.Match(line)
		if found || ended {
			last = string(line)
			if ended {
				n++
			}
			_, _ = d.in.Discard(n)
			seen = 0
		} else {
			seen = len(b)
		}
		switch {
		case found:
			return last, nil
		case ended:
		case errors.Is(err, bufio.ErrBufferFull):
			return "", fmt.Errorf("a line of more than %d bytes", lineLimit)
		case errors.Is(err, io.EOF) && d.left.N <= 0:
			return "", errors.New("an answer without end")
		case errors.Is(err, io.EOF) && last == "" && seen == 0:
			return "", errors.New("connection closed by the server")
		case errors.Is(err, io.EOF):
			if seen > 0 {
				last = string(b)
			}
			return "", fmt.Errorf("%q is in no line, the last one is %q", clean(text), clean(last))
		case err != nil:
			return "", err
		}
	}
}
