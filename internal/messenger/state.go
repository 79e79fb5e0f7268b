package messenger

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/batuta-ha/batuta/internal/heartbeat"
	"github.com/batuta-ha/batuta/internal/model"
)

// Files of the state directory, in the original's form so that a node can
// change from one to the other and back (§19.1).
const (
	generationFile = "hb_generation"
	uuidFile       = "hb_uuid"
	floorsFile     = "hb_floors"  // Batuta's own
	marginsFile    = "hb_margins" // Batuta's own
)

// original is where Heartbeat keeps its state.
const original = "/var/lib/heartbeat"

// IdentityDir is the directory for OpenIdentity and StoreGeneration. On a
// machine where Heartbeat has run it is Heartbeat's own, so that either can
// follow the other: a peer refuses a generation below those it has heard.
func IdentityDir(stateDir string) string { return identityDir(original, stateDir) }

func identityDir(original, stateDir string) string {
	for _, name := range []string{uuidFile, generationFile} {
		if info, err := os.Stat(filepath.Join(original, name)); err != nil || !info.Mode().IsRegular() {
			return stateDir
		}
	}
	return original
}

// Identity is what makes this life of this node distinct from every other.
type Identity struct {
	Generation uint32   // of this life; above that of every earlier one
	UUID       [16]byte // of the node
}

// OpenIdentity takes the identity from the state directory, which it creates
// if need be, and stores the new generation there before it returns. byTime is
// hbgenmethod time: the generation is the start time.
func OpenIdentity(dir string, byTime bool, now time.Time) (Identity, error) {
	uuid, err := nodeUUID(dir, rand.Reader)
	if err != nil {
		return Identity{}, err
	}
	g, err := nextGeneration(dir, byTime, now)
	return Identity{Generation: g, UUID: uuid}, err
}

// nextGeneration returns the generation of a new life and has stored it on
// disk when it returns, so that no later life can repeat it. byTime is
// hbgenmethod time: the stored one is not looked at. An unreadable file is an
// error: guessing could make every peer refuse this node.
func nextGeneration(dir string, byTime bool, now time.Time) (uint32, error) {
	name := filepath.Join(dir, generationFile)
	stored := uint32(0)
	if !byTime {
		b, err := os.ReadFile(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return 0, fmt.Errorf("generation: %w", err)
		default:
			if stored, err = heartbeat.ParseGeneration(string(b)); err != nil {
				return 0, fmt.Errorf("%s: %w; remove the file to go on from the current time", name, err)
			}
		}
	}
	g := heartbeat.NextGeneration(stored, now)
	return g, store(name, []byte(heartbeat.FormatGeneration(g)))
}

// StoreGeneration stores the generation of this life in the state directory.
func StoreGeneration(dir string, generation uint32) error {
	return store(filepath.Join(dir, generationFile), []byte(heartbeat.FormatGeneration(generation)))
}

// LoadFloors returns what an earlier life has heard of the others: nothing if
// there was none. A file that cannot be read is an error.
func LoadFloors(dir string) (map[model.NodeName]heartbeat.Floor, error) {
	name := filepath.Join(dir, floorsFile)
	b, err := os.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("floors: %w", err)
	}
	floors, err := heartbeat.ParseFloors(string(b))
	if err != nil {
		return nil, fmt.Errorf("%s: %w; the first packet of each node is believed, which could be a recording", name, err)
	}
	return floors, nil
}

// StoreFloors stores what was heard of the others.
func StoreFloors(dir string, floors map[model.NodeName]heartbeat.Floor) error {
	var text strings.Builder
	for _, n := range slices.Sorted(maps.Keys(floors)) {
		text.WriteString(heartbeat.FormatFloor(n, floors[n]))
	}
	return store(filepath.Join(dir, floorsFile), []byte(text.String()))
}

// LoadMargins returns what earlier lives have learnt of the others' beats:
// nothing if there was none. What cannot be read is worth an error, not the start.
func LoadMargins(dir string) (map[model.NodeName]heartbeat.Margin, error) {
	name := filepath.Join(dir, marginsFile)
	b, err := os.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("margins: %w", err)
	}
	margins, err := heartbeat.ParseMargins(string(b))
	if err != nil {
		return nil, fmt.Errorf("%s: %w; learning anew how short the deadtime could be", name, err)
	}
	return margins, nil
}

// StoreMargins stores what was learnt of the others' beats.
func StoreMargins(dir string, margins string) error {
	return store(filepath.Join(dir, marginsFile), []byte(margins))
}

// nodeUUID returns the identity of this node: the stored one, or a new random
// one (RFC 9562 version 4), which is then stored.
func nodeUUID(dir string, random io.Reader) (id [16]byte, err error) {
	name := filepath.Join(dir, uuidFile)
	b, err := os.ReadFile(name)
	switch {
	case err == nil && len(b) == len(id):
		return [16]byte(b), nil
	case err == nil:
		return id, fmt.Errorf("%s: %d bytes instead of 16; remove the file to get a new identity", name, len(b))
	case !errors.Is(err, fs.ErrNotExist):
		return id, fmt.Errorf("uuid: %w", err)
	}
	if _, err := io.ReadFull(random, id[:]); err != nil {
		return id, fmt.Errorf("uuid: %w", err)
	}
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id, store(name, id[:])
}

// store writes a file so that after a crash it holds the old content or the
// new one, and after its return the new one.
func store(name string, content []byte) (err error) {
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(name)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), name); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
