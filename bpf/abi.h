/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* abi.h: the layouts that the programs share with Go (internal/plane/ebpf).
 *
 * Everything here lives in pinned maps and outlives both sides: change a
 * layout or the meaning of a value, and count BATUTA_ABI up.
 *
 * Addresses and ports are in network byte order, as in the packet. */
#pragma once

#include <linux/types.h>

#define BATUTA_ABI 10

/* An address of either family: IPv4 as an IPv4-mapped one (RFC 4291, 2.5.5.2),
 * so that tables, keys and comparisons know one form only. */
struct addr {
	__u64 d[2];
};

/* Direction of a packet within a connection; indexes flow.route. */
enum direction {
	TO_REAL = 0,
	TO_CLIENT = 1,
};

/* What a record of the connection table says. */
enum flow_state {
	FLOW_NONE, /* no connection */
	FLOW_SYN_RECV,
	FLOW_ESTABLISHED,
	FLOW_FIN_WAIT,   /* the real server has ended */
	FLOW_CLOSE_WAIT, /* the client has ended */
	FLOW_TIME_WAIT,  /* both have */
	FLOW_CLOSE,      /* reset */
	FLOW_UDP,
	FLOW_STATES,
};

/* flow.word: state in the low byte, these in the next, then protocol, then
 * forwarding method: one word, so that one compare-and-swap moves it on. */
enum flow_flag {
	FLOW_LOCAL = 1 << 8,    /* delivered by the director's own stack, untranslated */
	FLOW_ANSWERED = 2 << 8, /* the real server has spoken */
	FLOW_FIN_CLIENT = 4 << 8,
	FLOW_FIN_REAL = 8 << 8,
	FLOW_STAYS = 16 << 8,   /* of a persistent service: keeps its client's entry alive */
	FLOW_SOCKET = 32 << 8,  /* of a client on the director: in no index; its socket ends it */
	FLOW_V6 = 64 << 8,
};

enum forward { /* model.Forward */
	FORWARD_NONE,
	FORWARD_MASQ,
	FORWARD_GATE,
	FORWARD_IPIP,
};

/* How a service chooses. */
enum choice {
	CHOOSE_NONE,
	CHOOSE_TURN,     /* the ring, in turn: rr wrr */
	CHOOSE_SOURCE,   /* the ring's entry of the client's address: sh mh */
	CHOOSE_DESTINATION, /* ... of the virtual address: dh */
	CHOOSE_TWO,      /* the less loaded of two of the ring: twos p2c */
	CHOOSE_LC,       /* the least of all */
	CHOOSE_WLC,
	CHOOSE_SED,
	CHOOSE_NQ,
	CHOOSE_FO,
	CHOOSE_OVF,
};

enum service_flag {
	SERVICE_ONE_PACKET = 1, /* no records: each datagram is scheduled */
	SERVICE_STAYS = 2,      /* persistent */
	SERVICE_HASH_PORT = 4,  /* sh-port, mh-port: the client's port counts */
};

enum real_flag {
	REAL_LOCAL = 1, /* its packets are for the director's own stack, untranslated */
};

/* Bits of control.features: what some service needs, so that others need not look. */
enum feature {
	FEATURE_ANY_PORT = 1,
	FEATURE_RULES = 2,     /* there are services by mark, and rules that lead to them */
	FEATURE_ELSEWHERE = 4, /* another plane still carries some connections */
};

/* Why a packet did not simply go its way. Up to REASON_STACK the packet was
 * dropped; from there on the director's own stack carried it. */
