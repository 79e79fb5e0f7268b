package ebpf

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/batuta-ha/batuta/internal/model"
)

var rewrite = flag.Bool("rewrite", false, "write testdata/packets anew; review the difference")

// Stories of packets through the programs (BPF test-run): each block of
// testdata/packets is commands, "----" and what happened. The network of the
// drawing is there, so routes are real; nothing is sent.
//
//	service tcp 10.1.0.100:80 rr          row of the table; also: persistent=300 mask=255.255.255.0 ops flags=sh-port
//	real 10.240.0.20:8000 masq 1          row under the service named last; also: upper=10 lower=5
//	mark 7 tcp 10.1.0.100/32 80-89        a rule; also: from=10.1.0.0/24 in=outside
//	elsewhere udp 10.1.0.50:40000 > 10.1.0.100:53    a connection of another plane; without one: no more of them
//	delete real 10.240.0.20:8000          ... or: delete service tcp 10.1.0.100:80
//	mtu inside0 1400
//	full                                  from now on no record is free; "full no": some are
//	ingress outside PACKET                through the ingress program of an interface
//	egress inside0 PACKET
//	to PACKET                             in short: to which end it goes from outside
//	flows                                 lists the connections
//	trace tcp 10.1.0.50:40000 > 10.1.0.100:80 S    what would happen
func TestGoldenPackets(t *testing.T) {
	requireRoot(t)
	golden(t, testOptions(), true)
}

// The same stories with the same ends where the plane knows its neighbors, and so
// carries most packets by its lanes.
func TestGoldenPacketsToNeighbors(t *testing.T) {
	requireRoot(t)
	neighbors(t)
	golden(t, testOptions(), false)
}

// golden tells all stories. If they may be written anew, it does so if asked.
func golden(t *testing.T, o Options, may bool) {
	t.Helper()
	files, err := filepath.Glob("testdata/packets/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got := tell(t, o, string(text))
			if *rewrite && may {
				if err := os.WriteFile(f, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(strings.Split(string(text), "\n"), strings.Split(got, "\n")); d != "" {
				t.Errorf("(-want +got; go test -run Golden -rewrite writes it anew):\n%s", d)
			}
		})
	}
}

// tell runs a story and returns it with what happened.
func tell(t *testing.T, o Options, text string) string {
	s := &story{t: t, plane: open(t, o), before: map[Reason]uint64{}}
	var out strings.Builder
	for _, line := range strings.SplitAfter(text, "\n") {
		switch trimmed := strings.TrimSpace(line); {
		case trimmed == "----":
			s.answer = true
			out.WriteString("----\n")
			for _, c := range s.commands {
				out.WriteString(s.run(c))
			}
			s.commands = nil
		case trimmed == "":
			s.answer = false
			out.WriteString(line)
		case s.answer: // what happened last time
		default:
			out.WriteString(line)
			if !strings.HasPrefix(trimmed, "#") {
				s.commands = append(s.commands, trimmed)
			}
		}
	}
	return out.String()
}

type story struct {
	t        *testing.T
	plane    *Plane
	commands []string
	answer   bool
	service  model.ServiceKey
	before   map[Reason]uint64
	marks    []model.MarkRule
	others   []model.Flow
	nextSlot uint32 // while no record is free
}

