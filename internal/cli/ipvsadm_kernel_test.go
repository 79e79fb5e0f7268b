package cli

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/balance"
	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane/ipvs"
)

// The texts of `batuta table` against those of ipvsadm(8) itself, for the same
// state of the same kernel. Needs both, so internal/lab runs it in a kernel of
// its own, with this variable set.
func TestTextsAreThoseOfIpvsadm(t *testing.T) {
	if os.Getenv("BATUTA_IPVS_KERNEL") == "" {
		t.Skip("needs a kernel with IPVS, and ipvsadm: go test ./internal/lab -run TestIPVS runs this there")
	}
	p, err := ipvs.Open(ipvs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}()
	if flag.Lookup("rapid.seed").Value.String() == "0" {
		if err := flag.Set("rapid.seed", fmt.Sprint(rand.Uint64())); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("-rapid.seed=%s", flag.Lookup("rapid.seed").Value)

	tables, services, reals := 0, 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		want := drawTable(rt)
		have, err := p.Read(t.Context())
		if err != nil {
			rt.Fatal(err)
		}
		if err := p.Apply(t.Context(), balance.Diff(have, want)); err != nil {
			rt.Fatalf("apply: %v", err)
		}
		got, err := p.Read(t.Context())
		if err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(want.String(), got.String()); diff != "" {
			rt.Fatalf("read back (-want +got):\n%s", diff)
		}
		counters, err := p.Counters(t.Context())
		if err != nil {
			rt.Fatal(err)
		}
		all := api.Table{Plane: p.Info(), Services: got.Services, Counters: counters}
		for _, c := range []struct {
			args  string
			write func(*bytes.Buffer)
		}{
			{"-L -n", func(b *bytes.Buffer) { writeList(b, all) }},
			{"-L -n --stats", func(b *bytes.Buffer) { writeCounters(b, all, counters, statsHead) }},
			{"-L -n --rate", func(b *bytes.Buffer) { writeCounters(b, all, nil, rateHead) }},
			{"-S -n", func(b *bytes.Buffer) { writeSave(b, all) }},
		} {
			out, err := exec.Command("ipvsadm", strings.Fields(c.args)...).CombinedOutput()
			if err != nil {
				rt.Fatalf("ipvsadm %s: %v\n%s", c.args, err, out)
			}
			var ours bytes.Buffer
			c.write(&ours)
			if diff := cmp.Diff(string(out), ours.String()); diff != "" {
				rt.Fatalf("ipvsadm %s (-ipvsadm +batuta):\n%s", c.args, diff)
			}
		}
		tables++
		services += len(got.Services)
		for _, s := range got.Services {
			reals += len(s.Reals)
		}
	})
	t.Logf("%d tables with %d services and %d real servers, each printed in 4 forms: 0 differences", tables, services, reals)
}

// schedulerFlags are what ipvsadm calls the flags of a scheduler. sh and mh
// make nothing of the third, and ipvsadm has no word for it there.
func schedulerFlags(scheduler string) []string {
	switch scheduler {
	case "sh":
		return []string{"sh-fallback", "sh-port"}
	case "mh":
		return []string{"mh-fallback", "mh-port"}
	}
	return []string{"flag-1", "flag-2", "flag-3"}
}

// A third of all numbers: the first bytes of the addresses of one
// table. ipvsadm's order is circular, so numbers from all around have none.
type third []byte

var thirds = []third{{0, 0, 0, 1, 10, 100}, {130, 192, 223, 192}, {192, 223, 0, 1, 10, 60}}

// drawTable is any table that the kernel can carry.
func drawTable(rt *rapid.T) model.Table {
	var t model.Table
	from := rapid.SampledFrom(thirds).Draw(rt, "from")
	drawKey := func(rt *rapid.T) model.ServiceKey { return drawKey(rt, from) }
	schedulers := []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh"}
	for _, k := range rapid.SliceOfNDistinct(rapid.Custom(drawKey), 0, 12, rapid.ID).Draw(rt, "services") {
		v := model.VirtualService{Key: k, Scheduler: rapid.SampledFrom(schedulers).Draw(rt, "scheduler")}
		var flags []string
		for _, f := range schedulerFlags(v.Scheduler) {
			if rapid.IntRange(0, 3).Draw(rt, f) == 0 {
				flags = append(flags, f)
			}
		}
		v.SchedFlags = strings.Join(flags, ",")
		// Only a persistent service may be for all ports.
		if rapid.Bool().Draw(rt, "persistent") || !k.IsMark() && k.Addr.Port() == 0 {
			v.Persistence = model.Persistence{Enabled: true, Timeout: time.Duration(rapid.IntRange(1, 100000).Draw(rt, "seconds")) * time.Second}
			if rapid.Bool().Draw(rt, "masked") {
				v.Persistence.Netmask = drawMask(rt, k.Family())
			}
		}
		v.OnePacket = k.Proto != model.TCP && k.Proto != model.SCTP && rapid.Bool().Draw(rt, "one packet")
		v.Reals = rapid.SliceOfNDistinct(rapid.Custom(func(rt *rapid.T) model.RealServer { return drawReal(rt, k, from) }), 0, 6,
			func(r model.RealServer) netip.AddrPort { return r.Addr }).Draw(rt, "reals")
		t.Services = append(t.Services, v)
	}
	t.Sort()
	return t
}

