package ipvs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
	"github.com/batuta-ha/batuta/internal/plane"
)

// SysctlDir is where the kernel keeps the settings of IPVS in the namespace of
// who looks (Documentation/networking/ipvs-sysctl.rst).
const SysctlDir = "/proc/sys/net/ipv4/vs"

// sysctls are the settings of IPVS, and what those were that were changed.
type sysctls struct {
	file      string // keeps the originals; "" for none
	originals []model.Setting
}

// openSysctls reads the originals that an earlier process left.
func openSysctls(file string) (s sysctls, err error) {
	if s.file = file; file == "" {
		return s, nil
	}
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("original sysctls of IPVS: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && sysctlName(name) {
			s.originals = append(s.originals, model.Setting{Name: name, Value: value})
		}
	}
	return s, nil
}

// sysctlName tells whether a word can be the name of one; what comes from a
// file must not lead elsewhere.
func sysctlName(name string) bool {
	return name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz_0123456789") == ""
}

// set changes a setting, and writes down before what it was.
func (s *sysctls) set(to model.Setting) error {
	if !sysctlName(to.Name) {
		return fmt.Errorf("sysctl net.ipv4.vs.%s: no such name", to.Name)
	}
	was, err := readSysctl(to.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("sysctl net.ipv4.vs.%s: this kernel has none of that name; it has %s: %w", to.Name, strings.Join(sysctlNames(), ", "), plane.ErrNotSupported)
	}
	if err != nil {
		return err
	}
	if was == strings.Join(strings.Fields(to.Value), " ") {
		return nil
	}
	if !slices.ContainsFunc(s.originals, func(o model.Setting) bool { return o.Name == to.Name }) {
		s.originals = append(s.originals, model.Setting{Name: to.Name, Value: was})
		if err := s.save(); err != nil {
			return err
		}
	}
	return writeSysctl(to)
}

func (s *sysctls) save() error {
	if s.file == "" {
		return nil
	}
	var text strings.Builder
	for _, o := range s.originals {
		text.WriteString(o.Name + "=" + o.Value + "\n")
	}
	if err := os.WriteFile(s.file, []byte(text.String()), 0o600); err != nil {
		return fmt.Errorf("original sysctls of IPVS: %w", err)
	}
	return nil
}

// restoreBut puts back what was changed once and is not among these names any
// more, and forgets it.
func (s *sysctls) restoreBut(names []string) error {
	var errs []error
	kept := s.originals[:0]
	for _, o := range s.originals {
		if slices.Contains(names, o.Name) {
			kept = append(kept, o)
			continue
		}
		errs = append(errs, writeSysctl(o))
	}
	if len(kept) < len(s.originals) {
		s.originals = kept
		errs = append(errs, s.save())
	}
	return errors.Join(errs...)
}

func readSysctl(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(SysctlDir, name))
	return strings.Join(strings.Fields(string(b)), " "), err
}

// endsConnections tells whether the kernel ends the connections of a real
// server that is deleted.
func endsConnections() bool {
	v, err := readSysctl("expire_nodest_conn")
	return err == nil && v == "1"
}

func writeSysctl(s model.Setting) error {
	if err := os.WriteFile(filepath.Join(SysctlDir, s.Name), []byte(s.Value), 0); err != nil {
		return fmt.Errorf("sysctl net.ipv4.vs.%s=%s: %w", s.Name, s.Value, errors.Unwrap(err))
	}
	return nil
}

func sysctlNames() []string {
	var names []string
	entries, err := os.ReadDir(SysctlDir)
	if err != nil {
		return nil // no IPVS, or none for this user
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// Sysctls returns the kernel's settings of IPVS, in the order of their names:
// those of the calling thread's namespace, which is the plane's in a process
// that has only one.
func (p *Plane) Sysctls(context.Context) ([]model.Setting, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, plane.ErrClosed
	}
	var list []model.Setting
	for _, name := range sysctlNames() {
		if value, err := readSysctl(name); err == nil { // some are for root to read
			list = append(list, model.Setting{Name: name, Value: value})
		}
	}
	return list, nil
}