enum reason {
	REASON_NONE,
	REASON_NO_REAL,        /* the service has no real server that takes connections */
	REASON_TABLE_FULL,     /* no free record, or no place in the index: new connections wait, others go on */
	REASON_DEAD_FLOW,      /* its real server or service was deleted */
	REASON_COLLISION,      /* every server tried has another connection of this client and port */
	REASON_RACE,           /* two processors opened or closed one connection; the client repeats */
	REASON_LATE_FRAGMENT,  /* a later fragment came before the first one */
	REASON_BAD_PACKET,     /* headers cut short */
	REASON_REWRITE,        /* the kernel refused to change the packet (out of memory) */
	REASON_OVERLOADED,     /* all real servers have reached their upper threshold */
	REASON_UNREACHABLE,    /* gate, ipip: no route to the real server */
	REASON_OVERSIZE,       /* gate, ipip: larger than the path; the sender was told */
	REASON_LAST_HOP,       /* gate, ipip: at its last hop; the sender was told */
	REASON_STACK,          /* -- from here on passed, not dropped -- */
	REASON_NO_FLOW,        /* TCP within no known connection: the stack resets it */
	REASON_TTL,            /* at its last hop: the stack tells the sender */
	REASON_TOO_BIG,        /* larger than the path: the stack fragments, or tells the sender */
	REASON_NO_ROUTE,       /* no route, or one that only the stack can take */
	REASON_STAYS_FULL,     /* carried, but its client's real server could not be remembered */
	REASON_MADE_ROOM,      /* carried in a full table: a half-open connection gave way */
	REASON_WAITS,          /* carried in a full table: a SYN that got a note instead of a record */
	REASONS,
};

/* Which packets a fragment belongs to, and so what to do with the later ones
 * that carry no ports. */
enum fragment_fate {
	FRAGMENT_PASS = 1, /* not balanced */
	FRAGMENT_FLOW = 2,
};

/* Which side an address stands on: its fragments need their first one. */
enum address_role {
	ADDRESS_VIRTUAL = 1,
	ADDRESS_REAL = 2,
};

/* The one element of the control map. The first line is read for each packet. */
struct control {
	__u64 abi;         /* BATUTA_ABI and a hash of the layouts; 0 until the maps are complete */
	__u64 clock;       /* the jiffy in which ticks were last read << 32 | those ticks */
	__u32 route_epoch; /* counted up when routes change: cached ones are looked up again */
	__u32 features;    /* enum feature */
	__u32 routes_until; /* ticks; then route_epoch counts up, unless the daemon, which hears of changes, puts it off */
	__u32 plain_routes; /* 1: no policy: to a neighbor there is one way, whoever sends */
	__u32 timeout[8];  /* ticks (2^20 ns, about a millisecond) by enum flow_state */
	/* second line */
	__u64 netns;       /* inode of the network namespace that the table belongs to */
	__u32 next_slot;   /* records below have been used; the free_slots queue holds those given back */
	__u32 live;        /* records in use at the last sweep */
	__u32 swept;       /* sweeps so far */
	__u32 rules;       /* how many there are */
	__u32 hand;        /* where in a full table the next half-open connection is looked for */
	__u32 young;       /* ticks for which one does not give way */
	__u32 watched;     /* ticks until which somebody listens to events, 0: nobody does */
	__u32 narrowed;    /* ticks when a tunnel's path was last heard to be narrower */
	__u64 seed;        /* of the index's hash: secret and random, so that nobody can fill a bucket at will */
	__u32 waits_until; /* ticks until which notes of half-open connections are looked for */
	__u32 no_room;     /* 1: when a full table was last asked for a record, none gave way */
	__u32 reserved2[2];
};

struct service_key {
	struct addr addr;
	__be16 port; /* 0: all ports */
	__u8 proto;
	__u8 zero[5];
};

/* Which packets a service by mark gets. The first rule that fits decides;
 * addresses fit under their masks, which are all ones for the mapped part of
 * IPv4. */
struct rule {
	struct addr src;
	struct addr src_mask;
	struct addr dst;
	struct addr dst_mask;
	__u16 first; /* destination ports, in host byte order */
	__u16 last;
	__u8 proto; /* 0: any */
	__u8 v6;
	__u16 zero;
	__u32 ifindex; /* 0: any */
	__u32 service; /* its slot + 1; 0: there is no such service now */
	__u32 mark;
	__u32 reserved[3];
};

