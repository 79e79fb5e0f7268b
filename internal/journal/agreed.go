package journal

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/batuta-ha/batuta/internal/model"
)

// agreedFile says what was promised about the things of a journal: what a
// statement is held against belongs to it, wherever the journal is read.
const agreedFile = "agreed.json"

// SetAgreed replaces what was promised. It waits for the disk.
func SetAgreed(dir string, agreed map[Thing]model.Agreement) error {
	b, err := json.MarshalIndent(agreed, "", "  ")
	if err != nil {
		return fmt.Errorf("record what was promised: %w", err)
	}
	name := filepath.Join(dir, agreedFile)
	if err := os.WriteFile(name+".new", append(b, '\n'), 0o640); err != nil {
		return fmt.Errorf("record what was promised: %w", err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		return fmt.Errorf("record what was promised: %w", err)
	}
	return nil
}

// Agreed is what was promised about a thing; nothing if nothing is recorded.
// The first journal that knows is believed.
func (s *Story) Agreed(t Thing) model.Agreement {
	for _, b := range s.books {
		if a, ok := b.agreed[t]; ok {
			return a
		}
	}
	return model.Agreement{}
}

// readAgreed reads what SetAgreed wrote; nothing without a file.
func readAgreed(dir string) (agreed map[Thing]model.Agreement, err error) {
	name := filepath.Join(dir, agreedFile)
	b, err := os.ReadFile(name)
	if missing(err) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &agreed)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: what was promised cannot be read: %w", name, err)
	}
	return agreed, nil
}
