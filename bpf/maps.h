/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* maps.h: the maps. Sizes given here are placeholders; Go sets them when it
 * loads. Arrays are mapped into the daemon's memory: it publishes rings and
 * reads counters and connections without system calls. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "context.h"

/* Set by Go before loading. */
const volatile __u32 cpus = 1;       /* possible processors */
const volatile __u32 max_flows = 1;  /* records of the connection table; one more is for tracing */
const volatile __u32 index_mask = 0; /* buckets of the index, a power of two, less one */
const volatile __u32 hop_mask = 0;   /* likewise of next hops */
const volatile __u32 note_mask = 0;  /* notes of one direction, a power of two, less one */
const volatile __u64 seed = 1;       /* control.seed */
#if defined(BATUTA_XDP) || defined(BATUTA_SOCKET)
#define tracing 0
#else
const volatile __u32 tracing = 0;    /* 1: say what would be done to the packet, and keep everything as it is */
#endif

/* Counts what belongs to this processor. A program that a process runs may be
 * interrupted by a packet's. */
#ifdef BATUTA_SOCKET
#define ADD(counter, n) __sync_fetch_and_add(&(counter), n)
#else
#define ADD(counter, n) ((counter) += (n))
#endif

#define ARRAY(name, type_)                                                                         \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_ARRAY);                                                  \
		__uint(map_flags, BPF_F_MMAPABLE);                                                 \
		__uint(max_entries, 1);                                                            \
		__type(key, __u32);                                                                \
		__type(value, type_);                                                              \
	} name SEC(".maps")

#define HASH(name, kind, key_, type_)                                                              \
	struct {                                                                                   \
		__uint(type, kind);                                                                \
		__uint(max_entries, 1);                                                            \
		__type(key, key_);                                                                 \
		__type(value, type_);                                                              \
	} name SEC(".maps")

ARRAY(controls, struct control);
ARRAY(services, struct service);
ARRAY(rules, struct rule);
ARRAY(rings, struct ring_entry);
ARRAY(reals, struct real);
ARRAY(real_cpus, struct real_cpu);
ARRAY(flows, struct flow);
ARRAY(flow_index, struct bucket);
ARRAY(hops, struct hop);
ARRAY(notes, __u64); /* bpf/waiting.h */
/* Services that were looked up, by a hash of their keys: the upper half of it, and the
 * slot. A look-up in the kernel's hash table takes four times as long. */
#define RECENT 4096
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, RECENT);
	__type(key, __u32);
	__type(value, __u64);
} recent SEC(".maps");
ARRAY(watches, struct watch);
/* By an interface's number: 1 if its frames have Ethernet headers. */
ARRAY(ethers, __u64);

HASH(service_slots, BPF_MAP_TYPE_HASH, struct service_key, __u32);
HASH(addresses, BPF_MAP_TYPE_HASH, struct addr, __u32);
/* Empty most often: takes memory only for what is in it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct stay_key);
	__type(value, struct stay);
} stays SEC(".maps");
/* What opens connections that another plane carries: a map as large as they need,
 * while there are any. */
struct aside {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct tuple);
	__type(value, __u32);
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct aside);
} elsewhere SEC(".maps");
/* Loss is harmless here: a fragment without its entry is dropped and counted. */
HASH(fragments, BPF_MAP_TYPE_LRU_HASH, struct fragment_key, struct fragment);

/* Loss is harmless here, too: an error tells it again. */
HASH(paths, BPF_MAP_TYPE_LRU_HASH, struct addr, struct path);

/* Where a listener listens: a buffer of its own, while it does. */
struct ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct ring);
} ears SEC(".maps");

/* Goes with the socket. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct socket_note);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 1);
	__type(value, __u32);
} free_slots SEC(".maps");

/* A line or more for each processor: element processor * REASONS_LINE + reason. */
ARRAY(reasons, __u64);
#define REASONS_LINE 32
_Static_assert(REASONS <= REASONS_LINE, "reasons");

