package link

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// A socket's filter has the kernel drop packets before they take room in its
// buffer: a flood of garbage on the port must not push beats out. Where it
// cannot be attached they are dropped later: no error.

// framesOnly admits what begins as a message does (§2).
func framesOnly(fd int) error { return attach(fd, beginning("###\n", ">>>\n"), nil) }

// answersOnly is the same for a socket that answers of kernels come to.
func answersOnly(fd int) error { return attach(fd, beginning("!!!\n", "!!!\n"), nil) }

// preferring admits messages of known senders, and one of strangeShare of all
// others: so that a node that begins to send from another address comes
// through some time, and a flood from anywhere else does not.
func preferring(fd int, known []Sender) error {
	return attach(fd, beginning("###\n", ">>>\n"), from(known))
}

// strangeShare is a power of two.
const strangeShare = 64

// Places of a packet, as the filter of a UDP socket sees it (linux/filter.h).
const (
	udpHeader = 8
	network   = 1<<32 - 0x100000     // SKF_NET_OFF
	random    = 1<<32 - 0x1000 + 56  // SKF_AD_OFF + SKF_AD_RANDOM
	source4   = network + 12         // IPv4 source address
	source6   = network + 8 + 16 - 4 // the last four bytes of an IPv6 one
)

// Verdicts, as jumps: a rule ends in one of them or goes on to the next.
var (
	drop  = unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0}
	admit = unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1} // the whole packet
)

// beginning goes on with packets of a message's length that begin with either
// word. Shorter ones end at the load: dropped.
func beginning(either, or string) []unix.SockFilter {
	word := func(s string) uint32 { return binary.BigEndian.Uint32([]byte(s)) }
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_LEN},
		{Code: unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K, K: maxMessage + udpHeader, Jt: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: udpHeader},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: word(either), Jt: 2},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: word(or), Jt: 1},
		drop,
	}
}

// from goes on with packets of those senders and a share of the others. Of an
// IPv6 address it looks at the last four bytes: no proof is wanted here.
func from(known []Sender) (program []unix.SockFilter) {
	for _, k := range known {
		at, b := uint32(source4), k.Addr.AsSlice()
		if len(b) == 16 {
			at = source6
		}
		program = append(program,
			unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at},
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: binary.BigEndian.Uint32(b[len(b)-4:]), Jf: 1}, admit)
	}
	return append(program,
		unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: random},
		unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: strangeShare - 1},
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 0, Jt: 1},
		drop)
}

func attach(fd int, rules ...[]unix.SockFilter) error {
	var program []unix.SockFilter
	for _, r := range rules {
		program = append(program, r...)
	}
	program = append(program, admit)
	_ = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	return nil
}
