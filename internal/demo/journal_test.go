package demo

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/batuta-ha/batuta/internal/journal"
	"github.com/batuta-ha/batuta/internal/lab"
	"github.com/batuta-ha/batuta/internal/sla"
)

// checkEvery is the keepalive here: in this measure the journal and a client
// agree about the beginning of an outage, which is known by the last beat.
const checkEvery = time.Second

// patientHaD is the tutorial's /etc/ha.d with a keepalive of a second and a
// deadtime of so many seconds.
func patientHaD(t *testing.T, dead int) string {
	t.Helper()
	dir := quickHaD(t, "lvs01 10.1.0.100 10.240.0.1 10.240.1.1 ldirectord\n")
	name := filepath.Join(dir, "ha.cf")
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	paced := rewrite(string(text), map[string][]string{"keepalive": {"keepalive 1"}, "warntime": {"warntime 2"}, "deadtime": {fmt.Sprintf("deadtime %d", dead)}, "initdead": {fmt.Sprintf("initdead %d", 2*dead)}})
	if err := os.WriteFile(name, []byte(paced), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// The survivor's journal tells of an outage what a client measured.
func TestTheClientAndTheJournalAgree(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{HaD: os.DirFS(patientHaD(t, 3))})
	c.holder("lvs01", "lvs01", "lvs02")
	client := newAccount()
	answers, report := io.Pipe()
	load := c.Node("client").Command(t.Context(), "batuta", "demo", "load", "--url", "http://"+lab.TutorialVIP+"/.testpage", "--want", lab.PageText)
	load.Stdout = report
	if err := load.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() { read <- client.read(answers) }()

	// A beat that comes late on a busy machine moves the journal's word, not
	// the client's; three such coincidences in a row are none.
	var differences []time.Duration
	for range 3 {
		cause := time.Now()
		c.eventually("the client has been answered for seconds", func() (bool, string) {
			return client.answeredSince(cause.Add(2 * checkEvery)), ""
		})
		died := client.newest()
		if err := c.Kill("lvs01"); err != nil {
			t.Fatal(err)
		}
		c.holder("lvs02", "lvs02")
		c.eventually("the client is answered again", func() (bool, string) { return client.answeredSince(died.Add(checkEvery)), "" })
		gap, ok := client.gap(died, client.newest())
		if !ok {
			t.Fatal("the client measured no outage")
		}
		var why struct{ journal.Chain }
		c.eventually("the journal tells the end of the outage", func() (bool, string) {
			text, err := c.Node("lvs02").Output(t.Context(), "batuta", "why", lab.TutorialVIP, "--json")
			if err != nil {
				return false, err.Error()
			}
			err = json.Unmarshal([]byte(text), &why)
			return err == nil && !why.Open && why.To.After(died), text
		})
		if why.State != sla.Down || why.Before != "lvs01" || why.After != "lvs02" {
			t.Errorf("the journal tells another story: %+v", why.Chain)
		}
		told := why.To.Sub(why.From)
		back := died.Add(gap)
		t.Logf("client: %v without an answer; journal: %v down (detect %v, decide %v, switch %v, verify %v), from %v before to %v after the client",
			gap, told, why.Parts.Detect, why.Parts.Decide, why.Parts.Switch, why.Parts.Verify, died.Sub(why.From), why.To.Sub(back))
		differences = append(differences, (told - gap).Abs())
		if (told - gap).Abs() <= checkEvery {
			break
		}
		if err := c.Boot(t.Context(), "lvs01"); err != nil {
			t.Fatal(err)
		}
		c.holder("lvs01", "lvs01", "lvs02")
	}
	if last := differences[len(differences)-1]; last > checkEvery {
		t.Errorf("client and journal differ by %v, more than a check interval each time", differences)
	}
	if err := terminate(load); err != nil {
		t.Fatal(err)
	}
	_ = load.Wait() // ended by a signal
	if err := report.Close(); err != nil {
		t.Error(err)
	}
	if err := <-read; err != nil {
		t.Error(err)
	}

	t.Log("a window that is planned while lvs01 is away is known to it when it is back, and who planned it is")
	if err := c.Boot(t.Context(), "lvs01"); err != nil {
		t.Fatal(err)
	}
	c.out("lvs02", "batuta", "maintenance", "plan", "--from", "+1h", "--to", "+2h", "--reason", "new power supply")
	c.eventually("lvs01 knows the window", func() (bool, string) {
		text, err := c.Node("lvs01").Output(t.Context(), "batuta", "maintenance", "list")
		return err == nil && strings.Contains(text, "new power supply"), text
	})
	id, _, _ := strings.Cut(c.out("lvs01", "batuta", "maintenance", "list"), " ")
	c.out("lvs01", "batuta", "maintenance", "cancel", id, "--reason", "not needed")
	c.eventually("lvs02 knows that it is canceled", func() (bool, string) {
		text, err := c.Node("lvs02").Output(t.Context(), "batuta", "maintenance", "list")
		return err == nil && strings.Contains(text, "no maintenance is planned"), text
	})
	events := c.out("lvs02", "batuta", "events", "--about", "maintenance")
	for _, want := range []string{"new power supply (by ", "operator maintenance-plan: ", "operator maintenance-plan-done: ", " canceled: not needed (by "} {
		if !strings.Contains(events, want) {
			t.Errorf("the events lack %q:\n%s", want, events)
		}
	}
}

// A daemon that crashes and is back before its deadtime has served all along:
// the kernel had the address and the table, and the journal says so.
func TestACrashedDaemonLeavesNoGapInTheJournal(t *testing.T) {
	t.Parallel()
	c := newCluster(t, lab.Options{HaD: os.DirFS(patientHaD(t, 60))})
	c.holder("lvs01", "lvs01", "lvs02")
	states := func() (list []string) {
		for line := range strings.SplitSeq(c.out("lvs01", "batuta", "events", "--about", "state: "), "\n") {
			if _, text, ok := strings.Cut(line, "state: "); ok {
				list = append(list, text)
			}
		}
		return list
	}
	count := func(text string) (n int) {
		for _, s := range states() {
			if strings.HasPrefix(s, text) {
				n++
			}
		}
		return n
	}
	service := "service tcp 10.1.0.100:80 is up on lvs01"
	c.eventually("the journal knows the service", func() (bool, string) { return count(service) == 1, strings.Join(states(), "\n") })
	daemon := c.Node("lvs01").Service()
	if err := daemon.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = daemon.Wait() // killed
	if err := c.Node("lvs01").StartService(); err != nil {
		t.Fatal(err)
	}
	c.holder("lvs01", "lvs01", "lvs02")
	c.eventually("the journal knows the service again", func() (bool, string) { return count(service) == 2, strings.Join(states(), "\n") })
	text := strings.Join(states(), "\n")
	for _, want := range []string{"vip 10.1.0.100 is up on lvs01: found in force when the daemon was back", service + ": found in force when the daemon was back"} {
		if !strings.Contains(text, want) {
			t.Errorf("the journal lacks %q:\n%s", want, text)
		}
	}
}
