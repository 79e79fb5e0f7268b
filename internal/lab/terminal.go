package lab

import (
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// IsTerminal tells whether f is a terminal.
func IsTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// Terminal is a pseudo-terminal for a command on a node, coupled with the
// user's: a shell there can then control its jobs, and Ctrl-C is its business.
type Terminal struct {
	Inner *os.File // what the command gets as its standard files

	outer, master *os.File
	saved         unix.Termios
	resize        chan os.Signal
	copied        chan struct{} // the command's output is on the screen
}

// OpenTerminal couples a new pseudo-terminal with the user's terminal, which
// passes every key on from here to Close.
func OpenTerminal(outer *os.File) (*Terminal, error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("lab: open a terminal: %w", err)
	}
	fd := int(master.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		master.Close()
		return nil, fmt.Errorf("lab: unlock a terminal: %w", err)
	}
	inner, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		master.Close()
		return nil, fmt.Errorf("lab: open a terminal: %w", err)
	}
	t := &Terminal{
		Inner: inner, outer: outer, master: master,
		resize: make(chan os.Signal, 1), copied: make(chan struct{}),
	}
	if err := t.raw(); err != nil {
		inner.Close()
		master.Close()
		return nil, fmt.Errorf("lab: set the terminal up: %w", err)
	}
	t.fit()
	signal.Notify(t.resize, unix.SIGWINCH)
	go func() {
		for range t.resize {
			t.fit()
		}
	}()
	go func() { _, _ = io.Copy(master, outer) }() // ends with the program
	go func() {
		defer close(t.copied)
		_, _ = io.Copy(outer, master) // EIO when the last user of Inner has closed it
	}()
	return t, nil
}

// raw passes keys on as they come (cfmakeraw(3)).
func (t *Terminal) raw() error {
	now, err := unix.IoctlGetTermios(int(t.outer.Fd()), unix.TCGETS)
	if err != nil {
		return err
	}
	t.saved = *now
	now.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	now.Oflag &^= unix.OPOST
	now.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	now.Cflag = now.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	now.Cc[unix.VMIN], now.Cc[unix.VTIME] = 1, 0
	return unix.IoctlSetTermios(int(t.outer.Fd()), unix.TCSETS, now)
}

// fit gives the inner terminal the size of the outer one.
func (t *Terminal) fit() {
	if size, err := unix.IoctlGetWinsize(int(t.outer.Fd()), unix.TIOCGWINSZ); err == nil {
		_ = unix.IoctlSetWinsize(int(t.master.Fd()), unix.TIOCSWINSZ, size)
	}
}

// Close shows the rest of the ended command's output and gives the user's
// terminal back as it was.
func (t *Terminal) Close() error {
	t.Inner.Close()
	<-t.copied
	signal.Stop(t.resize)
	close(t.resize)
	t.master.Close()
	return unix.IoctlSetTermios(int(t.outer.Fd()), unix.TCSETS, &t.saved)
}
