package node

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/batuta-ha/batuta/internal/logfile"
	"github.com/batuta-ha/batuta/internal/model"
)

// stderrSink writes each event as one line of text for whoever watches the
// foreground process; a service manager stamps and keeps it.
func stderrSink(w io.Writer) model.Sink {
	log := slog.NewTextHandler(logfile.Unhurried(w), &slog.HandlerOptions{Level: slog.LevelInfo})
	return func(e model.Event) {
		if e.At.IsZero() {
			e.At = time.Now()
		}
		line := slog.NewRecord(e.At, slogLevel(e.Level), e.Text, 0) // of when it happened: it may be told later
		line.AddAttrs(slog.String("source", e.Source), slog.String("kind", e.Kind))
		if ctx := context.Background(); log.Enabled(ctx, line.Level) {
			_ = log.Handle(ctx, line) // who reads it is nobody's business here
		}
	}
}

func slogLevel(l model.Level) slog.Level {
	switch l {
	case model.LevelDebug:
		return slog.LevelDebug
	case model.LevelWarning:
		return slog.LevelWarn
	case model.LevelError, model.LevelCritical:
		return slog.LevelError
	case model.LevelInfo, model.LevelNotice:
	}
	return slog.LevelInfo
}

// fanOut gives each event to all sinks, in order.
func fanOut(sinks ...model.Sink) model.Sink {
	return func(e model.Event) {
		for _, s := range sinks {
			if s != nil {
				s(e)
			}
		}
	}
}
