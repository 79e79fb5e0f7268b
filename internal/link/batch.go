package link

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Packets are taken from the kernel many at a time (recvmmsg(2)): in a
// flood the system call is most of what a packet costs.
const (
	batchSize  = 32
	maxMessage = 16 << 10 // bytes of a packet; those of either program have some hundred
	socketRoom = 4 << 20  // bytes that may wait in a socket: a tenth of a second of a flood of 100,000 packets a second
)

// batch is the memory of one socket's reader. The kernel writes into it.
type batch struct {
	stamps  stamps
	headers [batchSize]struct { // struct mmsghdr
		unix.Msghdr
		length uint32
	}
	vectors [batchSize]unix.Iovec
	names   [batchSize]unix.RawSockaddrInet6 // room for either family
	control [batchSize][64]byte
	data    [batchSize][maxMessage]byte

	have, next int
	now        time.Time // when these were read
	drops      uint32    // the kernel's count of what it dropped, when it was told last
}

func newBatch() *batch {
	b := &batch{}
	for i := range b.headers {
		h := &b.headers[i]
		b.vectors[i].Base = &b.data[i][0]
		b.vectors[i].SetLen(maxMessage)
		h.Iov = &b.vectors[i]
		h.SetIovlen(1)
		h.Name = (*byte)(unsafe.Pointer(&b.names[i]))
		h.Control = &b.control[i][0]
	}
	return b
}

// read takes the packets that are there.
func (b *batch) read(fd int) unix.Errno {
	for i := range b.headers {
		h := &b.headers[i]
		h.Namelen, h.Flags = unix.SizeofSockaddrInet6, 0
		h.SetControllen(len(b.control[i]))
	}
	// It does not wait, so the runtime need not know of it.
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.headers)), batchSize, unix.MSG_DONTWAIT, 0, 0)
	b.have, b.next = 0, 0
	if errno == 0 {
		b.have, b.now = int(n), time.Now()
	}
	return errno
}

// take returns the next packet of the batch, and how many the kernel has
// dropped since the one before; ok is false when there is none left. The data
// are valid until the next read.
func (b *batch) take() (p Packet, dropped uint32, ok bool) {
	for b.next < b.have {
		i := b.next
		b.next++
		h := &b.headers[i]
		if h.Flags&unix.MSG_TRUNC != 0 {
			continue // longer than any message
		}
		oob := b.control[i][:h.Controllen]
		if count, ok := drops(oob); ok {
			dropped, b.drops = count-b.drops, count
		}
		return Packet{Data: b.data[i][:h.length], From: sender(&b.names[i]), At: b.stamps.arrived(b.now, oob)}, dropped, true
	}
	return Packet{}, 0, false
}

// sender is the address that a packet came from.
func sender(name *unix.RawSockaddrInet6) netip.AddrPort {
	switch name.Family {
	case unix.AF_INET:
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), swap(v4.Port))
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(name.Addr), swap(name.Port))
	}
	return netip.AddrPort{}
}

// swap turns a port from network byte order.
func swap(port uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], port)
	return binary.BigEndian.Uint16(b[:])
}

// drops finds the kernel's count of dropped packets (socket(7), SO_RXQ_OVFL).
func drops(oob []byte) (uint32, bool) {
	for len(oob) >= unix.SizeofCmsghdr {
		head, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return 0, false
		}
		if head.Level == unix.SOL_SOCKET && head.Type == unix.SO_RXQ_OVFL && len(data) >= 4 {
			return binary.NativeEndian.Uint32(data), true
		}
		oob = rest
	}
	return 0, false
}

// roomy gives a receiving socket room for a flood, so that the beats between
// the garbage are still there when this process gets its turn; and has the
// kernel count what it drops. Without the right to it the room is the system's.
func roomy(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketRoom); errors.Is(err, unix.EPERM) {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, socketRoom)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1)
	return nil
}
