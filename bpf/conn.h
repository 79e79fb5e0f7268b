/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* conn.h: connections.
 *
 * A connection is one record of the flows array, found by one index entry for
 * each direction that passes here. The record's generation decides: odd is
 * alive. Whoever moves it on (one compare-and-swap) has ended both
 * directions, removes the entries and gives the slot back. A connection that
 * cannot have all its entries gets none. */
#pragma once

#include "maps.h"
#include "parse.h"
#include "table.h"

struct hit {
	struct flow *f;
	struct real_cpu *rc;
	__u32 slot;
	__u32 gen;
	__u32 word;
	__u8 dir;  /* enum direction */
	__u8 dead; /* its real server is gone */
};

#define STATE(word) ((word) & 0xff)
#define PROTO(word) ((__u8)((word) >> 16))
#define FORWARD(word) ((word) >> 24)

static __always_inline struct real_cpu *real_on_this_cpu(__u32 real)
{
	__u32 at = real * cpus + bpf_get_smp_processor_id();

	return bpf_map_lookup_elem(&real_cpus, &at);
}

/* follow goes from a slot with direction to a live record. */
static __always_inline int follow(__u32 slot, struct hit *h)
{
	h->dir = slot & INDEX_TO_CLIENT ? TO_CLIENT : TO_REAL;
	h->slot = slot & ~INDEX_TO_CLIENT;
	h->f = bpf_map_lookup_elem(&flows, &h->slot);
	if (!h->f)
		return 0;
	h->gen = READ_ONCE(h->f->gen);
	if (!(h->gen & 1))
		return 0;
	h->word = READ_ONCE(h->f->word);
	h->rc = real_on_this_cpu(h->f->real_slot);
	if (!h->rc)
		return 0;
	h->dead = READ_ONCE(h->rc->gen) != h->f->real_gen;
	return 1;
}

/* slot_of is a connection's slot with the direction, as in an index entry. */
static __always_inline __u32 slot_of(const struct hit *h)
{
	return h->slot | (h->dir == TO_CLIENT ? INDEX_TO_CLIENT : 0);
}

/* is_its tells whether a connection has these ends. */
static __always_inline int is_its(const struct hit *h, const struct tuple *t)
{
	const struct flow *f = h->f;

	if (PROTO(h->word) != t->proto)
		return 0;
	if (h->dir == TO_REAL)
		return same_addr(&f->client, &t->src) && same_addr(&f->virt, &t->dst) &&
		       f->cport == t->sport && f->vport == t->dport;
	return same_addr(&f->real, &t->src) && same_addr(&f->client, &t->dst) &&
	       f->rport == t->sport && f->cport == t->dport;
}

static __always_inline int find_flow(const struct tuple *t, struct hit *h)
{
	__u64 e = find_entry(tuple_hash(t));

	return e && follow((__u32)e, h) && is_its(h, t);
}

/* count_connections keeps a real server's gauges: one connection has gone
 * from one state word to another. */
static __always_inline void count_connections(__u32 real, int active, int inactive)
{
	struct real *r = bpf_map_lookup_elem(&reals, &real);

	if (!r)
		return;
	if (active)
		__sync_fetch_and_add(&r->active, active);
	if (inactive)
		__sync_fetch_and_add(&r->inactive, inactive);
}

static __always_inline int alive(__u32 real, __u32 gen)
{
	__u32 at = real * cpus;
	struct real_cpu *rc = bpf_map_lookup_elem(&real_cpus, &at);

	return rc && READ_ONCE(rc->gen) == gen;
}

/* unlink_flow ends a connection of that generation, once. The record is the
 * caller's then. */
SEPARATE int unlink_flow(__u32 slot, __u32 gen)
{
	struct flow *f = bpf_map_lookup_elem(&flows, &slot);
	__u32 real, real_gen, word;

	if (!f)
		return 0;
	real = f->real_slot;
	real_gen = f->real_gen;
	if (__sync_val_compare_and_swap(&f->gen, gen, gen + 1) != gen)
		return 0;
	word = __sync_lock_test_and_set(&f->word, 0); /* nobody moves it on from here */
	unplace(ends_hash(&f->client, &f->virt, f->cport, f->vport, PROTO(word)), slot);
	if (FORWARD(word) == FORWARD_MASQ || (word & FLOW_LOCAL))
		unplace(ends_hash(&f->real, &f->client, f->rport, f->cport, PROTO(word)), slot | INDEX_TO_CLIENT);
	if (alive(real, real_gen)) {
		if (STATE(word) == FLOW_ESTABLISHED)
			count_connections(real, -1, 0);
		else
			count_connections(real, 0, -1);
	}
	return 1;
}

