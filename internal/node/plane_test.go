package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
	"github.com/batuta-ha/batuta/internal/plane/memory"
)

// holder is a plane that serves held addresses only, as proxy does.
type holder struct{ plane.Plane }

func (holder) SetAddresses(context.Context, []netip.Addr) error { return nil }

func TestAutoTakesTheFirstPlaneThatWorksAndSaysWhy(t *testing.T) {
	no := func() error { return fmt.Errorf("no module here: %w", plane.ErrNotSupported) }
	yes := func() error { return nil }
	broken := func() error { return errors.New("I/O error") }
	open := func() (plane.Plane, error) { return memory.New(memory.Options{}) }
	openHolder := func() (plane.Plane, error) { p, err := open(); return holder{p}, err }
	const model0 = "a model: no packet is touched; "
	for name, c := range map[string]struct {
		list   []candidate
		detail string
		event  string
		err    string
		holds  bool
	}{
		"the first works": {
			list:   []candidate{{name: "ipvs", supported: yes, open: open}, {name: "ebpf", supported: broken, open: open}},
			detail: model0 + "chosen as the first that works here",
		},
		"the second": {
			list:   []candidate{{name: "ipvs", supported: no, open: open}, {name: "ebpf", supported: yes, open: open}},
			detail: model0 + "not ipvs: no module here: not supported",
			event:  "plane ebpf: not ipvs: no module here: not supported",
		},
		"the last, which holds addresses": {
			list:   []candidate{{name: "ipvs", supported: no, open: open}, {name: "ebpf", supported: no, open: open}, {name: "proxy", open: openHolder}},
			detail: model0 + "not ipvs: no module here: not supported; not ebpf: no module here: not supported",
			event:  "plane proxy: not ipvs: no module here: not supported; not ebpf: no module here: not supported",
			holds:  true,
		},
		"one that is in use comes first": {
			list:   []candidate{{name: "ipvs", supported: yes, open: open}, {name: "ebpf", inUse: "its table is here", supported: yes, open: open}},
			detail: model0 + "its table is here",
			event:  "plane ebpf: its table is here",
		},
		"it cannot be found out": {
			list: []candidate{{name: "ipvs", supported: broken, open: open}, {name: "proxy", open: open}},
			err:  "find out whether ipvs works here: I/O error; choose with --plane",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var event string
			p, err := autoPlane(planeOptions{sink: func(e model.Event) { event = e.Text }}, c.list)
			if c.err != "" {
				if err == nil || err.Error() != c.err {
					t.Fatalf("%v, want %s", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.detail, p.Info().Detail); diff != "" {
				t.Errorf("detail (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.event, event); diff != "" {
				t.Errorf("event (-want +got):\n%s", diff)
			}
			if _, holds := p.(plane.AddressHolder); holds != c.holds {
				t.Errorf("holds addresses: %v", holds)
			}
		})
	}
}
