/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* schedule.h: a new connection and the real server that it gets. */
#pragma once

#include "conn.h"

/* How many turns of the ring are tried for a real server that has no other
 * connection of the same client address and port. */
#define TURNS 4

/* take_slot gives a free record: one that was given back, or one never used. */
static __always_inline int take_slot(__u32 *slot)
{
	struct control *c;

	if (!bpf_map_pop_elem(&free_slots, slot))
		return 0;
	c = get_control();
	if (!c || READ_ONCE(c->next_slot) >= max_flows)
		return -1;
	*slot = __sync_fetch_and_add(&c->next_slot, 1);
	if (*slot < max_flows)
		return 0;
	__sync_fetch_and_add(&c->next_slot, -1);
	return -1;
}

/* claim enters the way back into the index. An entry of a connection that is
 * over gives way. */
static __noinline int claim(struct tuple *t, struct index *ix, __u32 now)
{
	struct hit old = {};

	if (!t || !ix)
		return -1;
	if (!bpf_map_update_elem(&flow_index, t, ix, BPF_NOEXIST))
		return 0;
	if (!find_flow(t, &old) || !over(&old, now))
		return -1;
	end_flow(old.f, old.slot, old.gen);
	return bpf_map_update_elem(&flow_index, t, ix, BPF_NOEXIST);
}

/* find_service gives the service that a packet is addressed to. */
static __always_inline struct service *find_service(const struct tuple *t)
{
	struct service_key key = { .addr = t->dst, .port = t->dport, .proto = t->proto };
	__u32 *slot = bpf_map_lookup_elem(&service_slots, &key);

	return slot ? bpf_map_lookup_elem(&services, slot) : 0;
}

/* open_flow schedules a new connection of service s and enters it into the
 * table. Nothing is left behind when it fails. */
static __always_inline enum reason open_flow(const struct packet *p, struct service *s,
					     __u32 now, struct hit *h)
{
	struct tuple out = p->t, back = {};
	struct index to_real, to_client;
	enum reason why = REASON_NO_REAL;
	__u32 slot, first, count, turn, i;
	struct flow *f;
	__u64 ring;

	ring = READ_ONCE(s->ring);
	first = ring >> 32;
	count = (__u32)ring;
	if (!count)
		return REASON_NO_REAL;
	if (take_slot(&slot))
		return REASON_TABLE_FULL;
	f = bpf_map_lookup_elem(&flows, &slot);
	if (!f)
		return REASON_TABLE_FULL;

	/* Nobody else knows this record: it is in no index and its generation is even. */
	f->proto = p->t.proto;
	f->state = p->t.proto == IPPROTO_TCP ? FLOW_SYN_RECV : FLOW_UDP;
	f->seen = now;
	f->client = p->t.src;
	f->cport = p->t.sport;
	f->virt = p->t.dst;
	f->vport = p->t.dport;
	f->route[0].stamp = 0;
	f->route[1].stamp = 0;
	h->f = f;
	h->slot = slot;
	h->gen = f->gen + 1;
	h->dir = TO_REAL;
	h->dead = 0;
	to_real.slot = slot;
	to_client.slot = slot | INDEX_TO_CLIENT;
	to_real.gen = to_client.gen = h->gen;

	/* Both entries are made before the generation is: until then nobody can
	 * follow them, and what has both is alive at once. */
	if (bpf_map_update_elem(&flow_index, &out, &to_real, BPF_NOEXIST)) {
		bpf_map_push_elem(&free_slots, &slot, 0);
		return REASON_RACE; /* another processor has opened it meanwhile */
	}
	turn = __sync_fetch_and_add(&s->next, 1);
	for (i = 0; i < TURNS; i++) {
		__u32 at = first + (turn + i) % count;
		struct ring_entry *e = bpf_map_lookup_elem(&rings, &at);
		struct real_cpu *rc;
		struct real *r;
		__u32 gen;

		if (!e)
			break;
		r = bpf_map_lookup_elem(&reals, &e->real);
		rc = real_on_this_cpu(e->real);
		if (!r || !rc)
			break;
		gen = READ_ONCE(rc->gen);
		if (!(gen & 1)) /* deleted this moment */
			continue;
		f->real_slot = e->real;
		f->real_gen = gen;
		if (r->flags & REAL_LOCAL) {
			f->flags = FLOW_LOCAL;
			f->real = f->virt;
			f->rport = f->vport;
		} else {
			f->flags = 0;
			f->real = r->addr;
			f->rport = r->port;
		}
		h->rc = rc;
		tuple_to_client(f, &back);
		if (!claim(&back, &to_client, now)) {
			why = REASON_NONE;
			break;
		}
		why = REASON_COLLISION;
	}
	if (why != REASON_NONE) {
		bpf_map_delete_elem(&flow_index, &out);
		bpf_map_push_elem(&free_slots, &slot, 0);
		return why;
	}
	/* Ordered after all of the above (an atomic with a result is a barrier). */
	__sync_val_compare_and_swap(&f->gen, h->gen - 1, h->gen);
	h->rc->count.connections++;
	return REASON_NONE;
}
