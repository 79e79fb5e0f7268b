package heartbeat

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/batuta-ha/batuta/internal/model"
)

// Under a key whose method encrypts a packet has two fields, in whichever
// encoding it travels:
//
//	(1)sealed = NONCE, CIPHERTEXT, TAG      24 random bytes, the message, 16 bytes
//	   auth   = INDEX sealed                as in every packet; the tag covers it, too
//
// The message within is what a netstring packet has from ### through %%%. The
// cipher is XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03): its nonce is long
// enough to be drawn anew for each packet, so nothing has to be remembered
// that a crash, a lost state directory or a cloned machine could repeat; an
// AES-GCM nonce (96 bits) would have to be counted on disk. It needs no AES
// instructions, and Poly1305 makes the packet authentic: there is no HMAC beside it.
//
// What it does not hide: that a node speaks, when, from where, and how long
// its message is. What it does not give: forward secrecy. Who learns the key
// can read what was recorded.
const (
	sealedField = "sealed"
	sealedWord  = "sealed" // in place of a digest
)

// newCipher derives the cipher of one line of authkeys (HKDF-SHA-256, RFC
// 5869). Equal secrets on lines of different numbers give different keys.
func newCipher(index int, secret string) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, []byte(secret), nil, fmt.Sprintf("batuta heartbeat xchacha20-poly1305 %d", index), chacha20poly1305.KeySize)
	if err != nil {
		return nil, err
	}
	return chacha20poly1305.NewX(key)
}

// encrypt writes the fields as one encrypted packet.
func (a *Authenticator) encrypt(b []byte, enc Encoding, fields []Field, index int) []byte {
	auth := a.keys[index].sealed
	a.text = appendNetstring(a.text[:0], fields)
	nonce := a.nonce[:]
	a.random(nonce)
	a.box = append(a.box[:0], nonce...)
	a.box = a.keys[index].cipher.Seal(a.box, nonce, a.text, auth)
	if enc == Text {
		return appendText(b, []Field{{Name: sealedField, Value: string(a.box), Type: FieldBinary}, {Name: "auth", Value: string(auth)}})
	}
	b = appendField(append(b, netstringStart...), sealedField, FieldBinary, a.box)
	b = appendField(b, "auth", FieldString, auth)
	return appendOuter(append(b, netstringEnd...), auth)
}

// decrypt replaces the fields of a packet by those of the message within, if
// the key is the one that it was encrypted with.
func (a *Authenticator) decrypt(p *Packet, index int) error {
	box := p.Get(sealedField)
	if len(box) < chacha20poly1305.NonceSizeX+chacha20poly1305.Overhead {
		return fmt.Errorf("key %d: %w: the packet is not encrypted", index, ErrDigest)
	}
	a.box = append(a.box[:0], box...)
	nonce, sealed := a.box[:chacha20poly1305.NonceSizeX], a.box[chacha20poly1305.NonceSizeX:]
	plain, err := a.keys[index].cipher.Open(a.text[:0], nonce, sealed, []byte(p.Auth()))
	if err != nil {
		return fmt.Errorf("key %d: %w", index, ErrDigest)
	}
	a.text = plain
	message := string(plain)
	fields, end, err := parseFields(message, p.Fields[:0])
	if err != nil {
		return err
	}
	if end != len(message) {
		return fmt.Errorf("%w: %d bytes after the encrypted message", ErrMalformed, len(message)-end)
	}
	p.Fields, p.inside = fields, message
	return nil
}

// encrypts tells whether any key of the ring needs nonces.
func encrypts(ring model.Keyring) bool {
	for _, k := range ring.Keys {
		if k.Method.Encrypts() {
			return true
		}
	}
	return false
}
