package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/batuta-ha/batuta/internal/model"
)

// Kind is a kind of configuration file.
type Kind uint8

// Kinds of files.
const (
	KindUnknown Kind = iota
	KindLdirectord
	KindHaCf
	KindAuthkeys
	KindHaresources
	KindNative    // HCL 2, or its JSON form
	KindDirectory // an ha.d directory with all of them
)

var kindText = [...]string{"unknown", "ldirectord.cf", "ha.cf", "authkeys", "haresources", "batuta.hcl", "directory"}

func (k Kind) String() string { return kindText[min(int(k), len(kindText)-1)] }

// KindOf tells the kind of a file by its base name; KindUnknown for others.
func KindOf(name string) Kind {
	switch base := path.Base(name); {
	case base == "ha.cf":
		return KindHaCf
	case base == "authkeys":
		return KindAuthkeys
	case strings.HasPrefix(base, "haresources"):
		return KindHaresources
	case strings.HasSuffix(base, ".cf"):
		return KindLdirectord
	case strings.HasSuffix(base, ".hcl"), strings.HasSuffix(base, ".hcl.json"):
		return KindNative
	}
	return KindUnknown
}

// ParseKind reads what Kind.String writes, for a --kind flag. "ldirectord" and
// "hcl" will do, too.
func ParseKind(s string) (Kind, error) {
	switch s {
	case "ldirectord":
		return KindLdirectord, nil
	case "hcl":
		return KindNative, nil
	}
	for k := KindLdirectord; k <= KindDirectory; k++ {
		if s == k.String() {
			return k, nil
		}
	}
	return KindUnknown, fmt.Errorf("%q is no kind of file: want %s", s, oneOf(kindText[1:]...))
}

// Reader reads configurations of one machine. All its methods report every
// problem of every file they touch, in the order of the files; a value comes
// with them however many there are, and is not to be used if Failed says so.
type Reader struct {
	// Files are the machine's files; "/" is their root.
	Files fs.FS
	// Dir is where relative names begin: the working directory, "" for "/".
	// Problems carry names as they were given all the same.
	Dir string
	// Host resolves names and knows the interfaces.
	Host model.Host
	// Node is this node's name if the caller insists (--node). Else it is in
	// the file nodeinfo beside ha.cf, else Host.NodeName.
	Node model.NodeName
	// Starting is set by a daemon. What is wrong on this machine only (its
	// name, its interfaces, who can read authkeys) is then an error. A mere
	// check, perhaps on another machine, warns.
	Starting bool
	// Agreement says what is wrong with what was promised about a service; nil
	// for not looking.
	Agreement func(model.Agreement) error
}

// Load reads an ha.d directory, or one file of any kind as a part of one. The
// parts that were not read are empty.
func (r Reader) Load(name string) (*model.Cluster, []Problem) {
	return r.load(name, KindUnknown)
}

// Check reads a file of the given kind, or of the one its name says where
// kind is KindUnknown, and returns its problems.
func (r Reader) Check(name string, kind Kind) []Problem {
	_, list := r.load(name, kind)
	return list
}

// Director reads an ldirectord.cf, or a native file if it is named so. The
// instance is named after the file.
func (r Reader) Director(name string) (*model.Director, []Problem) {
	d, p := r.director(name, newResolver(r.host()))
	return d, p.sorted()
}

// Authkeys reads an authkeys file, whatever its name.
func (r Reader) Authkeys(name string) (model.Keyring, []Problem) {
	keys, p := r.authkeys(name)
	return keys, p.sorted()
}

func (r Reader) load(name string, kind Kind) (*model.Cluster, []Problem) {
	if i, err := r.stat(name); kind == KindUnknown && err == nil && i.IsDir() {
		kind = KindDirectory
	}
	if kind == KindUnknown {
		kind = KindOf(name)
	}
	c := &model.Cluster{}
	switch kind {
	case KindDirectory:
		return r.directory(name)
	case KindLdirectord, KindNative:
		d, p := r.directorOf(name, kind, newResolver(r.host()))
		c.Directors = []model.Director{*d}
		return c, p.sorted()
	case KindHaCf:
		h, _, p := r.haCf(name, newResolver(r.host()))
		c.Heartbeat = h
		return c, p.sorted()
	case KindAuthkeys:
		keys, p := r.authkeys(name)
		c.Heartbeat = &model.Heartbeat{Keys: keys}
		return c, p.sorted()
	case KindHaresources:
		groups, _, p := r.haresources(name, nil)
		c.Groups = groups
		return c, p.sorted()
	case KindUnknown:
	}
	p := r.problems(name)
	if _, err := r.stat(name); err != nil {
		p.error(top, "cannot read the file: "+reason(err), "")
	} else {
		p.error(top, "the kind of this file cannot be told from its name", "name it "+oneOf(kindText[1:KindDirectory]...)+", or say which it is with --kind")
	}
	return c, p.list
}

