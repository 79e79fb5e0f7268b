package director

import (
	"crypto/sha256"
	"os"
	"time"
)

const (
	// lookEvery is how often the configuration file is looked at, and
	// lookAgain how long a change must have rested to be more than half of one.
	lookEvery = time.Second
	lookAgain = 200 * time.Millisecond
)

// look is what was seen of a file. Its time and size say whether reading it is
// worth while, its digest whether it has changed.
type look struct {
	modified time.Time
	size     int64
	digest   [sha256.Size]byte
}

// lookAt looks at a file; nothing is read if it seems to be as before.
func lookAt(name string, before look) (look, error) {
	info, err := os.Stat(name)
	if err != nil {
		return before, err
	}
	now := look{modified: info.ModTime(), size: info.Size(), digest: before.digest}
	if now == before {
		return now, nil
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return before, err
	}
	now.digest = sha256.Sum256(b)
	return now, nil
}

// watcher notices changes of a file's content.
type watcher struct {
	name   string
	known  look // what the running configuration was made of, or what was ignored
	seen   look // at the last look, while that is something new
	misses int  // looks in a row that failed
}

// step looks once. changed: there is new content, and it rests. again: look
// again soon. The error is there once for each time the file cannot be read;
// that it is away for a moment while an editor replaces it is none.
func (w *watcher) step() (changed, again bool, err error) {
	before := w.known
	if w.seen != (look{}) {
		before = w.seen
	}
	now, err := lookAt(w.name, before)
	if err != nil {
		w.misses++
		if w.misses == 2 {
			return false, false, err
		}
		return false, false, nil
	}
	w.misses = 0
	switch now.digest {
	case w.known.digest:
		w.known, w.seen = now, look{}
	case w.seen.digest:
		w.known, w.seen = now, look{}
		return true, false, nil
	default:
		w.seen = now
		return false, true, nil
	}
	return false, false, nil
}
