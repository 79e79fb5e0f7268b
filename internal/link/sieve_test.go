package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/model"
)

// sieved is a socket with the filter, and senders at several addresses.
type sieved struct {
	t       *testing.T
	sieve   *sieve
	to      *net.UDPConn
	senders map[string]*net.UDPConn
	about   string // what is being tried
	buf     [64 << 10]byte
}

func newSieved(t *testing.T, host string, senders ...string) *sieved {
	t.Helper()
	requireRoot(t)
	s := &sieved{t: t, senders: map[string]*net.UDPConn{}}
	var err error
	if s.sieve, err = newSieve(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.sieve.Close() })
	if s.to, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(host)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.to.Close() })
	raw, err := s.to.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) {
		// Room for all that a test sends, should the kernel put it off.
		err = errors.Join(s.sieve.attach(int(fd)), unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20))
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range senders {
		c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(from)}, s.to.LocalAddr().(*net.UDPAddr))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		s.senders[from] = c
	}
	return s
}

func (s *sieved) send(from string, packet []byte) {
	s.t.Helper()
	if _, err := s.senders[from].Write(packet); err != nil {
		s.t.Fatal(err)
	}
}

// receive takes a packet that is in the socket. On loopback it is there when
// sending returns, unless the kernel has put that off.
func (s *sieved) receive() (packet []byte, ok bool) {
	s.t.Helper()
	raw, err := s.to.SyscallConn()
	if err != nil {
		s.t.Fatal(err)
	}
	n, got := 0, error(nil)
	_ = raw.Control(func(fd uintptr) { n, _, got = unix.Recvfrom(int(fd), s.buf[:], unix.MSG_DONTWAIT) })
	return s.buf[:max(n, 0)], got == nil
}

// wait is receive for a packet that must come.
func (s *sieved) wait() []byte {
	s.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if packet, ok := s.receive(); ok {
			return packet
		}
	}
	s.t.Fatalf("a packet does not come, %s", s.about)
	return nil
}

// share tells how many of some packets get through, in words.
func (s *sieved) share(from string, packet []byte) string {
	s.t.Helper()
	const packets = 1500 // of which one in 64 is 23
	n := 0
	for range packets {
		s.send(from, packet)
		if _, ok := s.receive(); ok {
			n++
		}
	}
	if n > packets/2 { // what is not there comes
		for ; n < packets; n++ {
			s.wait()
		}
	}
	switch {
	case n == packets:
		return "all"
	case n == 0:
		return "none"
	case n < 100:
		return "few"
	}
	return fmt.Sprint(n)
}

type fields []heartbeat.Field

// message is one in that encoding, under a key.
func message(t *testing.T, enc heartbeat.Encoding, f fields) []byte {
	t.Helper()
	auth, err := heartbeat.NewAuthenticator(model.Keyring{Send: 1, Keys: map[int]model.AuthKey{1: {Method: model.AuthSHA1, Secret: "x"}}})
	if err != nil {
		t.Fatal(err)
	}
	return auth.Seal(nil, enc, f, true, 1)
}

// beat is a status message of that generation and number.
func beat(generation, number string) fields {
	f := fields{{Name: "t", Value: "status"}, {Name: "st", Value: "active"}, {Name: "info", Value: strings.Repeat("seq=1", 30)}, {Name: "src", Value: "a"},
		{Name: "srcuuid", Value: "seq=1,hg=1,:(0)s", Type: heartbeat.FieldBinary}}
	if number != "" {
		f = append(f, heartbeat.Field{Name: "seq", Value: number})
	}
	return append(f, heartbeat.Field{Name: "hg", Value: generation}, heartbeat.Field{Name: "ts", Value: "6b030429"}, heartbeat.Field{Name: "ld", Value: "0.00 0.00 0.00 1/1 1"}, heartbeat.Field{Name: "ttl", Value: "3"})
}

