package lab_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/fence"
	"github.com/batuta-ha/batuta/internal/lab"
	"github.com/batuta-ha/batuta/internal/model"
)

// bmc is OpenIPMI's simulator of the controller that a server has beside its
// processors: it answers IPMI over the network, and calls bmcChassis for what
// it is told about the power.
const bmc = `name "bmc"
set_working_mc 0x20
  startlan 1
    addr 0.0.0.0 623
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "/etc/bmc/chassis"
  user 2 true "op" "secret" admin 10 none md2 md5 straight
`

// bmcChassis keeps the power in a file and what was set in another.
const bmcChassis = `#!/bin/sh
case "$1 $2" in
"get power") echo power:$(cat /run/power 2>/dev/null || echo 1);;
"set power") echo $3 >/run/power; echo $2 $3 >>/run/set;;
set*) shift; echo $* >>/run/set;;
esac
`

var bmcFiles = map[string]lab.File{
	"/etc/bmc/lan":     {Data: []byte(bmc)},
	"/etc/bmc/emu":     {Data: []byte("mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr\nmc_enable 0x20\n")},
	"/etc/bmc/chassis": {Data: []byte(bmcChassis), Mode: 0o755},
}

var bmcService = []string{"ipmi_sim", "-d", "-n", "-c", "/etc/bmc/lan", "-f", "/etc/bmc/emu", "-s", "/run"}

// fencingPackages are the real programs; fence-agents and what it needs are 400 MB.
func fencingPackages(all bool) []string {
	if !all {
		return lab.HeartbeatPackages
	}
	return append(slices.Clone(lab.HeartbeatPackages), "fence-agents", "ipmitool", "openipmi")
}

// fenceNode is the verb that resets a node by a device, which is JSON.
func fenceNode(device, node string) error {
	var d model.FenceDevice
	if err := json.Unmarshal([]byte(device), &d); err != nil {
		return err
	}
	f, err := fence.New(d, fence.Options{})
	if err != nil {
		return err
	}
	return f.Fence(context.Background(), model.NodeName(node))
}

// The real stonith(8), its plug-ins and the real fence agents are called so
// that they understand it, and their answers are understood: what they reset is
// a controller that speaks IPMI. Without BATUTA_INTEROP=all only cluster-glue's
// part is played, which comes with the original Heartbeat.
func TestFencingByRealPrograms(t *testing.T) {
	all := os.Getenv("BATUTA_INTEROP") == "all"
	tree := debianTree(t, fencingPackages(all)...)
	files := map[string]lab.File{
		"/etc/ha.d/null.conf": {Data: []byte("# nothing is reset\nlvs01 lvs02\n")},
		"/etc/ha.d/ipmi.conf": {Data: []byte("hostname=lvs02 ipaddr=10.77.0.9 # the controller\nuserid=op passwd=secret interface=lan\n"), Mode: 0o600},
	}
	controller := lab.Machine{Name: "controller", Root: tree, Interfaces: []lab.Interface{nic("eth0", "wire", "10.77.0.9/24")}}
	if all {
		controller.Files, controller.Service = bmcFiles, bmcService
	}
	l, err := lab.Start(t.Context(), lab.Options{Topology: lab.Topology{Bridges: []string{"wire"}, Machines: []lab.Machine{
		{Name: "director", Root: tree, Files: files, Interfaces: []lab.Interface{nic("eth0", "wire", "10.77.0.1/24")}}, controller,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	if all {
		eventually(t, "the controller to answer", func() bool {
			out, err := l.Node("director").Output(t.Context(), "ipmitool", "-I", "lan", "-H", "10.77.0.9", "-U", "op", "-P", "secret", "chassis", "power", "status")
			return err == nil && strings.Contains(out, "Chassis Power is on")
		})
	}
	const off, on, cycled, reset = "power 0\n", "power 1\n", "power 0\npower 1\n", "reset 1\n"
	for _, c := range []struct {
		name, device string // Type, then Parameters or file=
		agents       bool   // needs fence-agents or ipmitool
		set          string // what the controller was told
		says         string // part of the error; "" where the reset is confirmed
	}{
		{"a plug-in that confirms", "null lvs02", false, "", ""},
		{"a plug-in with a file", "null file=/etc/ha.d/null.conf", false, "", ""},
		{"a plug-in that fails", "ssh lvs02", false, "", "fence lvs02 by ssh: exit status "},
		{"a plug-in that there is none of", "nosuch lvs02", false, "", "fence lvs02 by nosuch: exit status "},
		{"a plug-in with too few parameters", "wti_nps 10.77.0.9", false, "", "fence lvs02 by wti_nps: exit status "},
		{"a script that takes other parameters", "external/ipmi 10.77.0.9", false, "", "it takes 5 parameters (hostname ipaddr userid passwd interface), and 1 are given"},
		{"a script with names in a file", "external/ipmi file=/etc/ha.d/ipmi.conf", true, reset, ""},
		{"a script with bare values", "external/ipmi lvs02 10.77.0.9 op secret lan", true, reset, ""},
		{"a script that fails", "external/ipmi lvs02 10.77.0.9 op wrong lan", true, "", "fence lvs02 by external/ipmi: exit status 1: "},
		{"an agent", "fence_ipmilan ip=10.77.0.9 username=op password=secret power_wait=0", true, cycled, ""},
		{"an agent told what to do", "fence_ipmilan ip=10.77.0.9 username=op password=secret action=off power_wait=0", true, off, ""},
		{"an agent that finds it off", "fence_ipmilan ip=10.77.0.9 username=op password=secret action=on power_wait=0", true, on, ""},
		{"an agent that cycles", "fence_ipmilan ip=10.77.0.9 username=op password=secret method=cycle power_wait=0", true, cycled, ""},
		{"an agent that fails", "fence_ipmilan ip=10.77.0.9 username=op password=wrong", true, "", "fence lvs02 by fence_ipmilan: exit status 1: "},
		{"an agent that lacks a parameter", "fence_ipmilan username=op", true, "", "fence lvs02 by fence_ipmilan: exit status 1: "},
		{"an agent without a plug", "fence_dummy status_file=/run/dummy", true, "", ""},
	} {
		if c.agents && !all {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			words := strings.Fields(c.device)
			d := model.FenceDevice{Type: words[0], Parameters: words[1:]}
			if file, ok := strings.CutPrefix(words[1], "file="); ok {
				d.File, d.Parameters = file, nil
			}
			device, err := json.Marshal(d)
			if err != nil {
				t.Fatal(err)
			}
			output(t, l, "controller", "sh", "-c", ": >/run/set")
			var said bytes.Buffer
			cmd := l.Node("director").Command(t.Context(), "batuta", "lab", "fence", string(device), "lvs02")
			cmd.Stdout, cmd.Stderr = &said, &said
			err = cmd.Run()
			t.Logf("%s", said.String())
			if (err == nil) != (c.says == "") || !strings.Contains(said.String(), c.says) {
				t.Errorf("%v: %s\nwant %q", err, said.String(), c.says)
			}
			if d := cmp.Diff(strings.TrimSpace(c.set), output(t, l, "controller", "cat", "/run/set")); d != "" {
				t.Errorf("the controller was told (-want +got)\n%s", d)
			}
		})
	}
}
