package lab_test

import (
	"encoding/binary"
	"net"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// synTable is the least size of the connection table. A flood of twice as many
// SYNs fills it; what the second half of them costs is told.
const synTable = 65536

// compareSYN measures a flood of SYNs, each of another connection.
func (v *guest) compareSYN() {
	v.Helper()
	const servers = 4
	v.tables("tcp", servers)
	for _, p := range rivals {
		if p.name == "forward" || strings.HasSuffix(p.name, "floor") {
			continue
		}
		v.director(servers, 1, p.up)
		v.synFlood(p, 0, synTable)
		before, begun := v.arrived(), v.taken()
		v.synFlood(p, synTable, synTable)
		sh(v, "sleep 0.1")
		each, delivered := v.since(begun), v.arrived()-before
		v.director(servers, 1, p.down)
		v.add(measured{v.by, p.name + ", SYNs", servers, synTable, 0, each.each, each.batch}, delivered, synTable)
	}
}

// synFlood sends SYNs from the client's card: the first-th address and port,
// and those that follow. The packet socket is not of the client's stack.
func (v *guest) synFlood(p rival, first, packets int) {
	v.Helper()
	done := make(chan error, 1)
	go func() { // ends with its thread, which is in the client's network
		runtime.LockOSThread()
		done <- v.sendSYNs(p, first, packets)
	}()
	if err := <-done; err != nil {
		v.Fatal(err)
	}
}

func (v *guest) sendSYNs(p rival, first, packets int) error {
	ns, err := unix.Open("/run/netns/client", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(ns) }()
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return err
	}
	card, err := net.InterfaceByName("c0")
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	mac, err := net.ParseMAC(v.mac)
	if err != nil {
		return err
	}
	to := &unix.SockaddrLinklayer{Ifindex: card.Index, Halen: 6}
	dst := p.to.Addr().As4()
	for i := first; i < first+packets; i++ {
		f := make([]byte, 60)
		copy(f, mac)
		copy(f[6:], card.HardwareAddr)
		f[12] = 0x08
		ip, tcp := f[14:], f[34:54]
		copy(ip, []byte{0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, unix.IPPROTO_TCP, 0, 0, 10, 1, 0, byte(10 + i/50_000)})
		copy(ip[16:], dst[:])
		binary.BigEndian.PutUint16(ip[10:], sum(ip[:20]))
		binary.BigEndian.PutUint16(tcp, uint16(1024+i%50_000))
		binary.BigEndian.PutUint16(tcp[2:], p.to.Port())
		binary.BigEndian.PutUint32(tcp[4:], uint32(i))
		tcp[12], tcp[13], tcp[14] = 5<<4, 2, 0x20
		pseudo := append(append([]byte{}, ip[12:20]...), 0, unix.IPPROTO_TCP, 0, 20)
		binary.BigEndian.PutUint16(tcp[16:], sum(append(pseudo, tcp...)))
		for {
			err := unix.Sendto(fd, f, 0, to)
			if err == nil {
				break
			}
			if err != unix.ENOBUFS && err != unix.EAGAIN && err != unix.EINTR {
				return err
			}
		}
	}
	return nil
}

// sum is the Internet checksum of RFC 1071.
func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}
