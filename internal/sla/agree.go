package sla

import (
	"fmt"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// Agree reads what was promised in the words of the configuration. Hours
// without a zone are meant in loc. The error says which member makes no sense.
func Agree(a model.Agreement, loc *time.Location) (Agreement, error) {
	var out Agreement
	var err error
	if a.Target != "" {
		if out.Target, err = ParsePercent(a.Target); err != nil {
			return out, err
		}
		if out.Target == 0 {
			return out, fmt.Errorf("nobody can promise %s %%", a.Target)
		}
	}
	if a.Zone != "" {
		if loc, err = time.LoadLocation(a.Zone); err != nil {
			return out, fmt.Errorf("%w: write it like Europe/Berlin", err)
		}
	}
	if a.Hours != "" {
		out.Hours, err = ParseHours(a.Hours, loc)
	}
	return out, err
}
