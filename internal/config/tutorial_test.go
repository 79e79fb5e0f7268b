package config

import (
	"io/fs"
	"net/netip"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/model"
)

// tutorialDir is the tutorial's configuration, with one haresources and one
// ldirectord.cf of several.
func tutorialDir(t *testing.T, haresources, ldirectord string) fs.FS {
	return machine(map[string]string{
		"etc/ha.d/ha.cf":         testdata(t, "tutorial/ha.cf"),
		"etc/ha.d/authkeys":      testdata(t, "tutorial/authkeys"),
		"etc/ha.d/haresources":   testdata(t, "tutorial/"+haresources),
		"etc/ha.d/ldirectord.cf": testdata(t, "tutorial/"+ldirectord),
	})
}

// TestTutorial reads the files of the tutorial as a newcomer pastes them: the
// set-up that works without a remark, the one whose gateways stay behind, and
// the one that has lost its indentation.
func TestTutorial(t *testing.T) {
	tests := []struct{ haresources, ldirectord, want string }{
		{"haresources-with-gateways", "ldirectord.cf", ""},
		{"haresources", "ldirectord.cf", "/etc/ha.d/haresources:1:18: warning: replies of the masq real servers 10.240.0.20, 10.240.0.21, 10.240.1.20, 10.240.1.21 " +
			"will not find their way back after a failover: their inside gateway is no resource of this line; add the gateway address of each of their networks before ldirectord\n"},
		{"haresources-with-gateways", "ldirectord-flat.cf", "/etc/ha.d/ldirectord.cf:12:1: warning: 12 lines from here on are not indented and taken as part of the virtual service above; " +
			"indent the lines of a virtual service by a tab or four blanks: ldirectord refuses them like this\n"},
	}
	for _, test := range tests {
		r := Reader{Files: tutorialDir(t, test.haresources, test.ldirectord), Host: testHost(), Starting: true}
		c, list := r.Load("/etc/ha.d")
		if diff := cmp.Diff(test.want, text(list)); diff != "" {
			t.Errorf("%s, %s (-want +got)\n%s", test.haresources, test.ldirectord, diff)
		}
		if test.haresources == "haresources-with-gateways" {
			if diff := cmp.Diff(tutorialCluster(), c, addresses); diff != "" {
				t.Errorf("%s, %s (-want +got)\n%s", test.haresources, test.ldirectord, diff)
			}
		}
	}
}

// tutorialCluster is what the tutorial's files mean.
func tutorialCluster() *model.Cluster {
	web := model.ServiceKey{Proto: model.TCP, Addr: netip.MustParseAddrPort("10.1.0.100:80")}
	service := model.Service{
		Virtual:         model.VirtualService{Key: web, Scheduler: "rr"},
		Fallback:        &model.RealServer{Addr: netip.MustParseAddrPort("127.0.0.1:80"), Forward: model.Gate, Weight: 1},
		FallbackCommand: "/etc/init.d/apache2",
		Quiescent:       true,
		CleanStop:       true,
		FailureCount:    1,
		CheckInterval:   time.Second,
		Alert:           model.EmailAlert{Statuses: []string{"all"}},
	}
	for _, a := range []string{"10.240.0.20:80", "10.240.0.21:80", "10.240.1.20:80", "10.240.1.21:80"} {
		addr := netip.MustParseAddrPort(a)
		service.Reals = append(service.Reals, model.CheckedReal{
			RealServer: model.RealServer{Addr: addr, Forward: model.Masq, Weight: 1},
			Target: model.Target{Kind: model.CheckNegotiate, Application: "http", Proto: model.TCP, Addr: addr,
				CheckTimeout: 3 * time.Second, NegotiateTimeout: 3 * time.Second,
				Request: "/.testpage", Receive: "test page", Method: "GET"},
		})
	}
	address := func(a string) model.Resource { return model.Resource{Agent: "IPaddr", Args: []string{a}, Text: a} }
	return &model.Cluster{
		Heartbeat: &model.Heartbeat{
			Self: "lvs01", Nodes: nodeNames("lvs01", "lvs02"),
			Keys: model.Keyring{Send: 1, Keys: map[int]model.AuthKey{1: {Method: model.AuthMD5, Secret: "123456"}}},
			Media: []model.Medium{{Kind: model.Broadcast, Interface: "eth1", Name: "eth1",
				Peer: netip.MustParseAddrPort("10.240.0.255:694")}},
			Failback:  model.FailbackOn,
			Keepalive: time.Second, WarnTime: 3 * time.Second, DeadTime: 5 * time.Second, InitDead: 15 * time.Second, DeadPing: 5 * time.Second,
			SuspectTime: 15 * time.Second, Flaps: 5, FlapWindow: 10 * time.Minute, FlapHold: 5 * time.Minute,
			MaxRexmitDelay: 250 * time.Millisecond, HopFudge: 1, InnerAuth: true,
			LogFile: "/var/log/ha-log", DebugFile: "/var/log/ha-debug", SyslogFormat: true, LogBadPackets: true, LockMemory: true, Priority: 1,
			Recorded: []model.Setting{
				{Name: "debugfile", Value: "/var/log/ha-debug"}, {Name: "logfile", Value: "/var/log/ha-log"},
				{Name: "keepalive", Value: "1"}, {Name: "deadtime", Value: "5"}, {Name: "warntime", Value: "3"}, {Name: "initdead", Value: "15"},
				{Name: "bcast", Value: "eth1"}, {Name: "auto_failback", Value: "on"},
				{Name: "node", Value: "lvs01"}, {Name: "node", Value: "lvs02"}, {Name: "crm", Value: "no"},
			},
		},
		Groups: []model.ResourceGroup{{Owner: "lvs01", Resources: []model.Resource{
			address("10.1.0.100"), address("10.240.0.1"), address("10.240.1.1"), {Agent: "ldirectord", Args: []string{}, Text: "ldirectord"},
		}}},
		Directors: []model.Director{{
			Name: "ldirectord", File: "/etc/ha.d/ldirectord.cf", Arguments: []string{""}, Services: []model.Service{service},
			AutoReload: true, LogFile: "/var/log/ldirectord.log",
		}},
	}
}

