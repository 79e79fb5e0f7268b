package lab_test

import (
	"os"
	"strings"
	"testing"

	"github.com/batuta-ha/batuta/internal/lab"
)

// A lost machine's resources start when the fence agent has reset it, and not
// before: a device that fails is asked again, and meanwhile nothing is taken.
func TestTakeoverWaitsForTheReset(t *testing.T) {
	l := pairWith(t, "2", func(l *lab.Lab, node string) {
		// Nodes cannot write to the machine's own directories of commands.
		output(t, l, node, "sh", "-c", `mkdir /etc/ha.d/sbin && printf '%s\n' '#!/bin/sh' 'cat >>/run/asked' 'test -e /run/works || { echo no power switch >&2; exit 1; }' >/etc/ha.d/sbin/fence_lab &&
			chmod 755 /etc/ha.d/sbin/fence_lab && mount --bind /etc/ha.d/sbin /usr/local/sbin`)
	}, `stonith_host * fence_lab ip=10.0.0.9 username=op\n`)
	if err := l.Kill("lvs01"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the device to have failed twice", func() bool {
		return strings.Count(output(t, l, "lvs02", "batuta", "events"), "fencing-failed: ") >= 2
	})
	events := output(t, l, "lvs02", "batuta", "events")
	if !strings.Contains(events, "no power switch") || strings.Contains(events, "Acquiring resource group") || holds(t, l, "lvs02") {
		t.Errorf("what lvs02 did while lvs01 was not reset:\n%s", events)
	}
	if got := output(t, l, "lvs02", "batuta", "cl_status", "rscstatus"); got != "transition" {
		t.Errorf("rscstatus %q while nothing may be taken over", got)
	}
	output(t, l, "lvs02", "touch", "/run/works")
	served(t, l, "lvs02")
	asked := output(t, l, "lvs02", "cat", "/run/asked")
	for _, want := range []string{"action=reboot", "port=lvs01", "ip=10.0.0.9", "username=op"} {
		if !strings.Contains(asked, want) {
			t.Errorf("the agent was not told %s, but\n%s", want, asked)
		}
	}
	if asked := output(t, l, "lvs02", "sh", "-c", "batuta events | grep -n 'fenced: \\|Acquiring resource group' | head -n 1"); !strings.Contains(asked, "node lvs01 now reset.") {
		t.Errorf("the first of reset and takeover: %s", asked)
	}
}

// The real devices of Debian's cluster-glue, and with BATUTA_INTEROP=all (make
// interop) an agent of fence-agents, are asked until they confirm the reset.
// What they are told is in a file, which is read each time.
func TestRealDevices(t *testing.T) {
	for _, c := range []struct {
		device          string
		packages        []string
		fails, confirms string // what the file says
		said            string // by the device that fails
	}{
		{"null", lab.HeartbeatPackages, "", "lvs01 lvs02", "exit status 1"},
		{"external/ssh", lab.HeartbeatPackages, "hostlist=lvs09", "hostlist=lvs01,lvs02", "exit status 1"},
		{"fence_dummy", []string{"fence-agents", "iproute2"}, "type=fail power_timeout=1", "type=file status_file=/run/power", "Timed out waiting to power OFF"},
	} {
		t.Run(c.device, func(t *testing.T) {
			if strings.HasPrefix(c.device, "fence_") && os.Getenv("BATUTA_INTEROP") != "all" {
				t.Skip("its tree is large; make interop has it")
			}
			tree := debianTree(t, c.packages...)
			t.Parallel()
			l := pairOn(t, tree, "2", func(l *lab.Lab, node string) {
				output(t, l, node, "sh", "-c", "echo '"+c.fails+"' >/etc/ha.d/device")
			}, "stonith "+c.device+` /etc/ha.d/device\n`)
			if err := l.Kill("lvs01"); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the device to have failed twice", func() bool {
				return strings.Count(output(t, l, "lvs02", "batuta", "events"), "fencing-failed: ") >= 2
			})
			events := output(t, l, "lvs02", "batuta", "events")
			if !strings.Contains(events, c.said) || strings.Contains(events, "Acquiring resource group") || holds(t, l, "lvs02") {
				t.Errorf("what lvs02 did while lvs01 was not reset:\n%s", events)
			}
			output(t, l, "lvs02", "sh", "-c", "echo '"+c.confirms+"' >/etc/ha.d/device")
			served(t, l, "lvs02")
			if first := output(t, l, "lvs02", "sh", "-c", "batuta events | grep 'fenced: \\|Acquiring resource group' | head -n 1"); !strings.Contains(first, "node lvs01 now reset.") {
				t.Errorf("the first of reset and takeover: %s", first)
			}
		})
	}
}

// A node whose failfast program ends hands over, and ends.
func TestFailfastHandsOver(t *testing.T) {
	l := pairWith(t, "60", func(l *lab.Lab, node string) {
		output(t, l, node, "sh", "-c", `printf '%s\n' '#!/bin/sh' 'echo $$ >/run/vital.pid' 'exec sleep infinity' >/etc/ha.d/vital && chmod 755 /etc/ha.d/vital`)
	}, `failfast root /etc/ha.d/vital\n`)
	eventually(t, "the program to run", func() bool {
		_, err := l.Node("lvs01").Output(t.Context(), "sh", "-c", "kill -0 $(cat /run/vital.pid)")
		return err == nil
	})
	output(t, l, "lvs01", "sh", "-c", "kill $(cat /run/vital.pid)")
	served(t, l, "lvs02")
	service := l.Node("lvs01").Service()
	if err := service.Wait(); err == nil || service.ExitCode() == 0 {
		t.Error("the daemon ended as if nothing had been")
	}
	if holds(t, l, "lvs01") {
		t.Error("lvs01 still has the addresses")
	}
	if events := output(t, l, "lvs02", "batuta", "events"); strings.Contains(events, "is dead") {
		t.Errorf("lvs01 did not hand over, but was missed:\n%s", events)
	}
}
