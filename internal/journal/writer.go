package journal

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/sla"
)

// writer owns the files. Only one goroutine calls it.
type writer struct {
	o       Options
	opening Opening
	seq     uint64 // of the next record
	f       file   // nil after a failure
	size    int64
	alive   file
	current map[Thing]Change // what the next file repeats
	sheet   *sheetMaker      // of the present file
	offset  time.Duration    // wall clock minus uptime
	buf     []byte
	dirty   bool

	failed   bool // has been reported
	lost     uint64
	blind    map[Thing]missed // states that were lost
	failedAt time.Duration    // uptime
	synced   time.Duration    // uptime of the last sync of the sign of life
	end      error            // of Close

	before Before // of begin
}

// missed is what was lost of a thing's states.
type missed struct {
	since   time.Duration // uptime from which the first one counts
	changes int
}

// add counts a lost change.
func (m missed) add(c Change) missed {
	if m.changes == 0 || c.Since < m.since {
		m.since = c.Since
	}
	m.changes++
	return m
}

// unknown is what to say where more than the latest change was lost.
func (m missed) unknown(t Thing, now Instant) []Record {
	if m.changes < 2 {
		return nil
	}
	c := Change{Thing: t, State: sla.Unknown, Since: m.since, Why: "changes were lost with the journal's records"}
	return []Record{{At: now.Wall, Uptime: now.Uptime, Kind: KindState, State: &c}}
}

// offsetOf is where the wall clock stood at the boot, in Unix nanoseconds.
func offsetOf(now Instant) time.Duration {
	return time.Duration(now.Wall.UnixNano()) - now.Uptime
}

// begin repairs what a crash left and opens a new file.
func (w *writer) begin(o Options) error {
	now := o.clock()
	w.o, w.current, w.blind, w.offset, w.seq = o, map[Thing]Change{}, map[Thing]missed{}, offsetOf(now), 1
	w.opening = Opening{o.Node, o.boot, fmt.Sprintf("%d-%d", now.Uptime, os.Getpid())}
	all, err := segments(o.Dir, suffix)
	if err != nil {
		return err
	}
	var left []Record // to tell of the earlier life
	if len(all) > 0 {
		last := all[len(all)-1]
		w.seq = last.first
		m := newSheetMaker(last.first, newNames())
		w.before.States = map[Thing]Change{}
		good, err := scan(last.path, 0, func(r Record) {
			w.seq = max(w.seq, r.Seq+1)
			m.add(&r)
			if r.State != nil {
				w.before.States[r.State.Thing] = *r.State
			}
		}, nil)
		if err != nil {
			return err
		}
		cut, err := cutTail(last.path, good)
		if err != nil {
			return err
		}
		if cut > 0 {
			text := fmt.Sprintf("the end of %s was torn by a crash: %d bytes were cut", filepath.Base(last.path), cut)
			left = append(left, Record{At: now.Wall, Uptime: now.Uptime, Kind: KindCut, Lost: uint64(cut), Text: text})
			o.Report(model.Event{At: now.Wall, Level: model.LevelWarning, Source: "journal", Kind: "torn", Subject: last.path, Text: "journal: " + text})
		}
		w.before.Known, w.before.SameBoot, w.before.InOrder, w.before.End = m.any, m.Boot == o.boot, m.closed, m.end
		r, ok := readAlive(o.Dir)
		if ok && *r.Open == m.Opening {
			w.before.End = max(w.before.End, r.Uptime)
		}
		if ok && !m.closed {
			// The sign of life is overwritten soon: keep the last one of the life before.
			left = append(left, r)
		}
		w.seq = max(w.seq, last.first+1)
	}
	err = w.sealLeft(all)
	if err == nil {
		err = w.roll()
	}
	if err != nil {
		w.fail(err)
		return nil // the disk may be full: the node starts all the same
	}
	w.records(left)
	w.tick()
	return nil
}

// sealLeft writes the sheets that a crash or a full disk has prevented.
func (w *writer) sealLeft(all []segment) error {
	for _, g := range all {
		if _, err := openSheet(sheetName(w.o.Dir, g.first), g.first, newNames()); err == nil {
			continue
		}
		m := newSheetMaker(g.first, newNames())
		if _, err := scan(g.path, 0, func(r Record) { m.add(&r) }, nil); err != nil {
			return err
		}
		if m.any {
			if err := m.finish().write(w.o.Dir, w.o.openFile); err != nil {
				return err
			}
		}
	}
	return nil
}

