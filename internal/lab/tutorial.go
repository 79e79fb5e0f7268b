package lab

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"testing/fstest"
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
func TutorialHaD() fs.FS {
	had := fstest.MapFS{}
	for name, source := range map[string]string{
		"authkeys":      "authkeys",
		"ha.cf":         "ha.cf",
		"haresources":   "haresources-with-gateways",
		"ldirectord.cf": "ldirectord.cf",
	} {
		data, err := TutorialFiles.ReadFile("tutorial/" + source)
		if err != nil {
			panic(err) // embedded at build time
		}
		had[name] = &fstest.MapFile{Data: data, Mode: 0o644}
	}
	return had
}

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