// What the filter admits of a sender of whom generation 7 and number 0x1c3 are
// known, of one of whom nothing is, and of others.
func TestSieve(t *testing.T) {
	for _, family := range []struct{ host, known, plain, other string }{
		{"127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"},
		{"::1", "::1", "", ""},
	} {
		var from []string
		for _, a := range []string{family.known, family.plain, family.other} {
			if a != "" {
				from = append(from, a)
			}
		}
		s := newSieved(t, family.host, from...)
		known := []Sender{{Addr: netip.MustParseAddr(family.known), Generation: 7, Number: 0x1c3}}
		if family.plain != "" {
			known = append(known, Sender{Addr: netip.MustParseAddr(family.plain)})
		}
		if err := s.sieve.know(known, true); err != nil {
			t.Fatal(err)
		}
		net := heartbeat.Netstring
		twice := append(beat("7", "1c4"), beat("7", "1")...)
		many := fields{}
		for i := range 150 {
			many = append(many, heartbeat.Field{Name: fmt.Sprint("f", i), Value: "x"})
		}
		for _, c := range []struct {
			name, from string
			packet     []byte
			want       string
		}{
			{"the next", family.known, message(t, net, beat("7", "1c4")), "all"},
			{"a few ahead", family.known, message(t, net, beat("7", "1d0")), "all"},
			{"the last within reach", family.known, message(t, net, beat("7", "2bd")), "all"},
			{"beyond reach", family.known, message(t, net, beat("7", "2be")), "few"},
			{"the newest once more", family.known, message(t, net, beat("7", "1c3")), "few"},
			{"the first", family.known, message(t, net, beat("7", "1")), "few"},
			{"an earlier life", family.known, message(t, net, beat("6", "1c4")), "few"},
			{"the next life", family.known, message(t, net, beat("8", "1")), "all"},
			{"the middle of the next life", family.known, message(t, net, beat("8", "fff")), "few"},
			{"a life far ahead", family.known, message(t, net, beat("ffffffff", "1")), "few"},
			{"two numbers: the first counts", family.known, message(t, net, twice), "all"},
			{"numbers after many fields", family.known, message(t, net, append(many, beat("7", "1")...)), "few"},
			{"without a generation", family.known, message(t, net, beat("", "1")), "all"},
			{"the text encoding", family.known, message(t, heartbeat.Text, beat("7", "1")), "all"},
			{"no message", family.known, []byte("hello, this is no message at all"), "none"},
			{"hardly anything", family.known, []byte("##"), "none"},
			{"no field", family.known, []byte("###\nxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"), "all"},
			{"an end at once", family.known, []byte("###\n%%%\n"), "all"},
			{"too long", family.known, append([]byte("###\n"), make([]byte, 16<<10)...), "none"},
			{"who is known, without numbers", family.plain, message(t, net, beat("7", "1")), "all"},
			{"a stranger", family.other, message(t, net, beat("7", "1c4")), "few"},
		} {
			if c.from == "" {
				continue
			}
			s.about = c.name
			if got := s.share(c.from, c.packet); got != c.want {
				t.Errorf("%s, %s: %s admitted, want %s", family.host, c.name, got, c.want)
			}
		}
		if family.other == "" {
			continue
		}
		if err := s.sieve.know(known, false); err != nil {
			t.Fatal(err)
		}
		if got := s.share(family.other, message(t, net, beat("7", "1"))); got != "all" {
			t.Errorf("a stranger while nobody is shut out: %s admitted", got)
		}
		if err := s.sieve.expect(Sender{Addr: known[0].Addr, Generation: 8, Number: 5}); err != nil {
			t.Fatal(err)
		}
		for number, want := range map[string]string{"5": "few", "6": "all"} {
			if got := s.share(family.known, message(t, net, beat("8", number))); got != want {
				t.Errorf("after number 5 of the next life, number %s: %s admitted, want %s", number, got, want)
			}
		}
		if err := s.sieve.know(known[1:], true); err != nil {
			t.Fatal(err)
		}
		if got := s.share(family.known, message(t, net, beat("8", "6"))); got != "few" {
			t.Errorf("a sender that is known no more: %s admitted", got)
		}
	}
}

// Messages of delivery have no number: a node's thousand a second pass, and not
// a flood of recorded ones.
func TestSieveOfDelivery(t *testing.T) {
	s := newSieved(t, "127.0.0.1", "127.0.0.2")
	if err := s.sieve.know([]Sender{{Addr: netip.MustParseAddr("127.0.0.2"), Generation: 7, Number: 1}}, true); err != nil {
		t.Fatal(err)
	}
	packet := message(t, heartbeat.Netstring, fields{{Name: "t", Value: "NS_ackmsg"}, {Name: "dest", Value: "b"}, {Name: "ackseq", Value: "5"},
		{Name: "src", Value: "a"}, {Name: "hg", Value: "7"}, {Name: "ts", Value: "6b030429"}, {Name: "ttl", Value: "3"}})
	passed := 0
	var begin, end unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &begin)
	const packets = 5000
	for range packets {
		s.send("127.0.0.2", packet)
		if _, ok := s.receive(); ok {
			passed++
		}
	}
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &end)
	most := 501 + (end.Nano()-begin.Nano())/1e6 + packets/20
	if passed < 500 || int64(passed) > most {
		t.Errorf("%d of %d messages of delivery passed, want 500 to %d", passed, packets, most)
	}
}

// Whatever the packet is, the filter drops none that the next number is in, and
// admits none in full whose number is old.
func TestSieveOfRandomMessages(t *testing.T) {
	s := newSieved(t, "127.0.0.1", "127.0.0.2")
	var seed [8]byte
	binary.LittleEndian.PutUint64(seed[:], rand.Uint64())
	t.Logf("seed %x", seed)
	r := rand.New(rand.NewPCG(binary.LittleEndian.Uint64(seed[:]), 0))
	old, what := 0, ""
	defer func() { t.Logf("the latest: %s", what) }()
	const packets = 2000
	for range packets {
		generation, number := 1+r.Uint32N(1<<31), r.Uint32N(1<<31)
		if err := s.sieve.expect(Sender{Addr: netip.MustParseAddr("127.0.0.2"), Generation: generation, Number: number}); err != nil {
			t.Fatal(err)
		}
		var f fields
		for range r.IntN(40) {
			value := make([]byte, r.IntN(1<<r.IntN(9)))
			for i := range value {
				value[i] = byte(r.Uint32())
			}
			f = append(f, heartbeat.Field{Name: "x", Value: string(value), Type: heartbeat.FieldBinary})
		}
		seq := func(n uint32) []byte {
			return message(t, heartbeat.Netstring, append(f, heartbeat.Field{Name: "seq", Value: fmt.Sprintf("%x", n)},
				heartbeat.Field{Name: "hg", Value: fmt.Sprintf("%x", generation)}, heartbeat.Field{Name: "ts", Value: "6b030429"}, heartbeat.Field{Name: "ttl", Value: "3"}))
		}
		what = fmt.Sprintf("generation %x, number %x, %d fields before", generation, number, len(f))
		fresh := seq(number + 1 + r.Uint32N(250))
		for s.send("127.0.0.2", fresh); !bytes.Equal(s.wait(), fresh); {
			old++ // one that was late
		}
		s.send("127.0.0.2", seq(r.Uint32N(number+1)))
		if _, ok := s.receive(); ok {
			old++
		}
	}
	if old > packets/20 {
		t.Errorf("%d of %d old messages passed", old, packets)
	}
}
