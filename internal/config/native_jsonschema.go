package config

import "encoding/json"

// NativeSchema is the JSON Schema (draft 2020-12) of the native file's JSON
// form, for editors and for programs that write such files.
func NativeSchema() []byte {
	d := definitions{}
	root := d.content(nativeFile, "")
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = "batuta.hcl.json"
	root["$defs"] = d
	text, _ := json.MarshalIndent(root, "", " ") // maps, lists and texts only
	return append(text, '\n')
}

// object is a part of a JSON Schema.
type object = map[string]any

// definitions are the contents of blocks, by name.
type definitions map[string]object

// content is what may stand in a block. HCL's JSON form has the blocks of a
// kind as one object or a list of objects, below their label if there is one.
func (d definitions) content(b *blockSpec, path string) object {
	properties := object{"//": object{"description": "a comment"}}
	for i := range b.attributes {
		properties[b.attributes[i].name] = b.attributes[i].schema()
	}
	for _, c := range b.blocks {
		name := c.name
		if path == "real_server" {
			name = path + "." + name // a check there takes less
		}
		if _, done := d[name]; !done {
			d[name] = nil // and while it is being made
			o := d.content(c, name)
			o["description"] = c.doc
			d[name] = o
		}
		s := object{"$ref": "#/$defs/" + name}
		if c.many || c.label != "" {
			s = object{"anyOf": []any{s, object{"type": "array", "items": s}}}
		}
		if c.label != "" {
			s = object{"type": "object", "description": c.label, "additionalProperties": s}
		}
		properties[c.name] = s
	}
	return object{"type": "object", "properties": properties, "additionalProperties": false}
}

func (a *attribute) schema() object {
	s := object{"description": a.doc}
	text := object{"type": "string"}
	if len(a.words) > 0 {
		text["enum"] = a.words
	}
	switch a.kind {
	case textValue:
		s["type"] = "string"
		if len(a.words) > 0 {
			s["enum"] = a.words
		}
	case numberValue:
		s["type"], s["minimum"], s["maximum"] = "integer", a.least, a.most
	case flagValue:
		s["type"] = "boolean"
	case durationValue:
		s["type"], s["pattern"] = "string", `^(0|[0-9]+d|([0-9]*\.?[0-9]+(ns|us|µs|ms|s|m|h))+)$`
	case listValue:
		s["anyOf"] = []any{text, object{"type": "array", "items": text}}
	case mapValue:
		s["type"], s["additionalProperties"] = "object", text
	case noValue:
	}
	return s
}
