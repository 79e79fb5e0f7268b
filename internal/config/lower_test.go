package config

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

// TestTimeouts: the virtual service's own other time-out comes before the
// global one of the right kind.
func TestTimeouts(t *testing.T) {
	tests := []struct {
		global, own      string
		check, negotiate time.Duration
	}{
		{"", "", 5, 30},
		{"checktimeout=3", "", 3, 3},
		{"negotiatetimeout=4", "", 4, 4},
		{"checktimeout=3\nnegotiatetimeout=4", "", 3, 4},
		{"checktimeout=3\nnegotiatetimeout=4", "checktimeout=7", 7, 7},
		{"checktimeout=3\nnegotiatetimeout=4", "negotiatetimeout=8", 8, 8},
		{"checktimeout=3", "checktimeout=7\n\tnegotiatetimeout=8", 7, 8},
		{"checktimeout=3", "checktimeout=00", 3, 3},
	}
	for _, test := range tests {
		d, list := readDirector(t, test.global+"\nvirtual=10.0.0.1:80\n\treal=10.0.0.2:80 masq\n\t"+test.own+"\n")
		if Failed(list) {
			t.Fatal(text(list))
		}
		got := d.Services[0].Reals[0].Target
		if got.CheckTimeout != test.check*time.Second || got.NegotiateTimeout != test.negotiate*time.Second {
			t.Errorf("%q and %q: check %s, negotiate %s; want %d s, %d s", test.global, test.own, got.CheckTimeout, got.NegotiateTimeout, test.check, test.negotiate)
		}
	}
}

