package node

import (
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// A new life in place is silent for a moment: what of that another node bears
// depends on who is there, and on the kernels.
func TestRestartPatience(t *testing.T) {
	hb := &model.Heartbeat{Self: "a", DeadTime: 25 * time.Millisecond, SuspectTime: time.Second}
	self := model.NodeView{Name: "a", State: model.NodeActive}
	peer := model.NodeView{Name: "b", State: model.NodeActive, Kernel: true}
	deaf, dead, ping := peer, peer, peer
	deaf.Kernel, dead.State, ping.Ping = false, model.NodeDead, true
	for _, c := range []struct {
		about   string
		node    model.NodeView
		answers bool
		want    time.Duration
	}{
		{"both kernels answer", peer, true, time.Second},
		{"this kernel does not", peer, false, 25 * time.Millisecond},
		{"the other does not know of it", deaf, true, 25 * time.Millisecond},
		{"nobody is there", dead, true, 1<<63 - 1},
		{"a ping node takes nothing", ping, true, 1<<63 - 1},
	} {
		if got := restartPatience(hb, model.View{Self: "a", Nodes: []model.NodeView{self, c.node}}, c.answers); got != c.want {
			t.Errorf("%s: %v, want %v", c.about, got, c.want)
		}
	}
}
