package link

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/model"
)

// openPTY makes a pseudo terminal: a line of which the test holds the far end.
func openPTY(t *testing.T) (far *os.File, device string) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		if os.Getenv("BATUTA_REQUIRE_ROOT") == "1" {
			t.Fatal(err)
		}
		t.Skip(err) // a system without pseudo terminals
	}
	far = os.NewFile(uintptr(fd), "/dev/ptmx")
	t.Cleanup(func() { _ = far.Close() })
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return far, fmt.Sprintf("/dev/pts/%d", n)
}

// recorded are the messages of a real daemon on a serial line.
func recorded(t *testing.T) []byte {
	t.Helper()
	raw, err := os.ReadFile("../heartbeat/testdata/serial-md5-text-encoding.txt")
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// What a real daemon wrote to its line is received message by message, with
// noise before, between and inside.
func TestSerialHearsARealDaemon(t *testing.T) {
	far, device := openPTY(t)
	locks := t.TempDir()
	l, err := openSerialLine(model.Medium{Kind: model.Serial, Interface: device, Name: device, Baud: 115200}, locks)
	if err != nil {
		t.Fatal(err)
	}
	raw := recorded(t)
	var want []string
	for part := range strings.SplitAfterSeq(string(raw), "<<<\n") {
		if strings.HasSuffix(part, "<<<\n") {
			want = append(want, part)
		}
	}
	go func() {
		_, _ = far.WriteString("noise\xff\x00<<<\n>>>\nt=status\nst=act") // a message that was cut off
		for _, m := range want {
			_, _ = far.WriteString("~~" + m)
		}
	}()
	for i, m := range want {
		p, err := l.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(m, string(p.Data)); diff != "" {
			t.Errorf("message %d (-sent +received):\n%s", i, diff)
		}
	}
	if names, err := filepath.Glob(locks + "/LCK..*"); err != nil || len(names) != 1 {
		t.Errorf("locks: %v, %v", names, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if names, err := filepath.Glob(locks + "/LCK..*"); err != nil || len(names) != 0 {
		t.Errorf("locks after the end: %v, %v", names, err)
	}
	if _, err := l.Receive(); !errors.Is(err, ErrClosed) {
		t.Errorf("Receive after Close: %v", err)
	}
}

// Datagrams of the network's encoding go out as text, under the signature that they carry inside.
func TestSerialSpeaksText(t *testing.T) {
	far, device := openPTY(t)
	l, err := openSerialLine(model.Medium{Kind: model.Serial, Interface: device, Name: device, Baud: 19200}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	auth, err := heartbeat.NewAuthenticator(model.Keyring{Send: 1, Keys: map[int]model.AuthKey{1: {Method: model.AuthSHA1, Secret: "x"}}})
	if err != nil {
		t.Fatal(err)
	}
	fields := []heartbeat.Field{{Name: "t", Value: "status"}, {Name: "srcuuid", Value: "0123456789abcdef", Type: heartbeat.FieldBinary}, {Name: "long", Value: strings.Repeat("x", 3*serialChunk)}}
	if err := l.Send(auth.Seal(nil, heartbeat.Netstring, fields, false, 1)); err == nil {
		t.Error("a message without a text signature was sent")
	}
	if err := l.Send(auth.Seal(nil, heartbeat.Netstring, fields, true, 1)); err != nil {
		t.Fatal(err)
	}
	var got []byte
	buf := make([]byte, 4096)
	for !bytes.HasSuffix(got, frameEnd) {
		n, err := far.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, buf[:n]...)
	}
	p, err := heartbeat.Parse(got)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := auth.Verify(&p); err != nil || p.Encoding != heartbeat.Text || p.Get("srcuuid") != "0123456789abcdef" {
		t.Errorf("%v: %q", err, got)
	}
}

// A line whose other end hangs up comes back when that does.
func TestSerialComesBack(t *testing.T) {
	far, device := openPTY(t)
	name := filepath.Join(t.TempDir(), "ttyS0") // the device's name stays, as udev has it
	if err := os.Symlink(device, name); err != nil {
		t.Fatal(err)
	}
	l, err := openSerialLine(model.Medium{Kind: model.Serial, Interface: name, Name: name, Baud: 19200}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	again, other := openPTY(t)
	if err := far.Close(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(name), os.Symlink(other, name)); err != nil {
		t.Fatal(err)
	}
	received := make(chan string)
	go func() {
		for {
			p, err := l.Receive()
			if err == nil {
				received <- string(p.Data)
			}
			if errors.Is(err, ErrClosed) {
				return
			}
		}
	}()
	repeat := time.NewTicker(50 * time.Millisecond)
	defer repeat.Stop()
	timeout := time.After(30 * time.Second)
	for {
		select {
		case got := <-received:
			if got != ">>>\nt=x\n<<<\n" {
				t.Errorf("received %q", got)
			}
			return
		case <-repeat.C: // what arrives before the line is open again is lost
			_, _ = again.WriteString(">>>\nt=x\n<<<\n")
		case <-timeout:
			t.Fatal("the line did not come back")
		}
	}
}

func TestSerialLock(t *testing.T) {
	name := filepath.Join(t.TempDir(), "LCK..ttyS0")
	for _, c := range []struct {
		held string
		want string // part of the refusal
	}{
		{"", ""},
		{fmt.Sprintf("%10d\n", os.Getppid()), "uses the line"},
		{fmt.Sprintf("%10d\n", os.Getpid()), ""}, // an earlier life of this process id
		{fmt.Sprintf("%10d\n", 1<<22+1), ""},     // above the largest process id
		{"garbage", ""},
	} {
		_ = os.Remove(name)
		if c.held != "" {
			if err := os.WriteFile(name, []byte(c.held), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		err := takeLock(name)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("held %q: %v, want %q", c.held, err, c.want)
		}
	}
}

func TestCutFrame(t *testing.T) {
	for _, c := range []struct{ in, frame, rest string }{
		{"", "", ""},
		{">>>\na=b\n<<<\n", ">>>\na=b\n<<<\n", ""},
		{"x>>>\na=b\n<<<\n\x00>>>\nc", ">>>\na=b\n<<<\n", "\x00>>>\nc"},
		{">>>\nlost>>>\na=b\n<<<\n", ">>>\na=b\n<<<\n", ""},
		{"<<<\n<<<\n>>>\na=b\n<<<\n", ">>>\na=b\n<<<\n", ""},
		{"<<<\n>>>\na", "", ">>>\na"},
		{strings.Repeat("~", longestSerial+1), "", "~~~~"},
	} {
		frame, rest, _ := cutFrame([]byte(c.in))
		if string(frame) != c.frame || string(rest) != c.rest {
			t.Errorf("%.40q: %q and %q, want %q and %q", c.in, frame, rest, c.frame, c.rest)
		}
	}
}

func FuzzCutFrame(f *testing.F) {
	f.Add([]byte("x>>>\na=b\n<<<\n\x00>>>\nc"))
	f.Add([]byte("<<<\n>>>\n<<<\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, rest, ok := cutFrame(b)
		if ok && (!bytes.HasPrefix(frame, frameStart) || !bytes.HasSuffix(frame, frameEnd)) || len(frame)+len(rest) > len(b) || !bytes.HasSuffix(b, rest) {
			t.Errorf("%q and %q", frame, rest)
		}
	})
}
