package ipvs

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

// However long a list of connections takes, a real server that comes back waits
// no longer than its connections may linger, and not for lists that are known
// to come too late.
func TestWaitForOldConnectionsIsBounded(t *testing.T) {
	web := model.ServiceKey{Proto: model.TCP, Addr: netip.MustParseAddrPort("10.1.0.100:80")}
	real := netip.MustParseAddrPort("10.240.0.20:80")
	open := []model.Flow{{Proto: model.TCP, Client: netip.MustParseAddrPort("10.1.0.50:4000"), Virtual: web.Addr, Real: real}}
	for _, c := range []struct {
		name   string
		takes  time.Duration // a list
		gone   time.Duration // after the deletion
		waited []time.Duration
		listed []int
	}{
		{"they go soon", 0, 10 * time.Millisecond, []time.Duration{15 * time.Millisecond, 15 * time.Millisecond}, []int{5, 5}},
		{"they stay", 0, time.Hour, []time.Duration{lingering, lingering}, []int{10, 10}},
		{"a list takes a while", 100 * time.Millisecond, time.Hour, []time.Duration{lingering, lingering}, []int{3, 3}},
		{"a list takes too long", 14 * time.Second, 10 * time.Millisecond, []time.Duration{lingering, lingering}, []int{1, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var (
					y       graveyard
					deleted time.Time
					lists   int
					waited  []time.Duration
					listed  []int
				)
				list := func(ctx context.Context) ([]model.Flow, error) {
					lists++
					select {
					case <-ctx.Done():
						return nil, ctx.Err()
					case <-time.After(c.takes):
					}
					if time.Since(deleted) >= c.gone {
						return nil, nil
					}
					return open, nil
				}
				for range c.waited {
					deleted, lists = time.Now(), 0
					y.note(grave{service: web, real: real})
					if err := y.wait(t.Context(), web, real, list); err != nil {
						t.Fatal(err)
					}
					waited, listed = append(waited, time.Since(deleted)), append(listed, lists)
				}
				if diff := cmp.Diff(c.waited, waited); diff != "" {
					t.Errorf("waited (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(c.listed, listed); diff != "" {
					t.Errorf("listed (-want +got):\n%s", diff)
				}
				time.Sleep(time.Hour) // what was slow once may not be so any more
				y.note(grave{service: web, real: real})
				if lists = 0; y.wait(t.Context(), web, real, list) != nil || lists == 0 {
					t.Error("an hour later nothing is listed")
				}
			})
		})
	}
}

// The wait ends with its context, and with what cannot be listed.
func TestWaitForOldConnectionsEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		web := model.ServiceKey{Proto: model.TCP, Addr: netip.MustParseAddrPort("10.1.0.100:80")}
		var y graveyard
		y.note(grave{service: web})
		broken := errors.New("I/O error")
		if err := y.wait(t.Context(), web, netip.AddrPort{}, func(context.Context) ([]model.Flow, error) { return nil, broken }); !errors.Is(err, broken) {
			t.Errorf("%v, want %v", err, broken)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		err := y.wait(ctx, web, netip.AddrPort{}, func(ctx context.Context) ([]model.Flow, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want the end of the time of the call", err)
		}
	})
}
