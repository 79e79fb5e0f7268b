package messenger

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
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