func drawMask(rt *rapid.T, f model.Family) netip.Addr {
	if f == model.IPv6 {
		return model.MaskOf(rapid.IntRange(1, 127).Draw(rt, "prefix"))
	}
	n := rapid.IntRange(1, 31).Draw(rt, "prefix")
	return netip.AddrFrom4([4]byte(model.MaskOf(n).AsSlice()[:4]))
}

func drawAddr(rt *rapid.T, f model.Family, from third) netip.Addr {
	if f == model.IPv6 {
		b := [16]byte{0x20, 0x01, 0x0d, 0xb8}
		for i := 4; i < 16; i++ { // many zeros, so that all ways to abbreviate come up
			b[i] = rapid.SampledFrom([]byte{0, 0, 0, 1, 0x10, 0xff}).Draw(rt, "byte")
			if i%4 == 0 {
				b[i] = rapid.SampledFrom(from).Draw(rt, "first byte")
			}
		}
		return netip.AddrFrom16(b)
	}
	var b [4]byte
	for i := range b {
		b[i] = rapid.SampledFrom([]byte{1, 9, 10, 100, 192, 223}).Draw(rt, "byte")
	}
	if b[0] = rapid.SampledFrom(from).Draw(rt, "first byte"); b[0] == 0 {
		b[0] = 9 // 0.0.0.0/8 is nobody
	}
	return netip.AddrFrom4(b)
}

func drawPort(rt *rapid.T, from int) uint16 {
	if rapid.Bool().Draw(rt, "usual port") {
		return rapid.SampledFrom([]uint16{53, 80, 443, 8080}).Draw(rt, "port")
	}
	return uint16(rapid.IntRange(from, 65535).Draw(rt, "port"))
}

func drawKey(rt *rapid.T, from third) model.ServiceKey {
	f := rapid.SampledFrom([]model.Family{model.IPv4, model.IPv6}).Draw(rt, "family")
	p := rapid.SampledFrom([]model.Protocol{model.TCP, model.TCP, model.UDP, model.SCTP, model.ProtocolNone}).Draw(rt, "protocol")
	if p == model.ProtocolNone {
		// ipvsadm -S writes greater marks as negative numbers, which it cannot
		// read back; batuta writes them as they are.
		return model.ServiceKey{Mark: rapid.Uint32Range(1, 1<<31-1).Draw(rt, "mark"), MarkFamily: f}
	}
	port := drawPort(rt, 1)
	if rapid.IntRange(0, 7).Draw(rt, "all ports") == 0 {
		port = 0
	}
	return model.ServiceKey{Proto: p, Addr: netip.AddrPortFrom(drawAddr(rt, f, from), port)}
}

func drawReal(rt *rapid.T, k model.ServiceKey, from third) model.RealServer {
	r := model.RealServer{Forward: rapid.SampledFrom([]model.Forward{model.Masq, model.Gate, model.IPIP}).Draw(rt, "forward"),
		Weight: rapid.SampledFrom([]int{0, 1, 1, 2, 100, 65535}).Draw(rt, "weight")}
	port := drawPort(rt, 1)
	if !k.IsMark() && r.Forward != model.Masq { // which alone changes the port
		port = k.Addr.Port()
	}
	r.Addr = netip.AddrPortFrom(drawAddr(rt, k.Family(), from), port)
	if rapid.Bool().Draw(rt, "thresholds") {
		r.Lower = rapid.Uint32Range(0, 1000).Draw(rt, "lower")
		r.Upper = r.Lower + rapid.Uint32Range(1, 1000).Draw(rt, "room")
	}
	return r
}
