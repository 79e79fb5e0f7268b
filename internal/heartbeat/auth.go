package heartbeat

import (
	"bytes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/md5"  // the wire format demands it; HMAC-MD5 (RFC 2104)
	"crypto/sha1" // HMAC-SHA1
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/batuta-ha/batuta/internal/model"
)

// Errors of Verify. Both mean: drop the packet, nothing in it is true.
var (
	// ErrNoKey means that authkeys has no key of the packet's index.
	ErrNoKey = errors.New("no such key in authkeys")
	// ErrDigest means that the signature, or the encryption, is not of these bytes and this key.
	ErrDigest = errors.New("signature does not match")
)

// Authenticator signs and verifies packets with the keys of authkeys. It
// keeps working memory and is not for use by several goroutines.
type Authenticator struct {
	keys [16]signer
	send int
	text []byte // reused: the bytes that a digest covers, or a message before encryption
	box  []byte // reused: an encrypted message
	word []byte // reused: "INDEX DIGEST"

	plain  []byte   // reused: the message of an encrypted packet that open has read
	pieces [][]byte // reused: its fields

	random func([]byte) // fills in nonces; see Config.Random
	nonce  [chacha20poly1305.NonceSizeX]byte
}

// signer is one key, ready for use.
type signer struct {
	method model.AuthMethod
	mac    hash.Hash   // nil for crc and what encrypts
	cipher cipher.AEAD // nil for what signs
	sealed []byte      // with a cipher: what stands in a packet in place of a signature
	sum    [sha512.Size]byte
	digest [2 * sha512.Size]byte
}

// NewAuthenticator takes the keys. It refuses a ring whose sending key is
// missing, and indexes and methods that authkeys cannot have (§13).
func NewAuthenticator(ring model.Keyring) (*Authenticator, error) {
	a := &Authenticator{send: ring.Send}
	for i, k := range ring.Keys {
		if i < 0 || i >= len(a.keys) {
			return nil, fmt.Errorf("authkeys: key index %d is not between 0 and 15", i)
		}
		s := signer{method: k.Method}
		switch k.Method {
		case model.AuthMD5:
			s.mac = hmac.New(md5.New, []byte(k.Secret))
		case model.AuthSHA1:
			s.mac = hmac.New(sha1.New, []byte(k.Secret))
		case model.AuthSHA256:
			s.mac = hmac.New(sha256.New, []byte(k.Secret))
		case model.AuthSHA384:
			s.mac = hmac.New(sha512.New384, []byte(k.Secret))
		case model.AuthSHA512:
			s.mac = hmac.New(sha512.New, []byte(k.Secret))
		case model.AuthXChaCha20:
			var err error
			if s.cipher, err = newCipher(i, k.Secret); err != nil {
				return nil, fmt.Errorf("authkeys: key %d: %w", i, err)
			}
			s.sealed = fmt.Appendf(nil, "%d %s", i, sealedWord)
		case model.AuthCRC:
		case model.AuthNone:
			return nil, fmt.Errorf("authkeys: key %d has no method: want crc, md5, sha1, sha256, sha384, sha512 or xchacha20", i)
		default:
			return nil, fmt.Errorf("authkeys: key %d: unknown method %v", i, k.Method)
		}
		a.keys[i] = s
	}
	if ring.Send < 0 || ring.Send >= len(a.keys) || a.keys[ring.Send].method == model.AuthNone {
		return nil, fmt.Errorf("authkeys: auth %d selects a key that is not defined", ring.Send)
	}
	return a, nil
}

// Method returns the method of a key, AuthNone where there is no such key.
func (a *Authenticator) Method(index int) model.AuthMethod {
	if index < 0 || index >= len(a.keys) {
		return model.AuthNone
	}
	return a.keys[index].method
}

// ParseAuth splits "INDEX DIGEST".
func ParseAuth(s string) (index int, digest string, err error) {
	word, digest, ok := strings.Cut(s, " ")
	index, e := strconv.Atoi(word)
	if !ok || e != nil || index < 0 || index > 15 {
		return 0, "", fmt.Errorf("%w: signature %.40q is not INDEX DIGEST", ErrMalformed, s)
	}
	return index, digest, nil
}

// Verify accepts a packet whose digest matches the key of its own index
// (§3.4) and returns that index. An encrypted packet then has the fields of
// the message within. Inner signatures of netstring packets do not count; see
// VerifyInner.
func (a *Authenticator) Verify(p *Packet) (index int, err error) {
	index, digest, err := ParseAuth(p.Auth())
	if err != nil {
		return 0, err
	}
	if a.Method(index).Encrypts() {
		return index, a.decrypt(p, index)
	}
	if p.Encoding == Netstring {
		a.text = append(a.text[:0], p.raw[:p.signed]...)
		return index, a.check(index, digest, a.text)
	}
	return index, a.checkText(index, digest, p.Fields)
}

