package ipvs

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// readFlows reads the text of /proc/net/ip_vs_conn, the one list of
// connections that the kernel gives; netlink has none. A line is
//
//	TCP 0A010032 B92A 0A010064 0050 0AF00014 0050 ESTABLISHED     899
//
// that is protocol, client, virtual and real address with ports, state and
// seconds until it is forgotten. Templates of persistence have client port 0;
// those of a mark are of protocol IP and have the mark for an address. The
// order is the kernel's, which ipvsadm keeps. Only those wanted are kept.
func readFlows(r io.Reader, wanted func(model.Flow) bool) ([]model.Flow, error) {
	var flows []model.Flow
	in := bufio.NewScanner(r)
	for n := 1; in.Scan(); n++ {
		words := strings.Fields(in.Text())
		if len(words) == 0 || words[0] == "Pro" {
			continue
		}
		f, err := parseFlow(words)
		if err != nil {
			return nil, fmt.Errorf("ip_vs_conn, line %d: %w", n, err)
		}
		if wanted(f) {
			flows = append(flows, f)
		}
	}
	if err := in.Err(); err != nil {
		return nil, err
	}
	return flows, nil
}

func parseFlow(words []string) (f model.Flow, err error) {
	if len(words) < 9 {
		return f, fmt.Errorf("%d words, want 9", len(words))
	}
	switch words[0] {
	case "TCP":
		f.Proto = model.TCP
	case "UDP":
		f.Proto = model.UDP
	case "SCTP":
		f.Proto = model.SCTP
	}
	for i, to := range []*netip.AddrPort{&f.Client, &f.Virtual, &f.Real} {
		if *to, err = parseHex(words[1+2*i], words[2+2*i]); err != nil {
			return f, err
		}
	}
	f.State = words[7]
	seconds, err := strconv.ParseUint(words[8], 10, 32)
	if err != nil {
		return f, fmt.Errorf("seconds %q: %w", words[8], err)
	}
	f.Expires = time.Duration(seconds) * time.Second
	if len(words) > 9 {
		f.Engine, f.EngineData = words[9], strings.Join(words[10:], " ")
	}
	return f, nil
}

// parseHex reads an IPv4 address of eight hexadecimal digits, or an IPv6
// address written out in full, and a port of four hexadecimal digits.
func parseHex(addr, port string) (netip.AddrPort, error) {
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("port %q: %w", port, err)
	}
	if strings.Contains(addr, ":") {
		a, err := netip.ParseAddr(addr)
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("address: %w", err)
		}
		return netip.AddrPortFrom(a, uint16(p)), nil
	}
	n, err := strconv.ParseUint(addr, 16, 32)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("address %q: %w", addr, err)
	}
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(n))
	return netip.AddrPortFrom(netip.AddrFrom4(b), uint16(p)), nil
}
