package lab

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
)

// TutorialFiles holds the files of the tutorial, byte for byte, in the folder
// "tutorial": authkeys, ha.cf, haresources, haresources-with-gateways,
// ldirectord.cf and ldirectord-flat.cf.
//
//go:embed tutorial
var TutorialFiles embed.FS

//go:embed initd/apache2
var fallbackScript []byte

// TutorialHaD is the tutorial's /etc/ha.d: ha.cf, authkeys, ldirectord.cf, and
// as haresources the one with the inside gateways, without which the replies
// of masq servers find no way back after a failover.
func TutorialHaD() fs.FS { return tutorialHaD{} }

// tutorialHaD is the folder of the tutorial with one file under another name.
type tutorialHaD struct{}

func (tutorialHaD) Open(name string) (fs.File, error) {
	switch name {
	case "haresources":
		name = "haresources-with-gateways"
	case ".", "authkeys", "ha.cf", "ldirectord.cf":
	default:
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return TutorialFiles.Open(path.Join("tutorial", name))
}

// ReadDir lists the four files of an /etc/ha.d.
func (tutorialHaD) ReadDir(name string) ([]fs.DirEntry, error) {
	if name != "." {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	var list []fs.DirEntry
	for _, file := range []string{"authkeys", "ha.cf", "haresources", "ldirectord.cf"} {
		info, err := fs.Stat(tutorialHaD{}, file)
		if err != nil {
			return nil, err
		}
		list = append(list, renamed{fs.FileInfoToDirEntry(info), file})
	}
	return list, nil
}

// renamed is a directory entry under another name.
type renamed struct {
	fs.DirEntry
	name string
}

func (r renamed) Name() string { return r.name }

// hadFiles turns an ha.d directory into files of a node's disk. Permissions
// are kept (readable at least by the owner), but authkeys is always 0600: a
// copy from a repository rarely is, and Heartbeat refuses anything else.
func hadFiles(had fs.FS) (map[string]File, error) {
	files := map[string]File{}
	err := fs.WalkDir(had, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(had, name)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		mode := uint32(info.Mode().Perm()) | 0o600
		if name == "authkeys" {
			mode = 0o600
		}
		files[path.Join("/etc/ha.d", name)] = File{Data: data, Mode: mode}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("lab: read the ha.d directory: %w", err)
	}
	return files, nil
}
