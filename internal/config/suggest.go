package config

import (
	"slices"
	"strings"
)

// didYouMean is the hint for a word that is not among the known ones: the
// nearest of them, or "" where none is near.
func didYouMean(unknown string, known []string) string {
	best, at := "", max(1, len(unknown)/3)+1
	for _, k := range known {
		d := distance(strings.ToLower(unknown), k)
		if d < at || d == at && best != "" && k < best {
			best, at = k, d
		}
	}
	if best == "" {
		return ""
	}
	return `did you mean "` + best + `"?`
}

// maxWord bounds the words that are compared: longer ones are no directives.
const maxWord = 64

// distance is the number of letters to insert, delete, replace or swap with
// their neighbor to make b of a (optimal string alignment).
func distance(a, b string) int {
	if len(a) > maxWord || len(b) > maxWord {
		return maxWord
	}
	var prev, row, next []int
	row = make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		next = make([]int, len(b)+1)
		next[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			next[j] = min(row[j]+1, next[j-1]+1, row[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				next[j] = min(next[j], prev[j-2]+1)
			}
		}
		prev, row = row, next
	}
	return row[len(b)]
}

// oneOf lists words as people write them: `a, b or c`.
func oneOf(words ...string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// sortedKeys are a map's keys in order, for hints and tests.
func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
