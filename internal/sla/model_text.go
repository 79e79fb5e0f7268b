package sla

import (
	"fmt"
	"strings"
	"text/tabwriter"
)

// NinesText is the canonical text of a table of nines.
func NinesText(rows []NinesRow, columns []Yardstick) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "availability\t")
	for _, c := range columns {
		name := c.Per.String()
		if c.Period.Name != "" && c.Per != PerDay { // the day is the instant itself
			name += " " + c.Period.Name
		} else if c.Period.Name != "" {
			name = c.Period.Name
		}
		fmt.Fprint(w, name+"\t")
	}
	fmt.Fprint(w, "\n\t")
	for _, c := range columns {
		fmt.Fprint(w, c.Length.String()+"\t")
	}
	fmt.Fprintln(w)
	for _, r := range rows {
		fmt.Fprint(w, r.Target.String()+"\t")
		for _, c := range columns {
			fmt.Fprint(w, r.DownTime[c.Per].String()+"\t")
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush() // a strings.Builder takes everything
	return b.String()
}

// String is the canonical text of a prediction.
func (p Prediction) String() string {
	var b strings.Builder
	if p.Title != "" {
		fmt.Fprintf(&b, "%s\n\n", p.Title)
	}
	fmt.Fprintf(&b, "Service as required    %s\n", p.Service)
	fmt.Fprintf(&b, "  down time            %s a year\n", p.DownYear)
	fmt.Fprintf(&b, "  outages              %.3g a year: MTBF %s, MTTR %s\n", p.PerYear, p.MTBF, p.MTTR)
	if p.Target != nil {
		verdict := "missed"
		if p.Met != nil && *p.Met {
			verdict = "met"
		}
		fmt.Fprintf(&b, "  target               %s: %s\n", *p.Target, verdict)
	}
	fmt.Fprintf(&b, "Capacity-weighted      %s\n", p.Capacity)
	for _, c := range p.AtLeast {
		fmt.Fprintf(&b, "  at least %-12s%s of the time\n", fmt.Sprintf("%.4g %%", 100*c.Capacity), c.Share)
	}

	fmt.Fprintf(&b, "\nClasses of systems (%s)\n", ClassFigures)
	for _, c := range p.Classes {
		mark := ""
		if c.Expected {
			mark = " (expected)"
		}
		value := "not known"
		if c.Value != nil {
			value = c.Value.String()
			if !c.Exact {
				value = "at least " + value
			}
		}
		fmt.Fprintf(&b, "  %-17s %-8s %s: %s%s\n", c.Class, c.Verdict, c.Means, value, mark)
	}

	if len(p.Parts) > 1 {
		b.WriteString("\nWhat down time depends on\n")
		w := tabwriter.NewWriter(&b, 2, 0, 2, ' ', 0)
		fmt.Fprintln(w, "  part\talone\tits failures stop the service\tdecides when down\texplains")
		for _, i := range p.Parts {
			name := i.Name
			if i.Copies > 1 {
				name = fmt.Sprintf("%s (each of %d)", name, i.Copies)
			}
			fmt.Fprintf(w, "  %s\t%s\t%.3g a year\t%.3g\t%.3g %% of the down time\n", name, i.Alone, i.Outages, i.Birnbaum, 100*i.Criticality)
		}
		_ = w.Flush()
	}
	if len(p.WhatIf) > 0 {
		b.WriteString("\nWhat would help most\n")
		for i, v := range p.WhatIf {
			if i == 6 || v.Saved <= 0 {
				break
			}
			fmt.Fprintf(&b, "  %s: %s, %s a year less\n", v.Change, v.Service, v.Saved)
		}
	}
	return b.String()
}