/* Names the enums in the object's type information, for bpf2go. */
const enum reason *unused_reason __attribute__((unused));
const enum flow_state *unused_state __attribute__((unused));
const enum flow_flag *unused_flow_flag __attribute__((unused));
const enum real_flag *unused_real_flag __attribute__((unused));
const enum address_role *unused_role __attribute__((unused));
const enum service_flag *unused_service_flag __attribute__((unused));
const enum choice *unused_choice __attribute__((unused));
const enum feature *unused_feature __attribute__((unused));
const enum hook *unused_hook __attribute__((unused));
const struct event *unused_event __attribute__((unused));
const enum trace_cb *unused_cb __attribute__((unused));
const enum trace_how *unused_how __attribute__((unused));
const struct counters *unused_counters __attribute__((unused));
const struct tuple *unused_tuple __attribute__((unused));

#define READ_ONCE(x) (*(volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile typeof(x) *)&(x) = (v))

/* trace says something about a traced packet. */
static __always_inline void trace(CTX *ctx, enum trace_cb what, __u32 value)
{
#ifndef BATUTA_XDP
	if (tracing)
		ctx->cb[what] = value;
#endif
}

static __always_inline struct control *get_control(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&controls, &zero);
}

/* Coarse clock: it is read for each packet, and milliseconds are enough. */
static __always_inline __u32 ticks(void)
{
	return bpf_ktime_get_coarse_ns() >> 20;
}

/* A function that the verifier looks at once, whoever calls it. */
#define SEPARATE __attribute__((noinline))

/* How long routes are remembered while nobody listens to what changes them. */
#define ROUTE_TICKS 0x8000

SEPARATE __u32 read_ticks(__u32 jiffy)
{
	struct control *c = get_control();
	__u32 now = ticks(), until;

	if (!c)
		return now;
	WRITE_ONCE(c->clock, (__u64)jiffy << 32 | now);
	until = READ_ONCE(c->routes_until);
	if (until - now - 1 >= ROUTE_TICKS &&
	    __sync_val_compare_and_swap(&c->routes_until, until, now + ROUTE_TICKS) == until) {
		WRITE_ONCE(c->plain_routes, 0);
		__sync_fetch_and_add(&c->route_epoch, 1);
	}
	return now;
}

/* ticks_of is ticks, read once a jiffy for all packets. */
static __always_inline __u32 ticks_of(struct control *c)
{
	__u64 clock = READ_ONCE(c->clock), jiffies = bpf_jiffies64();

	return (clock ^ jiffies << 32) >> 32 ? read_ticks(jiffies) : clock;
}

/* How long an error about a tunnel's packet is believed (RFC 1191, section 6.3). */
#define PATH_TICKS (10 * 60 * 1000)

/* is_believed asks for no more than the longest time, too: ticks come around in
 * 51 days, and what has expired stays until a sweep comes by. */
static __always_inline int is_believed(const struct path *p, __u32 now)
{
	return p->expires - now - 1 < PATH_TICKS;
}

static __always_inline __u32 ticks_now(void)
{
	struct control *c = get_control();

	return c ? ticks_of(c) : 0;
}

static __always_inline int same_addr(const struct addr *a, const struct addr *b)
{
	return a->d[0] == b->d[0] && a->d[1] == b->d[1];
}

/* The upper half of an IPv4 address: ::ffff:0:0/96 in network order. */
#define MAPPED 0xffff0000ull

static __always_inline struct addr addr_of4(__be32 a)
{
	return (struct addr){ { 0, MAPPED | (__u64)a << 32 } };
}

static __always_inline struct addr addr_of6(const void *a)
{
	const __u64 *d = a;

	return (struct addr){ { d[0], d[1] } };
}

static __always_inline int is4(const struct addr *a)
{
	return !a->d[0] && (__u32)a->d[1] == MAPPED;
}

static __always_inline __be32 addr4(const struct addr *a)
{
	return a->d[1] >> 32;
}