// Admits tells whether it is worth while to parse a packet: its signature is
// right, as far as that can be told without parsing. It costs no more than the
// signature and keeps nothing.
func (a *Authenticator) Admits(data []byte) bool {
	const longest = 3 + 1 + 2*sha512.Size + 8 // LEN:INDEX DIGEST,
	tail := max(0, len(data)-longest-len(netstringEnd))
	end := bytes.LastIndex(data[tail:], []byte(netstringEnd))
	if !bytes.HasPrefix(data, []byte(netstringStart)) || end < 0 {
		return a.admitsParsed(data)
	}
	signed := tail + end + len(netstringEnd)
	_, auth, _ := bytes.Cut(data[signed:], []byte(":"))
	number, digest, ok := bytes.Cut(bytes.TrimSuffix(auth, []byte(",")), []byte(" "))
	if !ok || len(number) < 1 || len(number) > 2 {
		return false
	}
	index := 0
	for _, c := range number {
		index = index*10 + int(c-'0')
	}
	switch method := a.Method(index); {
	case method == model.AuthNone:
		return false
	case method.Encrypts():
		return a.admitsParsed(data)
	}
	return hmac.Equal(a.keys[index].sign(data[:signed]), digest)
}

func (a *Authenticator) admitsParsed(data []byte) bool {
	p, err := Parse(data)
	if err == nil {
		_, err = a.Verify(&p)
	}
	return err == nil
}

// VerifyInner checks the text signature that a netstring packet carries in
// its auth field under msgfmt classic. Receivers ignore it; captures prove by it.
func (a *Authenticator) VerifyInner(p *Packet) error {
	index, digest, err := ParseAuth(p.Get("auth"))
	if err != nil {
		return err
	}
	return a.checkText(index, digest, p.Fields)
}

func (a *Authenticator) checkText(index int, digest string, fields []Field) error {
	a.text = appendSigned(a.text[:0], fields)
	return a.check(index, digest, a.text)
}

func (a *Authenticator) check(index int, digest string, data []byte) error {
	if a.Method(index) == model.AuthNone {
		return fmt.Errorf("key %d: %w", index, ErrNoKey)
	}
	if !hmac.Equal(a.keys[index].sign(data), []byte(digest)) {
		return fmt.Errorf("key %d: %w", index, ErrDigest)
	}
	return nil
}

// sign returns the digest as the wire has it. The bytes are valid until the
// next call.
func (s *signer) sign(data []byte) []byte {
	if s.mac == nil {
		return strconv.AppendUint(s.digest[:0], uint64(crc(data)), 16)
	}
	s.mac.Reset()
	s.mac.Write(data)
	return hex.AppendEncode(s.digest[:0], s.mac.Sum(s.sum[:0]))
}

// Seal writes the fields as a signed packet. In a netstring packet the inner
// signature is added when asked for (msgfmt classic), as the original does; a
// text packet always has it. Under a key that encrypts it is an encrypted one.
func (a *Authenticator) Seal(b []byte, enc Encoding, fields []Field, inner bool, index int) []byte {
	if a.Method(index).Encrypts() {
		return a.encrypt(b, enc, fields, index)
	}
	if inner || enc == Text {
		a.text = appendSigned(a.text[:0], fields)
		a.auth(index, a.text)
	}
	if enc == Text {
		return appendText(b, append(fields, Field{Name: "auth", Value: string(a.word)}))
	}
	start := len(b)
	b = appendFields(append(b, netstringStart...), fields)
	if inner {
		b = appendField(b, "auth", FieldString, a.word)
	}
	b = append(b, netstringEnd...)
	a.auth(index, b[start:])
	return appendOuter(b, a.word)
}

// auth makes a.word the signature of the data.
func (a *Authenticator) auth(index int, data []byte) {
	a.word = strconv.AppendInt(a.word[:0], int64(index), 10)
	a.word = append(a.word, ' ')
	a.word = append(a.word, a.keys[index].sign(data)...)
}

// crc is the checksum of the crc method: CRC-32 with polynomial 0x04C11DB7,
// not reflected, initial value 0, complemented at the end (§3.1). That is
// POSIX cksum without the length, and not hash/crc32, which reflects.
func crc(data []byte) uint32 {
	var c uint32
	for _, b := range data {
		c = c<<8 ^ crcTable[byte(c>>24)^b]
	}
	return ^c
}

var crcTable = func() (t [256]uint32) {
	for i := range t {
		c := uint32(i) << 24
		for range 8 {
			if c&0x80000000 != 0 {
				c = c<<1 ^ 0x04C11DB7
			} else {
				c <<= 1
			}
		}
		t[i] = c
	}
	return t
}()