// TestTargets: what is asked of a real server, and that a target has nothing
// in it that its kind of check does not look at.
func TestTargets(t *testing.T) {
	addr := netip.MustParseAddrPort
	const web = "virtual=10.0.0.1:80\n\treal=10.0.0.2:8080 masq\n\tlogin=\"joe\"\n\treceive=\"x\"\n"
	tests := []struct {
		name, file string
		want       model.Target
	}{
		{"connect", web + "\tchecktype=connect\n\tcheckport=81", model.Target{Kind: model.CheckConnect, Proto: model.TCP, Addr: addr("10.0.0.2:81"), Tries: 1, CheckTimeout: 5 * time.Second}},
		{"ping is the same on all ports", web + "\tchecktype=ping\n\tcheckcount=3", model.Target{Kind: model.CheckPing, Addr: addr("10.0.0.2:0"), Tries: 3, CheckTimeout: 5 * time.Second}},
		{"on", web + "\tchecktype=on", model.Target{Kind: model.CheckOn, Proto: model.TCP, Addr: addr("10.0.0.2:8080")}},
		{"external", web + "\tchecktype=external\n\tcheckcommand=\"/bin/c\"\n\tcheckport=9",
			model.Target{Kind: model.CheckExternal, Proto: model.TCP, Addr: addr("10.0.0.2:9"), CheckTimeout: 5 * time.Second, Command: "/bin/c", VirtualAddr: addr("10.0.0.1:80"), RealPort: 8080}},
		{"external for a mark", "virtual=7\n\treal=10.0.0.2 gate\n\tchecktype=external",
			model.Target{Kind: model.CheckExternal, Addr: addr("10.0.0.2:0"), CheckTimeout: 5 * time.Second, Command: "/bin/true", Mark: 7}},
		{"a mark has no service", "virtual=7\n\treal=10.0.0.2 gate",
			model.Target{Kind: model.CheckNegotiate, Application: "none", Addr: addr("10.0.0.2:0"), CheckTimeout: 5 * time.Second, NegotiateTimeout: 30 * time.Second, Request: "/", Method: "GET"}},
		{"a mark with a service is checked on its usual port", "virtual=7\n\treal=10.0.0.2 gate\n\tservice=https\n\thttpmethod=head",
			model.Target{Kind: model.CheckNegotiate, Application: "https", Addr: addr("10.0.0.2:443"), CheckTimeout: 5 * time.Second, NegotiateTimeout: 30 * time.Second, Request: "/", Method: "HEAD"}},
		{"the port implies the service, without a login", "virtual=10.0.0.1:21\n\treal=10.0.0.2:2121 masq",
			model.Target{Kind: model.CheckNegotiate, Application: "ftp", Proto: model.TCP, Addr: addr("10.0.0.2:2121"), CheckTimeout: 5 * time.Second, NegotiateTimeout: 30 * time.Second, Request: "/", Method: "GET"}},
		{"service=ftp has a login", "virtual=10.0.0.1:21\n\treal=10.0.0.2:21 masq\n\tservice=ftp",
			model.Target{Kind: model.CheckNegotiate, Application: "ftp", Proto: model.TCP, Addr: addr("10.0.0.2:21"), CheckTimeout: 5 * time.Second, NegotiateTimeout: 30 * time.Second,
				Request: "/", Method: "GET", Login: "anonymous", Password: "ldirectord@lvs01"}},
		{"port 53 is udp", "virtual=10.0.0.1:domain\n\treal=10.0.0.2:domain masq\n\trequest=\"example.test\"",
			model.Target{Kind: model.CheckNegotiate, Application: "dns", Proto: model.UDP, Addr: addr("10.0.0.2:53"), CheckTimeout: 5 * time.Second, NegotiateTimeout: 30 * time.Second, Request: "/example.test", Method: "GET"}},
		{"combined", web + "\tchecktype=connect3\n\tlogin=\"x\"",
			model.Target{Kind: model.CheckCombined, Connects: 3, Application: "http", Proto: model.TCP, Addr: addr("10.0.0.2:8080"), CheckTimeout: 5 * time.Second, NegotiateTimeout: 30 * time.Second,
				Request: "/", Receive: "x", Method: "GET", Login: "x"}},
		{"its own request and answer", "virtual=10.0.0.1:80\n\treal=10.0.0.2:80 masq 1 \"a.html\", \"b\"\n\trequest=\"c\"\n\treceive=\"d\"\n\tvirtualhost=\"www.example.test\"",
			model.Target{Kind: model.CheckNegotiate, Application: "http", Proto: model.TCP, Addr: addr("10.0.0.2:80"), CheckTimeout: 5 * time.Second, NegotiateTimeout: 30 * time.Second,
				Request: "/a.html", Receive: "b", Method: "GET", VirtualHost: "www.example.test"}},
		{"its own URL", "virtual=10.0.0.1:80\n\treal=10.0.0.2:80 masq 1 \"http://10.9.9.9:81/x\", \"b\"",
			model.Target{Kind: model.CheckNegotiate, Application: "http", Proto: model.TCP, Addr: addr("10.0.0.2:80"), CheckTimeout: 5 * time.Second, NegotiateTimeout: 30 * time.Second,
				Request: "/http://10.9.9.9:81/x", RequestURL: "http://10.9.9.9:81/x", Receive: "b", Method: "GET"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d, list := readDirector(t, test.file+"\n")
			if Failed(list) {
				t.Fatal(text(list))
			}
			if diff := cmp.Diff(test.want, d.Services[0].Reals[0].Target, addresses); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// TestFallback: which fallback a virtual service has.
func TestFallback(t *testing.T) {
	tests := []struct{ name, global, own, want string }{
		{"none", "", "virtual=10.0.0.1:80", "none"},
		{"a global one takes the port of each service", "fallback=127.0.0.1", "virtual=10.0.0.1:8081", "127.0.0.1:8081 gate"},
		{"its own wins", "fallback=127.0.0.1", "virtual=10.0.0.1:80\n\tfallback=web1:81 masq", "10.1.1.11:81 masq"},
		{"a mark has port 0", "fallback=127.0.0.1", "virtual=5", "127.0.0.1:0 gate"},
		{"the family decides", "fallback=127.0.0.1\nfallback6=[::1]:80", "virtual6=[2001:db8::1]:80", "[::1]:80 gate"},
		{"none of the other family", "fallback=127.0.0.1", "virtual6=[2001:db8::1]:80", "none"},
		{"this machine", "fallback=", "virtual=10.0.0.1:80", "127.0.0.1:80 gate"},
	}
	for _, test := range tests {
		d, list := readDirector(t, test.global+"\n"+test.own+"\n\tchecktype=on\n")
		if Failed(list) {
			t.Fatalf("%s: %s", test.name, text(list))
		}
		got := "none"
		if f := d.Services[0].Fallback; f != nil {
			got = fmt.Sprint(f.Addr, " ", f.Forward)
		}
		if got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
}

// TestRealServers: addresses, ranges and what the table gets of them.
func TestRealServers(t *testing.T) {
	tests := []struct{ line, want string }{
		{"10.0.0.2:80 masq", "10.0.0.2:80 masq 1"},
		{"10.0.0.255->10.0.1.1:80 masq 7", "10.0.0.255:80 masq 7, 10.0.1.0:80 masq 7, 10.0.1.1:80 masq 7"},
		{"web1->web2:http gate 0", "10.1.1.11:80 gate 0, 10.1.1.12:80 gate 0"},
		{"10.0.0.2 ipip", "10.0.0.2:0 ipip 1"},
		{"10.0.0.2:81 gate", "10.0.0.2:81 gate 1"}, // the plane's row is under the service's port
		{"255.255.255.255->255.255.255.255:80 masq", "255.255.255.255:80 masq 1"},
		{"0x0a.2:010 masq", "10.0.0.2:10 masq 1"},
	}
	for _, test := range tests {
		d, list := readDirector(t, "virtual=10.0.0.1:80\n\treal="+test.line+"\n\tchecktype=on\n")
		if Failed(list) {
			t.Fatalf("%s: %s", test.line, text(list))
		}
		var got []string
		for _, r := range d.Services[0].Reals {
			got = append(got, fmt.Sprint(r.Addr, " ", r.Forward, " ", r.Weight))
		}
		if strings.Join(got, ", ") != test.want {
			t.Errorf("%s: %s, want %s", test.line, strings.Join(got, ", "), test.want)
		}
	}
}

// TestHeartbeat: defaults and what follows from what.
func TestHeartbeat(t *testing.T) {
	const head = "node LVS01,lvs02\nauto_failback off\n"
	tests := []struct {
		name, file, want string
	}{
		{"defaults", "bcast eth1", "keepalive 1s warn 15s dead 30s init 30s ping 30s hop 1 rexmit 250ms"},
		{"a short deadtime starts slowly", "bcast eth1\ndeadtime 5", "keepalive 1s warn 2.5s dead 5s init 12s ping 5s hop 1 rexmit 250ms"},
		{"a middling one doubles", "bcast eth1\ndeadtime 8000ms", "keepalive 1s warn 4s dead 8s init 16s ping 8s hop 1 rexmit 250ms"},
		{"all given", "bcast eth1\nkeepalive 10ms\ndeadtime 0.03\nwarntime 20000us\ninitdead 12.5\nhopfudge 0\nmax_rexmit_delay 20", "keepalive 10ms warn 20ms dead 30ms init 12.5s ping 30ms hop 0 rexmit 20ms"},
		{"the last value counts", "bcast eth1\nkeepalive 3 2\ndeadtime 9\ndeadtime 11", "keepalive 2s warn 5.5s dead 11s init 11s ping 11s hop 1 rexmit 250ms"},
	}
	for _, test := range tests {
		r := Reader{Files: machine(map[string]string{"ha.cf": head + test.file + "\n"}), Host: testHost()}
		c, list := r.Load("ha.cf")
		if Failed(list) {
			t.Fatalf("%s: %s", test.name, text(list))
		}
		h := c.Heartbeat
		got := fmt.Sprintf("keepalive %s warn %s dead %s init %s ping %s hop %d rexmit %s", h.Keepalive, h.WarnTime, h.DeadTime, h.InitDead, h.DeadPing, h.HopFudge, h.MaxRexmitDelay)
		if got != test.want {
			t.Errorf("%s\n got %s\nwant %s", test.name, got, test.want)
		}
	}
}

// TestMedia: a udpport counts for the media below it.
func TestMedia(t *testing.T) {
	file := "node lvs01 lvs02\nauto_failback off\nbcast eth1,eth0\nudpport 700\nucast eth0 web1 # the peer\n\tucast eth0 10.1.0.12\nmsgfmt netstring\nhbgenmethod time\nlogfacility local3\n"
	c, list := Reader{Files: machine(map[string]string{"ha.cf": file}), Host: testHost()}.Load("ha.cf")
	if len(list) != 0 {
		t.Fatal(text(list))
	}
	addr := netip.MustParseAddrPort
	want := []model.Medium{
		{Kind: model.Broadcast, Interface: "eth1", Name: "eth1", Peer: addr("10.240.0.255:694")},
		{Kind: model.Broadcast, Interface: "eth0", Name: "eth0", Peer: addr("10.1.0.255:694")},
		{Kind: model.Unicast, Interface: "eth0", Name: "eth0", Peer: addr("10.1.1.11:700")},
		{Kind: model.Unicast, Interface: "eth0", Name: "eth0", Peer: addr("10.1.0.12:700")},
	}
	if diff := cmp.Diff(want, c.Heartbeat.Media, addresses); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if h := c.Heartbeat; h.InnerAuth || !h.GenerationTime || h.LogFacility != "local3" || h.Failback != model.FailbackOff {
		t.Errorf("%+v", h)
	}
}

// TestRarerMedia: multicast, IPv6, serial lines and ping nodes. A serial line
// needs the inner signature, whatever msgfmt says.
func TestRarerMedia(t *testing.T) {
	file := "node lvs01 lvs02\nauto_failback off\nmcast eth0 225.0.0.1 694 1 0\nmcast6 eth0 ff02::1 695 2 1\nucast6 eth1 2001:db8::2\n" +
		"baud 38400\nserial /dev/ttyS0\nping 10.1.0.1 10.1.0.2\nping6 2001:db8::fe\nping_group routers 10.1.0.1 10.1.0.2\nmsgfmt netstring\n"
	c, list := Reader{Files: machine(map[string]string{"ha.cf": file}), Host: testHost()}.Load("ha.cf")
	if len(list) != 0 {
		t.Fatal(text(list))
	}
	addr, port := netip.MustParseAddr, netip.MustParseAddrPort
	want := []model.Medium{
		{Kind: model.Multicast, Interface: "eth0", Name: "eth0", Peer: port("225.0.0.1:694"), TTL: 1},
		{Kind: model.Multicast, Interface: "eth0", Name: "eth0", Peer: port("[ff02::1]:695"), TTL: 2, Loop: true},
		{Kind: model.Unicast, Interface: "eth1", Name: "eth1", Peer: port("[2001:db8::2]:694")},
		{Kind: model.Serial, Interface: "/dev/ttyS0", Name: "/dev/ttyS0", Baud: 38400},
		{Kind: model.Ping, Name: "10.1.0.1", Hosts: []netip.Addr{addr("10.1.0.1")}},
		{Kind: model.Ping, Name: "10.1.0.2", Hosts: []netip.Addr{addr("10.1.0.2")}},
		{Kind: model.Ping, Name: "2001:db8::fe", Hosts: []netip.Addr{addr("2001:db8::fe")}},
		{Kind: model.PingGroup, Name: "routers", Hosts: []netip.Addr{addr("10.1.0.1"), addr("10.1.0.2")}},
	}
	if diff := cmp.Diff(want, c.Heartbeat.Media, addresses); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if !c.Heartbeat.InnerAuth {
		t.Error("messages for the serial line have no text signature")
	}
}

// TestAuthkeys: what a good file means.
func TestAuthkeys(t *testing.T) {
	file := "# keys\n  auth 2\n1 xchacha20 of-sixteen-letters\n2 sha1 a#b # comment\n3 md5 old\n"
	c, list := Reader{Files: machine(map[string]string{"authkeys": file})}.Load("authkeys")
	if len(list) != 0 {
		t.Fatal(text(list))
	}
	want := model.Keyring{Send: 2, Keys: map[int]model.AuthKey{1: {Method: model.AuthXChaCha20, Secret: "of-sixteen-letters"}, 2: {Method: model.AuthSHA1, Secret: "a#b"}, 3: {Method: model.AuthMD5, Secret: "old"}}}
	if diff := cmp.Diff(want, c.Heartbeat.Keys); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// suspecttime has a default, may be 0, and is no shorter than deadtime.
func TestSuspectTime(t *testing.T) {
	for line, want := range map[string]time.Duration{"": 6 * time.Second, "suspecttime 0": 0, "suspecttime 2500ms": 2500 * time.Millisecond, "suspecttime 1": -1} {
		c, list := Reader{Files: machine(map[string]string{"ha.cf": "keepalive 200ms\ndeadtime 2\n" + line + "\nbcast eth1\nauto_failback on\nnode lvs01 lvs02\n"})}.Load("ha.cf")
		switch {
		case want < 0 && !strings.Contains(text(list), "a node would be dead before it is suspect"):
			t.Errorf("%q: %s", line, text(list))
		case want >= 0 && (Failed(list) || c.Heartbeat.SuspectTime != want):
			t.Errorf("%q: %v, want %v\n%s", line, c.Heartbeat.SuspectTime, want, text(list))
		}
	}
}

// TestHaresources: what a good file means.
func TestHaresources(t *testing.T) {
	file := "# groups\nLVS01 \\\n\t10.1.0.100/24/eth0:0 ldirectord::web.cf \\\n  Mail::a::b::c # x\n\nlvs02 IPaddr2::10.1.0.101 apache2\n"
	c, list := Reader{Files: machine(map[string]string{"haresources": file})}.Load("haresources")
	if len(list) != 0 {
		t.Fatal(text(list))
	}
	want := []model.ResourceGroup{
		{Owner: "lvs01", Resources: []model.Resource{
			{Agent: "IPaddr", Args: []string{"10.1.0.100/24/eth0:0"}, Text: "10.1.0.100/24/eth0:0"},
			{Agent: "ldirectord", Args: []string{"web.cf"}, Text: "ldirectord::web.cf"},
			{Agent: "Mail", Args: []string{"a", "b", "c"}, Text: "Mail::a::b::c"},
		}},
		{Owner: "lvs02", Resources: []model.Resource{
			{Agent: "IPaddr2", Args: []string{"10.1.0.101"}, Text: "IPaddr2::10.1.0.101"},
			{Agent: "apache2", Args: []string{}, Text: "apache2"},
		}},
	}
	if diff := cmp.Diff(want, c.Groups); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestDidYouMean(t *testing.T) {
	for word, want := range map[string]string{
		"checktimeut": `did you mean "checktimeout"?`, "quiecsent": `did you mean "quiescent"?`, "REAL": `did you mean "real"?`,
		"xyz": "", "": "", strings.Repeat("a", 100): "",
	} {
		if got := didYouMean(word, directiveWords); got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}
