package planetest

import (
	"context"

	"pgregory.net/rapid"

	"github.com/batuta-ha/batuta/internal/model"
)

// anySequence holds the plane against Table.Perform: batches of random
// changes, sensible or not, on few services and real servers.
func anySequence(s *suite) {
	protocols := []model.Protocol{model.TCP, model.UDP}
	batch := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) model.Change {
		p := rapid.SampledFrom(protocols).Draw(t, "protocol")
		i := rapid.IntRange(0, Virtuals-1).Draw(t, "virtual")
		op := rapid.SampledFrom([]model.ChangeOp{
			model.ServiceAdd, model.ServiceAdd, model.ServiceEdit, model.ServiceDelete,
			model.RealAdd, model.RealAdd, model.RealAdd, model.RealEdit, model.RealDelete,
		}).Draw(t, "op")
		switch op {
		case model.ServiceAdd, model.ServiceEdit, model.ServiceDelete:
			c := s.service(p, i, rapid.SampledFrom([]string{"rr", "wrr"}).Draw(t, "scheduler"))
			c.Op = op
			return c
		default:
			return s.real(op, p, i, rapid.IntRange(0, Reals-1).Draw(t, "real"), rapid.IntRange(0, 5).Draw(t, "weight"))
		}
	}), 0, 12)
	rapid.Check(s.T, func(t *rapid.T) {
		ctx := context.Background()
		var clear []model.Change
		for _, p := range protocols {
			for i := range Virtuals {
				clear = append(clear, model.Change{Op: model.ServiceDelete, Service: model.VirtualService{Key: s.key(p, i)}})
			}
		}
		if err := s.Plane().Apply(ctx, clear); err != nil {
			t.Fatalf("clear: %v", err)
		}
		var want model.Table
		for range rapid.IntRange(1, 6).Draw(t, "batches") {
			changes := batch.Draw(t, "changes")
			refusals := 0
			for _, c := range changes {
				if want.Perform(c) != nil {
					refusals++
				}
			}
			err := s.Plane().Apply(ctx, changes)
			if rows := refused(err); len(rows) != refusals || (err == nil) != (refusals == 0) {
				t.Fatalf("apply: %v; want %d refused rows", err, refusals)
			}
			got, err := s.Plane().Read(ctx)
			if err != nil {
				t.Fatalf("read: %v", err)
			}
			if d := diff(want, got); d != "" {
				t.Fatalf("table after %v (-want +got):\n%s", changes, d)
			}
		}
	})
}
