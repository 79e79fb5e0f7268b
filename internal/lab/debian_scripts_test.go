package lab_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/lab"
)

// Debian's scripts AudibleAlarm and WinPopup, which tell people of a takeover,
// are called as the original calls them: the alarm rings on the node that is
// not at home, and popups say who takes over and who gives back.
func TestScriptsOfDebian(t *testing.T) {
	tree := debianTree(t, lab.HeartbeatPackages...)
	l := pairOn(t, tree, "5", func(l *lab.Lab, node string) {
		// smbclient, which is not in the tree, writes down what it is told.
		output(t, l, node, "sh", "-c", `mkdir -p /run/resource-agents /etc/ha.d/sbin && printf '%s\n' '#!/bin/sh' 'echo "$* <- $(cat)" >>/run/popups' >/etc/ha.d/sbin/smbclient &&
			chmod 755 /etc/ha.d/sbin/smbclient && mount --bind /etc/ha.d/sbin /usr/local/sbin && echo desk >/etc/ha.d/desks &&
			echo 'lvs01 AudibleAlarm::lvs01 WinPopup::/etc/ha.d/desks' >>/etc/ha.d/haresources`)
	}, "")
	said := func(node, popup string) {
		t.Helper()
		eventually(t, node+" to say: "+popup, func() bool {
			out, err := l.Node(node).Output(t.Context(), "cat", "/run/popups")
			return err == nil && strings.Contains(out, "-M desk <- "+popup)
		})
	}
	said("lvs01", "Resource Group Takeover in progress on lvs01")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := l.Node("lvs01").StopService(ctx); err != nil {
		t.Fatal(err)
	}
	said("lvs01", "Resource Group Reestablishing original master connection in progress on lvs01")
	said("lvs02", "Resource Group Takeover in progress on lvs02")
	eventually(t, "the alarm to ring on lvs02", func() bool {
		_, err := l.Node("lvs02").Output(t.Context(), "grep", "-q", "\a", "/dev/console")
		return err == nil
	})
	rings := func() bool {
		_, err := l.Node("lvs02").Output(t.Context(), "pgrep", "-f", "AudibleAlarm start")
		return err == nil
	}
	if !rings() {
		t.Error("nobody sees the process that rings")
	}
	if _, err := l.Node("lvs01").Output(t.Context(), "test", "-e", "/dev/console"); err == nil {
		t.Error("the alarm rang at home, on lvs01")
	}
	if err := l.Node("lvs02").StopService(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the alarm to end", func() bool { return !rings() })
}