func (s *story) run(command string) string {
	word, rest, _ := strings.Cut(command, " ")
	f := strings.Fields(rest)
	switch word {
	case "service":
		key, err := model.ParseServiceKey(f[0] + " " + f[1])
		if err != nil {
			s.t.Fatalf("%s: %v", command, err)
		}
		s.service = key
		v := model.VirtualService{Key: key, Scheduler: f[2]}
		for _, w := range f[3:] {
			word, value, _ := strings.Cut(w, "=")
			n, _ := strconv.Atoi(value)
			switch word {
			case "ops":
				v.OnePacket = true
			case "flags":
				v.SchedFlags = value
			case "persistent":
				v.Persistence.Enabled, v.Persistence.Timeout = true, time.Duration(n)*time.Second
			case "mask":
				if v.Persistence.Netmask, err = model.ParseMask(value); err != nil {
					s.t.Fatalf("%s: %v", command, err)
				}
			}
		}
		return s.apply(model.Change{Op: model.ServiceAdd, Service: v})
	case "real":
		fwd, err := model.ParseForward(f[1])
		if err != nil {
			s.t.Fatalf("%s: %v", command, err)
		}
		w, _ := strconv.Atoi(f[2])
		r := model.RealServer{Addr: netip.MustParseAddrPort(f[0]), Forward: fwd, Weight: w}
		for _, w := range f[3:] {
			word, value, _ := strings.Cut(w, "=")
			n, _ := strconv.Atoi(value)
			if word == "upper" {
				r.Upper = uint32(n)
			} else {
				r.Lower = uint32(n)
			}
		}
		return s.apply(model.Change{Op: model.RealAdd, Service: model.VirtualService{Key: s.service},
			Real: r})
	case "delete":
		if f[0] == "service" {
			key, err := model.ParseServiceKey(f[1] + " " + f[2])
			if err != nil {
				s.t.Fatalf("%s: %v", command, err)
			}
			return s.apply(model.Change{Op: model.ServiceDelete, Service: model.VirtualService{Key: key}})
		}
		return s.apply(model.Change{Op: model.RealDelete, Service: model.VirtualService{Key: s.service},
			Real: model.RealServer{Addr: netip.MustParseAddrPort(f[1])}})
	case "mark":
		n, _ := strconv.Atoi(f[0])
		r := model.MarkRule{Mark: uint32(n), Proto: map[string]model.Protocol{"tcp": model.TCP, "udp": model.UDP}[f[1]], Destination: netip.MustParsePrefix(f[2])}
		r.Family = model.FamilyOf(r.Destination.Addr())
		_, _ = fmt.Sscanf(f[3], "%d-%d", &r.First, &r.Last)
		for _, w := range f[4:] {
			word, value, _ := strings.Cut(w, "=")
			if word == "from" {
				r.Source = netip.MustParsePrefix(value)
			} else {
				r.Interface = value
			}
		}
		s.marks = append(s.marks, r)
		if err := s.plane.SetMarks(context.Background(), s.marks); err != nil {
			return err.Error() + "\n"
		}
		return ""
	case "elsewhere":
		s.others = nil
		if rest != "" {
			p, err := parsePacket(rest)
			if err != nil {
				s.t.Fatal(err)
			}
			s.others = append(s.others, model.Flow{Proto: map[string]model.Protocol{"tcp": model.TCP, "udp": model.UDP}[p.proto], Client: p.src, Virtual: p.dst})
		}
		if err := s.plane.PassBy(context.Background(), s.others); err != nil {
			return err.Error() + "\n"
		}
		return ""
	case "mtu":
		n, _ := strconv.Atoi(f[1])
		director.mtu(s.t, f[0], n)
		s.plane.t.changed() // which the plane hears a moment later
		return ""
	case "full":
		c := s.plane.t.control
		if rest == "no" {
			c.NextSlot = s.nextSlot
		} else {
			s.nextSlot, c.NextSlot, c.NoRoom = c.NextSlot, uint32(s.plane.t.maxFlows), 0
		}
		return ""
	case "flows":
		flows, err := s.plane.Flows(context.Background())
		if err != nil {
			s.t.Fatal(err)
		}
		var lines []string
		for _, f := range flows {
			lines = append(lines, fmt.Sprintf("%s %s > %s > %s %s\n", f.Proto, f.Client, f.Virtual, f.Real, f.State))
		}
		slices.Sort(lines)
		return strings.Join(lines, "")
	case "to":
		head, _, _ := strings.Cut(s.send("ingress", "outside", rest), "\n")
		answer := strings.Fields(head)
		if answer[0] != "redirect" {
			return head + "\n"
		}
		return answer[4] + "\n"
	case "trace":
		in, err := parsePacket(rest)
		if err != nil {
			s.t.Fatal(err)
		}
		p := map[string]model.Protocol{"tcp": model.TCP, "udp": model.UDP, "sctp": model.SCTP}[in.proto]
		answer, err := TraceTable(s.plane.o.Dir, Question{Proto: p, Client: in.src, Virtual: in.dst, Opens: in.flags == "S"})
		if err != nil {
			return err.Error() + "\n"
		}
		return answer.String()
	case "ingress", "egress":
		dev, text, _ := strings.Cut(rest, " ")
		return s.send(word, dev, text)
	}
	s.t.Fatalf("%q: no such command", command)
	return ""
}