/* end_flow ends a connection of that generation, once, and gives its record back. */
static __always_inline int end_flow(__u32 slot, __u32 gen)
{
	if (!unlink_flow(slot, gen))
		return 0;
	bpf_map_push_elem(&free_slots, &slot, 0);
	return 1;
}

/* over tells whether a new connection of the same ends may take its place. */
static __always_inline int over(const struct hit *h, __u32 now)
{
	struct control *c = get_control();
	__u32 state = STATE(h->word);

	if (h->dead || state == FLOW_TIME_WAIT || state == FLOW_CLOSE)
		return 1;
	return c && (__s32)(now - h->f->seen) > (__s32)c->timeout[state & 7];
}

/* Table of states, as a TCP stack in the middle can know them. A reset alone
 * does not end a connection at once: a forged one is answered by the real
 * server, which brings the connection back (RFC 5961, section 3). Where
 * replies do not pass here (gate, ipip) the client alone tells. */
static __always_inline __u32 next_word(__u32 word, enum direction dir, __u8 tcp)
{
	__u32 flags = word & 0xff00, state = STATE(word);

	if (dir == TO_CLIENT || FORWARD(word) != FORWARD_MASQ)
		flags |= FLOW_ANSWERED;
	if (tcp & TCP_FIN)
		flags |= dir == TO_REAL ? FLOW_FIN_CLIENT : FLOW_FIN_REAL;
	if (tcp & TCP_RST)
		state = FLOW_CLOSE;
	else if ((flags & FLOW_FIN_CLIENT) && (flags & FLOW_FIN_REAL))
		state = FLOW_TIME_WAIT;
	else if (flags & FLOW_FIN_CLIENT)
		state = FLOW_CLOSE_WAIT;
	else if (flags & FLOW_FIN_REAL)
		state = FLOW_FIN_WAIT;
	else if (state == FLOW_SYN_RECV && dir == TO_REAL && (flags & FLOW_ANSWERED) && !(tcp & TCP_SYN))
		state = FLOW_ESTABLISHED;
	else if (state == FLOW_CLOSE && (dir == TO_CLIENT || FORWARD(word) != FORWARD_MASQ))
		state = FLOW_ESTABLISHED;
	return (word & 0xffff0000) | flags | state;
}

/* move_on moves a connection's state; gauges follow whoever succeeds. */
SEPARATE int move_on(__u32 slot, __u32 dir, __u32 tcp, __u32 now)
{
	struct flow *f = bpf_map_lookup_elem(&flows, &slot);
	int i;

	if (!f)
		return 0;
	for (i = 0; i < 3; i++) {
		__u32 was = READ_ONCE(f->word);
		__u32 is = next_word(was, dir, tcp);

		if (was == is || STATE(was) == FLOW_NONE)
			return 0;
		if (__sync_val_compare_and_swap(&f->word, was, is) != was)
			continue;
		if (STATE(was) == STATE(is))
			return 0;
		f->seen = now;
		if (STATE(is) == FLOW_ESTABLISHED)
			count_connections(f->real_slot, 1, -1);
		else if (STATE(was) == FLOW_ESTABLISHED)
			count_connections(f->real_slot, -1, 1);
		return 0;
	}
	return 0;
}

/* count_packet counts a packet of a real server. */
static __always_inline void count_packet(struct real_cpu *rc, enum direction dir, __u32 segments, __u32 bytes)
{
	if (dir == TO_REAL) {
		rc->count.packets_in += segments;
		rc->count.bytes_in += bytes;
	} else {
		rc->count.packets_out += segments;
		rc->count.bytes_out += bytes;
	}
}

/* keep_alive writes a line that processors share only when it matters. */
static __always_inline void keep_alive(struct flow *f, __u32 now)
{
	if (now - f->seen > 127)
		f->seen = now;
}

/* account counts a packet, keeps the connection alive and moves its state. */
static __always_inline void account(CTX *ctx, const struct packet *p,
				    const struct hit *h, __u32 now)
{
	if (tracing)
		return;
	count_packet(h->rc, h->dir, segments_of(ctx), length_of(ctx) - ETH_HLEN);
	keep_alive(h->f, now);
	if (p->t.proto != IPPROTO_UDP && !p->later &&
	    (STATE(h->word) != FLOW_ESTABLISHED || (p->flags & (TCP_FIN | TCP_RST))))
		move_on(h->slot, h->dir, p->flags, now);
}
