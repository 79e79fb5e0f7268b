/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* event.h: packets that do not simply go their way are counted by reason, and
 * told to whoever listens: `batuta trace --follow`. Packets of connections that
 * go their way come by nothing of this. */
#pragma once

#include "maps.h"

static __always_inline int under(const struct addr *a, const struct addr *b, const struct addr *mask)
{
	return !(((a->d[0] ^ b->d[0]) & mask->d[0]) | ((a->d[1] ^ b->d[1]) & mask->d[1]));
}

static __always_inline int wanted(const struct watch *w, const struct tuple *t)
{
	if (w->proto && w->proto != t->proto)
		return 0;
	if (under(&t->src, &w->client, &w->client_mask) && under(&t->dst, &w->virt, &w->virt_mask) &&
	    (!w->vport || w->vport == t->dport))
		return 1;
	return under(&t->dst, &w->client, &w->client_mask) && under(&t->src, &w->virt, &w->virt_mask) &&
	       (!w->vport || w->vport == t->sport);
}

/* report tells the listener. what is an enum reason, with the enum hook above it. */
SEPARATE int report(const struct tuple *t, __u32 what, __u32 real, __u32 ifindex, __u32 length)
{
	struct event e = {};
	struct control *c = get_control();
	struct watch *w;
	__u32 zero = 0;
	void *ear;

	if (!t || !c || (__s32)(c->watched - ticks()) <= 0)
		return 0;
	w = bpf_map_lookup_elem(&watches, &zero);
	if (!w || !(w->reasons >> (what & 63) & 1) || !wanted(w, t) ||
	    (w->every > 1 && bpf_get_prandom_u32() % w->every))
		return 0;
	ear = bpf_map_lookup_elem(&ears, &zero);
	if (!ear)
		return 0;
	e.when = bpf_ktime_get_ns();
	e.t = *t;
	e.reason = what & 63;
	e.hook = what >> 8;
	e.real = real;
	e.ifindex = ifindex;
	e.length = length;
	if (bpf_ringbuf_output(ear, &e, sizeof(e), 0))
		__sync_fetch_and_add(&w->lost, 1);
	return 0;
}

static __always_inline void tell_from(CTX *ctx, const struct tuple *t, enum reason why, __u32 real, enum hook hook)
{
	struct control *c = get_control();

	if (tracing || !c || !READ_ONCE(c->watched))
		return;
#ifdef BATUTA_SOCKET
	report(t, why | hook << 8, real, 0, 0);
#else
	report(t, why | hook << 8, real, ifindex_of(ctx), length_of(ctx));
#endif
}

#if defined(BATUTA_SOCKET)
#define HOOK HOOK_SOCKET
#elif defined(BATUTA_XDP)
#define HOOK HOOK_XDP
#else
#define HOOK HOOK_INGRESS
#endif

/* count_quietly counts a packet and tells nobody of it. */
static __always_inline void count_quietly(enum reason why)
{
	__u32 at = bpf_get_smp_processor_id() * REASONS_LINE + why;
	__u64 *n = bpf_map_lookup_elem(&reasons, &at);

	if (n)
		ADD(*n, 1);
}

static __always_inline void count_from(CTX *ctx, const struct tuple *t, enum reason why, enum hook hook)
{
	trace(ctx, TRACE_REASON, why);
	if (tracing)
		return;
	count_quietly(why);
	tell_from(ctx, t, why, 0, hook);
}

/* count_reason counts a packet and tells of it. */
static __always_inline void count_reason(CTX *ctx, const struct tuple *t, enum reason why)
{
	count_from(ctx, t, why, HOOK);
}

/* tell_opened tells of a new connection. */
static __always_inline void tell_opened(CTX *ctx, const struct tuple *t, __u32 real)
{
	tell_from(ctx, t, REASON_NONE, real + 1, HOOK);
}
