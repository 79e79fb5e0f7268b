package demo

import (
	"strings"
	"testing"
	"time"
)

func TestGapIsTheLongestSilenceAroundTheCause(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	for _, c := range []struct {
		story string
		good  []int // milliseconds of correct answers
		want  time.Duration
		ok    bool
	}{
		{"an answer each five: no gap worth the name", []int{0, 5, 10, 15, 20, 25, 30}, 5 * time.Millisecond, true},
		{"the director dies at 10 and its successor answers at 25", []int{8, 9, 10, 25, 28}, 15 * time.Millisecond, true},
		{"answers under way at the cause still arrive", []int{9, 11, 28}, 17 * time.Millisecond, true},
		{"a silence before the cause is not its doing", []int{0, 9, 11, 15, 20, 25, 30}, 5 * time.Millisecond, true},
		{"reports of parallel probes come slightly out of order", []int{9, 12, 11, 25, 24, 30}, 12 * time.Millisecond, true},
		{"a silence after the span is another event's", []int{9, 14, 19, 24, 29, 90}, 5 * time.Millisecond, true},
		{"nobody answers any more", []int{8, 9}, 21 * time.Millisecond, false},
	} {
		t.Run(c.story, func(t *testing.T) {
			a := newAccount()
			for _, ms := range c.good {
				a.add(at(ms), "web1")
			}
			got, ok := a.gap(at(10), at(30))
			if got != c.want || ok != c.ok {
				t.Errorf("gap = %v, %v; want %v, %v", got, ok, c.want, c.ok)
			}
		})
	}
}

func TestAccountReadsWhatLoadWrites(t *testing.T) {
	a := newAccount()
	if err := a.read(strings.NewReader("1000000000 web1\n1001000000 -\n1002000000 web2\n")); err != nil {
		t.Fatal(err)
	}
	if a.total != 3 || a.failed != 1 || a.by["web1"] != 1 || a.by["web2"] != 1 {
		t.Errorf("total %d, failed %d, by %v", a.total, a.failed, a.by)
	}
	if err := a.read(strings.NewReader("garbage\n")); err == nil {
		t.Error("a line that Load never writes was accepted")
	}
}
