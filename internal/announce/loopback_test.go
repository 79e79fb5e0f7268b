package announce

import (
	"strings"
	"testing"

	"github.com/batuta-ha/batuta/internal/model"
)

func resource(text string) model.Resource {
	words := strings.Split(text, "::")
	return model.Resource{Agent: words[0], Args: words[1:], Text: text}
}

func TestLoopbackNeedsNothing(t *testing.T) {
	n := New(Options{})
	defer n.Close()
	a, err := n.Address(resource("IPaddr::127.0.0.5/8/eth0"))
	if err != nil {
		t.Fatal(err)
	}
	expect(t, a, model.ResourceStopped)
	for range 2 {
		if err := a.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, a, model.ResourceRunning)
	n.Reannounce()
	for range 2 {
		if err := a.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, a, model.ResourceStopped)
}

func expect(t *testing.T, a *Address, want model.ResourceState) {
	t.Helper()
	if got, err := a.Status(t.Context()); err != nil || got != want {
		t.Errorf("%s is %v, %v; want %v", a.Addr(), got, err, want)
	}
}
