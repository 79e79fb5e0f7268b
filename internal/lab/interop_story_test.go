package lab_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// story is what happens to a duet from its cold start on.
type story struct {
	name  string
	tell  func(*duet)
	extra string // lines of ha.cf
}

var stories = []story{
	{"failover", failover, ""},
	{"handover", handover, ""},
	{"split", split, "respawn hacluster /usr/libexec/heartbeat/ipfail\napiauth ipfail gid=haclient uid=hacluster\n"},
}

// TestInterop forms clusters of a Batuta node and a real Heartbeat 3.0.6 node
// and tells each a story. Of every two of authentication, medium, failback and
// story each pair of values occurs, and IPv6 and serial lines are tried once;
// with BATUTA_INTEROP=all (make interop) all combinations do. docs/reference/interop.md has the table of such a run.
func TestInterop(t *testing.T) {
	type told struct {
		duetOptions
		story
	}
	var duets []told
	auths, media, failbacks, firsts := []string{"md5", "sha1", "crc"}, []string{"bcast", "mcast", "ucast"}, []string{"on", "off", "legacy"}, []string{ours, theirs}
	all := os.Getenv("BATUTA_INTEROP") == "all"
	if all {
		media = append(media, "mcast6", "ucast6", "serial")
	}
	for a, auth := range auths {
		for m, medium := range media {
			for f, failback := range failbacks {
				for s, st := range stories {
					// Nine combinations have every pair of values: a Latin square
					// gives the third of each, its mirror the fourth.
					if all || f == (a+m)%3 && s == (a+2*m)%3 {
						duets = append(duets, told{duetOptions{auth, medium, failback, firsts[(a+m+f+s)%2], st.extra}, st})
					}
				}
			}
		}
	}
	if !all {
		for i, medium := range []string{"mcast6", "ucast6", "serial"} {
			st := stories[i%2]
			duets = append(duets, told{duetOptions{auths[i], medium, failbacks[i%2], firsts[i%2], st.extra}, st})
		}
	}
	duets = append(duets, told{duetOptions{auth: "sha1", media: "bcast", failback: "off", first: theirs}, story{"migration", migrate, ""}})
	// The nodes mostly wait for each other's timers, so many duets fit beside
	// each other; t.Parallel would allow as many as there are processors.
	places := make(chan struct{}, 10)
	var running sync.WaitGroup
	for _, d := range duets {
		places <- struct{}{}
		running.Go(func() {
			defer func() { <-places }()
			name := fmt.Sprintf("%s/%s-%s-failback-%s-%s-first", d.name, d.auth, d.media, d.failback, d.first)
			t.Run(name, func(t *testing.T) {
				tell(t, d.duetOptions, d.tell)
			})
		})
	}
	running.Wait()
}

// coldStart starts both daemons; each node gets its own set.
func (d *duet) coldStart() {
	d.Helper()
	d.start(d.first)
	d.start(other(d.first))
	d.settled("cold start", ourSet, theySet)
	d.agree()
}

// own is the set that haresources lists under a node's name.
var own = map[string]string{ours: ourSet, theirs: theySet}

// holding is settled, with the nodes in any order.
func (d *duet) holding(story, node, at, atOther string) {
	d.Helper()
	if node == ours {
		d.settled(story, at, atOther)
	} else {
		d.settled(story, atOther, at)
	}
}

// returns is what happens when a node comes back to one that holds everything:
// with auto_failback off it gets nothing, else its own.
func (d *duet) returns(story, node string) {
	d.Helper()
	if d.failback == "off" {
		d.agree()
		d.holding(story, node, nothing, both)
		return
	}
	d.holding(story, node, own[node], own[other(node)])
	d.agree()
}

// failover: each machine crashes and comes back, each daemon is stopped
// cleanly and started again.
func failover(d *duet) {
	d.coldStart()
	for _, node := range []string{theirs, ours} {
		if err := d.Kill(node); err != nil {
			d.Fatal(err)
		}
		d.holding(node+" has crashed", node, nothing, both)
		if err := d.Boot(d.Context(), node); err != nil {
			d.Fatal(err)
		}
		d.modem.plug(node)
		d.returns(node+" has booted", node)
	}
	for _, node := range []string{theirs, ours} {
		d.stop(node)
		d.holding(node+" was stopped", node, nothing, both)
		d.start(node)
		d.returns(node+" was started again", node)
	}
}

// stop is the clean stop of a node's daemon.
func (d *duet) stop(node string) {
	d.Helper()
	ctx, cancel := context.WithTimeout(d.Context(), 2*time.Minute)
	defer cancel()
	if err := d.Node(node).StopService(ctx); err != nil {
		d.Fatal(err)
	}
}

