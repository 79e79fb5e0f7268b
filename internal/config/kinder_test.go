package config

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// reference is the document whose section "Where Batuta is kinder or
// stricter" tells administrators what these tables hold.
const reference = "../../docs/reference/ldirectord.md"

// plain is what each text of kinderRules must mean.
const plain = `quiescent=yes
fallback=127.0.0.1:80
smtp=mail.example.test
virtual=10.0.0.1:80
	real=10.0.0.2:80 masq 2 "a.html", "status 200"
	scheduler=rr
	request="index.html"
	receive="a#b"
	login="joe"
	persistent=60
	netmask=255.255.255.0
	protocol=tcp
	checktype=negotiate
`

// kinderRules is every place where ldirectord refuses a file whose meaning is
// plain, and Batuta takes it as meant, with a warning: what to change in
// plain, and the rule as the reference has it.
var kinderRules = []struct{ rule, old, new string }{
	{"Lines of a virtual service may be indented by less than four blanks.", "\tscheduler=rr", "  scheduler=rr"},
	{"Lines of a virtual service that have lost their indentation altogether stay with it.", "\n\t", "\n"},
	{"An empty line, a line of blanks or a global line inside a virtual service does not cut off the lines below it.", "\tscheduler", "\n\tscheduler"},
	{"An empty line, a line of blanks or a global line inside a virtual service does not cut off the lines below it.", "\tscheduler", "        \n\tscheduler"},
	{"A global directive may be indented where no virtual service is above it.", "quiescent", "\tquiescent"},
	{"A `virtual` line may be indented.", "virtual=", " virtual="},
	{"Directives may be written in capitals.", "quiescent", "Quiescent"},
	{"The `=` may be missing between a directive and its value.", "quiescent=", "quiescent "},
	{"Blanks, a comment, quotes and capitals around `yes` and `no` do no harm.", "=yes", "=yes "},
	{"Blanks, a comment, quotes and capitals around `yes` and `no` do no harm.", "=yes", "=yes # keep"},
	{"Blanks, a comment, quotes and capitals around `yes` and `no` do no harm.", "=yes", `="Yes"`},
	{"A comment may follow a global `fallback`.", "127.0.0.1:80", "127.0.0.1:80 # sorry"},
	{"Lines may end in CR LF.", "yes\n", "yes\r\n"},
	{"The file may begin with a UTF-8 byte-order mark.", "quiescent", "\xef\xbb\xbfquiescent"},
	{"Strings may lack their quotes.", `"joe"`, `joe`},
	{"`#` inside quotes is text.", `"a#b"`, `"a#b" # really`},
	{"A number inside the strings of a real server is no weight; the weight may stand behind them.", `masq 2 "a.html", "status 200"`, `masq "a.html", "status 200" 2`},
	{"Schedulers, protocols, check types and services may be written in capitals.", "=rr", "=RR"},
	{"Schedulers, protocols, check types and services may be written in capitals.", "=tcp", "=TCP"},
	{"Schedulers, protocols, check types and services may be written in capitals.", "=negotiate", "=Negotiate"},
	{"The netmask of an IPv4 service may be a prefix length.", "=255.255.255.0", "=24"},
	{"The `smtp` host may stand in quotes.", "=mail.example.test", `="mail.example.test"`},
}

// stricterRules is every place where ldirectord accepts a file and Batuta
// does not.
var stricterRules = []struct{ rule, old, new string }{
	{"A `receive` that is no regular expression is refused: ldirectord dies of it at the first check.", "a#b", "a(b"},
	{"A `receive` that needs look-around, back-references or other constructs that only Perl has is refused.", "a#b", "(?=b)"},
	{"A range of more than 65,536 addresses is refused.", "10.0.0.2:80", "10.0.0.2->10.9.0.2:80"},
	{"Numbers above 2,147,483,647 are refused.", "=60", "=2147483648"},
}

func TestKinder(t *testing.T) {
	want, list := readDirector(t, plain)
	if Failed(list) {
		t.Fatal(text(list))
	}
	base := count(list, Warning) // of what does nothing here, and # in quotes
	doc := document(t)
	for _, k := range kinderRules {
		t.Run(k.rule+k.new, func(t *testing.T) {
			got, list := readDirector(t, strings.ReplaceAll(plain, k.old, k.new))
			if Failed(list) || count(list, Warning) < base || k.new != `"a#b" # really` && count(list, Warning) == base {
				t.Errorf("want it accepted with a warning, got\n%s", text(list))
			}
			if diff := cmp.Diff(want, got, addresses); diff != "" {
				t.Errorf("(-plain +kinder)\n%s", diff)
			}
			if !strings.Contains(doc, "\n* "+k.rule) {
				t.Errorf("%s does not say: %s", reference, k.rule)
			}
		})
	}
}

func TestStricter(t *testing.T) {
	doc := document(t)
	for _, s := range stricterRules {
		if _, list := readDirector(t, strings.ReplaceAll(plain, s.old, s.new)); !Failed(list) {
			t.Errorf("%s: accepted", s.rule)
		}
		if !strings.Contains(doc, "\n* "+s.rule) {
			t.Errorf("%s does not say: %s", reference, s.rule)
		}
	}
}

// document is the reference with each item of a list on one line.
func document(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(b), "\n  ", " ")
}
