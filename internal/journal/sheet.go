package journal

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/sla"
)

// sheet is the states of one file of the journal in a compact form: thing by
// thing, about ten bytes a change, so that a statement reads what it is about
// and nothing else. It is made from the records of that file when the next one
// begins, and stays when the file has to go because of its size.
//
// On disk: sheetMagic, then length and CRC-32C of the header (four bytes each,
// little endian), the header, and the chunks of the things. Numbers are
// varints, texts are preceded by their length; each chunk has its checksum in
// the header.
type sheet struct {
	first uint64 // number of the file's first record
	Opening

	begin, end time.Duration // uptime of the first and of the last record
	earliest   time.Duration // uptime at which the first change counts that is no repetition; end without any
	offset     time.Duration // wall clock minus uptime, by its latest word
	closed     bool          // the recorder stopped in good order
	signs      []sign        // of earlier lives
	notes      []note
	texts      []string // where and why; the first is ""
	names      *names   // of the things
	chunks     []chunk  // ascending by thing

	path string   // of the file with the chunks; "" when they are here
	file *os.File // kept open, of some; closed when the sheet is forgotten
	body []byte
	base int64 // of the first chunk in the file
}

// maxFiles is how many sheets of a journal are kept open: to open one costs
// more than to read from it, and a statement of all services reads each often.
const maxFiles = 512

// sign is the last one of an earlier life.
type sign struct {
	Opening
	uptime, offset time.Duration
}

// note is a record that says what is not as it should be.
type note struct {
	kind   Kind
	uptime time.Duration
	lost   uint64
	text   string
}

// chunk is where the changes of a thing are, and what they must sum up to.
type chunk struct {
	thing    thingID
	at, size uint32
	sum      uint32
}

// thingID stands for a thing in the sheets of one journal: there may be many
// sheets, and many things in each.
type thingID uint32

// names are the things behind their numbers.
type names struct {
	ids    map[string]thingID // by canonical text
	things []Thing
	files  int // of the journal that are kept open
}

func newNames() *names { return &names{ids: map[string]thingID{}} }

// id is the number of a thing, given by its canonical text; ok is false for
// what is no thing.
func (n *names) id(text []byte) (id thingID, ok bool) {
	if id, ok := n.ids[string(text)]; ok {
		return id, true
	}
	var t Thing
	if t.UnmarshalText(text) != nil {
		return 0, false
	}
	id = thingID(len(n.things))
	n.ids[t.String()] = id
	n.things = append(n.things, t)
	return id, true
}

// mark is a change as a sheet has it.
type mark struct {
	since      time.Duration
	state      sla.State
	again      bool
	where, why uint32 // of texts
	ended      Repair
	repaired   bool // ended tells
}

const (
	sheetSuffix = ".states"
	sheetMagic  = "batuta states 1\n"
	sheetHead   = len(sheetMagic) + 8
	maxHeader   = 64 << 20 // a longer one is damage
	maxSheet    = 1 << 30
)

// The byte that begins a change: its state and what follows.
const (
	bitsState = 7
	bitAgain  = 1 << 3
	bitEnded  = 1 << 4
	bitWhere  = 1 << 5
	bitWhy    = 1 << 6
)

var errSheet = errors.New("damaged: it will be made again from the records, where there are any")

func sheetName(dir string, first uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%020d%s", first, sheetSuffix))
}

// sheetMaker makes a sheet of records as they come.
type sheetMaker struct {
	sheet
	index  map[string]uint32 // of texts
	making map[Thing]*making
	order  []Thing
	any    bool
}

// making is a chunk that grows.
type making struct {
	bytes []byte
	last  time.Duration // Since of the last change
}

func newSheetMaker(first uint64, n *names) *sheetMaker {
	m := &sheetMaker{index: map[string]uint32{"": 0}, making: map[Thing]*making{}}
	m.first, m.texts, m.names = first, []string{""}, n
	return m
}

