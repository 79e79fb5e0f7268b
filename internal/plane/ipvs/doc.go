// Package ipvs is the data plane of the Linux kernel's own IP Virtual Server:
// the table lives in the kernel, in the network namespace where the plane was
// opened, and outlives the process. What comes in are changes of the table,
// which become generic-netlink requests one by one; what goes out are the
// kernel's table, its counters and its connections, whoever made them.
//
// The package never answers from a copy of the table, never removes what it was not
// told to remove, and never touches interfaces or routes. Opening it loads the
// kernel module where that is absent, and sets one switch of the kernel,
// net.ipv4.vs.expire_nodest_conn, without which connections of a deleted
// real server would linger (Documentation/networking/ipvs-sysctl.rst).
//
// The words on the wire are those of the kernel's UAPI header linux/ip_vs.h.
package ipvs
