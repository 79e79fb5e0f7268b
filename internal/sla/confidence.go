package sla

import (
	"math"
)

// Few is the number of failures below which a mean time between failures is
// not enough data: the limits of its 90 % confidence interval are then more
// than a factor of ten apart.
const Few = 3

// Bounds are the limits between which a mean time between failures lies with
// a probability of Confidence: Low alone with that probability one-sided when
// there was no failure, and no High then.
type Bounds struct {
	Low        Span    `json:"low_seconds"`
	High       Span    `json:"high_seconds"` // infinite (null) without failures
	Confidence float64 `json:"confidence"`
}

// MTBFBounds are the limits that failures in an operating time allow, if
// failures come at a constant rate and the time was not chosen by them:
// 2T/χ² with 2n+2 degrees of freedom below and 2n above
// (MIL-HDBK-338B section 8.3.2.5.2; IEC 60605-4).
func MTBFBounds(operating Span, failures int, confidence float64) Bounds {
	b := Bounds{High: Span(math.Inf(1)), Confidence: confidence}
	if failures <= 0 {
		b.Low = 2 * operating / Span(ChiSquareQuantile(confidence, 2))
		return b
	}
	tail := (1 - confidence) / 2
	b.Low = 2 * operating / Span(ChiSquareQuantile(1-tail, 2*float64(failures)+2))
	b.High = 2 * operating / Span(ChiSquareQuantile(tail, 2*float64(failures)))
	return b
}

// ChiSquareQuantile is the x below which a χ² variable of that many degrees
// of freedom stays with probability p, for 0 < p < 1.
func ChiSquareQuantile(p, degrees float64) float64 {
	if !(p > 0 && p < 1 && degrees > 0) {
		return math.NaN()
	}
	// Bisection after a doubling search: gammaP is monotonic, and 100 steps
	// are nothing beside reading a journal.
	low, high := 0.0, degrees
	for gammaP(degrees/2, high/2) < p {
		low, high = high, 2*high
	}
	for range 200 {
		mid := low + (high-low)/2
		if mid <= low || mid >= high {
			break
		}
		if gammaP(degrees/2, mid/2) < p {
			low = mid
		} else {
			high = mid
		}
	}
	return high
}

// gammaP is the regularized lower incomplete gamma function P(a, x): its
// series below x = a+1, Lentz's continued fraction for the complement above
// (Abramowitz and Stegun 6.5.29 and 6.5.31).
func gammaP(a, x float64) float64 {
	if x <= 0 {
		return 0
	}
	logGamma, _ := math.Lgamma(a)
	front := math.Exp(a*math.Log(x) - x - logGamma)
	const steps = 100000
	if x < a+1 {
		term := 1 / a
		sum := term
		for n := 1; n < steps && term > sum*1e-17; n++ {
			term *= x / (a + float64(n))
			sum += term
		}
		return front * sum
	}
	const tiny = 1e-300
	b := x + 1 - a
	c := 1 / tiny
	d := 1 / b
	h := d
	for n := 1; n < steps; n++ {
		an := -float64(n) * (float64(n) - a)
		b += 2
		d = 1 / nonzero(an*d+b, tiny)
		c = nonzero(b+an/c, tiny)
		h *= d * c
		if math.Abs(d*c-1) < 1e-16 {
			break
		}
	}
	return 1 - front*h
}

func nonzero(f, tiny float64) float64 {
	if math.Abs(f) < tiny {
		return tiny
	}
	return f
}