func (s *story) apply(c model.Change) string {
	if err := s.plane.Apply(context.Background(), []model.Change{c}); err != nil {
		return "refused: " + err.Error() + "\n"
	}
	return ""
}

// send puts a packet through a program and says what became of it.
func (s *story) send(hook, dev, text string) string {
	p, err := parsePacket(text)
	if err != nil {
		s.t.Fatal(err)
	}
	verdict, out := testRun(s.t, s.plane, hook, dev, p.ip(), 1)
	answer := map[uint32]string{uint32(0xffffffff): "pass", 2: "drop", 7: "redirect"}[verdict]
	if answer == "" {
		answer = fmt.Sprintf("verdict %d", verdict)
	}
	now, err := s.plane.Reasons(context.Background())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, r := range slices.Sorted(maps.Keys(now)) {
		if now[r] != s.before[r] {
			answer += " (" + r.String() + ")"
		}
	}
	s.before = now
	if answer == "drop" || strings.HasPrefix(answer, "drop ") {
		return answer + "\n"
	}
	return answer + " " + readPacket(out, false).String() + "\n" + hexLines(out)
}

// sendOne puts a packet from outside through the ingress program; its text is a
// format. It gives the verdict.
func sendOne(t *testing.T, p *Plane, format string, args ...any) uint32 {
	t.Helper()
	in, err := parsePacket(fmt.Sprintf(format, args...))
	if err != nil {
		t.Fatal(err)
	}
	v, _ := testRun(t, p, "ingress", "outside", in.ip(), 1)
	return v
}

// ethernet is the header before an IP packet.
func ethernet(to net.HardwareAddr, ip []byte) []byte {
	typ := []byte{0x08, 0x00}
	if len(ip) >= 40 && ip[0]>>4 == 6 {
		typ = []byte{0x86, 0xdd}
	}
	return slices.Concat(to, []byte{2, 0, 0, 0, 0, 9}, typ)
}

var linkAttrs = map[string]*netlink.LinkAttrs{}

// linkOf remembers the director's interfaces of the drawing.
func linkOf(t testing.TB, dev string) *netlink.LinkAttrs {
	t.Helper()
	if linkAttrs[dev] == nil {
		l, err := director.LinkByName(dev)
		if err != nil {
			t.Fatal(err)
		}
		linkAttrs[dev] = l.Attrs()
	}
	return linkAttrs[dev]
}

// testRun gives an IP packet to a program as if it came by on an interface: to
// the one at XDP first, if the interface carries it. How long ago the last error
// about a tunnel was believed (PATH_REST) makes no difference.
func testRun(t testing.TB, p *Plane, hook, dev string, ip []byte, repeat uint32) (verdict uint32, out []byte) {
	t.Helper()
	p.t.control.Narrowed = 0
	prog := p.in
	if hook == "egress" {
		prog = p.out
	}
	l := linkOf(t, dev)
	frame := append(ethernet(l.HardwareAddr, ip), ip...)
	if hook == "ingress" && p.hooks.quick.links[l.Index] != nil {
		switch verdict, out := runQuick(t, p, l, frame); verdict {
		case xdpDrop:
			return dropped, out[14:]
		case xdpRedirect:
			return redirected, out[14:]
		}
	}
	ctx := skbContext{Ifindex: uint32(l.Index)}
	o := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+512), Context: ctx, Repeat: repeat}
	verdict, err := prog.Run(o)
	if err != nil {
		t.Fatalf("test-run of %d bytes: %v", len(frame), err)
	}
	return verdict, o.DataOut[14:]
}
