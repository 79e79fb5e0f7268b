package link

import "golang.org/x/sys/unix"

// framesOnly has the kernel drop what begins as no message does (§2), before
// it takes room in the socket's buffer: a flood of garbage on the port must not
// push beats out. Without it such packets are dropped later: no error.
func framesOnly(fd int) error {
	const udpHeader = 8 // RFC 768; what the filter of a UDP socket sees first
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: udpHeader}, // shorter packets end here: dropped
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 0x2323230a, Jt: 2},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 0x3e3e3e0a, Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1}, // the whole packet
	}
	_ = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	return nil
}
