// Package ebpf is the data plane in eBPF programs on tc (sources in bpf/).
// What comes in is changes of the table; what goes out is the table as the
// pinned maps hold it, counters, connections, and the reasons why packets did
// not go their way. It never decides which real server is well, never works
// per connection or per packet in user space, and never takes down what is
// pinned unless Remove is called.
//
// The kernel side is three things: an ingress program that translates and
// redirects, an egress program that translates what the director's own stack
// sends for balanced connections, and a sweep program that ends silent
// connections. Maps are arrays mapped into this process, and a few hash maps.
// All of them, and the links that hold the programs on their interfaces, are
// pinned below Options.Dir: packets flow on while no Batuta runs, and the next
// one adopts them.
package ebpf
