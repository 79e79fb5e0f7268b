package logfile

import (
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

func TestUnhurriedPassesOnInOrder(t *testing.T) {
	var b strings.Builder
	w := Unhurried(&b)
	for _, line := range []string{"one\n", "two\n", "three\n"} {
		if n, err := io.WriteString(w, line); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	if b.String() != "one\ntwo\nthree\n" {
		t.Errorf("passed on: %q", b.String())
	}
}

// A pipe that nobody reads is full after 64 kB; writing goes on all the same.
func TestUnhurriedDoesNotWaitForAReader(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	u := Unhurried(w)
	done := make(chan struct{})
	go func() {
		defer close(done)
		line := strings.Repeat("x", 999) + "\n"
		for range 3 * maxWaiting {
			_, _ = io.WriteString(u, line)
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("a full pipe holds the writer up")
	}
}
