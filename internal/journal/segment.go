package journal

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	suffix    = ".jsonl"
	aliveFile = "alive"       // overwritten in place: the last sign of life
	plansFile = "plans.jsonl" // maintenance windows, written by the command line
	aliveSize = 256
)

// segment is one file of a journal; its name is the number of its first record.
type segment struct {
	path     string
	first    uint64
	size     int64
	modified time.Time
}

// segments lists the files of a journal with that ending, oldest first.
func segments(dir, suffix string) ([]segment, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	var all []segment
	for _, e := range list {
		base, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok || len(base) != 20 {
			continue
		}
		first, err := strconv.ParseUint(base, 10, 64)
		if err != nil {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile, being too old
		}
		if err != nil {
			return nil, fmt.Errorf("read the journal: %w", err)
		}
		all = append(all, segment{filepath.Join(dir, e.Name()), first, info.Size(), info.ModTime()})
	}
	slices.SortFunc(all, func(a, b segment) int { return cmp.Compare(a.first, b.first) })
	return all, nil
}

func segmentName(dir string, first uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%020d%s", first, suffix))
}

// damage is a line that cannot be read.
type damage struct {
	offset int64
	err    error
}

// scan reads the records of a file from an offset on, and returns where the
// last good one ends. An unfinished line at the end is no damage: it may be in
// the middle of being written.
func scan(path string, from int64, each func(Record), bad func(damage)) (good int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return from, fmt.Errorf("read the journal: %w", err)
	}
	defer f.Close()
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return from, fmt.Errorf("read the journal: %w", err)
	}
	good = from
	at := from
	in := bufio.NewReaderSize(f, 64<<10)
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		if len(line)+len(part) <= maxLine {
			line = append(line, part...)
		}
		at += int64(len(part))
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF):
			return good, nil
		case err != nil:
			return good, fmt.Errorf("read the journal %s: %w", path, err)
		}
		r, err := parseLine(bytes.TrimSuffix(line, []byte("\n")))
		if err == nil {
			good = at
			each(r)
		} else if bad != nil {
			bad(damage{at - int64(len(line)), err})
		}
		line = line[:0]
	}
}

// readAlive returns the last sign of life, if it can be read.
func readAlive(dir string) (Record, bool) {
	b, err := os.ReadFile(filepath.Join(dir, aliveFile))
	if err != nil {
		return Record{}, false
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	r, err := parseLine(line)
	return r, err == nil && r.Open != nil
}

// cutTail cuts what follows the last good line of a file, and returns how
// many bytes that was.
func cutTail(path string, good int64) (int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, fmt.Errorf("repair the journal: %w", err)
	}
	if info.Size() <= good {
		return 0, nil
	}
	if err := os.Truncate(path, good); err != nil {
		return 0, fmt.Errorf("repair the journal: %w", err)
	}
	return info.Size() - good, nil
}
