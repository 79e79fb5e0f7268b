/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* abi.h: the layouts that the programs share with Go (internal/plane/ebpf).
 *
 * Everything here lives in pinned maps and outlives both sides: change a
 * layout or the meaning of a value, and count BATUTA_ABI up.
 *
 * Addresses and ports are in network byte order, as in the packet. */
#pragma once

#include <linux/types.h>

#define BATUTA_ABI 1

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
	FLOW_FIN_WAIT,  /* one side has ended */
	FLOW_TIME_WAIT, /* both have */
	FLOW_CLOSE,     /* reset */
	FLOW_UDP,
	FLOW_STATES,
};

enum flow_flag {
	FLOW_LOCAL = 1,      /* delivered by the director's own stack, untranslated */
	FLOW_ANSWERED = 2,   /* the real server has spoken */
	FLOW_FIN_CLIENT = 4,
	FLOW_FIN_REAL = 8,
};

enum real_flag {
	REAL_LOCAL = 1, /* its packets are for the director's own stack, untranslated */
};

/* Why a packet did not simply go its way. Up to REASON_STACK the packet was
 * dropped; from there on the director's own stack carried it. */
enum reason {
	REASON_NONE,
	REASON_NO_REAL,        /* the service has no real server that takes connections */
	REASON_TABLE_FULL,     /* no free record: new connections wait, others go on */
	REASON_DEAD_FLOW,      /* its real server or service was deleted */
	REASON_COLLISION,      /* every server tried has another connection of this client and port */
	REASON_RACE,           /* two processors opened or closed one connection; the client repeats */
	REASON_LATE_FRAGMENT,  /* a later fragment came before the first one */
	REASON_BAD_PACKET,     /* headers cut short */
	REASON_REWRITE,        /* the kernel refused to change the packet (out of memory) */
	REASON_STACK,          /* -- from here on passed, not dropped -- */
	REASON_NO_FLOW,        /* TCP within no known connection: the stack resets it */
	REASON_TTL,            /* at its last hop: the stack tells the sender */
	REASON_TOO_BIG,        /* larger than the path: the stack fragments, or tells the sender */
	REASON_NO_ROUTE,       /* no route, or one that only the stack can take */
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

/* The one element of the control map. */
struct control {
	__u64 abi;         /* BATUTA_ABI and a hash of the layouts; 0 until the maps are complete */
	__u64 netns;       /* inode of the network namespace that the table belongs to */
	__u32 next_slot;   /* records below have been used; the free_slots queue holds those given back */
	__u32 route_epoch; /* counted up when routes change: cached ones are looked up again */
	__u32 live;        /* records in use at the last sweep */
	__u32 swept;       /* sweeps so far */
	__u32 timeout[8];  /* ticks (2^20 ns, about a millisecond) by enum flow_state */
};

struct service_key {
	__be32 addr;
	__be16 port;
	__u8 proto;
	__u8 zero;
};

/* A virtual service. Its ring is published by one 64-bit store. */
struct service {
	__u64 ring; /* first entry << 32 | number of entries; 0: no real server takes connections */
	__u32 next; /* connections scheduled so far: the turn in the ring */
	__u32 used; /* 1: this slot holds a service */
	struct service_key key;
	__u8 scheduler; /* internal/plane/ebpf: scheduler */
	__u8 flags;
	__u16 pad;
	__u32 pad2;
	__u64 past[5]; /* counters of real servers that were deleted, in the order of struct counters */
	__u64 reserved[5];
};

/* One turn of a ring. */
struct ring_entry {
	__u32 real;
	__u32 reserved;
};

/* A real server of one service. */
struct real {
	__be32 addr;
	__be16 port;
	__u8 flags;   /* enum real_flag */
	__u8 forward; /* model.Forward */
	__u32 service;
	__s32 weight;
	__u32 upper;
	__u32 lower;
	__u32 used;
	__u32 reserved;
};

struct counters {
	__u64 connections;
	__u64 packets_in;
	__u64 packets_out;
	__u64 bytes_in;
	__u64 bytes_out;
};

/* A real server as one processor sees it: one cache line, element
 * real * processors + processor of its map. */
struct real_cpu {
	__u32 gen; /* odd: alive. Connections made under another number are dead */
	__u32 reserved;
	struct counters count;
	__u64 reserved2[2];
};

/* Where a connection's packets leave, until the stamp is out of date. */
struct route {
	__u32 ifindex;
	__be32 nexthop;
	__u16 mtu;
	__u16 stamp;
};

/* One connection, both directions: one cache line. Found by two entries of
 * the index, which hold its slot and generation; counting gen up ends both
 * directions at once. */
struct flow {
	__u32 gen; /* odd: alive */
	__u8 state;
	__u8 flags;
	__u8 proto;
	__u8 pad;
	__u32 seen; /* ticks */
	__be32 client;
	__be32 virt;
	__be32 real;
	__be16 cport;
	__be16 vport;
	__be16 rport;
	__be16 pad2;
	__u32 real_slot;
	__u32 real_gen;
	struct route route[2];
};

/* A packet's ends, as they are in the packet: one map serves both directions. */
struct tuple {
	__be32 src;
	__be32 dst;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 zero[3];
};

struct index {
	__u32 slot; /* with the direction in the highest bit */
	__u32 gen;
};
#define INDEX_TO_CLIENT 0x80000000u

struct fragment_key {
	__be32 src;
	__be32 dst;
	__be16 id;
	__u8 proto;
	__u8 zero;
};

struct fragment {
	__u32 slot; /* as in struct index */
	__u32 gen;
	__u32 seen; /* ticks */
	__u32 fate; /* enum fragment_fate */
};

struct address_key {
	__be32 addr;
};

_Static_assert(sizeof(struct control) == 64, "control");
_Static_assert(sizeof(struct service_key) == 8, "service_key");
_Static_assert(sizeof(struct service) == 112, "service");
_Static_assert(sizeof(struct ring_entry) == 8, "ring_entry");
_Static_assert(sizeof(struct real) == 32, "real");
_Static_assert(sizeof(struct real_cpu) == 64, "real_cpu");
_Static_assert(sizeof(struct flow) == 64, "flow");
_Static_assert(sizeof(struct tuple) == 16, "tuple");
_Static_assert(sizeof(struct index) == 8, "index");
_Static_assert(sizeof(struct fragment_key) == 12, "fragment_key");
_Static_assert(sizeof(struct fragment) == 16, "fragment");