// add takes the next record of the file.
func (m *sheetMaker) add(r *Record) {
	if r.Kind == KindAlive {
		if r.Open != nil { // kept from the life before
			m.signs = append(m.signs, sign{*r.Open, r.Uptime, wallOffset(r)})
		}
		return
	}
	if r.Kind == KindOpen && r.Open != nil {
		m.Opening, m.begin = *r.Open, r.Uptime
		m.end, m.earliest = r.Uptime, -1
		m.any = true
	}
	if !m.any {
		return // the file's beginning is damaged
	}
	m.end = max(m.end, r.Uptime)
	m.closed = r.Kind == KindClose
	if r.Kind != KindEvent { // an event may have been stamped before a step
		m.offset = wallOffset(r)
	}
	switch r.Kind {
	case KindState:
		if r.State != nil {
			m.change(r.State)
		}
	case KindGap, KindCut, KindStep:
		m.notes = append(m.notes, note{r.Kind, r.Uptime, r.Lost, r.Text})
	default:
	}
}

func (m *sheetMaker) change(c *Change) {
	k := m.making[c.Thing]
	if k == nil {
		k = &making{last: m.begin}
		m.making[c.Thing] = k
		m.order = append(m.order, c.Thing)
	}
	if !c.Again && (m.earliest < 0 || c.Since < m.earliest) {
		m.earliest = c.Since
	}
	where, why := m.text(c.Where), m.text(c.Why)
	head := byte(c.State) & bitsState
	at := len(k.bytes)
	b := binary.AppendVarint(append(k.bytes, 0), int64(c.Since-k.last))
	k.last = c.Since
	if c.Again {
		head |= bitAgain
	}
	if where > 0 {
		head |= bitWhere
		b = binary.AppendUvarint(b, uint64(where))
	}
	if why > 0 {
		head |= bitWhy
		b = binary.AppendUvarint(b, uint64(why))
	}
	if c.Ended != nil {
		head |= bitEnded
		for _, d := range [...]time.Duration{c.Ended.Detect, c.Ended.Decide, c.Ended.Switch, c.Ended.Verify} {
			b = binary.AppendVarint(b, int64(d))
		}
	}
	b[at] = head
	k.bytes = b
}

func (m *sheetMaker) text(s string) uint32 {
	i, ok := m.index[s]
	if !ok {
		i = uint32(len(m.texts))
		m.index[s] = i
		m.texts = append(m.texts, s)
	}
	return i
}

// finish is the sheet of what was added.
func (m *sheetMaker) finish() *sheet {
	m.body, m.chunks = nil, nil
	if m.earliest < 0 {
		m.earliest = m.end
	}
	for _, t := range m.order {
		id, ok := m.names.id([]byte(t.String()))
		if !ok {
			continue // nobody could ask for it
		}
		b := m.making[t].bytes
		m.chunks = append(m.chunks, chunk{id, uint32(len(m.body)), uint32(len(b)), crc32.Checksum(b, castagnoli)})
		m.body = append(m.body, b...)
	}
	slices.SortFunc(m.chunks, func(a, b chunk) int { return cmp.Compare(a.thing, b.thing) })
	return &m.sheet
}

