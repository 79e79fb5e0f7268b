package memory

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/batuta-ha/batuta/internal/model"
)

// tableJSON is the table file: services by their key, real servers by their
// address.
type tableJSON map[string]*serviceJSON

type serviceJSON struct {
	Key        string               `json:"key"` // "tcp 192.0.2.1:80", "fwm 1", "fwm6 1"
	Scheduler  string               `json:"scheduler"`
	Persistent *int                 `json:"persistent"` // seconds; null for none
	Netmask    string               `json:"netmask"`    // dotted, or a prefix length for IPv6; "" for one host
	Flags      string               `json:"flags"`
	OnePacket  bool                 `json:"ops"`
	Reals      map[string]*realJSON `json:"reals"`
}

type realJSON struct {
	Addr    string `json:"addr"`
	Forward string `json:"forward"`
	Weight  int    `json:"weight"`
	Upper   uint32 `json:"upper"`
	Lower   uint32 `json:"lower"`
}

// decodeTable reads a table file. Everything that a plane would refuse is an
// error that names the row.
func decodeTable(b []byte) (model.Table, error) {
	var raw tableJSON
	if len(bytes.TrimSpace(b)) == 0 {
		return model.Table{}, errors.New("is empty, want a JSON object")
	}
	if err := json.Unmarshal(b, &raw); err != nil {
		return model.Table{}, err
	}
	var t model.Table
	for name, s := range raw {
		v, err := decodeService(name, s)
		if err != nil {
			return model.Table{}, fmt.Errorf("service %q: %w", name, err)
		}
		if t.Find(v.Key) != nil {
			return model.Table{}, fmt.Errorf("service %q: is there twice", name)
		}
		t.Services = append(t.Services, v)
	}
	t.Sort()
	return t, nil
}

func decodeService(name string, s *serviceJSON) (v model.VirtualService, err error) {
	if s == nil {
		return v, errors.New("is null")
	}
	if s.Key != "" && s.Key != name {
		return v, fmt.Errorf("its key says %q", s.Key)
	}
	if v.Key, err = model.ParseServiceKey(name); err != nil {
		return v, err
	}
	v.Scheduler, v.SchedFlags, v.OnePacket = s.Scheduler, s.Flags, s.OnePacket
	if s.Persistent != nil { // a mask means nothing without persistence
		if *s.Persistent < 0 || *s.Persistent > maxSeconds {
			return v, fmt.Errorf("persistent %d: want seconds, 0 to %d", *s.Persistent, maxSeconds)
		}
		v.Persistence = model.Persistence{Enabled: true, Timeout: time.Duration(*s.Persistent) * time.Second}
		if v.Persistence.Netmask, err = parseMask(s.Netmask, v.Key.Family()); err != nil {
			return v, err
		}
	}
	if err := checkService(v); err != nil {
		return v, err
	}
	for addr, r := range s.Reals {
		row, err := decodeReal(addr, r)
		if err != nil {
			return v, fmt.Errorf("real server %q: %w", addr, err)
		}
		if v.Find(row.Addr) != nil {
			return v, fmt.Errorf("real server %q: is there twice", addr)
		}
		v.Reals = append(v.Reals, row)
	}
	return v, nil
}

// maxSeconds is the longest persistence that ipvsadm(8) takes: 31 days.
const maxSeconds = 31 * 24 * 60 * 60

func decodeReal(addr string, j *realJSON) (r model.RealServer, err error) {
	if j == nil {
		return r, errors.New("is null")
	}
	if j.Addr != "" && j.Addr != addr {
		return r, fmt.Errorf("its addr says %q", j.Addr)
	}
	r = model.RealServer{Weight: j.Weight, Upper: j.Upper, Lower: j.Lower}
	if r.Addr, err = netip.ParseAddrPort(addr); err != nil {
		return r, err
	}
	if r.Forward, err = model.ParseForward(j.Forward); err != nil {
		return r, err
	}
	return r, checkReal(r)
}

// parseMask reads what Persistence.MaskText writes.
func parseMask(s string, f model.Family) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	if f == model.IPv4 {
		if a, err := netip.ParseAddr(s); err == nil && a.Is4() {
			return a, nil
		}
		return netip.Addr{}, fmt.Errorf("netmask %q: want four numbers with dots", s)
	}
	bits, err := strconv.Atoi(s)
	if err != nil || bits < 1 || bits > 128 {
		return netip.Addr{}, fmt.Errorf("netmask %q: want a prefix length, 1 to 128", s)
	}
	var m [16]byte
	for i := range bits {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom16(m), nil
}

func encodeTable(t model.Table) []byte {
	raw := tableJSON{}
	for _, v := range t.Services {
		s := &serviceJSON{Key: v.Key.String(), Scheduler: v.Scheduler, Flags: v.SchedFlags, OnePacket: v.OnePacket, Reals: map[string]*realJSON{}}
		if v.Persistence.Enabled {
			secs := int(v.Persistence.Timeout / time.Second)
			s.Persistent, s.Netmask = &secs, v.Persistence.MaskText()
		}
		for _, r := range v.Reals {
			s.Reals[r.Addr.String()] = &realJSON{Addr: r.Addr.String(), Forward: r.Forward.String(), Weight: r.Weight, Upper: r.Upper, Lower: r.Lower}
		}
		raw[s.Key] = s
	}
	b, _ := json.Marshal(raw) // strings and numbers always have a JSON form
	return append(b, '\n')
}

// readTable returns the content of a table file, that of the empty table if
// there is no file.
func readTable(name string) ([]byte, error) {
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return encodeTable(model.Table{}), nil
	}
	return b, err
}

// replaceFile replaces a file in one step: a reader sees the old content or
// the new.
func replaceFile(name string, b []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(b)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
	return err
}

// lockFile keeps other programs that know the file from changing it until
// unlock: an flock(2) on the name with ".lock" added.
func lockFile(name string) (unlock func(), err error) {
	f, err := os.OpenFile(name+".lock", os.O_CREATE|os.O_RDWR, 0o644) //nolint:gosec // a lock has no content
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { _ = f.Close() }, nil
}

// eventLine is one line of the events file.
func eventLine(at time.Time, changes []model.Change) []byte {
	b, _ := json.Marshal(struct { // a change always has a JSON form
		At      float64        `json:"at"` // seconds since 1970
		Kind    string         `json:"kind"`
		Changes []model.Change `json:"changes"`
	}{float64(at.UnixMicro()) / 1e6, "table", changes})
	return append(b, '\n')
}

// appendTo adds a whole line in one write, so that several writers may share
// the file.
func appendTo(name string, line []byte) error {
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644) //nolint:gosec // for others to read
	if err != nil {
		return err
	}
	_, err = f.Write(line)
	return errors.Join(err, f.Close())
}
