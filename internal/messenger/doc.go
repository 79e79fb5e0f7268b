// Package messenger runs the communication half of the cluster stack.
//
// Datagrams come in by the links; a view of the cluster, cluster events and
// log events go out, and messages of the resource manager go through. Core
// joins the two deciders, heartbeat and member, into one step machine without
// goroutines, which simulations drive too; Loop gives it sockets and a clock.
// The package never decides about a resource.
package messenger
