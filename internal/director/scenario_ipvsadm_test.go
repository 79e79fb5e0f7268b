package director_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// The table file of a dry run, and an administrator who changes it as with
// ipvsadm(8).

type fileService struct {
	Key        string               `json:"key"`
	Scheduler  string               `json:"scheduler"`
	Persistent *int                 `json:"persistent"`
	Netmask    string               `json:"netmask"`
	Flags      string               `json:"flags"`
	OnePacket  bool                 `json:"ops"`
	Reals      map[string]*fileReal `json:"reals"`
}

type fileReal struct {
	Addr    string `json:"addr"`
	Forward string `json:"forward"`
	Weight  int    `json:"weight"`
	Upper   int    `json:"upper"`
	Lower   int    `json:"lower"`
}

func readFileTable(name string) (map[string]*fileService, error) {
	t := map[string]*fileService{}
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(b) == 0 {
		return t, nil
	}
	if err != nil {
		return nil, err
	}
	return t, json.Unmarshal(b, &t)
}

// readTable reads it in the form of expected.json.
func readTable(name string) (table, error) {
	raw, err := readFileTable(name)
	out := table{}
	for k, s := range raw {
		row := serviceRow{Scheduler: s.Scheduler, Persistent: s.Persistent, Netmask: s.Netmask, Flags: s.Flags, OnePacket: s.OnePacket, Reals: map[string]realRow{}}
		for a, r := range s.Reals {
			row.Reals[a] = realRow{r.Forward, r.Weight, r.Upper, r.Lower}
		}
		out[k] = row
	}
	return out, err
}

// ipvsadm carries one command out on the file.
func ipvsadm(name string, args []string) error {
	lock, err := os.OpenFile(name+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	t, err := readFileTable(name)
	if err != nil {
		return err
	}
	if err := carryOut(t, args); err != nil {
		return err
	}
	b, err := json.Marshal(t)
	if err != nil {
		return err
	}
	if err := os.WriteFile(name+".new", b, 0o644); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

func carryOut(t map[string]*fileService, args []string) error {
	var op, key, scheduler, addr string
	real := fileReal{Forward: "gate", Weight: 1}
	for i := 0; i < len(args); i++ {
		value := func() string { i++; return args[i] }
		switch a := args[i]; a {
		case "-A", "-E", "-D", "-a", "-e", "-d":
			op = a
		case "-t":
			key = "tcp " + value()
		case "-u":
			key = "udp " + value()
		case "-f":
			key = "fwm " + value()
		case "-s":
			scheduler = value()
		case "-r":
			addr = value()
		case "-m":
			real.Forward = "masq"
		case "-g":
			real.Forward = "gate"
		case "-i":
			real.Forward = "ipip"
		case "-w":
			w, err := strconv.Atoi(value())
			if err != nil {
				return err
			}
			real.Weight = w
		default:
			return fmt.Errorf("ipvsadm: no option %q here", a)
		}
	}
	s := t[key]
	if s == nil && op != "-A" {
		return fmt.Errorf("ipvsadm: no service %q", key)
	}
	real.Addr = addr
	switch op {
	case "-A":
		t[key] = &fileService{Key: key, Scheduler: scheduler, Reals: map[string]*fileReal{}}
	case "-D":
		delete(t, key)
	case "-a", "-e":
		s.Reals[addr] = &real
	case "-d":
		delete(s.Reals, addr)
	}
	return nil
}
