package link

import (
	"errors"
	"math/rand/v2"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What a network does to packets follows from its seed.
func TestNetworkIsDeterministic(t *testing.T) {
	story := func(seed uint64) (got []string) {
		synctest.Test(t, func(t *testing.T) {
			n := NewNetwork(rand.New(rand.NewPCG(seed, 0)))
			n.SetFault(Fault{Loss: 0.3, Duplicate: 0.2, Delay: time.Millisecond, Jitter: 5 * time.Millisecond})
			a, b := n.Join("a", "eth0"), n.Join("b", "eth0")
			start := time.Now()
			go func() {
				for {
					p, err := b.Receive()
					if err != nil {
						return
					}
					got = append(got, p.At.Sub(start).String()+" "+string(p.Data))
				}
			}()
			for i := range 50 {
				if err := a.Send([]byte(strconv.Itoa(i))); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Millisecond)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if err := errors.Join(a.Close(), b.Close()); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		})
		return got
	}
	one, again, other := story(1), story(1), story(2)
	if diff := cmp.Diff(one, again); diff != "" {
		t.Errorf("the same seed, twice:\n%s", diff)
	}
	if cmp.Equal(one, other) || len(one) < 25 {
		t.Errorf("another seed changes nothing, or everything is lost: %q", one)
	}
}

// A cut has a direction, and one's own packets come back whatever happens.
func TestCutHasADirection(t *testing.T) {
	n := NewNetwork(rand.New(rand.NewPCG(1, 0)))
	a, b := n.Join("a", "eth0"), n.Join("b", "eth0")
	n.Cut("a", "b")
	for _, l := range []Link{a, b} {
		if err := l.Send([]byte(l.(*port).station)); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []struct {
		at   Link
		text string
	}{{a, "a"}, {a, "b"}, {b, "b"}} {
		if p, err := want.at.Receive(); err != nil || string(p.Data) != want.text {
			t.Errorf("received %q, %v; want %q", p.Data, err, want.text)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Receive(); !errors.Is(err, ErrClosed) {
		t.Errorf("Receive after Close: %v", err)
	}
}
