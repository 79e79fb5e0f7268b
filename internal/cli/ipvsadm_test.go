package cli

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/api"
	"github.com/batuta-ha/batuta/internal/model"
)

// phoneBook are the names of a machine that has few of them.
type phoneBook struct{}

func (phoneBook) host(a netip.Addr) string {
	if a == netip.MustParseAddr("10.1.0.100") {
		return "vip.example.org"
	}
	return a.String()
}

func (phoneBook) port(p model.Protocol, port uint16) string {
	if p == model.TCP && port == 80 {
		return "http"
	}
	return netip.AddrPortFrom(netip.IPv4Unspecified(), port).String()[len("0.0.0.0:"):]
}

func (phoneBook) addr(host string) (netip.Addr, error) {
	if host == "vip" {
		return netip.MustParseAddr("10.1.0.100"), nil
	}
	return netip.Addr{}, errors.New("no such host")
}

func (phoneBook) number(_ model.Protocol, service string) (uint16, error) {
	if service == "http" {
		return 80, nil
	}
	return 0, errors.New("no such port")
}

func TestSavedCommandsAreChanges(t *testing.T) {
	const saved = `# of the old director
-A -t vip:http -s wrr -p 300 -M 255.255.255.0 -b flag-1
-a -t 10.1.0.100:80 -r 10.240.0.20 -m -w 3 -x 100 -y 50
-a -t vip:http -r 10.240.0.21:8080 -i --tun-type gue --tun-port 6080 --tun-csum

ipvsadm --add-service --fwmark-service=7 -6 --scheduler sh -p
-a -f 7 -6 -r [2001:db8::20]:80 -g
-A -u 10.1.0.100:5060 -s rr --pe sip -o -p 10
-e -t 10.1.0.100:80 -r 10.240.0.20 -m
-d -t 10.1.0.100:80 -r 10.240.0.20
-D --sctp-service 10.1.0.100:9
`
	const want = `service-add tcp 10.1.0.100:80 wrr persistent 300 mask 255.255.255.0 flags flag-1
real-add tcp 10.1.0.100:80 10.240.0.20:80 masq weight 3 upper 100 lower 50
real-add tcp 10.1.0.100:80 10.240.0.21:8080 ipip tunnel gue:6080:csum weight 1
service-add fwm6 7 sh persistent 300
real-add fwm6 7 [2001:db8::20]:80 gate weight 1
service-add udp 10.1.0.100:5060 rr persistent 10 pe sip ops
real-edit tcp 10.1.0.100:80 10.240.0.20:80 masq weight 1
real-del tcp 10.1.0.100:80 10.240.0.20:80
service-del sctp 10.1.0.100:9
`
	changes, err := readSave(strings.NewReader(saved), phoneBook{})
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, c := range changes {
		got.WriteString(c.String() + "\n")
	}
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestMistakesInSavedCommands(t *testing.T) {
	for line, want := range map[string]string{
		"-L -n":                                   `"-L": want -A, -E, -D, -a, -e or -d`,
		"-A":                                      "which service? want -t, -u, --sctp-service or -f",
		"-A -t":                                   "-t: missing argument, or no such option",
		"-A -t nowhere:80":                        `"nowhere:80": want HOST[:PORT], an IPv6 address in brackets: no such host`,
		"-A -t 10.1.0.100:web":                    `"10.1.0.100:web": want HOST[:PORT], an IPv6 address in brackets: no such port`,
		"-A -t [2001:db8::1]80":                   `"[2001:db8::1]80": want HOST[:PORT], an IPv6 address in brackets`,
		"-A -f 0":                                 "-f 0: want a mark from 1 to 4294967295",
		"-A -t 10.1.0.100:80 -6":                  "-6 goes with -f",
		"-A -t 10.1.0.100:80 -u 10.1.0.100:80":    "two services in one command",
		"-A -t 10.1.0.100:80 --color red":         "--color: no such option",
		"-A -t 10.1.0.100:80 -p x":                "-p x: want a number up to 2147483647",
		"-a -t 10.1.0.100:80":                     "which real server? want -r",
		"-A -t 10.1.0.100:80 -r 10.0.0.1":         "-r goes with -a, -e and -d",
		"-a -t 10.1.0.100:80 -r 10.0.0.1 -w 2 -x": "-x: missing argument, or no such option",
		"-a -f 1 -r 10.0.0.1 -i --tun-type gue":   "tunnel gue: want --tun-type gue with --tun-port, or gre, and -i",
		"-a -f 1 -r 10.0.0.1 -i --tun-type sit":   "--tun-type sit: want ipip, gue or gre",
	} {
		_, err := readSave(strings.NewReader("\n"+line+"\n"), phoneBook{})
		if err == nil || err.Error() != "line 2: "+want {
			t.Errorf("%s\ngot  %v\nwant line 2: %s", line, err, want)
		}
	}
}

func TestCallsOfIpvsadm(t *testing.T) {
	table := api.Table{Plane: model.PlaneInfo{Size: 4096}, Services: []model.VirtualService{{
		Key: model.ServiceKey{Proto: model.TCP, Addr: netip.MustParseAddrPort("10.1.0.100:80")}, Scheduler: "rr",
		Reals: []model.RealServer{{Addr: netip.MustParseAddrPort("10.240.0.20:80"), Forward: model.Masq, Weight: 1}}}},
		Counters: []model.ServiceCounters{{Key: model.ServiceKey{Proto: model.TCP, Addr: netip.MustParseAddrPort("10.1.0.100:80")},
			Counters: model.Counters{Connections: 99_999_999, PacketsIn: 100_000_000, PacketsOut: 99_999_999_999, BytesIn: 100_000_000_000, BytesOut: 123_456_789_012_345}}}}
	const version = "IP Virtual Server version 1.2.1 (size=4096)\n"
	const head = "Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n"
	const numbers = "TCP  10.1.0.100:80 rr\n  -> 10.240.0.20:80               Masq    1      0          0         \n"
	const named = "TCP  vip.example.org:http rr\n  -> 10.240.0.20:http             Masq    1      0          0         \n"
	const stats = "Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes\n  -> RemoteAddress:Port\n"
	for call, want := range map[string]string{
		"":                      version + head + numbers,
		"-L -n":                 version + head + numbers,
		"-nL":                   "!-n: want -L or -S first",
		"-L":                    version + head + named,
		"-Ln --sort":            version + head + numbers,
		"-L -n -t vip:http":     head + numbers,
		"-L -n -f 3":            "!No such service",
		"-S":                    "-A -t vip.example.org:http -s rr\n-a -t vip.example.org:http -r 10.240.0.20:http -m -w 1\n",
		"-S -c":                 "!-c does not go with -S",
		"-L -n -c -t vip:http":  "!options conflict in the list command",
		"-L --stats -c":         "!options conflict in the list command",
		"-L -c --stats":         "!options conflict in the list command",
		"-L --color":            "!--color: no option of -L",
		"-L -t":                 "!-t: missing argument",
		"-C":                    "!-C changes the table, which batuta keeps as its configuration says: this ipvsadm only lists (-L, -S)",
		"-A -t vip:http -s rr":  "!-A changes the table, which batuta keeps as its configuration says: this ipvsadm only lists (-L, -S)",
		"--set 1 2 3":           "!--set changes the table, which batuta keeps as its configuration says: this ipvsadm only lists (-L, -S)",
		"-L --timeout":          "Timeout (tcp tcpfin udp): 0 0 0\n",
		"-L -n --stats":         version + stats + "TCP  10.1.0.100:80                99999999  100000K 99999999K  100000M  123456G\n  -> 10.240.0.20:80                      0        0        0        0        0\n",
		"-L -n --stats --exact": version + stats + "TCP  10.1.0.100:80                99999999 100000000 99999999999 100000000000 123456789012345\n  -> 10.240.0.20:80                      0        0        0        0        0\n",
	} {
		w, err := parseWish(strings.Fields(call), phoneBook{})
		var out strings.Builder
		if err == nil {
			err = w.print(t.Context(), fixed{table}, &out)
		}
		got := out.String()
		if err != nil {
			got = "!" + err.Error()
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("ipvsadm %s (-want +got):\n%s", call, diff)
		}
	}
}

func TestWhichDaemonIpvsadmAsks(t *testing.T) {
	var o options
	rest := o.takeOwn([]string{"--run-dir", "/run/x", "-L", "--socket=/run/y", "-n"})
	if diff := cmp.Diff([]string{"-L", "-n"}, rest); diff != "" || o.runDir != "/run/x" || o.socket != "/run/y" {
		t.Errorf("%+v (-want +got):\n%s", o, diff)
	}
}

// What is read can be written and read again.
func FuzzReadSave(f *testing.F) {
	f.Add("-A -t 10.1.0.100:80 -s wrr -p 300 -M 255.255.255.0 -b flag-1\n-a -t 10.1.0.100:80 -r 10.240.0.20:80 -i -w 3 --tun-type gue --tun-port 1 --tun-csum\n")
	f.Add("-A -f 7 -6 -s sh -p\n-a -f 7 -6 -r [2001:db8::20]:80 -g\n")
	f.Fuzz(func(t *testing.T, text string) {
		changes, err := readSave(strings.NewReader(text), phoneBook{})
		if err != nil {
			return
		}
		var table model.Table
		for _, c := range changes {
			_ = table.Perform(c) // real servers of no service
		}
		var saved strings.Builder
		listing{}.writeSave(&saved, api.Table{Services: table.Services})
		if _, err := readSave(strings.NewReader(saved.String()), phoneBook{}); err != nil {
			t.Errorf("%q is written as %q: %v", text, saved.String(), err)
		}
	})
}

// fixed is a table that does not change.
type fixed struct{ table api.Table }

func (f fixed) Table(context.Context) (api.Table, error) { return f.table, nil }
func (f fixed) Flows(context.Context) (api.Flows, error) { return api.Flows{}, nil }