/* A virtual service. Its ring is published by one 64-bit store. */
struct service {
	__u64 ring; /* first entry << 32 | number of turns; 0: no real server takes connections */
	struct service_key key;
	struct addr mask; /* persistence: which bits of a client's address count */
	__u32 stays;      /* persistence: ticks */
	__u8 choice;      /* enum choice */
	__u8 flags;       /* enum service_flag */
	__u8 scheduler;   /* its name's place in internal/plane/ebpf: schedulers */
	__u8 sched_flags; /* as configured: bits of internal/plane/ebpf */
	__u64 zero;       /* always 0, which the verifier does not know */
	/* second line */
	__u32 next;       /* connections scheduled so far: the turn in the ring */
	__u32 used;       /* 1: this slot holds a service */
	__u64 past[5];    /* counters of real servers that were deleted, in the order of struct counters */
	__u32 persist_seconds; /* as configured; 0: not persistent */
	__u32 masked;     /* 1: mask was configured */
	__u64 reserved2;
};

/* Two turns of a ring: the kernel keeps elements of arrays at multiples of
 * eight bytes. A ring begins with an entry of its own. */
struct ring_entry {
	__u32 real[2];
};

/* A real server of one service. */
struct real {
	struct addr addr;
	struct addr source; /* ipip: the director's address towards it */
	__be16 port; /* 0: the virtual one */
	__u8 flags;   /* enum real_flag */
	__u8 forward; /* enum forward */
	__u32 service;
	__s32 weight;
	__u32 upper;
	__u32 lower;
	__u32 used;
	__u32 reserved[2];
	/* second line: how many connections it has now */
	__u32 active;
	__u32 inactive;
	__u32 overloaded;
	__u32 reserved2[13];
};

struct counters {
	__u64 connections;
	__u64 packets_in;
	__u64 packets_out;
	__u64 bytes_in;
	__u64 bytes_out;
};

/* Where a connection's packets leave, until the stamp is out of date. */
struct route {
	__u16 hop; /* element of the hops map */
	__u16 mtu;
	__u16 stamp;
};

/* A real server as one processor sees it: one cache line, element
 * real * processors + processor of its map. */
struct real_cpu {
	__u32 gen; /* odd: alive. Connections made under another number are dead */
	__u16 reserved;
	struct route route; /* of datagrams that belong to no connection */
	struct route direct; /* to the real server, if it is a neighbor: the hop says of whom it is */
	__u16 reserved2[3];
	struct counters count;
};

/* A next hop. Connections share them; the place of one that was not looked up for
 * HOP_TICKS may be given to another. */
struct hop {
	struct addr nexthop;
	__u32 ifindex;
	__u32 seen; /* ticks */
	__u64 key;  /* its hash, which is odd; 0: an empty place; HOP_WRITTEN */
	__u64 dmac; /* the neighbor's hardware address, in the lower six bytes; 0: not known, or no Ethernet */
	__u64 smac; /* the interface's own */
	__u32 owners; /* how many this place has had */
	__u32 reserved[3];
};

/* One connection, both directions. The index finds it by entries that hold
 * its slot; the record itself says whether it is alive and whose it is.
 * Counting gen up ends both directions at once. */
struct flow {
	struct addr client;
	struct addr virt;
	struct addr real; /* virt where the packets stay as they are */
	__u32 gen; /* odd: alive */
	__u32 word;
	__u32 seen; /* ticks */
	__be16 cport;
	__be16 vport;
	__be16 rport;
	__u16 delta; /* masq: what a sum gains when real takes virt's place; never 0 */
	__u32 real_slot;
	__u32 real_gen;
	struct route route[2];
};

/* A packet's ends, as they are in the packet: one index serves both directions. */
struct tuple {
	struct addr src;
	struct addr dst;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 zero[3];
};

/* The index: eight entries to a cache line. An entry is a tag (32 bits of the
 * tuple's hash, never 0) above the slot of the record, with the direction in
 * bit 31; 0 is empty. A tuple has two buckets, and its tag occurs in them once. */
struct bucket {
	__u64 entry[8];
};
#define INDEX_TO_CLIENT 0x80000000u

struct fragment_key {
	struct addr src;
	struct addr dst;
	__be32 id;
	__u8 proto;
	__u8 zero[3];
};

struct fragment {
	__u32 slot; /* as in an index entry */
	__u32 gen;
	__u32 seen; /* ticks */
	__u32 fate; /* enum fragment_fate */
};

/* Which real server a client of a persistent service has. */
struct stay_key {
	struct addr client; /* under the service's mask */
	__u32 service;
	__u32 zero;
};