// on runs a command on a node that must succeed.
func (d *duet) on(node string, args ...string) string {
	d.Helper()
	out, err := d.Node(node).Output(d.Context(), args...)
	if err != nil {
		d.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// handover: sets go to and fro at the wish of either side, first on a good
// wire and then on one that loses packets; then each daemon dies and is back
// before it is missed.
func handover(d *duet) {
	d.coldStart()
	if d.failback != "legacy" {
		d.moves(8)
	} else {
		// There is nothing to hand over by: both refuse.
		d.on(theirs, d.tool("hb_standby", theirs, "all")...)
		if out, err := d.Node(ours).Output(d.Context(), "batuta", "standby"); err == nil {
			d.Errorf("ours has no objection: %s", out)
		}
		d.unanswered()
	}
	d.lossy(0.3)
	if d.failback != "legacy" {
		d.moves(5)
	}
	d.settled("on a bad wire", ourSet, theySet)
	d.lossy(0)

	d.restart(theirs)
	d.settled("theirs was restarted quickly", ourSet, theySet)
	d.restart(ours)
	d.settled("ours was restarted quickly", ourSet, theySet)
	if d.failback != "legacy" {
		// Between two originals the resources of theirs would now be nowhere.
		d.move(theirs, "hb_standby", "all", both, nothing)
		d.agree()
		d.restart(ours)
		d.once("ours, with everything, was restarted quickly")
	}
}

// unanswered: theirs asks ours for its set, once, and ours dies before it
// answers. The next life of ours answers.
func (d *duet) unanswered() {
	d.Helper()
	d.stop(theirs)
	d.settled("theirs was stopped", both, nothing)
	d.on(ours, "touch", "/run/slow")
	d.start(theirs)
	d.eventually("ours releases what theirs asks for", func() string {
		if d.Node(ours).Run(d.Context(), "test", "-e", "/run/slowed") != nil {
			return "it does not"
		}
		return ""
	})
	if err := d.Node(ours).Service().Signal(unix.SIGKILL); err != nil {
		d.Fatal(err)
	}
	<-d.Node(ours).Service().Done()
	d.on(ours, "rm", "/run/slow")
	d.start(ours)
	d.settled("theirs has its answer from the next life of ours", ourSet, theySet)
	d.agree()
}

// moves hands sets over by the tools of either side: the first n of the list,
// 5 or 8, which end with each set at its own node.
func (d *duet) moves(n int) {
	d.Helper()
	list := []struct {
		node, tool, set  string
		atOurs, atTheirs string
	}{
		{theirs, "hb_standby", "all", both, nothing},
		{theirs, "hb_takeover", "local", ourSet, theySet},
		{ours, "hb_standby", "local", nothing, both},
		{ours, "hb_takeover", "all", both, nothing},
		{ours, "hb_standby", "foreign", ourSet, theySet},
		{theirs, "hb_standby", "local", both, nothing},
		{theirs, "hb_takeover", "all", nothing, both},
		{theirs, "hb_standby", "foreign", ourSet, theySet},
	}
	for _, move := range list[:n] {
		d.move(move.node, move.tool, move.set, move.atOurs, move.atTheirs)
	}
	d.agree()
}

// move asks for a hand-over once both agree, and again if nothing comes of it,
// as an operator would: the original at times loses what its tools write to
// its FIFO (it logs a "Message with zero fields").
func (d *duet) move(node, tool, set, atOurs, atTheirs string) {
	d.Helper()
	want := fmt.Sprintf("ours %q theirs %q", atOurs, atTheirs)
	for range 6 {
		d.agree()
		if err := d.Node(node).Run(d.Context(), d.tool(tool, node, set)...); err != nil {
			d.Log(err)
		}
		for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
			if fmt.Sprintf("ours %q theirs %q", d.holds(ours), d.holds(theirs)) == want {
				d.Logf("%s: %s %s", node, tool, set)
				return
			}
		}
	}
	d.Fatalf("%s: %s %s: ours %q theirs %q, want %s", node, tool, set, d.holds(ours), d.holds(theirs), want)
}

// lossy makes the real daemon drop this share of what it receives and of what
// it sends, on each wire. With any loss it waits until messages were missing on
// both sides and came again.
func (d *duet) lossy(share float64) {
	d.Helper()
	d.on(theirs, "sh", "-c", fmt.Sprintf("printf 'rcvloss=%[1]v\nxmitloss=%[1]v\n' >/etc/ha.d/OnlyForTesting; exec /usr/libexec/heartbeat/heartbeat -r", share))
	if share == 0 {
		return
	}
	d.eventually("packets are lost and sent again", func() string {
		for node, log := range map[string]string{ours: "/var/log/ha-log", theirs: "/var/log/ha-log"} {
			for _, phrase := range []string{"lost packet(s) for", "No pkts missing from"} {
				if d.Node(node).Run(d.Context(), "grep", "-qF", phrase, log) != nil {
					return node + " did not log: " + phrase
				}
			}
		}
		return ""
	})
}

// restart kills every process of a daemon and starts it again before it is
// missed; what it had started runs on meanwhile.
func (d *duet) restart(node string) {
	d.Helper()
	if node == ours {
		if err := d.Node(ours).Service().Signal(unix.SIGKILL); err != nil {
			d.Fatal(err)
		}
		<-d.Node(ours).Service().Done()
		d.start(ours)
	} else {
		d.on(theirs, "sh", "-c", `for d in /proc/[0-9]*; do case $(cat $d/comm 2>/dev/null) in heartbeat*) kill -9 ${d#/proc/};; esac; done
			rm -f /run/heartbeat.pid; exec /usr/libexec/heartbeat/heartbeat >/dev/null 2>&1`)
	}
	d.agree()
}

// split: a wire is cut and nothing moves, a ping node dies and nothing moves,
// a node alone loses it and gives all to the other, in either direction; then the nodes lose each other, both take everything, and when they hear
// each other again each set ends up on one node.
func split(d *duet) {
	d.coldStart()
	if d.modem == nil {
		d.link("eth1", "up")
		if err := d.Cut(theirs, "eth1"); err != nil {
			d.Fatal(err)
		}
		d.link("eth1", "dead")
		d.settled("one wire of two is cut", ourSet, theySet)
		if err := d.Heal(theirs, "eth1"); err != nil {
			d.Fatal(err)
		}
		d.link("eth1", "up")
	}

	d.pinged("ping")
	if err := d.Cut("gate"); err != nil {
		d.Fatal(err)
	}
	d.pinged("dead")
	if err := d.Heal("gate"); err != nil {
		d.Fatal(err)
	}
	d.pinged("ping")
	d.settled("the ping node was away", ourSet, theySet)

	if d.failback != "legacy" { // there ipfail has nothing to move by
		d.losesGate(theirs)
		d.move(theirs, "hb_takeover", "local", ourSet, theySet)
		d.losesGate(ours)
		d.move(ours, "hb_takeover", "local", ourSet, theySet)
		d.agree()
	}

	d.modem.pull(true)
	if err := d.Cut(theirs); err != nil {
		d.Fatal(err)
	}
	d.settled("the nodes lose each other", both, both)
	if err := d.Heal(theirs); err != nil {
		d.Fatal(err)
	}
	d.modem.pull(false)
	d.once("each set is on one node again")
	d.agree()
}

// losesGate cuts a node from the ping node: the other gets everything.
func (d *duet) losesGate(node string) {
	d.Helper()
	d.agree()
	if err := d.Cut(node, "eth0"); err != nil {
		d.Fatal(err)
	}
	d.holding(node+" lost the ping node", node, nothing, both)
	if err := d.Heal(node, "eth0"); err != nil {
		d.Fatal(err)
	}
	d.pinged("ping")
	if d.modem == nil {
		d.link("eth0", "up")
	} else {
		d.link(serialDevice, "up")
	}
}

// once waits until each set runs, and on one node only.
func (d *duet) once(story string) {
	d.Helper()
	d.eventually(story, func() string {
		a, b := d.holds(ours), d.holds(theirs)
		switch {
		case a == both && b == nothing, a == nothing && b == both, a == ourSet && b == theySet, a == theySet && b == ourSet:
			return ""
		}
		return fmt.Sprintf("ours %q theirs %q", a, b)
	})
}

// link waits until both nodes say this of the other's link.
func (d *duet) link(name, want string) {
	d.Helper()
	d.eventually("link "+name+" is "+want, func() string {
		for _, at := range []string{ours, theirs} {
			if got, _ := d.clStatus(at, "hblinkstatus", other(at), name); got != want { // exit code 1 is dead
				return at + " says " + got
			}
		}
		return ""
	})
}

// pinged waits until both nodes say this of the ping node.
func (d *duet) pinged(want string) {
	d.Helper()
	d.eventually("the ping node is "+want, func() string {
		for _, at := range []string{ours, theirs} {
			if got, _ := d.clStatus(at, "nodestatus", gate); got != want {
				return at + " says " + got
			}
		}
		return ""
	})
}
