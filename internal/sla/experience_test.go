package sla

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLeastShare(t *testing.T) {
	// All of n: p^n = 1 - confidence.
	for _, n := range []int{1, 2, 10, 22, 1000} {
		near(t, "all of them", LeastShare(n, n, 0.9), math.Pow(0.1, 1/float64(n)), 1e-12)
	}
	// Clopper and Pearson's limits as printed in tables of the binomial distribution.
	near(t, "9 of 10", LeastShare(9, 10, 0.95), 0.60584, 1e-5)
	near(t, "5 of 10", LeastShare(5, 10, 0.975), 0.18709, 1e-4)
	near(t, "1 of 10", LeastShare(1, 10, 0.95), 1-math.Pow(0.95, 0.1), 1e-12)
	if LeastShare(0, 10, 0.9) != 0 || LeastShare(0, 0, 0.9) != 0 {
		t.Error("nothing succeeded, but it is likely")
	}
}

func TestModelFromExperience(t *testing.T) {
	e := Experience{Parts: 2, Operating: 2000 * Hour, Down: 8 * Hour, Failures: 4, Tried: 3, Handled: 2, Failover: 7}
	c := One(1, 1)
	said, err := e.Apply(&c)
	if err != nil {
		t.Fatal(err)
	}
	want := One(500*Hour, 2*Hour)
	want.Coverage, want.Failover = 2.0/3, 7
	if d := cmp.Diff(want, c); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	golden(t, "experience.txt", strings.Join(said, "\n")+"\n")

	// Without a failure only a bound is known, and the rest is assumed.
	c = One(1, 10*Hour)
	said, err = Experience{Parts: 2, Operating: 2000 * Hour}.Apply(&c)
	if err != nil || c.MTTR != 10*Hour || c.Coverage != 1 {
		t.Errorf("%+v, %v", c, err)
	}
	near(t, "no failure", float64(c.MTBF), float64(2000*Hour)/math.Ln10, 1e-9)
	golden(t, "experience-without-failures.txt", strings.Join(said, "\n")+"\n")

	if _, err := (Experience{}).Apply(&c); !errors.Is(err, ErrNoExperience) {
		t.Errorf("nothing recorded: %v", err)
	}
}
