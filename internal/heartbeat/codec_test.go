package heartbeat

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/batuta-ha/batuta/internal/model"
)

// Values may hold anything; both encodings bring it back.
func TestRoundTrip(t *testing.T) {
	fields := []Field{
		{Name: "t", Value: "status"},
		{Name: "uuid", Value: "\x00,\n=)\xff%%%\n", Type: FieldBinary},
		{Name: "info", Value: "a comma, a = and a (1) "},
		{Name: "lines", Value: "one\ntwo"},
		{Name: "empty", Value: ""},
		{Name: "t", Value: "the second of that name does not count"},
	}
	auth := md5Auth(t)
	for _, enc := range []Encoding{Netstring, Text} {
		for _, inner := range []bool{true, false} {
			data := auth.Seal(nil, enc, append([]Field(nil), fields...), inner, 1)
			p, err := Parse(data)
			if err != nil {
				t.Fatalf("%s: %v\n%q", enc, err, data)
			}
			if _, err := auth.Verify(&p); err != nil {
				t.Errorf("%s: %v", enc, err)
			}
			if p.Get("t") != "status" {
				t.Errorf("%s: t is %q", enc, p.Get("t"))
			}
			got := p.Fields
			if inner || enc == Text {
				got = got[:len(got)-1]
			}
			if diff := cmp.Diff(fields, got); diff != "" {
				t.Errorf("%s (-sent +received):\n%s", enc, diff)
			}
		}
	}
}

func md5Auth(t testing.TB) *Authenticator {
	t.Helper()
	a, err := NewAuthenticator(model.Keyring{Send: 1, Keys: map[int]model.AuthKey{
		1: {Method: model.AuthMD5, Secret: "123456"}, 2: {Method: model.AuthSHA1, Secret: strings.Repeat("long", 30)}, 3: {Method: model.AuthCRC}}})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestParseRefuses(t *testing.T) {
	long := "###\n" + strings.Repeat("7:(0)a=b,", 1)
	for _, c := range []struct{ name, data, want string }{
		{"empty", "", "neither ### nor >>>"},
		{"noise", "GET / HTTP/1.1\r\n", "neither ### nor >>>"},
		{"no end", "###\n", "no LENGTH: at byte 4"},
		{"length beyond the packet", "###\n99:(0)a=b,%%%\n1:x,", "do not end with a comma"},
		{"length too short", "###\n5:(0)a=b,%%%\n1:x,", "do not end with a comma"},
		{"leading zero", "###\n07:(0)a=b,%%%\n1:x,", "leading zero"},
		{"enormous length", "###\n99999999999999999999:(0)a=b,%%%\n", "beyond any message"},
		{"no length", "###\n:(0)a=b,%%%\n1:x,", "no LENGTH"},
		{"no type", "###\n3:a=b,%%%\n1:x,", "does not begin with its type"},
		{"unknown type", "###\n6:(6)a=b,%%%\n1:x,", "does not begin with its type"},
		{"no name", "###\n5:(0)=b,%%%\n1:x,", "no usable name"},
		{"no equals sign", "###\n5:(0)ab,%%%\n1:x,", "no usable name"},
		{"no signature", "###\n6:(0)a=b,%%%\n", "no LENGTH"},
		{"bytes after the end", "###\n6:(0)a=b,%%%\n1:x,\n", "1 bytes after the signature"},
		{"too many fields", "###\n" + strings.Repeat("6:(0)a=b,", maxFields+1) + "%%%\n1:x,", "more than 200 fields"},
		{"too large", long + strings.Repeat("x", MaxPacket), "more than the largest message"},
		{"text without end", ">>>\na=b\n", "no closing <<< line"},
		{"text, half a line", ">>>\na=b", "no closing <<< line"},
		{"text without name", ">>>\n=b\n<<<\n", "usable name"},
		{"text, bad base64", ">>>\n(1)a=!\n<<<\n", "field a: illegal base64"},
		{"text, unknown type", ">>>\n(9)a=b\n<<<\n", "unknown field type"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse([]byte(c.data))
			if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v; want %q", err, c.want)
			}
		})
	}
}

// A text packet may lack its NUL, and is over at the closing line.
func TestTextTail(t *testing.T) {
	for _, tail := range []string{"", "\x00", "garbage"} {
		p, err := Parse([]byte(">>>\na=b\n<<<\n" + tail))
		if err != nil || p.Get("a") != "b" {
			t.Errorf("tail %q: %+v, %v", tail, p, err)
		}
	}
}

