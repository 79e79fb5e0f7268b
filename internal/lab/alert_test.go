package lab_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/alert"
	"github.com/batuta-ha/batuta/internal/lab"
	"github.com/batuta-ha/batuta/internal/model"
)

// sendMail is the verb that sends one alert from a node: to, relay.
func sendMail(to, relay string) error {
	m := alert.New(alert.Options{Sink: func(e model.Event) { fmt.Fprintln(os.Stdout, e.Text) }})
	m.Send(alert.Message{To: to, From: "LVS <lvs@example.test>", Relay: relay, Subject: "[Shop] Deleted real server: 10.0.0.1:80 (10.0.0.9:80)",
		Status: "running", Service: "Shop", Comment: "call the shop team"})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	m.Close(ctx)
	return nil
}

// Alerts reach mailboxes of a real Postfix: by its port 25 from another
// machine, several recipients in one mail, and by its sendmail program from its
// own. A recipient that it does not know does not cost the others theirs.
func TestAlertsThroughPostfix(t *testing.T) {
	tree := debianTree(t, "dovecot-imapd", "dovecot-pop3d", "kamailio", "leafnode", "openbsd-inetd", "postfix", "vsftpd")
	eth0 := func(a string) []lab.Interface {
		return []lab.Interface{{Name: "eth0", Bridge: "lan", Addresses: []netip.Prefix{netip.MustParsePrefix(a)}}}
	}
	l, err := lab.Start(t.Context(), lab.Options{Topology: lab.Topology{Bridges: []string{"lan"}, Machines: []lab.Machine{
		{Name: "director", Role: lab.RoleClient, Interfaces: eth0("10.1.0.1/24"), Files: map[string]lab.File{"/etc/resolv.conf": {}}},
		{Name: "mail", Role: lab.RoleRealServer, Interfaces: eth0("10.1.0.20/24"), Root: tree},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	var said bytes.Buffer
	postfix := l.Node("mail").Command(t.Context(), "sh", "-c", `set -e
useradd ops; useradd night
postconf -e inet_interfaces=10.1.0.20,127.0.0.1 inet_protocols=ipv4 myhostname=mail.example.test mydestination=mail.example.test,mail,localhost \
  mynetworks=10.1.0.0/24 alias_maps= alias_database= compatibility_level=3.6 maillog_file=/dev/stdout mailbox_command=
postconf -F "*/*/chroot = n"
exec postfix start-fg`)
	postfix.Stdout, postfix.Stderr = &said, &said
	if err := postfix.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = l.Node("mail").Run(context.Background(), "sh", "-c", "kill -KILL -1")
		_ = postfix.Wait()
		if t.Failed() {
			t.Logf("postfix said:\n%s", said.String())
		}
	})
	output(t, l, "mail", "sh", "-c", "for i in $(seq 300); do postfix status 2>/dev/null && exit 0; sleep 0.1; done; exit 1")

	if out := output(t, l, "director", "batuta", "lab", "mail", "ops@mail.example.test, night@mail.example.test", "10.1.0.20"); out != "" {
		t.Error(out)
	}
	if out := output(t, l, "director", "batuta", "lab", "mail", "gone@mail.example.test, night@mail.example.test", "10.1.0.20"); !strings.Contains(out, "User unknown") {
		t.Errorf("an unknown recipient: %q", out)
	}
	if out := output(t, l, "mail", "batuta", "lab", "mail", "ops", ""); out != "" {
		t.Error(out)
	}
	for box, want := range map[string]int{"ops": 2, "night": 2} {
		text := output(t, l, "mail", "sh", "-c", fmt.Sprintf(
			"for i in $(seq 300); do [ $(grep -c ^Log-Message: /var/mail/%[1]s 2>/dev/null) = %[2]d ] && break; sleep 0.1; done; cat /var/mail/%[1]s", box, want))
		for _, line := range []string{"Subject: [Shop] Deleted real server: 10.0.0.1:80 (10.0.0.9:80)", "Log-Message: [Shop] Deleted real server: 10.0.0.1:80 (10.0.0.9:80)",
			"Daemon-Status: running", "Service name: Shop", "Comment: call the shop team", `From: "LVS" <lvs@example.test>`} {
			if strings.Count(text, line) != want {
				t.Errorf("mailbox of %s: not %d times %q in\n%s", box, want, line, text)
			}
		}
	}
}
