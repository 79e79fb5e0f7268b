package director

import (
	"crypto/sha256"
	"os"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
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

// fileChanged does what the file's new content asks for.
func (r *run) fileChanged(err error) {
	d := &r.st.director
	if err != nil {
		r.emit(event(model.LevelWarning, "file-unreadable", d.File, "Configuration file '%s' cannot be read, the running configuration stays: %v", d.File, err))
		return
	}
	r.emit(event(model.LevelInfo, "file-changed", d.File, "Configuration file '%s' has changed on disk", d.File))
	if d.AutoReload {
		r.emit(event(model.LevelInfo, "file-reread", d.File, " - reread new configuration"))
		r.changing = true
		r.load()
		return
	}
	r.emit(event(model.LevelInfo, "file-ignored", d.File, " - ignore new configuration"))
	r.runCallback()
}

// take puts a configuration into force that was read, if it is right.
func (r *run) take(l loaded) {
	r.loading = false
	if r.reread {
		r.reread = false
		r.load()
		return
	}
	onDisk := r.changing
	r.changing = false
	if l.err != nil {
		r.emit(event(model.LevelError, "reload-failed", r.st.director.File,
			"The new configuration has errors and is not used, the running one stays in force: %v", l.err))
	} else {
		have, err := r.cfg.Plane.Read(r.ctx)
		if err != nil {
			have = r.st.have // apply reads again and tells
		}
		r.phase = phaseReloading
		r.mu.Lock()
		r.st.configure(*l.director, have)
		r.mu.Unlock()
		r.cfg.Reloaded(*l.director) // a new log gets what follows
		r.setMaintenance()
		r.setProbers()
		r.apply()
		r.keepDrains()
	}
	if onDisk {
		r.runCallback()
	}
}