// encode is the file form.
func (s *sheet) encode() []byte {
	var h []byte
	number := func(n int64) { h = binary.AppendVarint(h, n) }
	text := func(t string) {
		number(int64(len(t)))
		h = append(h, t...)
	}
	opening := func(o Opening) {
		text(string(o.Node))
		text(o.Boot)
		text(o.Run)
	}
	opening(s.Opening)
	for _, d := range [...]time.Duration{s.begin, s.end, s.earliest, s.offset} {
		number(int64(d))
	}
	var closed int64
	if s.closed {
		closed = 1
	}
	number(closed)
	number(int64(len(s.signs)))
	for _, g := range s.signs {
		opening(g.Opening)
		number(int64(g.uptime))
		number(int64(g.offset))
	}
	number(int64(len(s.notes)))
	for _, n := range s.notes {
		number(int64(n.kind))
		number(int64(n.uptime))
		number(int64(n.lost))
		text(n.text)
	}
	number(int64(len(s.texts)))
	for _, t := range s.texts {
		text(t)
	}
	number(int64(len(s.chunks)))
	for _, c := range slices.SortedFunc(slices.Values(s.chunks), func(a, b chunk) int { return cmp.Compare(a.at, b.at) }) {
		text(s.names.things[c.thing].String())
		number(int64(c.size))
		number(int64(c.sum))
	}
	b := append([]byte(sheetMagic), make([]byte, 8)...)
	binary.LittleEndian.PutUint32(b[len(sheetMagic):], uint32(len(h)))
	binary.LittleEndian.PutUint32(b[len(sheetMagic)+4:], crc32.Checksum(h, castagnoli))
	return append(append(b, h...), s.body...)
}

// headerReader reads what encode wrote; after an error it gives zeros.
type headerReader struct {
	b   []byte
	bad bool
}

func (r *headerReader) number() int64 {
	n, size := binary.Varint(r.b)
	if size <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[size:]
	return n
}

// count is a number of what follows, at least a byte each.
func (r *headerReader) count() int {
	n := r.number()
	if n < 0 || n > int64(len(r.b)) {
		r.bad, r.b = true, nil
		return 0
	}
	return int(n)
}

func (r *headerReader) bytes() []byte {
	n := r.count()
	t := r.b[:n]
	r.b = r.b[n:]
	return t
}

func (r *headerReader) text() string { return string(r.bytes()) }

func (r *headerReader) opening() Opening {
	return Opening{model.NodeName(r.text()), r.text(), r.text()}
}

// decodeHeader reads a header; size is that of the file, base where its
// chunks begin.
func decodeHeader(b []byte, base, size int64, n *names) (*sheet, error) {
	r := &headerReader{b: b}
	s := &sheet{Opening: r.opening(), base: base, names: n}
	for _, d := range [...]*time.Duration{&s.begin, &s.end, &s.earliest, &s.offset} {
		*d = time.Duration(r.number())
	}
	s.closed = r.number() == 1
	for range r.count() {
		s.signs = append(s.signs, sign{r.opening(), time.Duration(r.number()), time.Duration(r.number())})
	}
	for range r.count() {
		s.notes = append(s.notes, note{Kind(r.number()), time.Duration(r.number()), uint64(r.number()), r.text()})
	}
	for range r.count() {
		s.texts = append(s.texts, r.text())
	}
	at := int64(0)
	things := r.count()
	s.chunks = make([]chunk, 0, min(things, len(r.b)/4))
	for range things {
		id, ok := n.id(r.bytes())
		length, sum := r.number(), uint32(r.number())
		if !ok || length < 0 || length > size-base-at {
			return nil, errSheet
		}
		s.chunks = append(s.chunks, chunk{id, uint32(at), uint32(length), sum})
		at += length
	}
	slices.SortFunc(s.chunks, func(a, b chunk) int { return cmp.Compare(a.thing, b.thing) })
	if r.bad || len(r.b) > 0 || at != size-base || len(s.texts) == 0 {
		return nil, errSheet
	}
	return s, nil
}

// openSheet reads the header of a sheet.
func openSheet(path string, first uint64, n *names) (*sheet, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	head := make([]byte, sheetHead)
	if _, err := io.ReadFull(f, head); err != nil || string(head[:len(sheetMagic)]) != sheetMagic {
		return nil, fmt.Errorf("%s: %w", path, errSheet)
	}
	size := int64(binary.LittleEndian.Uint32(head[len(sheetMagic):]))
	if size > min(maxHeader, info.Size()-int64(sheetHead)) || info.Size() > maxSheet {
		return nil, fmt.Errorf("%s: %w", path, errSheet)
	}
	header := make([]byte, size)
	if _, err := io.ReadFull(f, header); err != nil || crc32.Checksum(header, castagnoli) != binary.LittleEndian.Uint32(head[len(sheetMagic)+4:]) {
		return nil, fmt.Errorf("%s: %w", path, errSheet)
	}
	s, err := decodeHeader(header, int64(sheetHead)+size, info.Size(), n)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	s.path, s.first = path, first
	return s, nil
}

