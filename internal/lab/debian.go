package lab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoTree is wrapped by DebianTree where a tree cannot be made: it needs
// root, mmdebstrap and a machine with Debian's apt sources. The error's text
// says which of them is missing and how to get it.
var ErrNoTree = errors.New("no private Debian tree")

// treeVersion is part of a tree's key: raise it when trees are made in
// another way.
const treeVersion = 1

var packageRule = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)

// DebianTree returns a root file system with the packages installed, for
// Machine.Root: real servers and peers run from there, so that none has to be
// installed on the machine. It is of the machine's own release, from the
// machine's own apt sources, and is kept in a cache: $BATUTA_CACHE, or batuta
// in $XDG_CACHE_HOME, or ~/.cache/batuta. Making one takes about 20 s; several
// callers make it once. Nobody must change it: nodes see it read-only.
func DebianTree(ctx context.Context, packages ...string) (string, error) {
	packages = slices.Compact(slices.Sorted(slices.Values(packages)))
	for _, p := range packages {
		if !packageRule.MatchString(p) {
			return "", fmt.Errorf("lab: %q is no name of a Debian package", p)
		}
	}
	release, sources, err := aptSources("/")
	if err != nil {
		return "", treeError(packages, err)
	}
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	key := sha256.Sum256(fmt.Appendln(nil, treeVersion, release, runtime.GOARCH, packages))
	tree := filepath.Join(cache, "debian", fmt.Sprintf("%s-%x", release, key[:8]))
	if _, err := os.Stat(tree); err == nil {
		return tree, nil
	}
	if os.Geteuid() != 0 {
		return "", treeError(packages, errors.New("making one needs root"))
	}
	tool, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return "", treeError(packages, errors.New("mmdebstrap is not installed: apt-get install mmdebstrap"))
	}
	if err := os.MkdirAll(filepath.Dir(tree), 0o755); err != nil {
		return "", fmt.Errorf("lab: cache: %w", err)
	}
	unlock, err := lockFile(ctx, tree+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(tree); err == nil {
		return tree, nil // made while we waited
	}
	partial := tree + ".partial" // of a maker that was killed, too
	if err := os.RemoveAll(partial); err != nil {
		return "", fmt.Errorf("lab: cache: %w", err)
	}
	if err := makeTree(ctx, tool, release, partial, sources, packages); err != nil {
		return "", errors.Join(err, os.RemoveAll(partial))
	}
	if err := os.Rename(partial, tree); err != nil {
		return "", fmt.Errorf("lab: cache: %w", err)
	}
	return tree, nil
}

func treeError(packages []string, why error) error {
	return fmt.Errorf("lab: %w with %s: %w", ErrNoTree, strings.Join(packages, " "), why)
}

func cacheDir() (string, error) {
	if dir := os.Getenv("BATUTA_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("lab: no place for the cache: %w (or set BATUTA_CACHE)", err)
	}
	return filepath.Join(dir, "batuta"), nil
}

// makeTree runs mmdebstrap. It lives in a mount and a PID namespace of its own,
// so that what it mounts and starts ends with it, and it ends with us.
func makeTree(ctx context.Context, tool, release, dir string, sources []byte, packages []string) error {
	args := []string{"--mode=root", "--variant=minbase"}
	if len(packages) > 0 {
		args = append(args, "--include="+strings.Join(packages, ","))
	}
	args = append(args, release, dir, "-") // sources from standard input
	cmd := exec.CommandContext(ctx, tool, args...)
	var said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(sources), &said, &said
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   unix.CLONE_NEWPID,
		Unshareflags: unix.CLONE_NEWNS, // and makes the mounts private
		Pdeathsig:    unix.SIGKILL,
	}
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // as in Lab.launch: the death signal is the thread's
		defer runtime.UnlockOSThread()
		ended <- cmd.Run()
	}()
	if err := <-ended; err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("lab: mmdebstrap %s: %w:\n%s", strings.Join(args, " "), err, lastLines(said.String(), 12))
	}
	return nil
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// lockFile waits for an exclusive lock; the file stays, as removing it would
// let two callers hold "the" lock.
func lockFile(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lab: cache: %w", err)
	}
	retry := time.NewTicker(100 * time.Millisecond)
	defer retry.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lab: lock %s: %w", name, err)
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("lab: wait for another process that makes %s: %w", strings.TrimSuffix(name, ".lock"), ctx.Err())
		}
	}
}

