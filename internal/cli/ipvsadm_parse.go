package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// lookup finds numbers for names, where ipvsadm takes both.
type lookup interface {
	addr(host string) (netip.Addr, error)
	number(p model.Protocol, service string) (uint16, error)
}

// readSave reads the commands that ipvsadm -S writes and ipvsadm -R carries
// out: -A, -E, -D, -a, -e and -d, one a line, with their options; empty lines
// and those that begin with # are none. All mistakes are reported at once.
func readSave(r io.Reader, names lookup) ([]model.Change, error) {
	var changes []model.Change
	var errs []error
	in := bufio.NewScanner(r)
	for n := 1; in.Scan(); n++ {
		words := strings.Fields(in.Text())
		if len(words) > 0 && words[0] == "ipvsadm" { // scripts have it before each command
			words = words[1:]
		}
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		c, err := parseCommand(words, names)
		if err != nil {
			errs = append(errs, fmt.Errorf("line %d: %w", n, err))
			continue
		}
		changes = append(changes, c)
	}
	return changes, errors.Join(append(errs, in.Err())...)
}

// command is one line of options, as far as it was read.
type command struct {
	names  lookup
	change model.Change
	key    string // as written, with its option
	real   string
	six    bool
}

// ops are the commands that change a table.
var ops = map[string]model.ChangeOp{
	"-A": model.ServiceAdd, "--add-service": model.ServiceAdd,
	"-E": model.ServiceEdit, "--edit-service": model.ServiceEdit,
	"-D": model.ServiceDelete, "--delete-service": model.ServiceDelete,
	"-a": model.RealAdd, "--add-server": model.RealAdd,
	"-e": model.RealEdit, "--edit-server": model.RealEdit,
	"-d": model.RealDelete, "--delete-server": model.RealDelete,
}

// parseCommand reads one command with its options.
func parseCommand(words []string, names lookup) (model.Change, error) {
	op, ok := ops[words[0]]
	if !ok {
		return model.Change{}, fmt.Errorf("%q: want -A, -E, -D, -a, -e or -d", words[0])
	}
	c := command{names: names, change: model.Change{Op: op, Service: model.VirtualService{Scheduler: "wlc"},
		Real: model.RealServer{Forward: model.Gate, Weight: 1}}}
	for words = words[1:]; len(words) > 0; {
		option, rest := words[0], words[1:]
		if name, value, joined := strings.Cut(option, "="); joined && strings.HasPrefix(option, "--") {
			option, rest = name, append([]string{value}, rest...)
		}
		used, err := c.option(option, rest)
		if err != nil {
			return model.Change{}, err
		}
		words = rest[used:]
	}
	return c.finish()
}

// option reads one option and tells how many of the words after it are its own.
func (c *command) option(option string, rest []string) (used int, err error) {
	service, real := &c.change.Service, &c.change.Real
	switch option {
	case "-6", "--ipv6":
		c.six = true
		return 0, nil
	case "-o", "--ops":
		service.OnePacket = true
		return 0, nil
	case "-g", "--gatewaying":
		real.Forward = model.Gate
		return 0, nil
	case "-i", "--ipip":
		real.Forward = model.IPIP
		return 0, nil
	case "-m", "--masquerading":
		real.Forward = model.Masq
		return 0, nil
	case "--tun-nocsum":
		real.Tunnel.Checksum = model.TunnelNoChecksum
		return 0, nil
	case "--tun-csum":
		real.Tunnel.Checksum = model.TunnelSum
		return 0, nil
	case "--tun-remcsum":
		real.Tunnel.Checksum = model.TunnelRemoteChecksum
		return 0, nil
	case "-p", "--persistent":
		service.Persistence.Enabled = true
		if len(rest) == 0 || strings.HasPrefix(rest[0], "-") {
			service.Persistence.Timeout = 300 * time.Second // ipvsadm(8)
			return 0, nil
		}
	}
	if len(rest) == 0 {
		return 0, fmt.Errorf("%s: missing argument, or no such option", option)
	}
	value := rest[0]
	number := func(limit uint64) uint64 {
		n, e := strconv.ParseUint(value, 10, 64)
		if e != nil || n > limit {
			err = fmt.Errorf("%s %s: want a number up to %d", option, value, limit)
		}
		return n
	}
	switch option {
	case "-t", "--tcp-service", "-u", "--udp-service", "--sctp-service", "-f", "--fwmark-service":
		if c.key != "" {
			return 0, errors.New("two services in one command")
		}
		c.key, err = value, c.service(option, value)
	case "-s", "--scheduler":
		service.Scheduler = value
	case "-b", "--sched-flags":
		service.SchedFlags = value
	case "-p", "--persistent":
		service.Persistence.Timeout = time.Duration(number(math.MaxInt32)) * time.Second
	case "-M", "--netmask":
		service.Persistence.Netmask, err = model.ParseMask(value)
	case "--pe":
		service.Persistence.Engine = value
	case "-r", "--real-server":
		c.real = value
	case "-w", "--weight":
		real.Weight = int(number(math.MaxInt32))
	case "-x", "--u-threshold":
		real.Upper = uint32(number(math.MaxUint16))
	case "-y", "--l-threshold":
		real.Lower = uint32(number(math.MaxUint16))
	case "--tun-type":
		switch value {
		case "ipip":
			real.Tunnel.Kind = model.TunnelIPIP
		case "gue":
			real.Tunnel.Kind = model.TunnelGUE
		case "gre":
			real.Tunnel.Kind = model.TunnelGRE
		default:
			err = fmt.Errorf("--tun-type %s: want ipip, gue or gre", value)
		}
	case "--tun-port":
		real.Tunnel.Port = uint16(number(math.MaxUint16))
	default:
		err = fmt.Errorf("%s: no such option", option)
	}
	return 1, err
}

