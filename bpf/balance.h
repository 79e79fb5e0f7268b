/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* balance.h: which connection a packet belongs to, and where that one goes. */
#pragma once

#include "conn.h"
#include "schedule.h"
#include "waiting.h"

enum balance {
	BALANCE_NOT,   /* none of ours */
	BALANCE_PASS,  /* the stack answers, for the reason given */
	BALANCE_DROP,  /* for the reason given */
	BALANCE_CARRY, /* h is its connection */
};

/* open_flow schedules a new connection of service s and enters it into the
 * table. Nothing is left behind when it fails. waits is what waits_for says: a
 * client that has had a SYN carried without a record keeps its real server. */
static __always_inline enum reason open_flow(CTX *ctx, const struct packet *p, struct service *s, __u32 waits,
					     __u32 now, struct hit *h)
{
	int answered = waits & WAITS_ANSWERED && !opens(p);
	struct control *c = get_control();
	enum reason why;
	struct flow *f;
	enum place at;
	__u64 hash = 0;

	waits &= ~WAITS_ANSWERED;
	if (!c || !(__u32)READ_ONCE(s->ring))
		return REASON_NO_REAL;
	if (s->flags & SERVICE_ONE_PACKET) {
		h->slot = passing_slot();
	} else if (waits && (p->flags & TCP_RST)) { /* it does not want any */
		h->slot = waiting_slot();
	} else if (take_slot(&h->slot)) {
		if (opens(p) && may_wait(s, p->t.proto) && !READ_ONCE(c->no_room)) {
			h->slot = waiting_slot();
		} else {
			h->slot = make_room(now) - 1;
			if (h->slot >= max_flows)
				return REASON_TABLE_FULL;
			count_reason(ctx, &p->t, REASON_MADE_ROOM);
		}
	}
	f = bpf_map_lookup_elem(&flows, &h->slot);
	if (!f)
		return REASON_TABLE_FULL;

	begin_flow(f, &p->t, p->v6, now);
	if (answered)
		f->word |= FLOW_ANSWERED;
	h->f = f;
	h->gen = f->gen + 1;
	h->dir = TO_REAL;
	h->dead = 0;

	/* All entries are made before the generation is: until then nobody
	 * follows them, and what has all is alive at once. */
	if (h->slot < max_flows) {
		hash = tuple_hash(&p->t);
		at = place(hash, h->slot, 0);
		if (at != PLACE_MADE) {
			bpf_map_push_elem(&free_slots, &h->slot, 0);
			return at == PLACE_FULL ? REASON_TABLE_FULL : REASON_RACE;
		}
	}
	if (waits) {
		trace(ctx, TRACE_HOW, TRACE_WAITED);
		why = try_real(h->slot, waits - 1, now);
		if (why != REASON_NONE && opens(p))
			waits = 0;
	}
	if (!waits)
		why = schedule(ctx, &p->t, s, h->slot, now);
	h->word = f->word;
	h->rc = real_on_this_cpu(f->real_slot);
	if (h->slot >= max_flows) {
		if (why != REASON_NONE || tracing)
			return why;
		if (!h->rc)
			return REASON_NO_REAL;
		if (is_alone(h->slot)) {
			h->rc->count.connections++;
			tell_opened(ctx, &p->t, f->real_slot);
		} else if (opens(p)) {
			note_both(h->slot, now);
			if (!waits) /* else it did before: at XDP, or this SYN is another of the same client */
				count_reason(ctx, &p->t, REASON_WAITS);
		}
		return REASON_NONE;
	}
	if (why != REASON_NONE || !h->rc) {
		unplace(hash, h->slot);
		bpf_map_push_elem(&free_slots, &h->slot, 0);
		return why != REASON_NONE ? why : REASON_NO_REAL;
	}
	come_alive(f, h->rc, h->gen);
	tell_opened(ctx, &p->t, f->real_slot);
	return REASON_NONE;
}

/* balance finds a packet's connection, if there may be one, or opens one. s is the
 * service if it was opened now, else 0. */
static __always_inline enum balance balance(CTX *ctx, const struct packet *p, int may_be, struct hit *h,
					    struct service **s, __u32 now, enum reason *why)
{
	__u32 waits;

	*s = 0;
	if (may_be && find_flow(&p->t, h)) {
		if (h->dir == TO_REAL && opens(p) && (h->dead || p->t.proto != IPPROTO_UDP) && over(h, now)) {
			*s = find_service(&p->t, ifindex_of(ctx));
			*why = REASON_DEAD_FLOW;
			if (!*s && h->dead)
				return BALANCE_DROP;
			if (!tracing)
				end_flow(h->slot, h->gen);
			if (!*s) /* set aside: another table, or another plane, takes it */
				return BALANCE_NOT;
			goto fresh;
		}
		*why = REASON_DEAD_FLOW;
		return h->dead ? BALANCE_DROP : BALANCE_CARRY;
	}
	*s = find_service(&p->t, ifindex_of(ctx));
	if (!*s)
		return find_waiting(p, h, now) ? BALANCE_CARRY : BALANCE_NOT;
fresh:
	waits = waits_for(&p->t, *s, now);
	*why = REASON_NO_FLOW;
	if (!waits && !opens(p))
		return BALANCE_PASS;
	*why = open_flow(ctx, p, *s, waits, now, h);
	return *why == REASON_NONE ? BALANCE_CARRY : BALANCE_DROP;
}

/* ends_after says where a packet of a connection is to go, and in whose name:
 * for ipip these are the outer ends. 0 if its real server has gone. */
static __always_inline int ends_after(const struct packet *p, const struct hit *h, struct tuple *n)
{
	const struct flow *f = h->f;
	struct real *r;

	*n = p->t;
	if (h->dir == TO_CLIENT) {
		n->src = f->virt;
		n->sport = f->vport;
		return 1;
	}
	if (FORWARD(h->word) == FORWARD_MASQ) {
		n->dst = f->real;
		n->dport = f->rport;
		return 1;
	}
	r = bpf_map_lookup_elem(&reals, &f->real_slot);
	if (!r)
		return 0;
	n->dst = r->addr;
	if (FORWARD(h->word) == FORWARD_IPIP) {
		n->src = r->source;
		n->sport = 0;
		n->dport = 0;
		n->proto = p->v6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
	}
	return 1;
}
