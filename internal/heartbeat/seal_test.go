package heartbeat

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/story"
)

// counting is a source of nonces that a test can foresee: 00 01 02 … , each
// call beginning where the one before ended.
func counting() func([]byte) {
	next := byte(0)
	return func(b []byte) {
		for i := range b {
			b[i] = next
			next++
		}
	}
}

func sealing(t testing.TB) *Authenticator {
	t.Helper()
	a, err := NewAuthenticator(model.Keyring{Send: 2, Keys: map[int]model.AuthKey{
		1: {Method: model.AuthSHA1, Secret: "123456"}, 2: {Method: model.AuthXChaCha20, Secret: "an encrypting secret"}, 3: {Method: model.AuthXChaCha20, Secret: "an encrypting secret"}}})
	if err != nil {
		t.Fatal(err)
	}
	a.random = counting()
	return a
}

// The golden packets of testdata/sealed.txt bind every later version: what
// encrypts today must be read tomorrow, during a rolling upgrade.
func TestSealedVectors(t *testing.T) {
	var got strings.Builder
	auth := sealing(t)
	for _, enc := range []Encoding{Netstring, Text} {
		for _, index := range []int{2, 3} {
			fmt.Fprintf(&got, "# %s, key %d\n%s", enc, index, hex.Dump(auth.Seal(nil, enc, status(), true, index)))
		}
	}
	story.Golden(t, "testdata/sealed.txt", got.String())
}

// What is encrypted comes back, in either encoding, shows nothing on the way,
// and no changed byte goes unnoticed.
func TestSealed(t *testing.T) {
	for _, enc := range []Encoding{Netstring, Text} {
		auth := sealing(t)
		data := auth.Seal(nil, enc, status(), true, 2)
		for _, f := range status() {
			if len(f.Value) > 2 && bytes.Contains(data, []byte(f.Value)) {
				t.Errorf("%v: %s can be read: %q", enc, f.Name, data)
			}
		}
		p, err := Parse(data)
		if err != nil {
			t.Fatal(err)
		}
		if index, err := auth.Verify(&p); index != 2 || err != nil {
			t.Errorf("%v: key %d, %v", enc, index, err)
		}
		if d := cmp.Diff(status(), p.Fields); d != "" {
			t.Errorf("%v (-sent +received)\n%s", enc, d)
		}
		for i := range data {
			if enc == Text && i >= len(data)-1 {
				continue // the NUL
			}
			bad := bytes.Clone(data)
			bad[i] ^= 1
			if p, err := Parse(bad); err == nil {
				if _, err := auth.Verify(&p); err == nil && !cmp.Equal(status(), p.Fields) {
					t.Errorf("%v: changed at byte %d, and accepted: %q", enc, i, bad)
				}
			}
		}
	}
}

