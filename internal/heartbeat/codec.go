package heartbeat

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// Encoding is one of the two forms a packet can have on the wire (§2).
type Encoding uint8

// Encodings. A node accepts both at any time.
const (
	EncodingNone Encoding = iota
	Netstring             // "###": length-prefixed fields, signed as a whole
	Text                  // ">>>": one line a field; older peers and serial lines
)

func (e Encoding) String() string {
	switch e {
	case Netstring:
		return "netstring"
	case Text:
		return "text"
	case EncodingNone:
	}
	return "none"
}

// FieldType is the digit that says how a field's value is to be read (§2.1).
type FieldType uint8

// Field types. Clusters in release-1 mode use the first two only; the others
// are kept as they came and never interpreted.
const (
	FieldString FieldType = 0
	FieldBinary FieldType = 1
	maxType     FieldType = 5 // nested, list, compressed, to be compressed
)

// Field is one value of a packet. Binary values are raw bytes. What Parse
// returns has a Value; what is to be sent may have a number instead.
type Field struct {
	Name   string
	Value  string
	Type   FieldType
	Hex    bool   // the value is Number, in hexadecimal: a beat's numbers change, and need no memory so
	Number uint32 // where Hex is set
}

// length is that of the value.
func (f *Field) length() int {
	if f.Hex {
		return max(1, (bits.Len32(f.Number)+3)/4)
	}
	return len(f.Value)
}

// appendValue appends the value.
func (f *Field) appendValue(b []byte) []byte {
	if f.Hex {
		return strconv.AppendUint(b, uint64(f.Number), 16)
	}
	return append(b, f.Value...)
}

// Limits of what is accepted. The original's receive buffer bounds a packet;
// its ordinary messages have 11 to 13 fields (§2.3).
const (
	MaxPacket = 256<<10 - 1 // bytes of a datagram
	maxFields = 200         // fields of a packet
	maxName   = 64          // bytes of a field's name
)

// ErrMalformed is wrapped by every error of Parse: the bytes are no packet.
var ErrMalformed = errors.New("malformed heartbeat packet")

// Packet is one parsed datagram: fields in the order received, and the
// signature that has yet to be verified. It shares memory with nothing.
type Packet struct {
	Encoding Encoding
	Fields   []Field
	Outer    string // netstring only: the trailing "INDEX DIGEST"

	raw    string // the datagram
	signed int    // netstring only: raw[:signed] is what Outer covers
	inside string // netstring only: ### through %%% of the message that Fields are of
}

// Lookup returns the first field of that name, which is the one that counts (§2.4).
func (p *Packet) Lookup(name string) (string, bool) {
	for i := range p.Fields {
		if p.Fields[i].Name == name {
			return p.Fields[i].Value, true
		}
	}
	return "", false
}

// Get returns the first field of that name, "" where there is none.
func (p *Packet) Get(name string) string {
	v, _ := p.Lookup(name)
	return v
}

// Auth returns the signature that a receiver checks: the trailing one of a
// netstring packet, the auth field of a text packet.
func (p *Packet) Auth() string {
	if p.Encoding == Netstring {
		return p.Outer
	}
	return p.Get("auth")
}

const (
	netstringStart = "###\n"
	netstringEnd   = "%%%\n"
	textStart      = ">>>\n"
	textEnd        = "<<<\n"
)

// Parse reads one datagram in either encoding. It checks form only; see
// Authenticator.Verify for the signature.
func Parse(b []byte) (Packet, error) {
	switch {
	case len(b) > MaxPacket:
		return Packet{}, fmt.Errorf("%w: %d bytes are more than the largest message (%d)", ErrMalformed, len(b), MaxPacket)
	case bytes.HasPrefix(b, []byte(netstringStart)):
		return parseNetstring(string(b))
	case bytes.HasPrefix(b, []byte(textStart)):
		return parseText(string(b))
	}
	return Packet{}, fmt.Errorf("%w: starts with neither ### nor >>>", ErrMalformed)
}

// parseNetstring reads the netstring encoding by its lengths alone: values
// may hold any byte, commas and newlines included (§2.1).
func parseNetstring(raw string) (p Packet, err error) {
	p = Packet{Encoding: Netstring, raw: raw}
	if p.Fields, p.signed, err = parseFields(raw, make([]Field, 0, 14)); err != nil {
		return Packet{}, err
	}
	outer, next, err := netstring(raw, p.signed)
	if err != nil {
		return Packet{}, err
	}
	if next != len(raw) {
		return Packet{}, fmt.Errorf("%w: %d bytes after the signature", ErrMalformed, len(raw)-next)
	}
	p.inside = raw[:p.signed]
	p.Outer = outer
	return p, nil
}

