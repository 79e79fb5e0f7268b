package node

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

// Lines are told in their order: before and after the task as they come, in
// between a moment later, but with what is critical at once.
func TestTeller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		type line struct {
			Text     string
			At, Told time.Duration
		}
		var got []line
		tl := newTeller()
		sink := tl.sink(func(e model.Event) {
			got = append(got, line{e.Text, e.At.Sub(began), time.Since(began)})
		})
		say := func(level model.Level, text string) { sink(model.Event{Level: level, Text: text}) }
		say(model.LevelInfo, "built")
		ctx, stop := context.WithCancel(t.Context())
		go func() { _ = tl.Run(ctx) }()
		<-tl.Ready()
		say(model.LevelInfo, "a hand-over begins")
		time.Sleep(2 * time.Millisecond)
		say(model.LevelNotice, "and ends")
		time.Sleep(10 * time.Millisecond) // 12
		say(model.LevelWarning, "warned")
		say(model.LevelCritical, "lost")
		time.Sleep(10 * time.Millisecond) // 22
		for range maxUntold {
			say(model.LevelDebug, "flood")
		}
		synctest.Wait()
		if n := len(got); n != 5+maxUntold {
			t.Errorf("of a flood %d lines are told at once, want %d", n-5, maxUntold)
		}
		got = got[:5]
		say(model.LevelInfo, "stopping")
		stop()
		synctest.Wait()
		say(model.LevelInfo, "closed")
		const ms = time.Millisecond
		want := []line{{"built", 0, 0}, {"a hand-over begins", 0, 5 * ms}, {"and ends", 2 * ms, 5 * ms}, {"warned", 12 * ms, 12 * ms},
			{"lost", 12 * ms, 12 * ms}, {"stopping", 22 * ms, 22 * ms}, {"closed", 22 * ms, 22 * ms}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
}
