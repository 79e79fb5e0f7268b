package config

import (
	"encoding/json"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

// verdict is what ldirectord 4.12.0 said of a file.
type verdict struct {
	Verdict string
	Line    int
}

// effect is the table that it made of an accepted file.
type effect struct {
	AllUp  map[string]effectService         `json:"all_up"`
	NoneUp map[string]map[string]effectReal `json:"none_up"`
}

type effectService struct {
	Scheduler  string                `json:"scheduler"`
	Persistent int                   `json:"persistent,omitempty"`
	Netmask    string                `json:"netmask,omitempty"`
	OPS        bool                  `json:"ops,omitempty"`
	Reals      map[string]effectReal `json:"reals"`
}

type effectReal struct {
	Forward string `json:"forward"`
	Weight  int    `json:"weight"`
	Upper   uint32 `json:"upper,omitempty"`
	Lower   uint32 `json:"lower,omitempty"`
}

// stricter are files that the original accepts and Batuta refuses.
var stricter = map[string]string{
	"e74-receive-bad-regex.cf": "the original dies at the first check",
}

// kinder are files that the original refuses although what they mean is
// plain: they are accepted with a warning. docs/reference/ldirectord.md lists
// the rules behind them.
var kinder = map[string]string{
	"e05-indent-3-spaces.cf":           "less indentation than four blanks",
	"e08-indented-global.cf":           "an indented global directive",
	"e10-blank-line-ends-block.cf":     "an empty line inside a block",
	"e11-whitespace-only-8.cf":         "a line of blanks inside a block",
	"e14-global-trailing-comment.cf":   "a comment behind yes or no",
	"e16-trailing-space-yesno.cf":      "a blank behind yes or no",
	"e20-crlf-yesno.cf":                "carriage returns",
	"e21-uppercase-keyword.cf":         "capitals in a directive",
	"e54-virtual-last-line-no-body.cf": "a virtual line that ends the file",
	"e71-request-unquoted.cf":          "a string without quotes",
	"e73-receive-hash.cf":              "# inside quotes",
	"e63-real-request-digit-word.cf":   "a number inside the strings of a real line",
	"e82-scheduler-upper.cf":           "a scheduler in capitals",
	"e84-netmask-prefix-v4.cf":         "a prefix length as IPv4 netmask",
	"e88-login-unquoted.cf":            "a string without quotes",
	"e90-logfile-unquoted.cf":          "a string without quotes",
	"e95-smtp-quoted.cf":               "quotes around the smtp host",
	"f07-fallback-trailing-comment.cf": "a comment behind a global fallback",
	"f12-no-equals.cf":                 "a missing =",
	"f26-form-utf8-bom.cf":             "a byte-order mark",
}

// different are effects that are meant to differ from the recorded ones.
var different = map[string]string{
	"e83-scheduler-bogus.cf":   "a plane refuses the service, as ipvsadm did",
	"f29-port-leading-zero.cf": "recorded none_up is a defect: the service was not recognized in the table",
	"w08-ipv6-dual-stack.cf":   "recorded none_up is a defect: a global fallback did not reach marks",
}

// TestVerdicts holds Batuta's verdict on each file against the original's.
func TestVerdicts(t *testing.T) {
	for _, set := range []string{"edge", "wild"} {
		var verdicts map[string]verdict
		readJSON(t, "verdicts-"+set+".json", &verdicts)
		files, err := os.ReadDir("testdata/ldirectord/" + set)
		if err != nil || len(files) != len(verdicts) {
			t.Fatalf("%s: %d files, %d verdicts, %v", set, len(files), len(verdicts), err)
		}
		for name, v := range verdicts {
			t.Run(name, func(t *testing.T) {
				_, got := readDirector(t, testdata(t, "ldirectord/"+set+"/"+name))
				_, refuse := stricter[name]
				_, accept := kinder[name]
				want := v.Verdict == "rejected" && !accept || refuse
				if Failed(got) != want {
					t.Errorf("refused: %v, want %v (ldirectord: %s)\n%s", Failed(got), want, v.Verdict, text(got))
				}
				if accept && (v.Verdict != "rejected" || count(got, Warning) == 0) {
					t.Errorf("listed as kinder: ldirectord's verdict is %q, and Batuta's\n%s", v.Verdict, text(got))
				}
				if v.Verdict == "rejected" && !slices.ContainsFunc(got, func(p Problem) bool { return p.Line == v.Line }) && name != "e52-duplicate-virtual.cf" {
					t.Errorf("no problem on line %d\n%s", v.Line, text(got))
				}
			})
		}
	}
}

// TestEffects compares the tables with all real servers up, and with none.
func TestEffects(t *testing.T) {
	for _, set := range []string{"edge", "wild"} {
		var effects map[string]effect
		readJSON(t, "effect-"+set+".json", &effects)
		for name, want := range effects {
			if stricter[name] != "" {
				continue
			}
			t.Run(name, func(t *testing.T) {
				d, list := readDirector(t, testdata(t, "ldirectord/"+set+"/"+name))
				got := effectOf(d)
				if different[name] != "" {
					got.NoneUp, want.NoneUp = nil, nil
				}
				if name == "e83-scheduler-bogus.cf" {
					got.AllUp = map[string]effectService{}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("(-ldirectord +batuta)\n%s%s", diff, text(list))
				}
			})
		}
	}
}

func readJSON(t *testing.T, name string, to any) {
	t.Helper()
	if err := json.Unmarshal([]byte(testdata(t, "ldirectord/"+name)), to); err != nil {
		t.Fatal(err)
	}
}

// effectOf is the table with every real server up, and the rows with none.
func effectOf(d *model.Director) effect {
	e := effect{map[string]effectService{}, map[string]map[string]effectReal{}}
	for _, s := range d.Services {
		key := s.Virtual.Key.String()
		out := effectService{
			Scheduler: s.Virtual.Scheduler, OPS: s.Virtual.OnePacket,
			Persistent: int(s.Virtual.Persistence.Timeout.Seconds()), Netmask: s.Virtual.Persistence.MaskText(),
			Reals: map[string]effectReal{},
		}
		none := map[string]effectReal{}
		for _, r := range s.Reals {
			out.Reals[r.Addr.String()] = effectReal{r.Forward.String(), r.Weight, r.Upper, r.Lower}
			if s.Quiescent {
				none[r.Addr.String()] = effectReal{Forward: r.Forward.String()}
			}
		}
		if f := s.Fallback; f != nil {
			none[f.Addr.String()] = effectReal{Forward: f.Forward.String(), Weight: f.Weight}
		}
		e.AllUp[key] = out
		if len(none) > 0 {
			e.NoneUp[key] = none
		}
	}
	return e
}
