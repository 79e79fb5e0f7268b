package announce

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// BenchmarkMove is what a hand-over costs: the addresses of a node come, are
// announced again, and go. The tutorial has three; the design gives them 2 ms.
// "bare" leaves the interface to be found; "alone" is a network in which the
// node has no address of its own, left in the order of arrival: each address
// that goes takes all others along.
func BenchmarkMove(b *testing.B) {
	for _, count := range []int{3, 30, 100, 300} {
		for _, kind := range []string{"full", "bare", "alone"} {
			b.Run(fmt.Sprintf("%d/%s", count, kind), func(b *testing.B) { move(b, count, kind) })
		}
	}
}

func move(b *testing.B, count int, kind string) {
	cable(b, "eth0", "far0")
	if kind != "alone" {
		own(b, "eth0", "10.6.255.1/16")
	}
	form := map[string]string{"full": "IPaddr2::10.6.%d.%d/16/eth0", "bare": "IPaddr::10.6.%d.%d", "alone": "IPaddr2::10.6.%d.%d/16/eth0"}[kind]
	n := New(Options{})
	defer n.Close()
	var arriving []*Address
	for i := range count {
		arriving = append(arriving, address(b, n, fmt.Sprintf(form, i/200, i%200+1)))
	}
	leaving := slices.Clone(arriving)
	if kind != "alone" {
		slices.Reverse(leaving)
	}
	var start, again, stop time.Duration
	timed := func(sum *time.Duration, do func()) {
		began := time.Now()
		do()
		*sum += time.Since(began)
	}
	rounds := 0
	for b.Loop() {
		rounds++
		timed(&start, func() {
			for _, a := range arriving {
				must(b, a.Start(b.Context()))
			}
		})
		timed(&again, n.Reannounce)
		timed(&stop, func() {
			for _, a := range leaving {
				must(b, a.Stop(b.Context()))
			}
		})
	}
	for what, took := range map[string]time.Duration{"start": start, "reannounce": again, "stop": stop} {
		b.ReportMetric(took.Seconds()*1000/float64(rounds), what+"-ms")
	}
}
