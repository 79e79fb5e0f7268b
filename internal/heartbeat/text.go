package heartbeat

import (
	"encoding/base64"
	"fmt"
	"strings"
)

// hiddenNewline stands for a newline inside a string value (§2.2).
const hiddenNewline = "\x13"

// parseText reads the text encoding. It stops at the closing line: what
// follows is one NUL over UDP and nothing on serial lines (§2.2).
func parseText(raw string) (Packet, error) {
	p := Packet{Encoding: Text, raw: raw, Fields: make([]Field, 0, 14)}
	rest := raw[len(textStart):]
	for !strings.HasPrefix(rest, textEnd) {
		line, after, ok := strings.Cut(rest, "\n")
		if !ok {
			return Packet{}, fmt.Errorf("%w: no closing <<< line", ErrMalformed)
		}
		f, err := parseLine(line)
		if err != nil {
			return Packet{}, err
		}
		if len(p.Fields) == maxFields {
			return Packet{}, fmt.Errorf("%w: more than %d fields", ErrMalformed, maxFields)
		}
		p.Fields = append(p.Fields, f)
		rest = after
	}
	return p, nil
}

// parseLine reads NAME=VALUE or (T)NAME=VALUE.
func parseLine(line string) (Field, error) {
	f := Field{}
	if len(line) > 3 && line[0] == '(' && line[2] == ')' {
		if line[1] < '0' || line[1] > '0'+byte(maxType) {
			return Field{}, fmt.Errorf("%w: unknown field type in %q", ErrMalformed, line[:3])
		}
		f.Type, line = FieldType(line[1]-'0'), line[3:]
	}
	name, value, ok := strings.Cut(line, "=")
	if !ok || !ValidField(name) {
		return Field{}, fmt.Errorf("%w: a line without a usable name: %.40q", ErrMalformed, line)
	}
	f.Name = name
	switch {
	case f.Type == FieldBinary:
		v, err := base64.StdEncoding.Strict().DecodeString(value)
		if err != nil {
			return Field{}, fmt.Errorf("%w: field %s: %w", ErrMalformed, name, err)
		}
		f.Value = string(v)
	case strings.Contains(value, hiddenNewline):
		f.Value = strings.ReplaceAll(value, hiddenNewline, "\n")
	default:
		f.Value = value
	}
	return f, nil
}

// appendLine appends one field as the text encoding has it. The text digest
// is made over these lines, also in netstring packets (§3.3).
func appendLine(b []byte, f *Field) []byte {
	if f.Type != FieldString {
		b = append(b, '(', '0'+byte(f.Type), ')')
	}
	b = append(b, f.Name...)
	b = append(b, '=')
	if f.Hex {
		return append(f.appendValue(b), '\n')
	}
	if f.Type == FieldBinary {
		b = base64.StdEncoding.AppendEncode(b, []byte(f.Value))
		return append(b, '\n')
	}
	for i := range len(f.Value) {
		if f.Value[i] == '\n' {
			b = append(b, hiddenNewline...)
		} else {
			b = append(b, f.Value[i])
		}
	}
	return append(b, '\n')
}

// appendSigned appends what the text digest covers: the lines of all fields
// but auth, in their order (§3.3).
func appendSigned(b []byte, fields []Field) []byte {
	for i := range fields {
		if fields[i].Name != "auth" {
			b = appendLine(b, &fields[i])
		}
	}
	return b
}

// appendText appends a whole text packet as it goes over UDP: with its NUL.
func appendText(b []byte, fields []Field) []byte {
	b = append(b, textStart...)
	for i := range fields {
		b = appendLine(b, &fields[i])
	}
	b = append(b, textEnd...)
	return append(b, 0)
}
