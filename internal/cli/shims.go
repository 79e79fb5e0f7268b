package cli

import (
	"path/filepath"
	"slices"
)

// shims are the names of older programs that this one answers to, by a link,
// and the words that stand for each.
var shims = map[string][]string{
	"ldirectord":  {"ldirectord"},
	"ipvsadm":     {"ipvsadm"},
	"heartbeat":   {"heartbeat"},
	"cl_status":   {"cl_status"},
	"hb_standby":  {"hb_standby"},
	"hb_takeover": {"hb_takeover"},
}

// Arguments are those for Main, of a program that was called by argv.
func Arguments(argv []string) []string {
	if len(argv) == 0 {
		return nil
	}
	return slices.Concat(shims[filepath.Base(argv[0])], argv[1:])
}
