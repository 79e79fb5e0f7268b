// Package config turns text into the model: the native file (HCL 2),
// ldirectord.cf, ha.cf, authkeys and haresources. What comes in are files (an
// fs.FS) and a snapshot of the host; what goes out is a model value and every
// problem of the files at once, each with its place and a hint.
//
// Reading has two steps. A parser keeps what is written, with positions, in
// raw structs of its dialect; lowering resolves names, applies defaults and
// makes model values. The grammar of each dialect is a table of directives,
// and pending.go is the one list of what is understood but does nothing here.
//
// The package never opens a socket, never reads a clock, never writes, and
// never stops at the first problem.
package config
