package ebpf

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/model"
)

// BenchmarkApply puts a table of 2,277 services with 37,205 real servers into
// an empty plane, and then changes one real server at a time: the lower
// quartile, the median and the worst of all rounds, in milliseconds.
func BenchmarkApply(b *testing.B) {
	const services, reals = 2277, 37205
	var table [][]string
	for _, scheduler := range []string{"rr", "wlc", "wrr", "mh"} {
		cells := []string{scheduler}
		fresh := make([]model.Change, 0, services+reals)
		var rows []model.Change
		for s := range services {
			at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 2, byte(s >> 8), byte(s)}), 80)
			fresh = append(fresh, addService(model.TCP, at, scheduler))
			for r := s; r < reals; r += services {
				add := addReal(model.TCP, at, fmt.Sprintf("10.240.%d.%d:%d", r>>8&0x7f, r&0xff, 8000+r>>15), 1+r%4)
				fresh, rows = append(fresh, add), append(rows, add)
			}
		}
		o := testOptions()
		o.MaxServices, o.MaxReals, o.MaxTurns = 4096, 65536, 24<<20
		b.Run(scheduler+"/fresh", func(b *testing.B) {
			var all, cpu []time.Duration
			for b.Loop() {
				b.StopTimer()
				o.Dir = testOptions().Dir
				p := open(b, o)
				b.StartTimer()
				began, used := time.Now(), cpuTime(b)
				apply(b, p, fresh...)
				all, cpu = append(all, time.Since(began)), append(cpu, cpuTime(b)-used)
				b.StopTimer()
				if err := p.Remove(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			report(b, all)
			slices.Sort(cpu)
			used := cpu[len(cpu)/2].Seconds() * 1e3
			b.ReportMetric(used, "cpu-ms")
			for _, d := range []time.Duration{all[len(all)/4], all[len(all)/2], all[len(all)-1]} {
				cells = append(cells, fmt.Sprintf("%.0f", d.Seconds()*1e3))
			}
			cells = append(cells, fmt.Sprintf("%.0f", used))
		})
		b.Run(scheduler+"/one change", func(b *testing.B) {
			o.Dir = testOptions().Dir
			p := open(b, o)
			apply(b, p, fresh...)
			var all []time.Duration
			for n := 0; b.Loop(); n++ {
				c := rows[n*7919%len(rows)]
				c.Op, c.Real.Weight = model.RealEdit, n%5
				began := time.Now()
				apply(b, p, c)
				all = append(all, time.Since(began))
			}
			report(b, all)
			cells = append(cells, fmt.Sprintf("%.3f", all[len(all)/2].Seconds()*1e3), fmt.Sprintf("%.2f", all[len(all)-1].Seconds()*1e3))
			table = append(table, cells)
		})
	}
	head(1, "scheduler", "fresh, ms: p25", "p50", "max", "CPU", "one change, ms: p50", "max")
	for _, cells := range table {
		row(cells...)
	}
}

func report(b *testing.B, all []time.Duration) {
	slices.Sort(all)
	for name, d := range map[string]time.Duration{"p25-ms": all[len(all)/4], "p50-ms": all[len(all)/2], "max-ms": all[len(all)-1]} {
		b.ReportMetric(d.Seconds()*1e3, name)
	}
	b.ReportMetric(0, "ns/op")
}

// cpuTime is what this process has used of processors, kernel's time included:
// on a busy machine it says more than the clock.
func cpuTime(b testing.TB) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
