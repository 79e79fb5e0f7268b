package heartbeat

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
)

// A question to a node's kernel, and its answer, are one UDP payload of 64
// bytes each, so that the answer is the question overwritten in place:
//
//	 0  4  "???\n" or "!!!\n"
//	 4  1  version, 1
//	 5  1  number of the key in authkeys
//	 6  2  0
//	 8  8  nonce: generation of the asker's life and a count, so that no two questions are equal
//	16  8  fingerprint of the node that is asked
//	24  8  fingerprint of the asker
//	32 16  the run of the asked machine; 0 in a question
//	48  8  0: room for how long the node's lease still lasts
//	56  8  SipHash-2-4 of the bytes before, little-endian
//
// The check is no HMAC as in packets: a tc program can neither loop over
// SHA-2's rounds cheaply nor call the kernel's crypto for every packet that a
// stranger sends. SipHash is made for keyed checks of short inputs, and 64
// bits cannot be guessed by packets. The key comes from authkeys by HKDF, so
// that what the kernel holds cannot sign or read packets.
const (
	QuestionSize = 64
	questionVer  = 1
	checked      = QuestionSize - 8 // bytes that the check covers
)

var (
	questionMagic = [4]byte([]byte("???\n"))
	answerMagic   = [4]byte([]byte("!!!\n"))
)

// Question is a question to a node's kernel, or its answer.
type Question struct {
	Answer bool
	Key    uint8 // number in authkeys, 0 to 15
	Nonce  uint64
	Node   Fingerprint // who is asked
	Asker  Fingerprint
	Run    Run // of the machine that answers
}

// Fingerprint stands for a node's name where 8 bytes have to do.
type Fingerprint [8]byte

// FingerprintOf is the same for names that differ in case.
func FingerprintOf(n model.NodeName) (f Fingerprint) {
	sum := sha256.Sum256([]byte(strings.ToLower(string(n))))
	copy(f[:], sum[:])
	return f
}

// Run is one run of a machine, as a node on it sees it: another one has
// nothing left of what this one had.
type Run [16]byte

// RunOf makes a Run of what together tells two runs apart.
func RunOf(parts ...string) (r Run) {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\n")))
	copy(r[:], sum[:])
	return r
}

// String is the form that the boot field of a status message has.
func (r Run) String() string { return hex.EncodeToString(r[:]) }

// QuestionKey is the key of the check.
type QuestionKey [16]byte

// QuestionKeys derives the key for each line of authkeys (HKDF-SHA-256, RFC
// 5869). A line without a secret (crc) gives a key that everybody knows, as
// everybody can send its beats.
func QuestionKeys(ring model.Keyring) map[uint8]QuestionKey {
	keys := map[uint8]QuestionKey{}
	for i, k := range ring.Keys {
		if i < 0 || i > 15 {
			continue // NewAuthenticator refuses it
		}
		key, err := hkdf.Key(sha256.New, []byte(k.Secret), nil, fmt.Sprintf("batuta kernel question siphash-2-4 %d", i), len(QuestionKey{}))
		if err == nil { // of 16 bytes it is always nil
			keys[uint8(i)] = QuestionKey(key)
		}
	}
	return keys
}

// Append writes q under the key.
func (q *Question) Append(b []byte, key QuestionKey) []byte {
	start := len(b)
	magic := questionMagic
	if q.Answer {
		magic = answerMagic
	}
	b = append(b, magic[:]...)
	b = append(b, questionVer, q.Key, 0, 0)
	b = binary.BigEndian.AppendUint64(b, q.Nonce)
	b = append(b, q.Node[:]...)
	b = append(b, q.Asker[:]...)
	b = append(b, q.Run[:]...)
	b = binary.BigEndian.AppendUint64(b, 0) // the lease
	return binary.LittleEndian.AppendUint64(b, sipHash(key, b[start:]))
}

// ParseQuestion reads a question or an answer. Its errors wrap ErrMalformed,
// ErrNoKey or ErrDigest. What is in the room for the lease is not looked at.
func ParseQuestion(b []byte, keys map[uint8]QuestionKey) (q Question, err error) {
	if len(b) != QuestionSize {
		return q, fmt.Errorf("%w: a question or answer of %d bytes instead of %d", ErrMalformed, len(b), QuestionSize)
	}
	switch [4]byte(b) {
	case questionMagic:
	case answerMagic:
		q.Answer = true
	default:
		return q, fmt.Errorf("%w: neither a question nor an answer", ErrMalformed)
	}
	if b[4] != questionVer {
		return q, fmt.Errorf("%w: question of version %d, want %d", ErrMalformed, b[4], questionVer)
	}
	q.Key = b[5]
	key, ok := keys[q.Key]
	if !ok {
		return q, fmt.Errorf("question under key %d: %w", q.Key, ErrNoKey)
	}
	if binary.LittleEndian.Uint64(b[checked:]) != sipHash(key, b[:checked]) {
		return q, fmt.Errorf("question under key %d: %w", q.Key, ErrDigest)
	}
	q.Nonce = binary.BigEndian.Uint64(b[8:])
	copy(q.Node[:], b[16:])
	copy(q.Asker[:], b[24:])
	copy(q.Run[:], b[32:])
	return q, nil
}

// errNotAsked is returned by Reply for what is a question, but not ours.
var errNotAsked = errors.New("the question is for another node")

// Reply is what a node's kernel makes of a question: bpf/responder.c, slowly
// and obviously. An error means that there is no answer.
func Reply(question []byte, keys map[uint8]QuestionKey, node model.NodeName, run Run) ([]byte, error) {
	q, err := ParseQuestion(question, keys)
	switch {
	case err != nil:
		return nil, err
	case q.Answer:
		return nil, fmt.Errorf("%w: an answer is not a question", ErrMalformed)
	case q.Node != FingerprintOf(node):
		return nil, errNotAsked
	}
	q.Answer, q.Run = true, run
	return q.Append(nil, keys[q.Key]), nil
}

// isAnswer tells a kernel's answer from a packet of a daemon.
func isAnswer(b []byte) bool { return len(b) >= 4 && [4]byte(b) == answerMagic }