// TestDirectory tells what only several files together show.
func TestDirectory(t *testing.T) {
	const ha = "bcast eth1\nauto_failback on\nnode lvs01 lvs02\n"
	const keys = "auth 1\n1 sha1 sesame\n"
	const ld = "virtual=10.1.0.100:80\n\treal=10.240.0.20:80 masq\n"
	tests := []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"nothing is there", nil, `
ha.d/ha.cf:1:1: error: cannot read the file: there is no such file; write one with at least node, bcast or ucast, and auto_failback
ha.d/authkeys:1:1: error: cannot read the file: there is no such file; write one with two lines, the same on all nodes: auth 1, and 1 sha1 SECRET; chmod 600 it
ha.d/haresources:1:1: error: cannot read the file: there is no such file; write one; a line is: NODE ADDRESS ldirectord
`},
		{"the director's file is missing", map[string]string{"ha.cf": ha, "authkeys": keys, "haresources": "lvs01 10.1.0.100 ldirectord::web.cf\n"}, `
ha.d/web.cf:1:1: error: cannot read the file: there is no such file; give the path of an ldirectord.cf or a batuta.hcl
`},
		{"it is in conf", map[string]string{"ha.cf": ha, "authkeys": keys, "haresources": "lvs01 10.1.0.100 10.240.0.1 ldirectord::web.cf\n", "conf/web.cf": ld}, "\n"},
		{"two lines share one director", map[string]string{"ha.cf": ha, "authkeys": keys, "ldirectord.cf": ld,
			"haresources": "lvs01 10.1.0.100 10.240.0.1 ldirectord\nlvs02 10.1.0.101 10.240.0.1 ldirectord::ldirectord.cf\n"}, "\n"},
		{"the virtual address is nowhere", map[string]string{"ha.cf": ha, "authkeys": keys, "ldirectord.cf": ld, "haresources": "lvs01 10.240.0.1/16 ldirectord\n"}, `
ha.d/haresources:1:21: warning: no line has the virtual address 10.1.0.100 of ha.d/ldirectord.cf: no node will answer for it; add it before ldirectord
`},
		{"nothing starts the director", map[string]string{"ha.cf": ha, "authkeys": keys, "ldirectord.cf": "nonsense\n", "haresources": "LVS01 10.1.0.100\n"}, `
ha.d/haresources:1:1: note: ha.d/ldirectord.cf is not named by any line: nothing here starts it; add the word ldirectord behind the addresses
`},
		{"an empty haresources", map[string]string{"ha.cf": ha, "authkeys": keys, "haresources": ""}, `
ha.d/haresources:1:1: warning: there is no resource: the cluster has nothing to do; add a line: NODE ADDRESS ldirectord
`},
		{"nodeinfo renames the node", map[string]string{"ha.cf": ha, "authkeys": keys, "haresources": "lvs01 10.1.0.100\n", "nodeinfo": "other\nx\n"}, `
ha.d/ha.cf:3:6: error: this node, other, is not among the nodes lvs01, lvs02; name it as ` + "`uname -n`" + ` does, or give the name to use with --node or in the file nodeinfo beside ha.cf
`},
		{"a manager replaces haresources", map[string]string{"ha.cf": ha + "crm yes\n", "authkeys": keys}, `
ha.d/ha.cf:4:1: warning: crm=yes does nothing here: there is no such cluster manager, and haresources is not used with it: no resource is managed; write crm off, and the resources into haresources
`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			files := map[string]string{}
			for name, content := range test.files {
				files["home/admin/ha.d/"+name] = content
			}
			r := Reader{Files: machine(files), Dir: "/home/admin", Host: testHost(), Starting: true}
			if len(files) == 0 {
				r.Files.(fstest.MapFS)["home/admin/ha.d"] = &fstest.MapFile{Mode: fs.ModeDir | 0o755}
			}
			c, list := r.Load("ha.d")
			if diff := cmp.Diff(strings.TrimPrefix(test.want, "\n"), text(list)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if strings.Contains(test.name, "share") && len(c.Directors) != 1 {
				t.Errorf("%d directors, want 1", len(c.Directors))
			}
		})
	}
}