struct stay {
	__u32 real;
	__u32 real_gen;
	__u32 expires; /* ticks */
	__u32 reserved;
};

/* Where a socket of the director's own clients was led. */
struct socket_end {
	struct addr virt;
	struct addr real; /* virt for the director's own server */
	__be16 vport;
	__be16 rport;
	__u32 slot;
	__u32 gen; /* 0: it keeps no connection (one-packet) */
	__u32 reserved;
};

/* The last ends of a socket: an unconnected one may speak to several. */
#define SOCKET_ENDS 4
struct socket_note {
	struct socket_end end[SOCKET_ENDS];
	__u32 next; /* which one gives way */
	__u32 last; /* which one was spoken to: who of several with one real server answers */
};

/* What fits into a tunnel's way, as an ICMP error has said: outer packets of so
 * many bytes. */
struct path {
	__u32 mtu;
	__u32 expires; /* ticks */
};

/* Where a program stands. */
enum hook {
	HOOK_INGRESS,
	HOOK_EGRESS,
	HOOK_XDP,
	HOOK_SOCKET, /* of a client on the director itself */
};

/* What a listener is told: a packet that did not simply go its way, or one that
 * has opened a connection (REASON_NONE). */
struct event {
	__u64 when;     /* ns, CLOCK_MONOTONIC */
	struct tuple t; /* as the packet came */
	__u32 reason;   /* enum reason */
	__u32 hook;     /* enum hook */
	__u32 real;     /* its real server's slot + 1, 0: none */
	__u32 ifindex;
	__u32 length;   /* of the frame */
	__u32 reserved;
};

/* What a listener wants to hear. */
struct watch {
	struct addr client; /* of either direction's packets, under its mask */
	struct addr client_mask;
	struct addr virt;
	struct addr virt_mask;
	__u64 reasons; /* bit of enum reason */
	__u64 lost;    /* events that found no room */
	__u32 every;   /* one of so many is told */
	__be16 vport;  /* 0: any */
	__u8 proto;    /* 0: any */
	__u8 zero;
	__u64 reserved[5];
};

/* What a traced packet (test-run with tracing set) leaves in skb->cb. */
enum trace_cb {
	TRACE_REASON, /* enum reason, the last one counted */
	TRACE_HOW,    /* enum trace_how */
	TRACE_REAL,   /* slot of its real server + 1 */
	TRACE_FLOW,   /* slot of its connection + 1 */
	TRACE_IFINDEX,
};

enum trace_how {
	TRACE_NOTHING, /* not balanced */
	TRACE_KNOWN,   /* of a connection in the table */
	TRACE_NEW,     /* scheduled */
	TRACE_STAYED,  /* scheduled to the real server that its client had before */
	TRACE_WAITED,  /* of a connection that has had no record so far */
};

_Static_assert(sizeof(struct control) == 128, "control");
_Static_assert(sizeof(struct service_key) == 24, "service_key");
_Static_assert(sizeof(struct rule) == 96, "rule");
_Static_assert(sizeof(struct service) == 128, "service");
_Static_assert(sizeof(struct ring_entry) == 8, "ring_entry");
_Static_assert(sizeof(struct real) == 128, "real");
_Static_assert(sizeof(struct real_cpu) == 64, "real_cpu");
_Static_assert(sizeof(struct hop) == 64, "hop");
_Static_assert(sizeof(struct flow) == 88, "flow");
_Static_assert(sizeof(struct tuple) == 40, "tuple");
_Static_assert(sizeof(struct bucket) == 64, "bucket");
_Static_assert(sizeof(struct fragment_key) == 40, "fragment_key");
_Static_assert(sizeof(struct fragment) == 16, "fragment");
_Static_assert(sizeof(struct stay_key) == 24, "stay_key");
_Static_assert(sizeof(struct stay) == 16, "stay");
_Static_assert(sizeof(struct socket_note) == 200, "socket_note");
_Static_assert(sizeof(struct path) == 8, "path");
_Static_assert(sizeof(struct event) == 72, "event");
_Static_assert(sizeof(struct watch) == 128, "watch");
