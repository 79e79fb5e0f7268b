// Package lab builds the cluster that the tutorial draws, on one machine: each
// node has its own network, mount, UTS, IPC and PID namespaces, its own
// /etc, /run, /var, bpffs and boot id, and real programs run in it.
//
// In come a Topology (which machines, on which bridges), an ha.d directory and
// the batuta executable; out go running nodes in which a caller executes
// commands, and the faults of real machines: power loss, cut cables, a boot.
//
// Four processes make it work; all of them are the same executable:
//
//	caller (demo, test, `batuta lab up`)
//	  └─ batuta lab launch    PID 1 of the lab, owner of the switch (bridges) and of the disks
//	       ├─ batuta lab init    PID 1 of lvs01 ── batuta run, shells, …
//	       ├─ batuta lab init    PID 1 of lvs02
//	       └─ …
//
// The launcher dies with the caller, and the kernel then takes everything
// below it: processes, interfaces, mounts, files. It never touches the network
// namespace, the mounts or the files of the host: what nodes keep (their
// disks) lies in a tmpfs that only the lab's mount namespace sees. The one
// thing written to the host is asked for by name: a pcap directory, the
// control socket of `batuta lab up`, the cache of DebianTree.
//
// The walls keep accidents inside; they are no sandbox against a hostile root.
package lab
