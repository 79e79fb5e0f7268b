package config

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

const nativeReference = "../../docs/reference/configuration.md"

// TestReference: the reference has each block and attribute, as the tables say it.
func TestReference(t *testing.T) {
	b, err := os.ReadFile(nativeReference)
	if err != nil {
		t.Fatal(err)
	}
	const mark = "<!-- from here on written by go test ./internal/config -run TestReference -rewrite -->\n"
	head, _, found := strings.Cut(string(b), mark)
	if !found {
		t.Fatalf("%s lacks the line %s", nativeReference, mark)
	}
	compareGolden(t, nativeReference, head+mark+referenceText())
}

// TestNativeSchema: the published schema is the one of the tables.
func TestNativeSchema(t *testing.T) {
	compareGolden(t, "../../docs/reference/batuta.schema.json", string(NativeSchema()))
}

// TestReferenceExample: the example of the reference is one.
func TestReferenceExample(t *testing.T) {
	b, err := os.ReadFile(nativeReference)
	if err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(string(b), "```hcl\n")
	example, _, _ = strings.Cut(example, "```")
	d, list := readNative(t, example)
	if len(list) != 0 || len(d.Services) != 2 || len(d.Services[0].Reals) != 12 {
		t.Errorf("%d services\n%s", len(d.Services), text(list))
	}
}

