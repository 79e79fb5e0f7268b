package ebpf

import (
	"os"
	"regexp"
	"strconv"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf/btf"
)

// The sizes that bpf/abi.h asserts, asserted here too, against Go's types and
// against the type information of both objects.
func TestSizes(t *testing.T) {
	sizes := map[string]struct{ want, got uintptr }{
		"control":      {128, unsafe.Sizeof(tcControl{})},
		"service_key":  {24, unsafe.Sizeof(tcServiceKey{})},
		"service":      {128, unsafe.Sizeof(tcService{})},
		"rule":         {96, unsafe.Sizeof(tcRule{})},
		"ring_entry":   {8, unsafe.Sizeof(tcRingEntry{})},
		"real":         {128, unsafe.Sizeof(tcReal{})},
		"real_cpu":     {64, unsafe.Sizeof(tcRealCpu{})},
		"flow":         {88, unsafe.Sizeof(tcFlow{})},
		"tuple":        {40, unsafe.Sizeof(tcTuple{})},
		"bucket":       {64, unsafe.Sizeof(tcBucket{})},
		"hop":          {64, unsafe.Sizeof(tcHop{})},
		"stay_key":     {24, unsafe.Sizeof(tcStayKey{})},
		"stay":         {16, unsafe.Sizeof(tcStay{})},
		"fragment_key": {40, unsafe.Sizeof(tcFragmentKey{})},
		"fragment":     {16, unsafe.Sizeof(tcFragment{})},
	}
	tc, err := loadTc()
	if err != nil {
		t.Fatal(err)
	}
	sweep, err := loadSweep()
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range sizes {
		if s.got != s.want {
			t.Errorf("struct %s: %d bytes in Go, %d in bpf/abi.h", name, s.got, s.want)
		}
		var typ *btf.Struct
		if err := tc.Types.TypeByName(name, &typ); err != nil {
			t.Errorf("struct %s in tc: %v", name, err)
		} else if uintptr(typ.Size) != s.want {
			t.Errorf("struct %s: %d bytes in tc, want %d", name, typ.Size, s.want)
		}
		if err := sweep.Types.TypeByName(name, &typ); err == nil && uintptr(typ.Size) != s.want {
			t.Errorf("struct %s: %d bytes in sweep, want %d", name, typ.Size, s.want)
		}
	}
	if off := unsafe.Offsetof(tcFlow{}.Route); off != 76 {
		t.Errorf("flow.route at %d, want 76", off)
	}
	if off := unsafe.Offsetof(tcService{}.Past); off != 72 {
		t.Errorf("service.past at %d, want 72", off)
	}
	if abiHash(tc) == 0 {
		t.Error("the hash of the layout is 0, which means unfinished maps")
	}
}

// What the two programs share they must see alike.
func TestSweepSharesMaps(t *testing.T) {
	tc, err := loadTc()
	if err != nil {
		t.Fatal(err)
	}
	sweep, err := loadSweep()
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range sweep.Maps {
		if !pinned(name) {
			continue
		}
		o := tc.Maps[name]
		if o == nil || o.Type != m.Type || o.KeySize != m.KeySize || o.ValueSize != m.ValueSize || o.Flags != m.Flags {
			t.Errorf("map %s: %+v in sweep, %+v in tc", name, m, o)
		}
	}
}

func TestVersionIsThatOfTheHeader(t *testing.T) {
	b, err := os.ReadFile("../../../bpf/abi.h")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`#define BATUTA_ABI (\d+)`).FindSubmatch(b)
	if m == nil || string(m[1]) != strconv.Itoa(abiVersion) {
		t.Errorf("abiVersion is %d, bpf/abi.h says %s", abiVersion, m)
	}
}

func TestReasonsHaveWords(t *testing.T) {
	seen := map[string]Reason{}
	for r := range Reason(reasons) {
		if r.String() == "" {
			t.Errorf("reason %d has no word", r)
		}
		if o, twice := seen[r.String()]; twice {
			t.Errorf("reasons %d and %d are both %q", o, r, r)
		}
		seen[r.String()] = r
	}
	if !ReasonRewrite.Dropped() || ReasonNoFlow.Dropped() || ReasonNone.Dropped() {
		t.Error("drops are those before REASON_STACK")
	}
}
