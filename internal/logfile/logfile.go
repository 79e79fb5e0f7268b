// Package logfile writes events as lines of the log files that the old
// programs wrote, so that what people and monitoring read goes on to work.
// Events come in through a model.Sink; lines go out to files or to syslog. It
// never decides what is worth logging, and a disk that fails or hangs neither
// ends nor holds up the program.
package logfile

import (
	"fmt"
	"log/syslog"
	"strings"
	"time"
	"unicode"

	"github.com/batuta-ha/batuta/internal/model"
)

// LdirectordOptions say where ldirectord's lines go.
type LdirectordOptions struct {
	LogFile  string     // a path, or a syslog facility where there is no "/" in it; "" for no log
	Instance string     // the name in each line
	PID      int        // in each line
	Sink     model.Sink // hears once when the log cannot be written
}

// Ldirectord writes lines in ldirectord's form:
//
//	[Sat Oct 12 09:01:02 2024|ldirectord.cf|4711] Added virtual server: 10.0.0.1:80
//
// Debug events are left out.
func Ldirectord(o LdirectordOptions) model.Sink {
	out := open(o.LogFile, "ldirectord", o.Sink)
	return func(e model.Event) {
		if e.Level == model.LevelDebug || out == nil {
			return
		}
		stamp := fmt.Sprintf("[%s|%s|%d] ", e.At.Local().Format("Mon Jan _2 15:04:05 2006"), o.Instance, o.PID)
		out.append(entry{e.Level, stamp, oneLine(e.Text)})
	}
}

// HeartbeatOptions say where Heartbeat's lines go.
type HeartbeatOptions struct {
	LogFile   string     // ha.cf logfile; "" for none
	DebugFile string     // ha.cf debugfile: debug events too; "" for none
	Facility  string     // ha.cf logfacility; "" or "none" for none
	OldFormat bool       // ha.cf syslogmsgfmt false
	Host      string     // in each line
	PID       int        // in each line
	Sink      model.Sink // hears once when a log cannot be written
}

// Heartbeat writes lines in Heartbeat's form:
//
//	Oct 12 09:01:02 lvs01 heartbeat: [4711]: info: Link lvs02:eth1 up.
func Heartbeat(o HeartbeatOptions) model.Sink {
	log, debug := open(o.LogFile, "heartbeat", o.Sink), open(o.DebugFile, "heartbeat", o.Sink)
	var facility *appender
	if o.Facility != "" && o.Facility != "none" {
		facility = open(o.Facility, "heartbeat", o.Sink)
	}
	return func(e model.Event) {
		text := oneLine(e.Text)
		stamp := fmt.Sprintf("%s %s heartbeat: [%d]: %s: ", e.At.Local().Format("Jan _2 15:04:05"), o.Host, o.PID, e.Level)
		if o.OldFormat {
			stamp = fmt.Sprintf("heartbeat[%d]: %s %s: ", o.PID, e.At.Local().Format("2006/01/02_15:04:05"), e.Level)
		}
		for _, out := range [...]*appender{log, debug} {
			if out != nil && (e.Level != model.LevelDebug || out == debug) {
				out.append(entry{e.Level, stamp, text})
			}
		}
		if facility != nil && e.Level != model.LevelDebug {
			facility.append(entry{e.Level, "", fmt.Sprintf("[%d]: %s: %s", o.PID, e.Level, text)})
		}
	}
}

// open prepares a log; nil for none.
func open(name, tag string, sink model.Sink) *appender {
	if name == "" {
		return nil
	}
	a := &appender{report: func(err error) {
		if sink != nil {
			sink(model.Event{At: time.Now(), Level: model.LevelError, Source: "logfile", Kind: "log-failed", Subject: name,
				Text: fmt.Sprintf("log %s: %v; the program goes on, and so does this log once it can be written", name, err)})
		}
	}}
	if strings.Contains(name, "/") {
		a.write = func(e entry) error { return appendLine(name, e.stamp+e.text+"\n") }
		return a
	}
	a.write = (&facility{name: name, tag: tag}).write
	return a
}

// oneLine keeps a text from forging other lines or driving a terminal: by
// control characters, those of ISO 6429 above ASCII among them, or by turning
// the direction of the line around.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t':
			return ' '
		case unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp):
			return '?'
		}
		return r
	}, text)
}

// facilities are the names of syslog.conf(5).
var facilities = map[string]syslog.Priority{
	"kern": syslog.LOG_KERN, "user": syslog.LOG_USER, "mail": syslog.LOG_MAIL, "daemon": syslog.LOG_DAEMON,
	"auth": syslog.LOG_AUTH, "syslog": syslog.LOG_SYSLOG, "lpr": syslog.LOG_LPR, "news": syslog.LOG_NEWS,
	"uucp": syslog.LOG_UUCP, "cron": syslog.LOG_CRON, "authpriv": syslog.LOG_AUTHPRIV, "ftp": syslog.LOG_FTP,
	"local0": syslog.LOG_LOCAL0, "local1": syslog.LOG_LOCAL1, "local2": syslog.LOG_LOCAL2, "local3": syslog.LOG_LOCAL3,
	"local4": syslog.LOG_LOCAL4, "local5": syslog.LOG_LOCAL5, "local6": syslog.LOG_LOCAL6, "local7": syslog.LOG_LOCAL7,
}

// facility is a connection to syslog, made when first needed.
type facility struct {
	name, tag string
	w         *syslog.Writer
}

func (f *facility) write(e entry) error {
	if f.w == nil {
		p, ok := facilities[f.name]
		if !ok {
			return fmt.Errorf("no syslog facility of that name, and no path because it has no \"/\"")
		}
		w, err := syslog.New(p|syslog.LOG_INFO, f.tag)
		if err != nil {
			return fmt.Errorf("syslog: %w", err)
		}
		f.w = w
	}
	put := map[model.Level]func(string) error{
		model.LevelDebug: f.w.Debug, model.LevelNotice: f.w.Notice, model.LevelWarning: f.w.Warning,
		model.LevelError: f.w.Err, model.LevelCritical: f.w.Crit}[e.level]
	if put == nil {
		put = f.w.Info
	}
	return put(e.text)
}
