package messenger

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/model"
)

func TestIdentity(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	now := time.Unix(1795359877, 0)
	first, err := OpenIdentity(dir, false, now)
	if err != nil || first.Generation != 1795359878 {
		t.Fatalf("first life: %+v, %v", first, err)
	}
	second, err := OpenIdentity(dir, false, now.Add(-time.Hour))
	if err != nil || second.Generation != first.Generation+1 || second.UUID != first.UUID {
		t.Fatalf("second life: %+v, %v; first was %+v", second, err, first)
	}
	b, err := os.ReadFile(filepath.Join(dir, "hb_generation"))
	if err != nil || string(b) != "     1795359879\n" {
		t.Errorf("hb_generation holds %q, %v; want 15 characters and a newline", b, err)
	}
	if b, err = os.ReadFile(filepath.Join(dir, "hb_uuid")); err != nil || len(b) != 16 || [16]byte(b) != first.UUID {
		t.Errorf("hb_uuid holds %x, %v", b, err)
	}
	if v := first.UUID[6]>>4<<4 | first.UUID[8]>>6; v != 0x42 {
		t.Errorf("uuid %x is not random with the variant of RFC 9562", first.UUID)
	}
	byTime, err := OpenIdentity(dir, true, now.Add(time.Hour))
	if err != nil || byTime.Generation != 1795359877+3601 {
		t.Errorf("by time: %+v, %v", byTime, err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Errorf("files left behind: %v, %v", left, err)
	}
}

// A damaged file stops the start: a guessed generation could be refused by
// every peer, a new identity be taken for another node.
func TestDamagedIdentity(t *testing.T) {
	for name, content := range map[string]string{"hb_generation": "garbage\n", "hb_uuid": "short"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := OpenIdentity(dir, false, time.Unix(1, 0))
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "remove the file") {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}

// On a machine that ran Heartbeat the identity stays in Heartbeat's files.
func TestIdentityDir(t *testing.T) {
	theirs, ours := t.TempDir(), t.TempDir()
	if got := identityDir(theirs, ours); got != ours {
		t.Errorf("Heartbeat never ran: %s, want %s", got, ours)
	}
	if _, err := OpenIdentity(theirs, false, time.Unix(1000, 0)); err != nil { // it ran
		t.Fatal(err)
	}
	if got := identityDir(theirs, ours); got != theirs {
		t.Errorf("Heartbeat ran: %s, want %s", got, theirs)
	}
	if got := identityDir("/dev/null", ours); got != ours {
		t.Errorf("no directory: %s, want %s", got, ours)
	}
}

// A file of floors by an earlier version is read; a damaged one says what
// follows, and is for the caller to do without.
func TestFloorsOfOtherDays(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]heartbeat.Floor{
		"b 7 1200 3f 1300\n": {Generation: 7, Seq: 1200, Life: "3f", Ahead: 1300},
		"b 7 1200 3f\n":      {Generation: 7, Seq: 1200, Life: "3f"},
	} {
		if err := os.WriteFile(filepath.Join(dir, floorsFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		floors, err := LoadFloors(dir)
		if d := cmp.Diff(map[model.NodeName]heartbeat.Floor{"b": want}, floors); err != nil || d != "" {
			t.Errorf("%q: %v (-want +got)\n%s", text, err, d)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, floorsFile), []byte("b seven\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if floors, err := LoadFloors(dir); err == nil || len(floors) > 0 {
		t.Errorf("%v, %v of a damaged file", floors, err)
	}
}
