/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* conn.h: the connection table.
 *
 * A connection is one record of the flows array and two entries of the index,
 * one for each direction. The record's generation decides: odd is alive, and
 * an index entry counts only while it names the same generation. Whoever
 * moves the generation on (one compare-and-swap) has ended both directions,
 * and removes the entries and gives the slot back. A connection that cannot
 * have both entries gets none. */
#pragma once

#include "maps.h"
#include "parse.h"

struct hit {
	struct flow *f;
	struct real_cpu *rc;
	__u32 slot;
	__u32 gen;
	enum direction dir;
	int dead; /* its real server is gone */
};

static __always_inline struct real_cpu *real_on_this_cpu(__u32 real)
{
	__u32 at = real * cpus + bpf_get_smp_processor_id();

	return bpf_map_lookup_elem(&real_cpus, &at);
}

/* follow goes from an index entry to a live record. */
static __always_inline int follow(__u32 slot, __u32 gen, struct hit *h)
{
	h->dir = slot & INDEX_TO_CLIENT ? TO_CLIENT : TO_REAL;
	h->slot = slot & ~INDEX_TO_CLIENT;
	h->gen = gen;
	h->f = bpf_map_lookup_elem(&flows, &h->slot);
	if (!h->f || READ_ONCE(h->f->gen) != gen)
		return 0;
	h->rc = real_on_this_cpu(h->f->real_slot);
	if (!h->rc)
		return 0;
	h->dead = READ_ONCE(h->rc->gen) != h->f->real_gen;
	return 1;
}

static __always_inline int find_flow(const struct tuple *t, struct hit *h)
{
	struct index *ix = bpf_map_lookup_elem(&flow_index, t);

	return ix && follow(ix->slot, ix->gen, h);
}

static __always_inline void tuple_to_real(const struct flow *f, struct tuple *t)
{
	t->src = f->client;
	t->dst = f->virt;
	t->sport = f->cport;
	t->dport = f->vport;
	t->proto = f->proto;
}

static __always_inline void tuple_to_client(const struct flow *f, struct tuple *t)
{
	t->src = f->real;
	t->dst = f->client;
	t->sport = f->rport;
	t->dport = f->cport;
	t->proto = f->proto;
}

/* end_flow ends a connection of that generation, once. */
static __always_inline void end_flow(struct flow *f, __u32 slot, __u32 gen)
{
	struct tuple out = {}, back = {};

	tuple_to_real(f, &out);
	tuple_to_client(f, &back);
	if (__sync_val_compare_and_swap(&f->gen, gen, gen + 1) != gen)
		return;
	bpf_map_delete_elem(&flow_index, &out);
	bpf_map_delete_elem(&flow_index, &back);
	f->state = FLOW_NONE;
	bpf_map_push_elem(&free_slots, &slot, 0);
}

/* over tells whether a new connection of the same ends may take its place. */
static __always_inline int over(const struct hit *h, __u32 now)
{
	struct control *c = get_control();
	__u32 state = h->f->state & 7;

	if (h->dead || state == FLOW_TIME_WAIT || state == FLOW_CLOSE)
		return 1;
	return c && (__s32)(now - h->f->seen) > (__s32)c->timeout[state];
}

/* Table of states, as a TCP stack in the middle can know them. A reset alone
 * does not end a connection at once: a forged one is answered by the real
 * server, which brings the connection back (RFC 5961, section 3). */
static __always_inline __u8 tcp_state(struct flow *f, enum direction dir, __u8 tcp)
{
	__u8 flags = f->flags;

	if (tcp & TCP_RST)
		return FLOW_CLOSE;
	if (dir == TO_CLIENT && !(flags & FLOW_ANSWERED))
		flags |= FLOW_ANSWERED;
	if (tcp & TCP_FIN)
		flags |= dir == TO_REAL ? FLOW_FIN_CLIENT : FLOW_FIN_REAL;
	if (flags != f->flags)
		f->flags = flags;
	if ((flags & FLOW_FIN_CLIENT) && (flags & FLOW_FIN_REAL))
		return FLOW_TIME_WAIT;
	if (flags & (FLOW_FIN_CLIENT | FLOW_FIN_REAL))
		return FLOW_FIN_WAIT;
	if (f->state == FLOW_SYN_RECV && dir == TO_REAL && (flags & FLOW_ANSWERED) && !(tcp & TCP_SYN))
		return FLOW_ESTABLISHED;
	if (f->state == FLOW_CLOSE && dir == TO_CLIENT)
		return FLOW_ESTABLISHED;
	return f->state;
}

/* account counts a packet, keeps the connection alive and moves its state. */
static __always_inline void account(struct __sk_buff *skb, const struct packet *p,
				    const struct hit *h, __u32 now)
{
	struct flow *f = h->f;
	__u32 segments = skb->gso_segs;
	__u64 bytes = skb->len - ETH_HLEN;

	if (!segments)
		segments = 1;
	if (h->dir == TO_REAL) {
		h->rc->count.packets_in += segments;
		h->rc->count.bytes_in += bytes;
	} else {
		h->rc->count.packets_out += segments;
		h->rc->count.bytes_out += bytes;
	}
	/* The line is shared between processors: written when it matters only. */
	if (now - f->seen > 127)
		f->seen = now;
	if (p->t.proto == IPPROTO_TCP) {
		if (f->state != FLOW_ESTABLISHED || (p->tcp_flags & (TCP_FIN | TCP_RST))) {
			__u8 state = tcp_state(f, h->dir, p->tcp_flags);

			if (state != f->state) {
				f->state = state;
				f->seen = now;
			}
		}
	}
}
