package agent

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, err := Delay(model.Resource{Agent: "Delay", Args: []string{"3", "1"}, Text: "Delay::3::1"})
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct {
			do   func(context.Context) error
			want time.Duration
			then model.ResourceState
		}{
			{d.Stop, 0, model.ResourceStopped}, // it does not run: nothing to wait for
			{d.Start, 3 * time.Second, model.ResourceRunning},
			{d.Start, 0, model.ResourceRunning},
			{d.Stop, time.Second, model.ResourceStopped},
		} {
			began := time.Now()
			if err := step.do(t.Context()); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took != step.want {
				t.Errorf("it took %v, want %v", took, step.want)
			}
			if got, err := d.Status(t.Context()); err != nil || got != step.then {
				t.Errorf("status %v, %v; want %v", got, err, step.then)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := d.Start(ctx); err == nil {
			t.Error("it did not end with its context")
		}
	})
	for _, bad := range []string{"x", "-1", "1e9"} {
		if _, err := Delay(model.Resource{Agent: "Delay", Args: []string{bad}, Text: "Delay::" + bad}); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
