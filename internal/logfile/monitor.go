package logfile

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// Monitor is a monitorfile of ldirectord: one line for each check result. It
// takes lines without waiting for the disk.
type Monitor struct {
	pid  int
	out  *appender
	last <-chan struct{} // closed when the last line is written
}

// NewMonitor prepares a monitorfile; it is created with the first line. sink
// hears once when it cannot be written.
func NewMonitor(path string, pid int, sink model.Sink) *Monitor {
	m := &Monitor{pid: pid, out: open(path, "", sink)}
	m.out.write = func(e entry) error { return appendLine(path, e.stamp+e.text+"\n") } // a name without "/" is a file here
	return m
}

// Line queues one result:
//
//	[Sat Oct 12 09:01:02 2024] [4711] negotiate http tcp 10.0.0.1 80 1 masq /x alive [up] 200 OK
//
// identity is the check's, its parts between colons. Not for use by several
// goroutines at once.
func (m *Monitor) Line(at time.Time, identity string, s model.Status, message string) {
	if message == "" {
		message = "-"
	}
	done, _ := m.out.queue(entry{stamp: fmt.Sprintf("[%s] [%d] ", at.Local().Format("Mon Jan _2 15:04:05 2006"), m.pid),
		text: monitorIdentity(identity) + " [" + s.String() + "] " + percent(message)})
	if done != nil {
		m.last = done
	}
}

// Flush waits for the lines so far to be written, though not long for a disk
// that hangs.
func (m *Monitor) Flush() {
	if m.last == nil {
		return
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-m.last:
	case <-t.C:
	}
}

// monitorIdentity makes one blank of each run of colons, and leaves
// backslashes out.
func monitorIdentity(s string) string {
	s = strings.Join(strings.FieldsFunc(strings.ReplaceAll(s, `\`, ""), func(r rune) bool { return r == ':' }), " ")
	return oneLine(s)
}

var percentEncoding = strings.NewReplacer("%", "%25", "|", "%7c", "\r", "%0d", "\n", "%0a")

func percent(s string) string { return oneLine(percentEncoding.Replace(s)) }

// Supervised writes the lines of supervised=yes, as they go to standard output:
//
//	[Sat Oct 12 09:01:02 2024] Added virtual server: 10.0.0.1:80
func Supervised(w io.Writer) model.Sink {
	var mu sync.Mutex
	return func(e model.Event) {
		if e.Level == model.LevelDebug {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		_, _ = fmt.Fprintf(w, "[%s] %s\n", e.At.Local().Format("Mon Jan _2 15:04:05 2006"), oneLine(e.Text)) // nobody to tell
	}
}

// Console writes lines as ldirectord -d does: bare text, and debug events as
// "DEBUG2: text".
func Console(w io.Writer) model.Sink {
	var mu sync.Mutex
	return func(e model.Event) {
		mark := ""
		if e.Level == model.LevelDebug {
			mark = "DEBUG2: "
		}
		mu.Lock()
		defer mu.Unlock()
		_, _ = fmt.Fprintln(w, mark+oneLine(e.Text)) // nobody to tell
	}
}