func (r Reader) problems(file string) *problems {
	return &problems{file: file, starting: r.Starting}
}

// host is Host with the name that the caller insists on.
func (r Reader) host() model.Host {
	h := r.Host
	if r.Node != "" {
		h.NodeName = r.Node
	}
	return h
}

// inside is a name as Files wants it: from the root, without a slash in front.
func (r Reader) inside(name string) string {
	if !path.IsAbs(name) {
		name = path.Join("/", r.Dir, name)
	}
	if name = strings.TrimPrefix(path.Clean(name), "/"); name == "" {
		return "."
	}
	return name
}

func (r Reader) stat(name string) (fs.FileInfo, error) { return fs.Stat(r.Files, r.inside(name)) }

// read returns a file's content, or reports why it cannot.
func (r Reader) read(p *problems, hint string) ([]byte, bool) {
	data, err := fs.ReadFile(r.Files, r.inside(p.file))
	if err != nil {
		p.error(top, "cannot read the file: "+reason(err), hint)
		return nil, false
	}
	return data, true
}

// reason is an error of the file system without the path, which the problem
// has already.
func reason(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "there is no such file"
	case errors.Is(err, fs.ErrPermission):
		return "permission denied"
	}
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err.Error()
	}
	return err.Error()
}

func (r Reader) director(name string, res *resolver) (*model.Director, *problems) {
	return r.directorOf(name, KindOf(name), res)
}

func (r Reader) directorOf(name string, kind Kind, res *resolver) (*model.Director, *problems) {
	p := r.problems(name)
	d := &model.Director{}
	data, ok := r.read(p, "give the path of an ldirectord.cf or a batuta.hcl")
	switch {
	case ok && kind == KindNative:
		d = lowerNative(p, parseNative(p, data), res, r.stat, r.Agreement)
	case ok:
		d = lowerDirector(p, parseLdirectord(p, data), res, r.stat)
	}
	d.Name, d.File = path.Base(name), name
	return d, p
}

func (r Reader) haCf(name string, res *resolver) (*model.Heartbeat, *rawHaCf, *problems) {
	p := r.problems(name)
	data, ok := r.read(p, "write one with at least node, bcast or ucast, and auto_failback")
	if !ok {
		return &model.Heartbeat{Self: r.self(name)}, nil, p
	}
	raw := parseHaCf(p, data)
	return lowerHaCf(p, raw, res, r.self(name)), raw, p
}

// self is this node's name: the caller's, nodeinfo's or the host's.
func (r Reader) self(haCf string) model.NodeName {
	if r.Node != "" {
		return r.Node
	}
	data, err := fs.ReadFile(r.Files, r.inside(path.Join(path.Dir(haCf), "nodeinfo")))
	if first, _, _ := bytes.Cut(data, []byte("\n")); err == nil && len(bytes.TrimSpace(first)) > 0 {
		return model.NodeName(bytes.TrimSpace(first))
	}
	return r.Host.NodeName
}

func (r Reader) authkeys(name string) (model.Keyring, *problems) {
	p := r.problems(name)
	data, ok := r.read(p, "write one with two lines, the same on all nodes: auth 1, and 1 sha1 SECRET; chmod 600 it")
	if !ok {
		return model.Keyring{}, p
	}
	if i, err := r.stat(name); err == nil {
		checkMode(p, i.Mode())
	}
	return parseAuthkeys(p, data), p
}

func (r Reader) haresources(name string, nodes []model.NodeName) ([]model.ResourceGroup, []rawGroup, *problems) {
	p := r.problems(name)
	data, ok := r.read(p, "write one; a line is: NODE ADDRESS ldirectord")
	if !ok {
		return nil, nil, p
	}
	raw := parseHaresources(p, data)
	return lowerHaresources(p, raw, nodes), raw, p
}

// directory reads ha.cf, authkeys, haresources and each ldirectord.cf that
// haresources names, and holds them against each other.
func (r Reader) directory(dir string) (*model.Cluster, []Problem) {
	res := newResolver(r.host())
	c := &model.Cluster{}
	h, raw, p1 := r.haCf(path.Join(dir, "ha.cf"), res)
	keys, p2 := r.authkeys(path.Join(dir, "authkeys"))
	h.Keys = keys
	c.Heartbeat = h
	files := []*problems{p1, p2}
	if raw == nil || !raw.crm() {
		groups, lines, p := r.haresources(path.Join(dir, "haresources"), h.Nodes)
		files = append(files, p)
		c.Groups = groups
		x := crossCheck{Reader: r, problems: p, dir: dir, cluster: c, lines: lines, resolver: res}
		files = append(files, x.run()...)
	}
	var list []Problem
	for _, p := range files {
		list = append(list, p.sorted()...)
	}
	return c, list
}
