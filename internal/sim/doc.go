// Package sim runs a whole two-node cluster in virtual time, on one event
// heap, in one goroutine: the real heartbeat, member and pair code behind
// messenger.Core and crm.Core, on a network and on machines that are made up.
//
// A Schedule goes in: how the cluster is configured and which faults come
// when; NewSchedule draws one from a seed. A Result comes out: which promises
// were broken, and what was seen besides. Equal schedules give equal results,
// so a seed that fails is a test. The package touches no socket, file, process
// or clock, and waits for nothing.
//
// What is modeled: links with delay, loss, duplication, reordering and cuts in
// either direction; machines that crash, freeze, lose their stored generation
// or have their clock set; daemons that are killed, stopped or paused while
// their kernel goes on receiving; resource scripts that are slow or fail, or
// are still at work when the daemon dies (they die with it); the operator's
// wishes. The promises are listed in invariants.go.
package sim
