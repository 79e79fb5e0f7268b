// Package beat keeps the heartbeats in a process of their own. The
// configuration of a life comes in, messages and keys go to the process,
// cluster events and log events come back. It decides nothing: messenger does,
// in there as in any other process.
//
// A goroutine waits for its turn behind all others of its process, and behind
// a collection of garbage, whatever the priority of its thread. A small process
// of its own is late by what the kernel makes it wait alone, and with a
// real-time priority the kernel does not:
//
//	node's process                     beat process (batuta beat-process)
//	Client ── orders: messages, keys ──▶ messenger.Loop ──▶ links
//	       ◀── reports: events, notes ──
//	       ──▶ page: decisions ─────────▶ no beats while they stand still
//	       ◀── page: pulse ────────────── killed and begun anew when it does
//
// Orders and reports go over a socket pair that the process inherits, as does
// the page: there is no path and no port to guard. Neither side ever waits for
// the other: the node's process has as much room for orders as is needed; the
// beat process has room for maxReports reports, and ends when there are more,
// as a life that leaves events out cannot go on. The next life begins without
// the node's process giving up a resource: the others hear a new generation,
// and both sides tell each other again what they hold.
//
// The death of the node's process is the end of the socket, and of the beat
// process at once.
package beat
