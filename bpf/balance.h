/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* balance.h: which connection a packet belongs to, and where that one goes. */
#pragma once

#include "conn.h"
#include "schedule.h"

enum balance {
	BALANCE_NOT,   /* none of ours */
	BALANCE_PASS,  /* the stack answers, for the reason given */
	BALANCE_DROP,  /* for the reason given */
	BALANCE_CARRY, /* h is its connection */
};

/* balance finds a packet's connection, if there may be one, or opens one. s is the
 * service if it was opened now, else 0. */
static __always_inline enum balance balance(CTX *ctx, const struct packet *p, int may_be, struct hit *h,
					    struct service **s, __u32 now, enum reason *why)
{
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
		return BALANCE_NOT;
	*why = REASON_NO_FLOW;
	if (!opens(p))
		return BALANCE_PASS;
fresh:
	*why = open_flow(ctx, p, *s, now, h);
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
