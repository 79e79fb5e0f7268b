package heartbeat

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/story"
)

// The vectors that the authors of SipHash published: key 00 01 … 0f, input
// 00 01 … of each length.
func TestSipHash(t *testing.T) {
	var key [16]byte
	var in []byte
	for i := range key {
		key[i] = byte(i)
	}
	want := []string{"310e0edd47db6f72", "fd67dc93c539f874", "5a4fa9d909806c0d", "2d7efbd796666785", "b7877127e09427cf",
		"8da699cd64557618", "cee3fe586e46c9cb", "37d1018bf50002ab", "6224939a79f5f593", "b0e4a90bdf82009e",
		"f3b9dd94c5bb5d7a", "a7ad6b22462fb3f4", "fbe50e86bc8f1e75", "903d84c02756ea14", "eef27a8e90ca23f7", "e545be4961ca29a1"}
	for n, w := range want {
		h := sipHash(key, in)
		var got []byte
		for i := range 8 {
			got = append(got, byte(h>>(8*i)))
		}
		if hex.EncodeToString(got) != w {
			t.Errorf("%d bytes: got %x, want %s", n, got, w)
		}
		in = append(in, byte(n))
	}
}

// questionKeyring and the node lvs01 in run "a run" are those of testdata/questions.txt.
var questionKeyring = model.Keyring{Send: 1, Keys: map[int]model.AuthKey{
	1: {Method: model.AuthSHA1, Secret: "123456"}, 2: {Method: model.AuthXChaCha20, Secret: "an encrypting secret"}, 15: {Method: model.AuthCRC}}}

// questions are what may come to the kernel of lvs01, by name.
func questions() (names []string, packets [][]byte) {
	keys := QuestionKeys(questionKeyring)
	add := func(name string, b []byte) { names, packets = append(names, name), append(packets, b) }
	q := Question{Key: 1, Nonce: 0x0000006400000001, Node: FingerprintOf("lvs01"), Asker: FingerprintOf("lvs02")}
	good := q.Append(nil, keys[1])
	changed := func(at int, to byte) []byte {
		b := append([]byte(nil), good...)
		b[at] = to
		return b
	}
	add("key 1", good)
	for _, k := range []uint8{2, 15} {
		other := q
		other.Key = k
		add(fmt.Sprintf("key %d", k), other.Append(nil, keys[k]))
	}
	late := q
	late.Nonce = ^uint64(0)
	add("the last nonce", late.Append(nil, keys[1]))
	elsewhere := q
	elsewhere.Node = FingerprintOf("lvs03")
	add("for another node", elsewhere.Append(nil, keys[1]))
	absent := q
	absent.Key = 3
	add("a key that is not there", absent.Append(nil, keys[1]))
	absent.Key = 200
	add("a key that cannot be", absent.Append(nil, keys[1]))
	add("under another key", q.Append(nil, keys[2]))
	answer := q
	answer.Answer, answer.Run = true, RunOf("a run")
	add("an answer", answer.Append(nil, keys[1]))
	add("a later version", changed(4, 2))
	add("another nonce", changed(8, 1))
	add("another asker", changed(24, 1))
	add("a lease", changed(55, 1))
	add("another check", changed(63, good[63]^0x80))
	add("another word", changed(0, '#'))
	add("too short", good[:63])
	add("too long", append(append([]byte(nil), good...), 0))
	return names, packets
}

// What lvs01 answers. The same file is held against bpf/responder.c.
func TestQuestionVectors(t *testing.T) {
	var got strings.Builder
	fmt.Fprintln(&got, "# What lvs01 in the run RunOf(\"a run\") answers under the keys of question_test.go.")
	names, packets := questions()
	for i, b := range packets {
		fmt.Fprintf(&got, "%s\n? %x\n", names[i], b)
		answer, err := Reply(b, QuestionKeys(questionKeyring), "lvs01", RunOf("a run"))
		if err != nil {
			fmt.Fprintf(&got, "- %v\n", err)
			continue
		}
		fmt.Fprintf(&got, "! %x\n", answer)
		q, err := ParseQuestion(answer, QuestionKeys(questionKeyring))
		if err != nil || !q.Answer || q.Run != RunOf("a run") || q.Asker != FingerprintOf("lvs02") {
			t.Errorf("%s: the answer reads as %+v, %v", names[i], q, err)
		}
	}
	story.Golden(t, "testdata/questions.txt", got.String())
}

// Whatever comes in: no panic; what is read is written the same again, and
// what is answered was a question under one of the keys.
func FuzzParseQuestion(f *testing.F) {
	_, packets := questions()
	for _, b := range packets {
		f.Add(b)
	}
	keys := QuestionKeys(questionKeyring)
	f.Fuzz(func(t *testing.T, b []byte) {
		answer, refused := Reply(b, keys, "lvs01", RunOf("a run"))
		q, err := ParseQuestion(b, keys)
		if err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrNoKey) && !errors.Is(err, ErrDigest) {
				t.Fatalf("an error of no kind: %v", err)
			}
			if refused == nil {
				t.Fatalf("answered, although %v: %x", err, answer)
			}
			return
		}
		again := q.Append(nil, keys[q.Key])
		if d := cmp.Diff(b[:48], again[:48]); d != "" && [2]byte(b[6:]) == [2]byte{} {
			t.Errorf("(-read +written)\n%s", d)
		}
	})
}

// An answer counts if it is to one of the latest questions to that node, under
// a key of authkeys, and once the daemon is heard it changes nothing.
func TestAnswersThatDoNotCount(t *testing.T) {
	w := newWatched(t, true)
	keys := QuestionKeys(w.core.hb.Keys)
	w.pass(14 * time.Millisecond)
	w.now = w.core.Next()
	ask := w.core.Step(w.now, Tick{})[0].(Ask)
	asked, err := ParseQuestion(ask.Data, keys)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(q *Question, key *QuestionKey){
		"another nonce":          func(q *Question, _ *QuestionKey) { q.Nonce++ },
		"of another node":        func(q *Question, _ *QuestionKey) { q.Node = FingerprintOf("c") },
		"to another asker":       func(q *Question, _ *QuestionKey) { q.Asker = FingerprintOf("c") },
		"under a key unknown":    func(_ *Question, key *QuestionKey) { key[0]++ },
		"the question come back": func(q *Question, _ *QuestionKey) { q.Answer = false },
	} {
		q, key := asked, keys[asked.Key]
		q.Answer, q.Run = true, run1
		change(&q, &key)
		before := w.core.det.nodes["b"].answer
		w.step(Datagram{Link: "eth1", Data: q.Append(nil, key), At: w.now})
		if w.core.Counters().Answers != 0 || w.core.det.nodes["b"].answer != before {
			t.Errorf("%s: the answer counts", name)
		}
	}
	asked.Answer, asked.Run = true, run1
	w.step(Datagram{Link: "eth1", Data: asked.Append(nil, keys[asked.Key]), At: w.now})
	if got := w.core.Counters().Answers; got != 1 {
		t.Errorf("the true answer: %d answers count, want 1", got)
	}
}
