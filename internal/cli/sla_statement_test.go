package cli

import (
	"bytes"
	"encoding/csv"
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/journal"
	"github.com/batuta-ha/batuta/internal/sla"
)

// aStatement is one with everything in it, and a name that must be escaped.
func aStatement(t *testing.T) statementReport {
	t.Helper()
	from := time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC)
	p := sla.PeriodAt(sla.PerMonth, from)
	day := 24 * time.Hour
	record := []sla.Interval{
		{From: from, To: from.Add(10 * day), State: sla.Up},
		{From: from.Add(10 * day), To: from.Add(10*day + time.Hour), State: sla.Down, Repair: sla.Repair{Detect: time.Minute, Switch: time.Second}},
		{From: from.Add(10*day + time.Hour), To: from.Add(20 * day), State: sla.Degraded},
		{From: from.Add(20 * day), To: from.Add(20*day + time.Minute), State: sla.Planned},
		{From: from.Add(20*day + time.Minute), To: from.Add(22 * day), State: sla.Up},
	}
	st, err := sla.Account(slices.Values(record), p, from.Add(25*day), sla.Agreement{Target: 1e-3})
	if err != nil {
		t.Fatal(err)
	}
	late := journal.Window{ID: "w1", Declared: from.Add(time.Hour), From: from, To: from.Add(day), Reason: `<script>alert("x")</script>, & more`}
	return statementReport{Version: slaVersion, Zone: "Europe/Berlin",
		Statements: []thingStatement{{journal.Thing{Kind: "service", Name: `tcp 10.1.0.100:80 <b>`}, st}},
		Late:       []journal.Window{late}, Notes: []string{`the wall clock was stepped by "1h" & back`}}
}

// The page is well formed, every text in it is escaped, and nothing is fetched
// from elsewhere.
func TestTheStatementAsAPage(t *testing.T) {
	var page bytes.Buffer
	if err := statementFormats["html"](&page, aStatement(t)); err != nil {
		t.Fatal(err)
	}
	text := page.String()
	d := xml.NewDecoder(strings.NewReader(text))
	d.Entity = xml.HTMLEntity
	open := 0
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("not well formed: %v\n%s", err, text)
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			open++
			if tok.Name.Local == "script" || tok.Name.Local == "b" {
				t.Errorf("a text became the element %s", tok.Name.Local)
			}
			for _, a := range tok.Attr {
				if a.Name.Local == "src" || a.Name.Local == "href" {
					t.Errorf("%s wants %s", tok.Name.Local, a.Value)
				}
			}
		case xml.EndElement:
			open--
		}
	}
	if open != 0 {
		t.Errorf("%d elements stay open", open)
	}
	for _, want := range []string{
		"<strong>99.81", "Maintenance w1 from 2026-10-01 02:00:00 CEST was declared after it began", `class="degraded"`,
		"tcp 10.1.0.100:80 &lt;b&gt;", `class="flag"`, "at most ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "ZgotmplZ") || strings.Contains(text, "100 %") {
		t.Errorf("the page has what it should not:\n%s", text)
	}
}

// Each row has as many columns as the head.
func TestTheStatementAsATable(t *testing.T) {
	var out bytes.Buffer
	if err := statementFormats["csv"](&out, aStatement(t)); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(&out).ReadAll()
	if err != nil || len(rows) != 2 {
		t.Fatalf("%d rows: %v", len(rows), err)
	}
	got := map[string]string{}
	for i, name := range rows[0] {
		got[name] = rows[1][i]
	}
	for name, want := range map[string]string{
		"thing": "service tcp 10.1.0.100:80 <b>", "down_seconds": "3600", "planned_seconds": "60", "failures": "1",
		"longest_outage_seconds": "3600", "target": "99.9 %", "budget_seconds": "2678.4", "budget_left_seconds": "-921.6",
	} {
		if got[name] != want {
			t.Errorf("%s: %q, want %q", name, got[name], want)
		}
	}
}
