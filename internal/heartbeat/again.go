package heartbeat

import (
	"bytes"
	"cmp"
	"crypto/hmac"
	"slices"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// Nearly all that a node hears is what it has heard before: a beat with the
// next number, and an acknowledgment now and then. Such a packet is read by
// comparing it with the latest of its sender and kind, without a copy of it and
// without memory for its fields. Whatever differs in more than numbers is read
// by Parse. Both ways end in the same said, which is all that counts for them.

// said is what a packet says.
type said struct {
	index  int      // of the key that it is signed with
	enc    Encoding // that it came in
	typ    string
	gen    uint32
	seq    uint32
	hasSeq bool
	timed  bool   // it has a time other than 0
	uuid   string // "" if it has none of 16 bytes
	life   string
	forUs  bool

	// Status messages only.
	batuta    bool
	proven    bool // it shows that its sender hears our present life
	state     model.NodeState
	dead      time.Duration // what the sender asks to be judged by; 0 where it does not
	keepalive time.Duration
	delay     time.Duration
	run       string // see runField

	// Acknowledgments only.
	ack    uint32 // 0: of nothing
	ackGen string // of our life that it is about; "" from an original
}

// Kinds of messages that are read so.
const (
	typeStatus = "status"
	typeAck    = "NS_ackmsg"
)

// says returns what a parsed packet says.
func (c *Core) says(pkt *Packet, index int) said {
	s := said{index: index, enc: pkt.Encoding, typ: pkt.Get("t"), life: word(pkt, "life"), forUs: c.forUs(pkt)}
	ts, ok := hexField(pkt, "ts")
	s.timed = ok && ts != 0
	s.gen, _ = hexField(pkt, "hg") // a missing one counts as 0 (§4)
	s.seq, s.hasSeq = hexField(pkt, "seq")
	if uuid := pkt.Get("srcuuid"); len(uuid) == 16 {
		s.uuid = uuid
	}
	switch s.typ {
	case typeStatus:
		s.batuta = pkt.Get("batuta") != ""
		s.state = model.ParseNodeState(pkt.Get("st"))
		s.dead = millisField(pkt, "dt")
		if plain := millisField(pkt, "bd"); plain > 0 {
			s.dead = plain // without what an original is asked for in a node's first seconds
		}
		s.keepalive = millisField(pkt, "ka")
		s.run = runField(pkt)
		s.delay = micros(pkt)
	case typeAck:
		s.ack, _ = hexField(pkt, "ackseq")
		if life, given := pkt.Lookup(ackGeneration); given {
			s.ackGen = cmp.Or(life, "-") // of no life
		}
	}
	s.proven = slices.Contains(strings.Fields(pkt.Get("echo")), c.life)
	return s
}

// micros is by how much the sender says that it was late.
func micros(pkt *Packet) time.Duration {
	n, _ := hexField(pkt, "wd")
	return time.Duration(n) * time.Microsecond
}

// numbers are the fields that may differ from one packet of a kind to the next.
var numbers = []string{"seq", "ts", "wd", "ackseq", "ld", "auth"}

// pattern is the latest packet of a sender and kind.
type pattern struct {
	said
	word   []byte  // "INDEX " of its signature
	pieces []piece // none: there was no packet yet
}

// piece is one field: "(T)NAME=VALUE", or "(T)NAME=" of a number.
type piece struct {
	text   []byte
	number string // its name; "": the field is the same each time
}

// learn makes a packet the pattern of those to come.
func (p *pattern) learn(pkt *Packet, s said) {
	p.pieces = p.pieces[:0]
	if pkt.Encoding != Netstring {
		return
	}
	index, _, _ := strings.Cut(pkt.Outer, " ")
	p.said, p.word = s, append(p.word[:0], index+" "...)
	for _, f := range pkt.Fields {
		q := piece{text: []byte{'(', '0' + byte(f.Type), ')'}}
		q.text = append(append(q.text, f.Name...), '=')
		if slices.Contains(numbers, f.Name) {
			q.number = f.Name
		} else {
			q.text = append(q.text, f.Value...)
		}
		if q.number != "" && slices.ContainsFunc(p.pieces, func(o piece) bool { return o.number == q.number }) {
			p.pieces = p.pieces[:0] // the first one counts, and which it is would have to be known
			return
		}
		p.pieces = append(p.pieces, q)
	}
}

// match reads a message that has these fields; ok is false unless it differs
// from the pattern in its numbers alone.
func (p *pattern) match(fields [][]byte) (s said, ok bool) {
	if len(fields) != len(p.pieces) {
		return said{}, false
	}
	s = p.said
	for i, f := range fields {
		q := &p.pieces[i]
		if q.number == "" {
			if !bytes.Equal(f, q.text) {
				return said{}, false
			}
			continue
		}
		if !bytes.HasPrefix(f, q.text) {
			return said{}, false
		}
		switch q.number {
		case "ld", "auth": // nobody reads them
			continue
		}
		n, ok := hexNumber(f[len(q.text):])
		if !ok {
			return said{}, false
		}
		switch q.number {
		case "seq":
			s.seq, s.hasSeq = n, true
		case "ts":
			s.timed = n != 0
		case "wd":
			if s.typ == typeStatus {
				s.delay = time.Duration(n) * time.Microsecond
			}
		case "ackseq":
			if s.typ == typeAck {
				s.ack = n
			}
		}
	}
	return s, true
}

// hexNumber reads a number as this program writes it.
func hexNumber(b []byte) (n uint32, ok bool) {
	for _, c := range b {
		switch {
		case c >= '0' && c <= '9':
			n = n<<4 | uint32(c-'0')
		case c >= 'a' && c <= 'f':
			n = n<<4 | uint32(c-'a'+10)
		default:
			return 0, false
		}
	}
	return n, len(b) > 0 && len(b) <= 8
}

// again reads a packet like one that was read before. p is nil if there is
// none, or if anything is wrong with it: Parse says what.
func (c *Core) again(data []byte) (p *peer, s said) {
	inside, auth, proof := c.auth.open(data)
	for _, f := range inside {
		if name, ok := bytes.CutPrefix(f, []byte("(0)src=")); ok {
			p = c.peers[model.NodeName(name)]
			break
		}
	}
	if p == nil {
		return nil, said{}
	}
	for i := range p.patterns {
		like := &p.patterns[i]
		if s, ok := like.match(inside); ok && bytes.HasPrefix(auth, like.word) && (proof == nil || c.auth.proves(s.index, auth[len(like.word):], proof)) {
			return p, s
		}
	}
	return nil, said{}
}

// open takes apart a packet in the netstring encoding: the fields of its
// message, and its signature with the bytes that it covers, which has yet to be
// verified. Of an encrypted one that was opened, and so is authentic, there are
// no such bytes. There are no fields if anything is wrong. All is valid until
// the next call.
func (a *Authenticator) open(data []byte) (fields [][]byte, auth, signed []byte) {
	fields, end := cut(data, a.pieces[:0])
	a.pieces = fields
	if fields == nil {
		return nil, nil, nil
	}
	auth, next, err := netstring(data, end)
	if err != nil || next != len(data) {
		return nil, nil, nil
	}
	box, sealed := bytes.CutPrefix(fields[0], []byte("(1)"+sealedField+"="))
	if !sealed {
		return fields, auth, data[:end]
	}
	number, _, _ := bytes.Cut(auth, []byte(" "))
	index, ok := hexNumber(number) // decimal, of one digit mostly; two are for Parse
	if !ok || index > 9 || len(number) != 1 {
		return nil, nil, nil
	}
	k := &a.keys[index]
	if k.cipher == nil || len(fields) != 2 || len(box) < k.cipher.Overhead()+len(a.nonce) || !bytes.Equal(auth, k.sealed) || !isAuth(fields[1], auth) {
		return nil, nil, nil
	}
	if a.plain, err = k.cipher.Open(a.plain[:0], box[:len(a.nonce)], box[len(a.nonce):], k.sealed); err != nil {
		return nil, nil, nil
	}
	fields, end = cut(a.plain, fields[:0])
	if a.pieces = fields; fields == nil || end != len(a.plain) {
		return nil, nil, nil
	}
	return fields, auth, nil
}

func isAuth(field, auth []byte) bool {
	value, ok := bytes.CutPrefix(field, []byte("(0)auth="))
	return ok && bytes.Equal(value, auth)
}

// cut returns the fields of a message from ### through %%%, nil if it is none,
// and where it ends.
func cut(data []byte, room [][]byte) (fields [][]byte, end int) {
	if !bytes.HasPrefix(data, []byte(netstringStart)) {
		return nil, 0
	}
	for at := len(netstringStart); len(room) < maxFields; {
		if bytes.HasPrefix(data[at:], []byte(netstringEnd)) {
			if len(room) == 0 {
				return nil, 0
			}
			return room, at + len(netstringEnd)
		}
		item, next, err := netstring(data, at)
		if err != nil {
			return nil, 0
		}
		room, at = append(room, item), next
	}
	return nil, 0
}

// proves tells whether it is the digest of the data under that key.
func (a *Authenticator) proves(index int, digest, data []byte) bool {
	k := &a.keys[index]
	return k.method != model.AuthNone && k.cipher == nil && hmac.Equal(k.sign(data), digest)
}
