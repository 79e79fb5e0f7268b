//go:build race

package sim

// raceDetector makes simulations ten times slower; there is one goroutine.
const raceDetector = true