// bytes reads the chunk of a thing into a buffer, which grows as it must; nil
// when there is none.
func (s *sheet) bytes(t Thing, buf []byte) ([]byte, error) {
	id, ok := s.names.ids[t.String()]
	if !ok {
		return nil, nil
	}
	i, ok := slices.BinarySearchFunc(s.chunks, id, func(c chunk, id thingID) int { return cmp.Compare(c.thing, id) })
	if !ok {
		return nil, nil
	}
	c := s.chunks[i]
	b := buf
	if s.path == "" {
		b = s.body[c.at : c.at+c.size]
	} else {
		if cap(b) < int(c.size) {
			b = make([]byte, c.size)
		}
		b = b[:c.size]
		f := s.file
		if f == nil {
			var err error
			if f, err = os.Open(s.path); err != nil {
				return nil, fmt.Errorf("read the journal: %w", err)
			}
			if s.names.files < maxFiles {
				s.names.files++
				s.file = f
			} else {
				defer f.Close()
			}
		}
		if _, err := f.ReadAt(b, s.base+int64(c.at)); err != nil {
			return nil, fmt.Errorf("read the journal %s: %w", s.path, err)
		}
	}
	if crc32.Checksum(b, castagnoli) != c.sum {
		return nil, fmt.Errorf("%s: %s: %w", s.path, t, errSheet)
	}
	return b, nil
}

// next takes a change from the bytes of a chunk, given Since of the one before
// (of the first: the begin of its sheet), and returns the rest; nil for bytes
// that a sheet does not have.
func (k *mark) next(b []byte, last time.Duration, texts uint32) []byte {
	head := b[0]
	b = b[1:]
	k.state, k.again = sla.State(head&bitsState), head&bitAgain != 0
	d, n := binary.Varint(b)
	if n <= 0 || k.state == sla.StateUnset || k.state > sla.Planned {
		return nil
	}
	b = b[n:]
	k.since = last + time.Duration(d)
	k.where, k.why = 0, 0
	if head&bitWhere != 0 {
		v, n := binary.Uvarint(b)
		if n <= 0 || v >= uint64(texts) {
			return nil
		}
		k.where, b = uint32(v), b[n:]
	}
	if head&bitWhy != 0 {
		v, n := binary.Uvarint(b)
		if n <= 0 || v >= uint64(texts) {
			return nil
		}
		k.why, b = uint32(v), b[n:]
	}
	if k.repaired = head&bitEnded != 0; k.repaired {
		for _, d := range [...]*time.Duration{&k.ended.Detect, &k.ended.Decide, &k.ended.Switch, &k.ended.Verify} {
			v, n := binary.Varint(b)
			if n <= 0 {
				return nil
			}
			*d, b = time.Duration(v), b[n:]
		}
	}
	return b
}

// write writes the sheet beside its file and has the disk take it. What a
// crash leaves of it has another name.
func (s *sheet) write(dir string, open func(name string, flag int) (file, error)) error {
	name := sheetName(dir, s.first)
	f, err := open(name+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY)
	if err != nil {
		return fmt.Errorf("write the states: %w", err)
	}
	_, err = f.Write(s.encode())
	if err == nil {
		err = f.Sync()
	}
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err == nil {
		err = os.Rename(name+".new", name)
	}
	if err != nil {
		_ = os.Remove(name + ".new") // the first error is the one to tell
		return fmt.Errorf("write the states: %w", err)
	}
	return nil
}
