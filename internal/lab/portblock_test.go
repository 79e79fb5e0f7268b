package lab_test

import (
	"strings"
	"testing"

	"github.com/batuta-ha/batuta/internal/lab"
)

// slowService listens on a port some time after its address is there: when
// there is a file /run/go.
const slowService = `#!/bin/sh
case $1 in
start) : >/run/starting; until [ -e /run/go ]; do sleep 0.1; done
	setsid batuta lab serve --listen :8080 --name slow >/dev/null 2>&1 & echo $! >/run/slow.pid
	until grep -q ':1F90 [^ ]* 0A ' /proc/net/tcp /proc/net/tcp6; do sleep 0.1; done;; # port 8080, listening
stop) kill $(cat /run/slow.pid); rm -f /run/slow.pid;;
status) if [ -e /run/slow.pid ]; then echo running; else echo stopped; exit 3; fi;;
esac
`

// A client of a service that starts after its address waits for it, and is
// never refused: its port is closed between the two lines of portblock.
func TestPortblockAroundATakeover(t *testing.T) {
	const group = `lvs01 portblock::tcp::8080::block IPaddr::10.1.0.101/24/eth0 slow portblock::tcp::8080::unblock`
	l := pairWith(t, "2", func(l *lab.Lab, node string) {
		script := "cat >/etc/ha.d/resource.d/slow <<'END'\n" + slowService + "END\n"
		output(t, l, node, "sh", "-c", "mkdir -p /etc/ha.d/resource.d && "+script+"chmod 755 /etc/ha.d/resource.d/slow && echo '"+group+"' >>/etc/ha.d/haresources")
		if node == "lvs01" {
			output(t, l, node, "touch", "/run/go")
		}
	}, "")
	// connect is how a connection goes: "", refused, or no answer.
	connect := func() string {
		text, err := l.Node("client").Output(t.Context(), "bash", "-c", `LC_ALL=C timeout 1 bash -c 'exec 3<>/dev/tcp/10.1.0.101/8080' 2>&1`)
		switch {
		case err == nil:
			return ""
		case strings.Contains(text, "refused"):
			return "refused"
		}
		return "no answer"
	}
	eventually(t, "the service to run on lvs01", func() bool { return connect() == "" })
	if err := l.Kill("lvs01"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "lvs02 to have the address, and to start the service", func() bool {
		if how := connect(); how != "no answer" {
			t.Errorf("during the takeover: %q", how)
		}
		_, err := l.Node("lvs02").Output(t.Context(), "test", "-e", "/run/starting")
		return err == nil && strings.Contains(output(t, l, "lvs02", "ip", "-o", "addr"), "10.1.0.101/24")
	})
	for range 2 {
		if how := connect(); how != "no answer" {
			t.Errorf("at an address whose service starts: %q", how)
		}
	}
	output(t, l, "lvs02", "touch", "/run/go")
	eventually(t, "the service to run on lvs02", func() bool {
		how := connect()
		if how == "refused" {
			t.Error("refused before the service was there")
		}
		return how == ""
	})
	// It was the closed port that held the client back.
	output(t, l, "lvs02", "sh", "-c", "kill $(cat /run/slow.pid)")
	eventually(t, "the client to be refused", func() bool { return connect() == "refused" })
}
