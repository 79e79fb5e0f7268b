package director

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// drainFile is what a director keeps over a restart: which real servers an
// operator has taken out of service. Without it they would come back by
// themselves in the middle of somebody's work on them.
type drainFile struct {
	Version int          `json:"version"` // 1
	Drains  []drainEntry `json:"drains"`
}

type drainEntry struct {
	Service  model.ServiceKey `json:"service"`
	Real     netip.AddrPort   `json:"real"`
	Since    time.Time        `json:"since"`
	Deadline time.Time        `json:"deadline,omitzero"`
	Out      bool             `json:"out,omitempty"` // the deadline has passed
}

// drained lists who is drained, in order.
func (s *state) drained() []realKey {
	return slices.SortedFunc(maps.Keys(s.drains), func(a, b realKey) int {
		return cmp.Or(a.service.Compare(b.service), a.real.Compare(b.real))
	})
}

// drainText is the content of the file, "" if there is nothing to keep.
func (s *state) drainText() string {
	if len(s.drains) == 0 {
		return ""
	}
	f := drainFile{Version: 1}
	for _, k := range s.drained() {
		d := s.drains[k]
		f.Drains = append(f.Drains, drainEntry{k.service, k.real, d.since.UTC(), d.deadline.UTC(), d.out})
	}
	b, _ := json.MarshalIndent(f, "", " ") // of texts and times only
	return string(b) + "\n"
}

// restoreDrains takes over what the file has. Real servers that are not
// configured any more are passed over.
func (s *state) restoreDrains(text []byte) error {
	var f drainFile
	if err := json.Unmarshal(text, &f); err != nil {
		return err
	}
	if f.Version != 1 {
		return fmt.Errorf("version %d is not known here", f.Version)
	}
	for _, e := range f.Drains {
		s.drains[realKey{e.Service, e.Real}] = &drain{since: e.Since, deadline: e.Deadline, out: e.Out, remaining: -1}
	}
	s.hold()
	return nil
}

// readDrains reads the file; nothing if there is none.
func readDrains(file string) ([]byte, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// writeDrains replaces the file whole, or removes it.
func writeDrains(file, text string) error {
	if text == "" {
		err := os.Remove(file)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(file+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// kept is what became of writing the file.
type kept struct {
	text string
	err  error
}

// recallDrains takes over what the last run kept.
func (r *run) recallDrains() {
	if r.cfg.DrainFile == "" {
		return
	}
	text, err := readDrains(r.cfg.DrainFile)
	if err == nil && len(text) > 0 {
		r.mu.Lock()
		err = r.st.restoreDrains(text)
		r.mu.Unlock()
	}
	if err != nil {
		r.emit(event(model.LevelError, "drains-lost", r.cfg.DrainFile, "Which real servers were drained cannot be read, they serve again: %s: %v", r.cfg.DrainFile, err))
	}
	r.onDisk = string(text)
	for _, k := range r.st.drained() {
		r.emit(event(model.LevelNotice, "drain", k.String(), "Still drained: %s", k))
	}
	if len(r.st.drains) > 0 {
		r.counting.Reset(drainEvery / 10)
	}
}

// tookDown notes what became of writing the file, and writes it again if there
// is something new.
func (r *run) tookDown(k kept) {
	r.keeping = false
	r.onDisk = k.text // what failed is tried again with the next change
	if k.err != nil {
		r.emit(drainsNotKept(k.err))
	}
	r.keepDrains()
}

func drainsNotKept(err error) model.Event {
	return event(model.LevelError, "drains-not-kept", "", "Which real servers are drained could not be written down, a restart will not know: %v", err)
}
