// Package heartbeat speaks the protocol of Linux-HA Heartbeat 3.0.6: packet
// encodings, signatures, reliable delivery and the failure detector.
//
// Datagrams, messages to send and the passing of time come in; datagrams to
// send, messages to deliver, sightings of nodes and things worth logging go
// out. The Core is one deterministic step machine: it receives the time and a
// seeded source of chance, and never touches sockets, clocks, files or
// goroutines. What a death or a return means is decided elsewhere (member).
//
// Section numbers in comments (§) are those of testdata/heartbeat-protocol.md,
// the description of the original's behavior on the wire.
//
// Between Batuta nodes the protocol is the same with additions that the
// original ignores; docs/reference/cluster-protocol.md lists them all.
package heartbeat