// roll begins the next file and repeats in it what is so.
func (w *writer) roll() error {
	if w.f != nil {
		err := w.f.Sync()
		if err2 := w.f.Close(); err == nil {
			err = err2
		}
		w.f = nil
		if err != nil {
			return err
		}
	}
	if w.sheet != nil && w.sheet.any {
		if err := w.sheet.finish().write(w.o.Dir, w.o.openFile); err != nil {
			return err
		}
		w.sheet = nil
	}
	name := segmentName(w.o.Dir, w.seq)
	f, err := w.o.openFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY)
	if os.IsExist(err) { // of an attempt that failed before its first record
		f, err = w.o.openFile(name, os.O_TRUNC|os.O_WRONLY)
	}
	if err != nil {
		return err
	}
	w.f, w.size, w.sheet = f, 0, newSheetMaker(w.seq, newNames())
	now := w.o.clock()
	list := []Record{{At: now.Wall, Uptime: now.Uptime, Kind: KindOpen, Open: &w.opening}}
	for _, c := range w.current {
		list = append(list, w.blind[c.Thing].unknown(c.Thing, now)...)
		c.Again = true
		list = append(list, Record{At: now.Wall, Uptime: now.Uptime, Kind: KindState, State: &c})
	}
	slices.SortStableFunc(list[1:], func(a, b Record) int { return strings.Compare(a.State.Thing.String(), b.State.Thing.String()) })
	if err := w.append(list); err != nil {
		return err
	}
	clear(w.blind)
	return w.prune()
}

// prune removes the oldest files beyond the bounds. The states have half of
// the room at most; the records, which are many times as long, have the rest.
func (w *writer) prune() error {
	room := w.o.MaxBytes
	for _, kind := range []struct {
		suffix string
		share  int64
		next   int64 // what will be added before the bounds are looked at again
	}{{sheetSuffix, 2, 0}, {suffix, 1, w.o.SegmentBytes}} {
		all, err := segments(w.o.Dir, kind.suffix)
		if err != nil {
			return err
		}
		var total int64
		for _, s := range all {
			total += s.size
		}
		oldest := w.o.clock().Wall.Add(-w.o.MaxAge)
		for _, s := range all[:max(0, len(all)-1)] {
			if total+kind.next <= room/kind.share && s.modified.After(oldest) {
				break
			}
			if err := os.Remove(s.path); err != nil && !missing(err) {
				return err
			}
			total -= s.size
		}
		room -= total
	}
	return nil
}

// append writes records to the present file, all or none.
func (w *writer) append(list []Record) error {
	w.buf = w.buf[:0]
	seq := w.seq
	for i := range list {
		list[i].Seq = seq
		seq++
		var err error
		if w.buf, err = appendLine(w.buf, &list[i]); err != nil {
			return err
		}
	}
	if _, err := w.f.Write(w.buf); err != nil {
		return err
	}
	for i := range list {
		w.sheet.add(&list[i])
	}
	w.seq = seq
	w.size += int64(len(w.buf))
	w.dirty = true
	return nil
}

// records writes records, and states the clock's steps before them.
func (w *writer) records(list []Record) {
	// What the next file repeats is how it was before this list, or after it.
	defer func() {
		for _, r := range list {
			if r.Kind == KindState {
				w.current[r.State.Thing] = *r.State
			}
		}
	}()
	if now := w.o.clock(); len(list) > 0 || w.f != nil {
		for i := range list {
			// Stamped before a step and written after it: the clock's latest word counts.
			if r := &list[i]; r.Kind != KindAlive && (wallOffset(r)-offsetOf(now)).Abs() > stepTolerance {
				r.At = now.Wall.Add(r.Uptime - now.Uptime)
			}
		}
		if step := offsetOf(now) - w.offset; step.Abs() > stepTolerance {
			w.offset += step
			list = append([]Record{{At: now.Wall, Uptime: now.Uptime, Kind: KindStep, Step: step,
				Text: fmt.Sprintf("the wall clock was stepped by %s", step.Round(time.Millisecond))}}, list...)
		}
	}
	if len(list) == 0 {
		return
	}
	if w.f == nil {
		w.lose(list)
		return
	}
	if w.size > w.o.SegmentBytes {
		if err := w.roll(); err != nil {
			w.lose(list)
			w.fail(err)
			return
		}
	}
	if err := w.append(list); err != nil {
		w.lose(list)
		w.fail(err)
	}
}