// A packet is encrypted for one line of authkeys: neither another number with
// the same secret opens it, nor does a signature stand for encryption.
func TestSealedRefuses(t *testing.T) {
	auth := sealing(t)
	sealed := auth.Seal(nil, Netstring, status(), false, 2)
	signed := auth.Seal(nil, Netstring, status(), false, 1)
	for _, c := range []struct {
		name string
		data []byte
		want error
	}{
		{"another number, same secret", bytes.ReplaceAll(sealed, []byte("2 sealed"), []byte("3 sealed")), ErrDigest},
		{"a signing key's number", bytes.ReplaceAll(sealed, []byte("2 sealed"), []byte("1 sealed")), ErrDigest},
		{"a number without key", bytes.ReplaceAll(sealed, []byte("2 sealed"), []byte("4 sealed")), ErrNoKey},
		{"signed, and said to be encrypted", bytes.ReplaceAll(signed, []byte("1 "), []byte("2 ")), ErrDigest},
		{"nothing within", []byte("###\n%%%\n8:2 sealed,"), ErrDigest},
	} {
		p, err := Parse(c.data)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if _, err := auth.Verify(&p); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	// Whoever has the key can still not send what is no message.
	auth.text = []byte("no message")
	box := auth.keys[2].cipher.Seal(make([]byte, 24), make([]byte, 24), auth.text, []byte("2 sealed"))
	p := Packet{Encoding: Netstring, Outer: "2 sealed", Fields: []Field{{Name: sealedField, Value: string(box), Type: FieldBinary}}}
	if _, err := auth.Verify(&p); !errors.Is(err, ErrMalformed) {
		t.Errorf("an encrypted nothing: %v", err)
	}
	if _, err := New(func() Config {
		cfg := testConfig("a", "b", 1)
		cfg.Heartbeat.Keys = model.Keyring{Send: 2, Keys: map[int]model.AuthKey{2: {Method: model.AuthXChaCha20, Secret: "s"}}}
		return cfg
	}()); err == nil {
		t.Error("a core without nonces encrypts")
	}
}

// A cluster begins to encrypt, and ends it, as it changes keys: three steps,
// and nothing that was under way is lost.
func TestEncryptionRollout(t *testing.T) {
	clear, secret := model.AuthKey{Method: model.AuthSHA1, Secret: "old"}, model.AuthKey{Method: model.AuthXChaCha20, Secret: "an encrypting secret"}
	both := map[int]model.AuthKey{1: clear, 2: secret}
	rollover(t, []model.Keyring{
		{Send: 1, Keys: map[int]model.AuthKey{1: clear}},
		{Send: 1, Keys: both},
		{Send: 2, Keys: both},
		{Send: 2, Keys: map[int]model.AuthKey{2: secret}},
	}, "2 sealed")
	rollover(t, []model.Keyring{
		{Send: 2, Keys: map[int]model.AuthKey{2: secret}},
		{Send: 2, Keys: both},
		{Send: 1, Keys: both},
		{Send: 1, Keys: map[int]model.AuthKey{1: clear}},
	}, "1 ")
}

// An original Heartbeat cannot read what is encrypted. As long as authkeys
// lists the key that it signs with it is answered in clear, which is said; a
// file of encrypting keys alone neither hears it nor speaks to it.
func TestEncryptionBesideAnOriginal(t *testing.T) {
	clear, secret := model.AuthKey{Method: model.AuthMD5, Secret: "123456"}, model.AuthKey{Method: model.AuthXChaCha20, Secret: "an encrypting secret"}
	boot := func(keys map[int]model.AuthKey) *Core {
		cfg := testConfig("a", "b", 100)
		cfg.Heartbeat.Keys, cfg.Random = model.Keyring{Send: 2, Keys: keys}, counting()
		c, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		c.Step(epoch, Start{})
		c.Step(epoch, Running{})
		return c
	}
	original := func() []byte {
		fields := status()
		for i := range fields {
			if fields[i].Name == "src" {
				fields[i].Value = "b"
			}
		}
		return md5Auth(t).Seal(nil, Netstring, fields, true, 1)
	}
	says := func(c *Core) string {
		for _, e := range c.Step(epoch, Submit{model.Message{Type: "starting"}}) {
			if s, ok := e.(*Send); ok {
				p, err := Parse(s.Data)
				if err != nil {
					t.Fatal(err)
				}
				return p.Outer
			}
		}
		return ""
	}
	c := boot(map[int]model.AuthKey{1: clear, 2: secret})
	if got := says(c); got != "2 sealed" {
		t.Errorf("before anybody is heard: %q", got)
	}
	warned := false
	for _, e := range c.Step(epoch, Datagram{Link: "eth1", Data: original(), At: epoch}) {
		n, ok := e.(Note)
		warned = warned || ok && n.Kind == "key-followed" && n.Level == model.LevelWarning
	}
	if got := says(c); !strings.HasPrefix(got, "1 ") || !warned {
		t.Errorf("beside an original that signs with key 1: %q, warned: %v", got, warned)
	}
	c = boot(map[int]model.AuthKey{2: secret})
	c.Step(epoch, Datagram{Link: "eth1", Data: original(), At: epoch})
	if got := says(c); got != "2 sealed" || c.Counters().Bad != 1 {
		t.Errorf("with encrypting keys alone: %q, %d bad packets", got, c.Counters().Bad)
	}
}

// FuzzSealed: no packet makes decryption fail in any other way than by an
// error, and only packets of the key's holder come through.
func FuzzSealed(f *testing.F) {
	auth := sealing(f)
	f.Add(auth.Seal(nil, Netstring, status(), true, 2))
	f.Add(auth.Seal(nil, Text, status(), true, 2))
	f.Add([]byte("###\n%%%\n8:2 sealed,"))
	mine := map[string]bool{}
	for _, enc := range []Encoding{Netstring, Text} {
		fresh := sealing(f)
		for range 2 {
			p, _ := Parse(fresh.Seal(nil, enc, status(), true, 2))
			mine[p.Get(sealedField)] = true
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse(data)
		if err != nil {
			return
		}
		box := p.Get(sealedField)
		index, err := auth.Verify(&p)
		if err == nil && index == 2 && !mine[box] {
			t.Errorf("a forged packet is believed: %q", data)
		}
	})
}

// BenchmarkSealed is a beat of each method, to the wire and from it.
func BenchmarkSealed(b *testing.B) {
	for _, method := range []model.AuthMethod{model.AuthSHA1, model.AuthSHA256, model.AuthXChaCha20} {
		auth, err := NewAuthenticator(model.Keyring{Send: 1, Keys: map[int]model.AuthKey{1: {Method: method, Secret: "a secret of some length"}}})
		if err != nil {
			b.Fatal(err)
		}
		auth.random = func(b []byte) { _, _ = rand.Read(b) }
		fields := append(make([]Field, 0, 16), status()...)
		data := auth.Seal(nil, Netstring, fields, false, 1)
		b.Run("seal/"+method.String(), func(b *testing.B) {
			room := make([]byte, 0, 1024)
			b.ReportAllocs()
			for b.Loop() {
				room = auth.Seal(room[:0], Netstring, fields, false, 1)
			}
		})
		b.Run("open/"+method.String(), func(b *testing.B) {
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
