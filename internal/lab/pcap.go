package lab

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// snapLength is the longest part of a frame that a capture keeps.
const snapLength = 65535

// pcapHeader is the head of a capture file with nanoseconds, link type
// Ethernet (draft-ietf-opsawg-pcap, section 4).
func pcapHeader() []byte {
	h := binary.LittleEndian.AppendUint32(nil, 0xa1b23c4d)
	h = binary.LittleEndian.AppendUint16(h, 2)
	h = binary.LittleEndian.AppendUint16(h, 4)
	h = append(h, make([]byte, 8)...)
	h = binary.LittleEndian.AppendUint32(h, snapLength)
	return binary.LittleEndian.AppendUint32(h, 1)
}

// pcapRecord puts the head of section 5 before a frame of length bytes, of
// which data is what was kept.
func pcapRecord(dst []byte, at time.Time, data []byte, length int) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(at.Unix()))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(at.Nanosecond()))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(data)))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(length))
	return append(dst, data...)
}

// capture writes every frame that crosses a bridge to a file, until the
// process ends. Each frame is written at once: a killed lab leaves whole files.
func capture(bridge, file string) error {
	out, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	if _, err := out.Write(pcapHeader()); err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	device, err := net.InterfaceByName(bridge)
	if err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
	if err != nil {
		return fmt.Errorf("capture on %s: %w", bridge, err)
	}
	member := unix.PacketMreq{Ifindex: int32(device.Index), Type: unix.PACKET_MR_PROMISC}
	for _, step := range []error{
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: device.Index}),
		// A bridge shows itself the frames it passes on only when promiscuous.
		unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &member),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
	} {
		if step != nil {
			unix.Close(fd)
			return fmt.Errorf("capture on %s: %w", bridge, step)
		}
	}
	go func() {
		defer out.Close()
		defer unix.Close(fd)
		frame, oob, record := make([]byte, snapLength), make([]byte, 128), []byte(nil)
		for {
			n, oobn, _, _, err := unix.Recvmsg(fd, frame, oob, 0)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return
			}
			record = pcapRecord(record[:0], stamp(oob[:oobn]), frame[:n], n)
			if _, err := out.Write(record); err != nil {
				return // the disk is full; the lab goes on
			}
		}
	}()
	return nil
}

// stamp is the kernel's time of arrival.
func stamp(oob []byte) time.Time {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return time.Now()
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
			return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		}
	}
	return time.Now()
}
