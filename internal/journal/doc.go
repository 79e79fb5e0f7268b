// Package journal is the memory of a node.
//
// What comes in: events, states of services, addresses, resources, nodes and
// links, and maintenance windows. What goes out: lines in files of the state
// directory, and, read back from the journals of one or several nodes, what
// happened, what was in which state from when to when, and the chain of events
// behind a move.
//
// Writing never makes the caller wait for a disk: one goroutine writes, what it
// cannot take or the disk refuses is counted and recorded as a gap, and a full
// disk stops the journal only. Lengths come from the clock that counts since
// the boot; the wall clock places them, by its latest word: a step corrects
// what the same boot recorded before. What nobody recorded is unknown, not up:
// the time between the last sign of life of a daemon and the next start, unless
// there is evidence (Tracker.Resume).
//
// In the directory of a node:
//
//	00000000000000000001.jsonl    all records, a line each; the number is that of the first
//	00000000000000000001.states   the states of that file once it has ended (sheet)
//	alive                         the last sign of life, overwritten each second
//	plans.jsonl                   maintenance windows, also written by the command line
//	agreed.json                   what was promised about services
//
// It never decides what the cluster does, and reads no configuration.
package journal
