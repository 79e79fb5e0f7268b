package lab_test

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// measured is what one way of carrying packets cost: instructions.
type measured struct {
	by            string // "veth" or "card"
	way           string // a rival's name; "drop, SYNs" in a flood of them
	servers, size int    // size: connections
	first, known  float64
	batch         float64 // packets that a poll of a card found; 0 between veth pairs
}

// measurements are those of one boot, in the order in which they were made:
// each case begins with its drop, and its drop at XDP comes before all at XDP.
type measurements []measured

// write writes the tables of docs/performance.md.
func (m measurements) write(w io.Writer) {
	for _, t := range []struct {
		title  string
		of     func(measured) bool
		floors bool
	}{
		{"Between veth pairs:", func(r measured) bool { return r.by == "veth" && !r.isFloor() }, false},
		{"Between virtio cards:", func(r measured) bool { return r.by == "card" && !r.isFloor() }, false},
		{"Floors, between virtio cards:", func(r measured) bool { return r.by == "card" && r.servers == 4 && r.size == 1 }, true},
	} {
		columns := []string{"plane", "servers", "flows", "first", "known", "above drop", "of IPVS", "of IPVS, above XDP's drop"}
		switch {
		case t.floors:
			columns = []string{"plane", "known", "above drop", "of IPVS", "packets a poll"}
		case strings.Contains(t.title, "veth"):
			columns = columns[:7]
		}
		rows := slices.DeleteFunc(slices.Clone(m), func(r measured) bool { return !t.of(r) })
		if len(rows) == 0 || t.floors && !slices.ContainsFunc(rows, measured.isFloor) {
			continue
		}
		_, _ = fmt.Fprintf(w, "\n%s\n\n| %s |\n|---|%s\n", t.title, strings.Join(columns, " | "), strings.Repeat("--:|", len(columns)-1))
		for _, r := range rows {
			cells := m.cells(r)
			_, _ = io.WriteString(w, "|")
			for _, c := range columns {
				_, _ = fmt.Fprintf(w, " %s |", cells[c])
			}
			_, _ = io.WriteString(w, "\n")
		}
	}
}

// cells are what a row may show, by column.
func (m measurements) cells(r measured) map[string]string {
	xdpDrop, _ := m.rival(r, "XDP drop")
	drop, _ := m.rival(r, "drop")
	ipvs, measuredIPVS := m.rival(r, "IPVS")
	above := r.known - drop.known
	if strings.HasPrefix(r.way, "XDP") {
		above = r.known - xdpDrop.known
	}
	c := map[string]string{"plane": r.way, "servers": fmt.Sprint(r.servers), "flows": fmt.Sprint(r.size),
		"known": fmt.Sprintf("%.0f", r.known), "above drop": fmt.Sprintf("%.0f", above)}
	if r.size >= 1000 && r.first > 0 {
		c["first"] = fmt.Sprintf("%.0f", r.first)
	}
	if r.batch > 0 {
		c["packets a poll"] = fmt.Sprintf("%.1f", r.batch)
	}
	if measuredIPVS && !r.isDrop() {
		c["of IPVS"] = fmt.Sprintf("%.3f", above/(ipvs.known-drop.known))
		if xdpDrop.known > 0 {
			c["of IPVS, above XDP's drop"] = fmt.Sprintf("%.3f", (r.known-xdpDrop.known)/(ipvs.known-xdpDrop.known))
		}
	}
	return c
}

func (r measured) isDrop() bool  { return strings.Contains(r.way, "drop") }
func (r measured) isFloor() bool { return strings.HasSuffix(r.way, "floor") }

// rival is what another way cost in the same case.
func (m measurements) rival(r measured, way string) (measured, bool) {
	if _, kind, found := strings.Cut(r.way, ","); found {
		way += "," + kind
	}
	i := slices.IndexFunc(m, func(o measured) bool {
		return o.by == r.by && o.servers == r.servers && o.size == r.size && o.way == way
	})
	if i < 0 {
		return measured{}, false
	}
	return m[i], true
}

func TestTablesOfInstructions(t *testing.T) {
	var got strings.Builder
	measurements{
		{by: "veth", way: "drop", servers: 4, size: 1, known: 3000},
		{by: "veth", way: "IPVS", servers: 4, size: 1, known: 8000},
		{by: "veth", way: "tc floor", servers: 4, size: 1, known: 4000},
		{by: "veth", way: "tc", servers: 4, size: 1, known: 5000},
		{by: "card", way: "drop", servers: 4, size: 1, known: 2700, batch: 14.8},
		{by: "card", way: "IPVS", servers: 4, size: 1, known: 6700, batch: 7.8},
		{by: "card", way: "tc floor", servers: 4, size: 1, known: 4100, batch: 8.6},
		{by: "card", way: "XDP drop", servers: 4, size: 1, known: 900, batch: 13.1},
		{by: "card", way: "XDP", servers: 4, size: 1, known: 1900, batch: 11.5},
		{by: "card", way: "drop", servers: 4, size: 1000, known: 2700},
		{by: "card", way: "tc", servers: 4, size: 1000, first: 9000, known: 5000},
		{by: "card", way: "drop, SYNs", servers: 4, size: 65536, known: 2600},
		{by: "card", way: "IPVS, SYNs", servers: 4, size: 65536, known: 7600},
		{by: "card", way: "tc, SYNs", servers: 4, size: 65536, known: 8600},
	}.write(&got)
	want := `
Between veth pairs:

| plane | servers | flows | first | known | above drop | of IPVS |
|---|--:|--:|--:|--:|--:|--:|
| drop | 4 | 1 |  | 3000 | 0 |  |
| IPVS | 4 | 1 |  | 8000 | 5000 | 1.000 |
| tc | 4 | 1 |  | 5000 | 2000 | 0.400 |

Between virtio cards:

| plane | servers | flows | first | known | above drop | of IPVS | of IPVS, above XDP's drop |
|---|--:|--:|--:|--:|--:|--:|--:|
| drop | 4 | 1 |  | 2700 | 0 |  |  |
| IPVS | 4 | 1 |  | 6700 | 4000 | 1.000 | 1.000 |
| XDP drop | 4 | 1 |  | 900 | 0 |  |  |
| XDP | 4 | 1 |  | 1900 | 1000 | 0.250 | 0.172 |
| drop | 4 | 1000 |  | 2700 | 0 |  |  |
| tc | 4 | 1000 | 9000 | 5000 | 2300 |  |  |
| drop, SYNs | 4 | 65536 |  | 2600 | 0 |  |  |
| IPVS, SYNs | 4 | 65536 |  | 7600 | 5000 | 1.000 |  |
| tc, SYNs | 4 | 65536 |  | 8600 | 6000 | 1.200 |  |

Floors, between virtio cards:

| plane | known | above drop | of IPVS | packets a poll |
|---|--:|--:|--:|--:|
| drop | 2700 | 0 |  | 14.8 |
| IPVS | 6700 | 4000 | 1.000 | 7.8 |
| tc floor | 4100 | 1400 | 0.350 | 8.6 |
| XDP drop | 900 | 0 |  | 13.1 |
| XDP | 1900 | 1000 | 0.250 | 11.5 |
`
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