// referenceText writes the tables for people.
func referenceText() string {
	var b strings.Builder
	seen := map[string]bool{}
	var block func(spec *blockSpec, path string)
	block = func(spec *blockSpec, path string) {
		head := path
		if spec.label != "" {
			head += ` "` + spec.label + `"`
		}
		fmt.Fprintf(&b, "\n## `%s`\n\n%s\n", head, spec.doc)
		if spec.many {
			b.WriteString("There may be several.\n")
		}
		if path == "service real_server check" {
			b.WriteString("It takes all that `check` takes, except interval, jitter, fall and rise.\n")
			return
		}
		b.WriteString("\n| attribute | value | otherwise | |\n|---|---|---|---|\n")
		for _, a := range spec.attributes {
			doc := a.doc
			if a.types != nil && !strings.Contains(doc, ": ") {
				doc += " For " + strings.Join(a.types, ", ") + "."
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", a.name, a.valueText(), a.otherwise, doc)
		}
		for _, c := range spec.blocks {
			p := strings.TrimSpace(path + " " + c.name)
			if path == "defaults" || path == "service" {
				p = c.name
				if c.name == "real_server" {
					p = "service real_server"
				}
			}
			if !seen[p] {
				seen[p] = true
				block(c, p)
			}
		}
	}
	for _, c := range nativeFile.blocks {
		if c.name != "defaults" {
			block(c, c.name)
		} else {
			fmt.Fprintf(&b, "\n## `defaults`\n\n%s\nIt takes all that `service` takes, except name, comment and real_server.\n", c.doc)
		}
	}
	return b.String()
}

// valueText tells what an attribute takes.
func (a *attribute) valueText() string {
	switch a.kind {
	case textValue, listValue:
		text := map[valueKind]string{textValue: "text", listValue: "list of texts"}[a.kind]
		if len(a.words) > 0 {
			text = "`" + strings.Join(a.words, "` `") + "`"
		}
		if len(a.words) > 0 && a.kind == listValue {
			text = "list of " + text
		}
		return text
	case numberValue:
		if a.most == maxNumber {
			return fmt.Sprintf("number from %d", a.least)
		}
		return fmt.Sprintf("number %d to %d", a.least, a.most)
	case flagValue:
		return "true or false"
	case durationValue:
		return "time"
	case mapValue:
		return "map of texts"
	case noValue:
	}
	return ""
}

// allHCL says all that can be said; allJSON says the same.
const allHCL = `
director {
  auto_reload     = true
  callback        = "/usr/local/bin/changed"
  log_file        = "local0"
  supervised      = true
  execute         = ["other.hcl"]
  maintenance_dir = "/scratch/dir"
}
defaults {
  quiescent = true
  check { interval = "2s" }
  alert { to = "ops@example.test" }
  fallback "127.0.0.1" {}
  fallback "[::1]" { forward = "masq" }
}
service "tcp vip.example.test:https" {
  name                = "shop"
  comment             = "ours"
  scheduler           = "wlc"
  scheduler_flags     = "x"
  persistence         = "5m"
  persistence_netmask = "24"
  forward             = "ipip"
  quiescent           = false
  readd_quiescent     = true
  clean_stop          = false
  fallback_command    = "/bin/f"
  monitor_file        = "/var/log/monitor"
  panic_threshold     = 30
  drain_deadline      = "1d"
  slow_start {
    window             = "30s"
    min_weight_percent = 20
    aggression         = 2
  }
  flap_damping {
    downs = 4
    hold  = "2m"
  }
  alert {
    from   = "me"
    relay  = "mail"
    repeat = "1h"
    states = ["running", "stopping"]
  }
  check {
    timeout         = "3s"
    connect_timeout = "1s"
    jitter          = "200ms"
    fall            = 3
    rise            = 2
    port            = 8443
    via             = "vip"
    request         = "health"
    receive         = "ok"
    method          = "HEAD"
    host            = "shop.example.test"
    headers         = { X-B = "2", X-A = "1" }
    status          = ["200", "300-399"]
    http2           = true
    weight_header   = "X-Load"
    agent_port      = 9707
    tls {
      verify         = "name"
      server_name    = "shop.example.test"
      ca_file        = "/scratch/dir/../../scratch/dir"
      expiry_warning = "14d"
    }
  }
  real_server "web1" {
    weight          = 5
    upper_threshold = 100
    lower_threshold = 50
  }
  real_server "web2:443" {
    check {
      type    = "external"
      via     = "real"
      command = "/bin/c"
    }
  }
}
service "udp [2001:db8::53]:53" {
  one_packet = true
  forward    = "gate"
  check {
    record  = "AAAA"
    request = "www.example.test"
    receive = ":"
  }
  real_server "[2001:db8::54]:53" {}
}
service "fwm 7" {
  fallback "none" {}
  match {
    protocol    = "tcp"
    destination = "10.1.0.96/28"
    ports       = "5000-5100"
    source      = "10.1.0.50"
    interface   = "eth0"
  }
  match { destination = "10.1.0.101" }
  check {
    type  = "ping"
    tries = 3
  }
  real_server "10.1.1.11-10.1.1.13" { forward = "gate" }
}
service "sctp 10.1.0.100:9" {
  check {
    type = "dialogue"
    step { expect = "^220" }
    step {
      send    = "hi\r\n"
      timeout = "1s"
    }
    step { expect_not = "no" }
    step { close = true }
    tls {}
  }
  real_server "10.1.1.11:9" {}
}
`

func TestNativeMeans(t *testing.T) {
	d, list := readNative(t, allHCL)
	if Failed(list) {
		t.Fatal(text(list))
	}
	var b strings.Builder
	services := d.Services
	d.Services = nil
	b.WriteString(filled(*d) + "\n")
	for _, s := range services {
		reals, fallback := s.Reals, s.Fallback
		s.Reals, s.Fallback = nil, nil
		b.WriteString("\n" + filled(s) + "\n")
		if fallback != nil {
			b.WriteString("  fallback: " + filled(*fallback) + "\n")
		}
		for _, r := range reals {
			b.WriteString("  " + filled(r.RealServer) + "\n    " + filled(r.Target) + "\n")
		}
	}
	d.Services = services
	compareGolden(t, "testdata/native.want", b.String())
	if s := d.Services[0]; s.Reals[0].Target.Via != model.ViaTunnel || s.Care.FlapWindow != 5*time.Minute || s.DrainDeadline != 24*time.Hour {
		t.Errorf("%+v", s)
	}
}

// filled lists what is set in a struct: members that a file does not mention
// may be added to the model without a change here.
func filled(v any) string {
	var b strings.Builder
	for f, x := range reflect.ValueOf(v).Fields() {
		switch {
		case x.IsZero():
		case x.Kind() == reflect.String:
			fmt.Fprintf(&b, "%s:%q ", f.Name, x.String())
		case x.Kind() == reflect.Struct && x.Type().PkgPath() == reflect.TypeFor[model.Care]().PkgPath() && x.Type() != reflect.TypeFor[model.ServiceKey]():
			fmt.Fprintf(&b, "%s:{%s} ", f.Name, strings.TrimSpace(filled(x.Interface())))
		default:
			fmt.Fprintf(&b, "%s:%v ", f.Name, x.Interface())
		}
	}
	return strings.TrimSuffix(b.String(), " ")
}

// The JSON form means the same.
func TestNativeJSON(t *testing.T) {
	const asJSON = `{
  "//": "a comment",
  "director": {"auto_reload": true},
  "defaults": {"check": {"interval": "2s"}},
  "service": {
    "tcp 10.1.0.100:80": {
      "scheduler": "rr",
      "check": {"type": "dialogue", "headers": null, "step": [{"expect": "^220"}, {"send": "${x}\r\n"}]},
      "real_server": {"10.1.1.11:80": {"weight": 2}, "10.1.1.12:80": {}}
    },
    "fwm 7": {"check": {"type": "ping"}, "real_server": {"10.1.1.13": {"forward": "gate"}}}
  }
}`
	const asHCL = `
director { auto_reload = true }
defaults {
  check { interval = "2s" }
}
service "tcp 10.1.0.100:80" {
  scheduler = "rr"
  check {
    type = "dialogue"
    step { expect = "^220" }
    step { send = "$${x}\r\n" }
  }
  real_server "10.1.1.11:80" { weight = 2 }
  real_server "10.1.1.12:80" {}
}
service "fwm 7" {
  check { type = "ping" }
  real_server "10.1.1.13" { forward = "gate" }
}`
	want, list := readNative(t, asHCL)
	if len(list) != 0 {
		t.Fatal(text(list))
	}
	r := Reader{Files: machine(map[string]string{"b.hcl.json": asJSON}), Host: testHost()}
	got, list := r.Director("/b.hcl.json")
	if len(list) != 0 {
		t.Fatal(text(list))
	}
	want.Name, want.File = got.Name, got.File
	if diff := cmp.Diff(want, got, addresses); diff != "" {
		t.Errorf("(-hcl +json)\n%s", diff)
	}
}

// A file that nests without end is refused, not followed.
func TestNativeNesting(t *testing.T) {
	for name, file := range map[string]string{
		"a.hcl":      "a = " + strings.Repeat("[", 2_000),
		"b.hcl":      "a = " + strings.Repeat("(", 2_000),
		"c.hcl":      "a = " + strings.Repeat("!", 20_000) + "true",
		"d.hcl":      "a = " + strings.Repeat(`"${`, 2_000),
		"e.hcl":      "a = " + strings.Repeat("a ? a : ", 20_000),
		"f.hcl":      strings.Repeat("director {\n", 2_000),
		"g.hcl.json": strings.Repeat(`{"a":`, 2_000),
		"h.hcl.json": strings.Repeat(`[`, 2_000),
	} {
		r := Reader{Files: machine(map[string]string{name: file}), Host: testHost()}
		if _, list := r.Director("/" + name); !strings.Contains(text(list), "nested too deep") {
			t.Errorf("%s: %s", name, text(list[:min(len(list), 3)]))
		}
	}
}

func FuzzNative(f *testing.F) {
	seeds(f, "*.hcl", "*.hcl.json")
	f.Add(allHCL)
	f.Fuzz(func(t *testing.T, file string) {
		for _, name := range []string{"b.hcl", "b.hcl.json"} {
			r := Reader{Files: machine(map[string]string{name: file}), Host: testHost()}
			d, list := r.Director("/" + name)
			checkPlaces(t, file, list)
			if Failed(list) {
				continue
			}
			checkServices(t, file, d)
		}
	})
}

// BenchmarkNative reads a file of the size of a large site.
func BenchmarkNative(b *testing.B) {
	im, list := importText(b, largeFile(2277, 37205))
	if im == nil {
		b.Fatal(text(list))
	}
	b.SetBytes(int64(len(im.Text)))
	for b.Loop() {
		d, list := readNative(b, im.Text)
		if len(list) != 0 || len(d.Services) != 2277 {
			b.Fatal(len(d.Services), text(list[:min(len(list), 3)]))
		}
	}
}