// lose counts what is not written.
func (w *writer) lose(list []Record) {
	w.lost += uint64(len(list))
	for _, r := range list {
		if r.Kind == KindState {
			w.blind[r.State.Thing] = w.blind[r.State.Thing].add(*r.State)
		}
	}
}

// fail closes the files until the next try, and says so once.
func (w *writer) fail(err error) {
	if w.f != nil {
		_ = w.f.Truncate(w.size) // a torn line would be skipped anyway
		_ = w.f.Close()          // the error is known
		w.f = nil
	}
	w.failedAt = w.o.clock().Uptime
	if w.failed {
		return
	}
	w.failed = true
	w.o.Report(model.Event{At: w.o.clock().Wall, Level: model.LevelError, Source: "journal", Kind: "journal-failed", Subject: w.o.Dir,
		Text: fmt.Sprintf("the journal cannot be written: %v; everything else goes on, what happens now is not recorded. Make room in %s", err, w.o.Dir)})
}

// recover tries again after a failure.
func (w *writer) recover() {
	now := w.o.clock()
	if now.Uptime-w.failedAt < w.o.retry {
		return
	}
	err := w.roll()
	if err == nil {
		err = w.append([]Record{{At: now.Wall, Uptime: now.Uptime, Kind: KindGap, Lost: w.lost, Text: "the journal could not be written"}})
	}
	if err != nil {
		w.fail(err)
		return
	}
	w.failed = false
	w.o.Report(model.Event{At: now.Wall, Level: model.LevelNotice, Source: "journal", Kind: "journal-works", Subject: w.o.Dir,
		Text: fmt.Sprintf("the journal is written again; %d records were lost", w.lost)})
	w.lost = 0
}

// tick leaves a sign of life and has the disk take what was written.
func (w *writer) tick() {
	if w.f == nil {
		w.recover()
		return
	}
	w.records(nil) // a step of the clock is a record by itself
	if w.f != nil && w.dirty {
		if err := w.f.Sync(); err != nil {
			w.fail(err)
			return
		}
		w.dirty = false
	}
	if err := w.sign(); err != nil {
		w.fail(err)
	}
}

// sign overwrites the sign of life. It reaches the disk a tenth as often as
// records: it costs a write where nothing happens.
func (w *writer) sign() error {
	now := w.o.clock()
	line, err := appendLine(nil, &Record{Seq: w.seq, At: now.Wall, Uptime: now.Uptime, Kind: KindAlive, Open: &w.opening})
	if err != nil {
		return err
	}
	if w.alive == nil {
		if w.alive, err = w.o.openFile(filepath.Join(w.o.Dir, aliveFile), os.O_CREATE|os.O_WRONLY); err != nil {
			w.alive = nil
			return err
		}
	}
	for len(line) < aliveSize {
		line = append(line, '\n')
	}
	if _, err := w.alive.WriteAt(line, 0); err != nil {
		return err
	}
	if now.Uptime-w.synced > 10*w.o.Sync {
		w.synced = now.Uptime
		return w.alive.Sync()
	}
	return nil
}

// close ends the journal in good order.
func (w *writer) close() {
	if w.f != nil {
		now := w.o.clock()
		w.records([]Record{{At: now.Wall, Uptime: now.Uptime, Kind: KindClose}})
	}
	if w.f != nil {
		w.end = w.f.Sync()
		if err := w.f.Close(); w.end == nil {
			w.end = err
		}
	}
	if w.alive != nil {
		if err := w.alive.Close(); w.end == nil {
			w.end = err
		}
	}
	if w.end != nil {
		w.end = fmt.Errorf("close the journal: %w", w.end)
	}
}