// aptSources reads the release's code name and those of the machine's apt
// sources that are the release's own, in sources.list's one-line form. Other
// vendors' archives, which name other suites, are left out.
func aptSources(root string) (release string, sources []byte, err error) {
	if release = osRelease(filepath.Join(root, "etc/os-release"))["VERSION_CODENAME"]; release == "" {
		return "", nil, errors.New("this machine has no Debian release: /etc/os-release names no VERSION_CODENAME")
	}
	names := []string{filepath.Join(root, "etc/apt/sources.list")}
	for _, pattern := range []string{"*.list", "*.sources"} {
		more, err := filepath.Glob(filepath.Join(root, "etc/apt/sources.list.d", pattern))
		if err != nil {
			return "", nil, err
		}
		names = append(names, more...)
	}
	var lines []string
	for _, name := range names {
		text, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", nil, err
		}
		if strings.HasSuffix(name, ".sources") {
			lines = append(lines, stanzas(string(text), release)...)
		} else {
			lines = append(lines, oneLine(string(text), release)...)
		}
	}
	if len(lines) == 0 {
		return "", nil, fmt.Errorf("no apt source of %s in /etc/apt/sources.list or sources.list.d", release)
	}
	return release, []byte(strings.Join(lines, "\n") + "\n"), nil
}

// osRelease reads os-release(5): KEY=value or KEY="value".
func osRelease(name string) map[string]string {
	values := map[string]string{}
	text, err := os.ReadFile(name)
	if err != nil {
		return values
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			values[key] = strings.Trim(value, `"'`)
		}
	}
	return values
}

// ownSuite tells whether a suite is the release or its updates.
func ownSuite(suite, release string) bool {
	return suite == release || suite == release+"-updates" || suite == release+"-security"
}

// oneLine picks lines of sources.list(5): deb [options] URI suite component...
func oneLine(text, release string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(strings.TrimSpace(line), "#")
		rest, ok := strings.CutPrefix(line, "deb ")
		if !ok {
			continue
		}
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			if _, rest, ok = strings.Cut(rest, "]"); !ok {
				continue
			}
		}
		if words := strings.Fields(rest); len(words) > 2 && ownSuite(words[1], release) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// stanzas picks stanzas of the deb822 form, where each key may have several
// values, and writes a line for each combination.
func stanzas(text, release string) []string {
	var lines []string
	keys, key := map[string]string{}, ""
	flush := func() {
		defer func() { keys, key = map[string]string{}, "" }()
		if strings.EqualFold(keys["enabled"], "no") || !slices.Contains(strings.Fields(keys["types"]), "deb") {
			return
		}
		options := ""
		// A key that is written out in the file has no place on one line; the
		// release's own archives are signed by keys that apt has anyway.
		if by := keys["signed-by"]; strings.HasPrefix(by, "/") {
			options = "[signed-by=" + by + "] "
		}
		for uri := range strings.FieldsSeq(keys["uris"]) {
			for suite := range strings.FieldsSeq(keys["suites"]) {
				if ownSuite(suite, release) {
					components := strings.Join(strings.Fields(keys["components"]), " ")
					lines = append(lines, "deb "+options+uri+" "+suite+" "+components)
				}
			}
		}
	}
	in := bufio.NewScanner(strings.NewReader(text))
	for in.Scan() {
		line := in.Text()
		switch {
		case strings.TrimSpace(line) == "":
			flush()
		case strings.HasPrefix(line, "#"):
		case line[0] == ' ' || line[0] == '\t': // goes on
			keys[key] += " " + strings.TrimSpace(line)
		default:
			name, value, _ := strings.Cut(line, ":")
			key = strings.ToLower(strings.TrimSpace(name))
			keys[key] = strings.TrimSpace(value)
		}
	}
	flush()
	return lines
}
