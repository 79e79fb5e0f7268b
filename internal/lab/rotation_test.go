package lab_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/lab"
	"github.com/batuta-ha/batuta/internal/rig"
)

// TestKeysChangeUnderAClient: two running daemons go from a signing key to an
// encrypting one, by the procedure of docs/reference/cluster-protocol.md, one
// node a step ahead of the other each time. A client keeps its connections;
// no packet is dropped, nothing moves, and in the end nothing is in clear.
func TestKeysChangeUnderAClient(t *testing.T) {
	binary, err := rig.Program()
	if err != nil {
		t.Fatal(err)
	}
	captures := t.TempDir()
	l := start(t, func(o *lab.Options) { o.Binary, o.PcapDir = binary, captures })
	const (
		signing    = "1 sha1 the-old-one\n"
		encrypting = "2 xchacha20 the-new-one-which-is-longer\n"
	)
	nodes := []string{"lvs01", "lvs02"}
	write := func(node, keys string) {
		output(t, l, node, "sh", "-c", fmt.Sprintf("umask 077; printf '%s' >/etc/ha.d/authkeys", strings.ReplaceAll(keys, "\n", `\n`)))
	}
	for _, node := range nodes {
		output(t, l, node, "sh", "-c", `sed -i 's/^\(deadtime\|initdead\|warntime\|keepalive\).*//' /etc/ha.d/ha.cf &&
			printf 'keepalive 100ms\ndeadtime 60\ninitdead 60\nwarntime 30\n' >>/etc/ha.d/ha.cf`)
		write(node, "auth 1\n"+signing)
		l.Node(node).SetService("batuta", "run", "--ha.d", "/etc/ha.d")
		if err := l.Node(node).StartService(); err != nil {
			t.Fatal(err)
		}
	}
	settle(t, l, "lvs01", "local")
	settle(t, l, "lvs02", "local")
	served(t, l, "lvs01")

	alive := holdByShell(t, l, 5)
	union := filepath.Join(captures, "authkeys")
	if err := os.WriteFile(union, []byte("auth 1\n"+signing+encrypting), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, keys := range []string{
		"auth 1\n" + signing + encrypting, // receive-new
		"auth 2\n" + signing + encrypting, // send-new
		"auth 2\n" + encrypting,           // drop-old
	} {
		for _, node := range nodes {
			write(node, keys)
			if err := l.Node(node).Service().Signal(unix.SIGHUP); err != nil {
				t.Fatal(err)
			}
			await(t, fmt.Sprintf("step %d: %s takes the keys", i+1, node), func() (bool, string) {
				said := output(t, l, node, "batuta", "events")
				return strings.Count(said, "authkeys has changed") == i+1, said
			})
			// Both go on hearing each other: new beats of both are on the wire.
			from := len(heartbeats(t, binary, captures, union))
			await(t, "beats go on", func() (bool, string) {
				seen := map[string]int{}
				for _, m := range heartbeats(t, binary, captures, union)[from:] {
					seen[m.Fields["src"]]++
				}
				return seen["lvs01"] >= 3 && seen["lvs02"] >= 3, fmt.Sprint(seen)
			})
		}
	}
	from := len(heartbeats(t, binary, captures, union))
	await(t, "all is encrypted", func() (bool, string) {
		seen := map[string]bool{}
		for _, m := range heartbeats(t, binary, captures, union)[from:] {
			if m.Auth.Index != 2 {
				t.Fatalf("%s of %s is in clear after the last step", m.Type, m.Fields["src"])
			}
			seen[m.Fields["src"]] = true
		}
		return len(seen) == 2, fmt.Sprint(seen)
	})
	if got := alive(); got != "alive 5" {
		t.Errorf("of 5 connections that were open before: %s", got)
	}
	for _, node := range nodes {
		var st struct {
			BadPackets int `json:"bad_packets"`
		}
		if err := json.Unmarshal([]byte(output(t, l, node, "batuta", "status", "--json")), &st); err != nil || st.BadPackets != 0 {
			t.Errorf("%s dropped %d packets, %v", node, st.BadPackets, err)
		}
		said := output(t, l, node, "batuta", "events")
		if strings.Contains(said, "is dead") || strings.Count(said, "Releasing resource group") > 0 {
			t.Errorf("%s: something moved:\n%s", node, said)
		}
	}
}

// heartbeat is one message of a capture, as `batuta debug decode` has it.
type heartbeatMessage struct {
	OK   bool `json:"auth_ok"`
	Auth struct {
		Index int `json:"index"`
	} `json:"auth"`
	Type   string            `json:"type"`
	Fields map[string]string `json:"fields"`
}

// heartbeats are the messages that went over the heartbeats' wire so far.
func heartbeats(t *testing.T, binary, captures, authkeys string) (list []heartbeatMessage) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), binary, "debug", "decode", "--authkeys", authkeys, filepath.Join(captures, "inside.pcap")).Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		var m heartbeatMessage
		if err := json.Unmarshal([]byte(line), &m); err != nil || !m.OK {
			t.Fatalf("a message that nobody can read: %s, %v", line, err)
		}
		list = append(list, m)
	}
	return list
}

// await waits until something is so.
func await(t *testing.T, what string, fact func() (bool, string)) {
	t.Helper()
	last := ""
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		ok, now := fact()
		if ok {
			return
		}
		if last = now; time.Now().After(deadline) {
			t.Fatalf("%s: not so after two minutes: %s", what, last)
		}
	}
}
