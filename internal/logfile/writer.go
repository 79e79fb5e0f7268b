package logfile

import (
	"io"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
)

// Unhurried returns a writer that passes what is written on to w, in order,
// and never holds its callers up: a reader of w that has stopped reading (a
// pager, a terminal with its output held, a hung log daemon) costs lines, not
// heartbeats.
func Unhurried(w io.Writer) io.Writer {
	return &unhurried{appender{
		write:  func(e entry) error { _, err := io.WriteString(w, e.text); return err },
		report: func(error) {}, // there is nobody left to tell
	}}
}

type unhurried struct{ a appender }

// Write queues b and reports success: what becomes of it is nobody's business here.
func (u *unhurried) Write(b []byte) (int, error) {
	u.a.append(entry{level: model.LevelInfo, text: strings.Clone(string(b))})
	return len(b), nil
}