func TestVerifyRefuses(t *testing.T) {
	auth := md5Auth(t)
	good := auth.Seal(nil, Netstring, []Field{{Name: "t", Value: "status"}}, true, 1)
	for i := range good {
		bad := append([]byte(nil), good...)
		bad[i] ^= 1
		p, err := Parse(bad)
		if err != nil {
			continue
		}
		if _, err := auth.Verify(&p); err == nil {
			t.Errorf("changed at byte %d, and accepted: %q", i, bad)
		}
	}
	p, err := Parse(good)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		outer string
		want  error
	}{
		{"4 " + strings.Repeat("0", 32), ErrNoKey}, // an index that authkeys lacks
		{"2 " + p.Outer[2:], ErrDigest},            // a digest of another key
		{"16 0", ErrMalformed},
		{"-1 0", ErrMalformed},
		{"1", ErrMalformed},
		{"", ErrMalformed},
	} {
		q := p
		q.Outer = c.outer
		if _, err := auth.Verify(&q); !errors.Is(err, c.want) {
			t.Errorf("signature %q: error is %v, want %v", c.outer, err, c.want)
		}
	}
}

func TestAuthenticatorRefuses(t *testing.T) {
	key := model.AuthKey{Method: model.AuthMD5, Secret: "x"}
	for _, r := range []model.Keyring{
		{},
		{Send: 2, Keys: map[int]model.AuthKey{1: key}},
		{Send: 16, Keys: map[int]model.AuthKey{16: key}},
		{Send: 1, Keys: map[int]model.AuthKey{1: {}}},
		{Send: 1, Keys: map[int]model.AuthKey{1: key, 2: {Method: 99}}},
	} {
		if _, err := NewAuthenticator(r); err == nil {
			t.Errorf("%v was accepted", r)
		}
	}
}

// The check value of §3.1, and that of CRC-32/CKSUM in the catalog of CRCs.
func TestCRC(t *testing.T) {
	if got := crc(nil); got != 0xffffffff {
		t.Errorf("crc of nothing is %x", got)
	}
	if got := crc([]byte("123456789")); got != 0x765e7680 {
		t.Errorf("crc of the digits is %x", got)
	}
}

// FuzzParse: no bytes make the parser fail in any other way than by an error;
// what it accepts, it writes so that the same packet comes back.
func FuzzParse(f *testing.F) {
	captured(f, func(data []byte) { f.Add(data) })
	auth := md5Auth(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse(data)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("error of an unknown kind: %v", err)
			}
			return
		}
		_, _ = auth.Verify(&p)
		_ = auth.VerifyInner(&p)
		again, err := Parse(p.Append(nil))
		if err != nil {
			t.Fatalf("written again: %v", err)
		}
		if diff := cmp.Diff(p, again, cmpopts.IgnoreUnexported(Packet{})); diff != "" {
			t.Errorf("written again (-first +second):\n%s", diff)
		}
		if p.Encoding == Netstring && string(p.Append(nil)) != string(data) {
			t.Errorf("netstring packet is written differently:\n%q\n%q", data, p.Append(nil))
		}
	})
}

// captured gives out one packet of each type and encoding of each capture,
// as it was on the wire, and those of the netstring captures as text, too.
func captured(f *testing.F, take func([]byte)) {
	f.Helper()
	files, err := filepath.Glob("testdata/*.pcap")
	if err != nil || len(files) == 0 {
		f.Fatalf("no captures: %v", err)
	}
	for _, file := range files {
		seen := map[string]bool{}
		for _, fr := range frames(f, file) {
			p, err := Parse(fr.data)
			if key := p.Get("t") + p.Get("rsc_hold") + p.Get("info"); err == nil && !seen[key] {
				seen[key] = true
				take(fr.data)
				p.Encoding = Text
				take(p.Append(nil))
			}
		}
	}
	serial, err := os.ReadFile("testdata/serial-md5-text-encoding.txt")
	if err != nil {
		f.Fatal(err)
	}
	for message := range bytes.SplitAfterSeq(serial, []byte(textEnd)) {
		if i := bytes.Index(message, []byte(textStart)); i >= 0 {
			take(message[i:])
		}
	}
}