// TestElsewhere checks the tutorial's directory on a machine that is no node
// of it: what is wrong there only is no error.
func TestElsewhere(t *testing.T) {
	host := testHost()
	host.NodeName, host.Interfaces = "laptop", nil
	r := Reader{Files: tutorialDir(t, "haresources-with-gateways", "ldirectord.cf"), Host: host}
	want := "/etc/ha.d/ha.cf:7:7: warning: there is no network interface \"eth1\"\n" +
		"/etc/ha.d/ha.cf:9:6: warning: this node, laptop, is not among the nodes lvs01, lvs02; name it as `uname -n` does, or give the name to use with --node or in the file nodeinfo beside ha.cf\n"
	if diff := cmp.Diff(want, text(r.Check("/etc/ha.d", KindUnknown))); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	r.Node, r.Starting = "lvs02", true
	c, list := r.Load("/etc/ha.d")
	if count(list, Error) != 1 || c.Heartbeat.Self != "lvs02" {
		t.Errorf("started as %s: %s", c.Heartbeat.Self, text(list))
	}
}

// TestModeOfAuthkeys: a daemon refuses keys that others can read or write, a check
// only warns.
func TestModeOfAuthkeys(t *testing.T) {
	for mode, bad := range map[fs.FileMode]bool{0o600: false, 0o400: false, 0o602: true, 0o620: true, 0o640: true, 0o604: true, 0o644: true} {
		for _, starting := range []bool{true, false} {
			r := Reader{Files: fstest.MapFS{"authkeys": {Data: []byte("auth 1\n1 crc\n"), Mode: mode}}, Starting: starting}
			list := r.Check("/authkeys", KindUnknown)
			if got := len(list) > 0; got != bad || Failed(list) != (bad && starting) {
				t.Errorf("mode %04o, starting %v: %s", mode, starting, text(list))
			}
		}
	}
}

// TestKinds: what is read is told by the name, or by --kind.
func TestKinds(t *testing.T) {
	for name, want := range map[string]Kind{
		"/etc/ha.d/ha.cf": KindHaCf, "authkeys": KindAuthkeys, "haresources": KindHaresources, "haresources-with-gateways": KindHaresources,
		"ldirectord.cf": KindLdirectord, "x/web.cf": KindLdirectord, "README": KindUnknown,
	} {
		if got := KindOf(name); got != want {
			t.Errorf("KindOf(%q) = %s, want %s", name, got, want)
		}
	}
	for k := KindLdirectord; k <= KindDirectory; k++ {
		if got, err := ParseKind(k.String()); got != k || err != nil {
			t.Errorf("ParseKind(%q) = %s, %v", k, got, err)
		}
	}
	if _, err := ParseKind("ha"); err == nil {
		t.Error("ParseKind accepts ha")
	}
	r := Reader{Files: machine(map[string]string{"README": "x"})}
	for name, want := range map[string]string{
		"README":  "README:1:1: error: the kind of this file cannot be told from its name; name it ldirectord.cf, ha.cf, authkeys, haresources or batuta.hcl, or say which it is with --kind\n",
		"missing": "missing:1:1: error: cannot read the file: there is no such file\n",
	} {
		if diff := cmp.Diff(want, text(r.Check(name, KindUnknown))); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
}
