// Package member decides who is in the cluster: the status of each node, when
// communication is up, and what the death, restart or return of a node means.
//
// Sightings of the failure detector and the messages of other nodes come in;
// status messages to send and cluster events for the resource manager go out.
// The Core is a deterministic step machine. It never sees a packet, a
// signature or a clock, and it moves no resource.
//
// Section numbers in comments (§) are those of the description of
// Heartbeat 3.0.6's protocol, internal/heartbeat/testdata/heartbeat-protocol.md.
package member