// FuzzCore: a node that has the key says what it likes, changes of captured
// messages to begin with; its packets come three times. None has more effects
// than a request for retransmission may have, and what is kept stays bounded.
func FuzzCore(f *testing.F) {
	captured(f, func(data []byte) { f.Add(data) })
	for _, m := range [][]Field{
		{{Name: "t", Value: "x"}, {Name: "seq", Value: "ffffffff"}},
		{{Name: "t", Value: "NS_rexmit"}, {Name: "firstseq", Value: "1"}, {Name: "lastseq", Value: "4294967295"}},
		{{Name: "t", Value: "NS_nak_rexmit"}, {Name: "firstseq", Value: "ffffffff"}},
		{{Name: "t", Value: typeOutlived}, {Name: "dest", Value: "hb-b"}, {Name: "highest", Value: "fffffffe"}},
	} {
		f.Add(md5Auth(f).Seal(nil, Netstring, append(m, Field{Name: "src", Value: "hb-a"}, Field{Name: "hg", Value: "64"}, Field{Name: "ts", Value: "1"}), false, 1))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse(data)
		if err != nil {
			return
		}
		auth, now := md5Auth(t), epoch
		fields := slices.DeleteFunc(p.Fields, func(f Field) bool { return f.Name == "auth" })
		packet := auth.Seal(nil, p.Encoding, fields, false, 1)
		cfg := testConfig("hb-b", "hb-a", 100)
		c, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		c.Step(now, Start{})
		c.Step(now, Running{})
		for range 60 {
			c.Step(now, Submit{model.Message{Type: "x"}})
		}
		for range 3 {
			if effects := c.Step(now, Datagram{Link: "eth0", Data: packet, At: now}); len(effects) > maxResend+10 {
				t.Errorf("one packet had %d effects", len(effects))
			}
			in := c.peers["hb-a"]
			if len(in.in.missing) > maxMissing || len(in.held) > maxHeld || len(in.in.life) > maxWord {
				t.Errorf("kept: %d missing, %d held, life %q", len(in.in.missing), len(in.held), in.in.life)
			}
			now = now.Add(300 * time.Millisecond)
			c.Step(now, Tick{})
		}
	})
}

var epoch = time.Unix(1795359877, 0)

func status() []Field {
	return []Field{{Name: "t", Value: "status"}, {Name: "st", Value: "active"}, {Name: "dt", Value: "1388"}, {Name: "protocol", Value: "1"},
		{Name: "src", Value: "hb-b"}, {Name: "srcuuid", Value: "0123456789abcdef", Type: FieldBinary}, {Name: "seq", Value: "13"},
		{Name: "hg", Value: "6b030421"}, {Name: "ts", Value: "6b03042a"}, {Name: "ld", Value: "4.72 2.11 0.83 6/134 76"}, {Name: "ttl", Value: "3"}}
}

func BenchmarkSeal(b *testing.B) {
	for name, key := range map[string]int{"md5": 1, "sha1": 2, "crc": 3} {
		b.Run(name, func(b *testing.B) {
			auth, fields, room := md5Auth(b), status(), make([]byte, 0, 1024)
			fields = append(make([]Field, 0, 16), fields...)
			b.ReportAllocs()
			for b.Loop() {
				room = auth.Seal(room[:0], Netstring, fields, true, key)
			}
		})
	}
}

func BenchmarkParseVerify(b *testing.B) {
	for name, key := range map[string]int{"md5": 1, "sha1": 2, "crc": 3} {
		b.Run(name, func(b *testing.B) {
			auth := md5Auth(b)
			data := auth.Seal(nil, Netstring, status(), true, key)
			b.ReportAllocs()
			for b.Loop() {
				p, err := Parse(data)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := auth.Verify(&p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkBeat is a whole beat from submission to the peer's detector.
func BenchmarkBeat(b *testing.B) {
	s := &stage{nodes: map[string]*Core{}, now: epoch}
	for _, n := range []string{"a", "b"} {
		c, err := New(testConfig(n, other(n), 100))
		if err != nil {
			b.Fatal(err)
		}
		c.Step(s.now, Start{})
		s.nodes[n] = c
	}
	m := model.Message{Type: "status", Fields: []model.Field{{Name: "st", Value: "active"}, {Name: "dt", Value: "1388"}, {Name: "protocol", Value: "1"}, {Name: "batuta", Value: "1"}}}
	b.ReportAllocs()
	for b.Loop() {
		for _, e := range s.nodes["a"].Step(s.now, Submit{m}) {
			if p, ok := e.(*Send); ok {
				s.nodes["b"].Step(s.now, Datagram{Link: "eth1", Data: p.Data, At: s.now})
			}
		}
	}
}

// BenchmarkGarbage is what a packet without a valid signature costs.
func BenchmarkGarbage(b *testing.B) {
	s := &stage{now: epoch}
	c, err := New(testConfig("b", "a", 100))
	if err != nil {
		b.Fatal(err)
	}
	c.Step(s.now, Start{})
	data := md5Auth(b).Seal(nil, Netstring, status(), true, 1)
	data[len(data)-3] ^= 1
	b.ReportAllocs()
	for b.Loop() {
		c.Step(s.now, Datagram{Link: "eth1", Data: data, At: s.now})
	}
}
