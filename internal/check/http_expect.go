package check

import (
	"iter"
	"strconv"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
)

// good tells whether a status code is what the target wants: 2xx unless it
// says otherwise.
func good(t model.Target, code int) bool {
	if t.StatusCodes == "" {
		return code >= 200 && code <= 299
	}
	return expected(t, code)
}

// expected tells whether a status code is one that the target names. A
// redirect that is expected is not followed.
func expected(t model.Target, code int) bool {
	for part := range strings.SplitSeq(t.StatusCodes, ",") {
		first, last, found := strings.Cut(part, "-")
		if !found {
			last = first
		}
		from, err1 := strconv.Atoi(first)
		to, err2 := strconv.Atoi(last)
		if err1 == nil && err2 == nil && from <= code && code <= to {
			return true
		}
	}
	return false
}

// headers are the target's further request headers.
func headers(t model.Target) iter.Seq2[string, string] {
	return func(yield func(name, value string) bool) {
		for line := range strings.Lines(t.Headers) {
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			if !yield(name, value) {
				return
			}
		}
	}
}

// headerLines are they as HTTP/1.1 writes them. The configuration lets no
// control character in.
func headerLines(t model.Target) string { return strings.ReplaceAll(t.Headers, "\n", "\r\n") }