func (c *command) service(option, value string) error {
	k := &c.change.Service.Key
	switch option {
	case "-f", "--fwmark-service":
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil || n == 0 {
			return fmt.Errorf("%s %s: want a mark from 1 to %d", option, value, uint32(math.MaxUint32))
		}
		*k = model.ServiceKey{Mark: uint32(n), MarkFamily: model.IPv4}
		return nil
	case "-t", "--tcp-service":
		k.Proto = model.TCP
	case "-u", "--udp-service":
		k.Proto = model.UDP
	default:
		k.Proto = model.SCTP
	}
	var err error
	k.Addr, err = c.address(k.Proto, value, 0)
	return err
}

// address reads HOST[:PORT], with IPv6 hosts in brackets where a port follows.
func (c *command) address(p model.Protocol, s string, port uint16) (netip.AddrPort, error) {
	bad := fmt.Errorf("%q: want HOST[:PORT], an IPv6 address in brackets", s)
	host, service, found := s, "", false
	if strings.HasPrefix(s, "[") {
		inside, after, ok := strings.Cut(s[1:], "]")
		if !ok || after != "" && after[0] != ':' {
			return netip.AddrPort{}, bad
		}
		host, service, found = inside, strings.TrimPrefix(after, ":"), after != ""
	} else if strings.Count(s, ":") == 1 {
		host, service, found = strings.Cut(s, ":")
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		if a, err = c.names.addr(host); err != nil {
			return netip.AddrPort{}, fmt.Errorf("%w: %w", bad, err)
		}
	}
	if a.Zone() != "" {
		return netip.AddrPort{}, bad
	}
	if found {
		n, err := strconv.ParseUint(service, 10, 16)
		if port = uint16(n); err != nil {
			if port, err = c.names.number(p, service); err != nil {
				return netip.AddrPort{}, fmt.Errorf("%w: %w", bad, err)
			}
		}
	}
	return netip.AddrPortFrom(a, port), nil
}

// finish puts together what the options said.
func (c *command) finish() (model.Change, error) {
	v, r := &c.change.Service, &c.change.Real
	if c.key == "" {
		return model.Change{}, errors.New("which service? want -t, -u, --sctp-service or -f")
	}
	if c.six {
		if !v.Key.IsMark() {
			return model.Change{}, errors.New("-6 goes with -f")
		}
		v.Key.MarkFamily = model.IPv6
	}
	switch c.change.Op {
	case model.RealAdd, model.RealEdit, model.RealDelete:
		if c.real == "" {
			return model.Change{}, errors.New("which real server? want -r")
		}
		var err error
		if r.Addr, err = c.address(v.Key.Proto, c.real, v.Key.Addr.Port()); err != nil {
			return model.Change{}, err
		}
		if _, err := model.ParseTunnel(r.Tunnel.String()); err != nil || r.Tunnel != (model.Tunnel{}) && r.Forward != model.IPIP {
			return model.Change{}, fmt.Errorf("tunnel %s: want --tun-type gue with --tun-port, or gre, and -i", r.Tunnel)
		}
		c.change.Service = model.VirtualService{Key: v.Key}
	default:
		if c.real != "" {
			return model.Change{}, errors.New("-r goes with -a, -e and -d")
		}
		c.change.Real = model.RealServer{}
	}
	return c.change, nil
}