// parseFields reads ###, the fields, which it appends, and %%%, and returns
// the offset of what follows.
func parseFields(raw string, fields []Field) ([]Field, int, error) {
	if !strings.HasPrefix(raw, netstringStart) {
		return nil, 0, fmt.Errorf("%w: does not start with ###", ErrMalformed)
	}
	at := len(netstringStart)
	for !strings.HasPrefix(raw[at:], netstringEnd) {
		item, next, err := netstring(raw, at)
		if err != nil {
			return nil, 0, err
		}
		if len(item) < 3 || item[0] != '(' || item[1] < '0' || item[1] > '0'+byte(maxType) || item[2] != ')' {
			return nil, 0, fmt.Errorf("%w: the field at byte %d does not begin with its type, (0) to (5)", ErrMalformed, at)
		}
		name, value, ok := strings.Cut(item[3:], "=")
		if !ok || !ValidField(name) {
			return nil, 0, fmt.Errorf("%w: the field at byte %d has no usable name", ErrMalformed, at)
		}
		if len(fields) == maxFields {
			return nil, 0, fmt.Errorf("%w: more than %d fields", ErrMalformed, maxFields)
		}
		fields = append(fields, Field{Name: name, Value: value, Type: FieldType(item[1] - '0')})
		at = next
	}
	return fields, at + len(netstringEnd), nil
}

// netstring reads LEN:BYTES, at that offset and returns the bytes and the
// offset of what follows.
func netstring[T string | []byte](raw T, at int) (item T, next int, err error) {
	none := raw[:0]
	n, i := 0, at
	for ; i < len(raw) && raw[i] >= '0' && raw[i] <= '9'; i++ {
		if i > at && n == 0 {
			return none, 0, fmt.Errorf("%w: the length at byte %d has a leading zero", ErrMalformed, at)
		}
		if n = n*10 + int(raw[i]-'0'); n > MaxPacket {
			return none, 0, fmt.Errorf("%w: the length at byte %d is beyond any message", ErrMalformed, at)
		}
	}
	if i == at || i >= len(raw) || raw[i] != ':' {
		return none, 0, fmt.Errorf("%w: no LENGTH: at byte %d", ErrMalformed, at)
	}
	end := i + 1 + n
	if end >= len(raw) || raw[end] != ',' {
		return none, 0, fmt.Errorf("%w: the %d bytes announced at byte %d do not end with a comma", ErrMalformed, n, at)
	}
	return raw[i+1 : end], end + 1, nil
}

// ValidField tells whether a field's name can be sent: it means the same in both encodings.
func ValidField(s string) bool {
	if s == "" || len(s) > maxName {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || c == '=' || c == '(' || c == ')' {
			return false
		}
	}
	return true
}

// appendNetstring appends the fields and everything that the outer signature
// covers: from the first # through the newline after %%% (§3.2).
func appendNetstring(b []byte, fields []Field) []byte {
	return append(appendFields(append(b, netstringStart...), fields), netstringEnd...)
}

func appendFields(b []byte, fields []Field) []byte {
	for i := range fields {
		f := &fields[i]
		b = appendHead(b, f.Name, f.Type, f.length())
		b = append(f.appendValue(b), ',')
	}
	return b
}

// appendField appends one field whose value is in memory that is used again.
func appendField(b []byte, name string, typ FieldType, value []byte) []byte {
	b = appendHead(b, name, typ, len(value))
	return append(append(b, value...), ',')
}

// appendHead appends what stands before a field's value.
func appendHead(b []byte, name string, typ FieldType, length int) []byte {
	b = strconv.AppendInt(b, int64(3+len(name)+1+length), 10)
	b = append(b, ':', '(', '0'+byte(typ), ')')
	b = append(b, name...)
	return append(b, '=')
}

// appendOuter appends the signature as the last netstring of a packet.
func appendOuter[T string | []byte](b []byte, auth T) []byte {
	b = strconv.AppendInt(b, int64(len(auth)), 10)
	b = append(b, ':')
	b = append(b, auth...)
	return append(b, ',')
}

// Append writes the packet in its encoding, with the signatures it has.
// Append and Parse are inverse: whatever Parse accepts is written so that
// parsing it again gives the same packet.
func (p *Packet) Append(b []byte) []byte {
	if p.Encoding == Text {
		return appendText(b, p.Fields)
	}
	return appendOuter(appendNetstring(b, p.Fields), p.Outer)
}
