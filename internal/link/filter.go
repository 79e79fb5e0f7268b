package link

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// framesOnly has the kernel drop what begins as no message does (§2), before
// it takes room in the socket's buffer: a flood of garbage on the port must not
// push beats out. Without it such packets are dropped later: no error.
func framesOnly(fd int) error { return beginning(fd, "###\n", ">>>\n") }

// answersOnly is the same for a socket that answers of kernels come to.
func answersOnly(fd int) error { return beginning(fd, "!!!\n", "!!!\n") }

func beginning(fd int, either, or string) error {
	const udpHeader = 8 // RFC 768; what the filter of a UDP socket sees first
	word := func(s string) uint32 { return binary.BigEndian.Uint32([]byte(s)) }
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: udpHeader}, // shorter packets end here: dropped
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: word(either), Jt: 2},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: word(or), Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1}, // the whole packet
	}
	_ = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	return nil
}
