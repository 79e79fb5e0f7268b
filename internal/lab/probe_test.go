package lab_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A helper is a process of this program, in a network of its own, that ends with
// its standard input.
type helper struct {
	cmd *exec.Cmd
	in  io.Closer
	out *bufio.Reader
}

// begin starts a helper, "lab" and its words, in the network of a file, and
// waits until it says that it is ready.
func begin(t *testing.T, network, ready string, words ...string) *helper {
	t.Helper()
	self, err := os.Executable() // for nsenter /proc/self/exe is another
	if err != nil {
		t.Fatal(err)
	}
	h := &helper{cmd: exec.CommandContext(t.Context(), "nsenter", append([]string{"--net=" + network, self, "lab"}, words...)...)}
	h.cmd.Stderr = os.Stderr
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.out = bufio.NewReader(out)
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := h.out.ReadString('\n'); line != ready+"\n" {
		t.Fatalf("%v said %q, %v", words, line, err)
	}
	return h
}

// prober is a client that pings an address each millisecond, in a process of
// its own, which lives in a node's network. It says who answers when that
// changes, and the rest at its end.
type prober struct {
	*testing.T
	*helper
}

// sighting is one packet that came to the client from whoever has the address.
type sighting struct {
	at   time.Time // when the client's kernel received it
	mac  string    // who sent it
	echo bool      // an answer; else a word of ARP
}

// startProber starts a client in the network namespace of a process of the node.
func startProber(t *testing.T, pid int, vip string) *prober {
	t.Helper()
	return &prober{t, begin(t, fmt.Sprintf("/proc/%d/ns/net", pid), "probing", "probe", "eth0", vip)}
}

// await returns when that card answers, at once: nobody asks meanwhile. It is
// false if it does not for a minute; the client has ended then.
func (p *prober) await(mac string) bool {
	p.Helper()
	stop := time.AfterFunc(time.Minute, func() { p.in.Close() })
	defer stop.Stop()
	for {
		switch line, err := p.out.ReadString('\n'); {
		case line == "owner "+mac+"\n":
			return true
		case err != nil || !strings.HasPrefix(line, "owner "):
			_, _ = io.Copy(io.Discard, p.out)
			_ = p.cmd.Wait() // it was told to end
			return false
		}
	}
}

// seen ends the client and returns what it saw, in the order of the kernel.
func (p *prober) seen() []sighting {
	p.Helper()
	p.in.Close()
	var all []sighting
	for {
		line, err := p.out.ReadString('\n')
		if err != nil {
			break
		}
		if strings.HasPrefix(line, "owner ") {
			continue
		}
		var ns int64
		var mac, what string
		if _, err := fmt.Sscan(line, &ns, &mac, &what); err != nil {
			p.Fatalf("the probing client said %q: %v", line, err)
		}
		all = append(all, sighting{time.Unix(0, ns), mac, what == "echo"})
	}
	if err := p.cmd.Wait(); err != nil {
		p.Fatalf("the probing client: %v", err)
	}
	return all
}

// runProbe is that process: a real-time thread that sleeps until a millisecond
// has passed, a packet is there or its input ends.
func runProbe(device, vip string) error {
	debug.SetGCPercent(-1)
	runtime.LockOSThread()
	param := struct{ priority int32 }{60}
	if _, _, errno := unix.Syscall(unix.SYS_SCHED_SETSCHEDULER, 0, unix.SCHED_RR, uintptr(unsafe.Pointer(&param))); errno != 0 {
		return fmt.Errorf("real-time priority: %w", errno)
	}
	card, err := net.InterfaceByName(device)
	if err != nil {
		return err
	}
	addr, err := netip.ParseAddr(vip)
	if err != nil {
		return err
	}
	tap, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK, 0x0300) // ETH_P_ALL on the wire
	if err != nil {
		return err
	}
	if err := unix.Bind(tap, &unix.SockaddrLinklayer{Protocol: 0x0300, Ifindex: card.Index}); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(tap, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return err
	}
	ping, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
	if err != nil {
		return err
	}
	timer, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, 0)
	if err != nil {
		return err
	}
	beat := unix.NsecToTimespec(int64(time.Millisecond))
	if err := unix.TimerfdSettime(timer, 0, &unix.ItimerSpec{Interval: beat, Value: beat}, nil); err != nil {
		return err
	}
	fmt.Println("probing")
	const room = 200_000 // packets of minutes
	seen := make([]sighting, 0, room)
	macs, owner := map[[6]byte]string{}, ""
	var frame, control [256]byte
	to := &unix.SockaddrInet4{Addr: addr.As4()}
	for fds := []unix.PollFd{{Fd: 0, Events: unix.POLLIN}, {Fd: int32(timer), Events: unix.POLLIN}, {Fd: int32(tap), Events: unix.POLLIN}}; fds[0].Revents == 0; {
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return err
		}
		if fds[1].Revents != 0 {
			_, _ = unix.Read(timer, frame[:8])
			_ = unix.Sendto(ping, echoRequest, 0, to) // an address that nobody has is what is looked for
		}
		for {
			n, cn, _, _, err := unix.Recvmsg(tap, frame[:], control[:], 0)
			if err != nil {
				break
			}
			echo, from := answer(frame[:n], addr)
			if !from {
				continue
			}
			mac := [6]byte(frame[6:12])
			if macs[mac] == "" {
				macs[mac] = net.HardwareAddr(mac[:]).String()
			}
			if echo && macs[mac] != owner {
				owner = macs[mac]
				fmt.Println("owner " + owner)
			}
			if len(seen) < room && cn >= unix.CmsgSpace(16) {
				seen = append(seen, sighting{time.Unix(int64(binary.NativeEndian.Uint64(control[unix.CmsgLen(0):])), int64(binary.NativeEndian.Uint64(control[unix.CmsgLen(8):]))), macs[mac], echo})
			}
		}
	}
	var out strings.Builder
	for _, s := range seen {
		fmt.Fprintln(&out, s.at.UnixNano(), s.mac, map[bool]string{true: "echo", false: "arp"}[s.echo])
	}
	_, err = os.Stdout.WriteString(out.String())
	return err
}

// echoRequest is an ICMP echo request (RFC 792) with its checksum.
var echoRequest = []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}

// answer tells whether a frame is an echo reply, or else a word of ARP, of
// whoever has the address.
func answer(f []byte, vip netip.Addr) (echo, from bool) {
	ip := vip.As4()
	switch {
	case len(f) >= 42 && f[12] == 8 && f[13] == 6: // ARP: the sender's address
		return false, [4]byte(f[28:32]) == ip
	case len(f) >= 35 && f[12] == 8 && f[13] == 0 && f[23] == unix.IPPROTO_ICMP && f[34] == 0:
		return true, [4]byte(f[26:30]) == ip
	}
	return false, false
}
