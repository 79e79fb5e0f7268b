package ebpf

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/batuta-ha/batuta/internal/model"
)

// Interfaces change while rules are set: what was set last is in force.
func TestMarksWhileInterfacesChange(t *testing.T) {
	p := open(t, testOptions())
	rules := func(mark uint32) []model.MarkRule {
		return []model.MarkRule{{Mark: mark, Family: model.IPv4, Interface: "outside"}}
	}
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for ctx.Err() == nil {
				p.resolveMarks()
			}
		})
	}
	defer func() { stop(); all.Wait() }()
	for mark := range uint32(2000) {
		if err := p.SetMarks(t.Context(), rules(1+mark)); err != nil {
			t.Fatal(err)
		}
		p.mu.Lock()
		now := slices.Clone(p.state.marks)
		p.mu.Unlock()
		if now[0].Mark != 1+mark {
			t.Fatalf("mark %d was set, and %d is in force", 1+mark, now[0].Mark)
		}
	}
}
