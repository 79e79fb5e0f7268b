/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* schedule.h: a new connection and the real server that it gets.
 *
 * A service's ring holds its real servers with a weight above 0: as many
 * turns as weights say (rr wrr twos), a Maglev table (sh mh dh), or one turn
 * each in the order of addresses (those that look for the least). The
 * scheduler chooses a place in the ring; if the real server there cannot take
 * the connection (overloaded, deleted this moment, or it has another of the
 * same client address and port), the next places are tried. */
#pragma once

#include "conn.h"
#include "event.h"
#include "nat.h"

/* How many places of the ring are tried. */
#define TRIES 64
/* How many real servers a service that looks for the least may have. */
#define LEAST_OF 4096

/* times is a number of rounds of bpf_loop, which the kernel reads as 64 bits
 * where it makes the loop part of the program; the compiler fills in 32. */
static __always_inline __u32 times(__u32 n, __u32 most)
{
	if (n > most)
		n = most;
	asm volatile("" : "+r"(n));
	return n & (2 * LEAST_OF - 1); /* which clears the rest */
}

/* Behind the records of the table are those that are in no index: one for
 * tracing, and one for each processor, for datagrams of services that keep
 * no connections. */
static __always_inline __u32 passing_slot(void)
{
	return max_flows + 1 + bpf_get_smp_processor_id();
}

/* is_alone tells whether a record is one of those datagrams'. */
static __always_inline int is_alone(__u32 slot)
{
	return slot > max_flows && slot <= max_flows + cpus;
}

/* take_slot gives a free record: one that was given back, or one never used. */
static __always_inline int take_slot(__u32 *slot)
{
	struct control *c;

	if (tracing) {
		*slot = max_flows;
		return 0;
	}
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

/* make_room takes the record of a connection of a full table that may never become one: the
 * oldest half-open one, or one that has ended, of those that a hand comes by
 * which goes round the table. Slots are given again in the order in which they
 * became free, so the hand comes by the oldest first. A client that answers
 * within control.young is not hurt by a flood of those that never do. */
struct victim {
	__u32 now;
	__u32 young;
	__u32 found; /* its slot + 1 */
};

static long try_victim(__u64 i, struct victim *v)
{
	struct control *c = get_control();
	__u32 at, gen, state;
	struct flow *f;

	if (!c)
		return 1;
	at = __sync_fetch_and_add(&c->hand, 1) % max_flows;
	f = bpf_map_lookup_elem(&flows, &at);
	if (!f)
		return 1;
	gen = READ_ONCE(f->gen);
	state = STATE(READ_ONCE(f->word));
	if (!(gen & 1) || (__s32)(v->now - f->seen) < (__s32)v->young)
		return 0;
	if (state != FLOW_SYN_RECV && state != FLOW_TIME_WAIT && state != FLOW_CLOSE && alive(f->real_slot, f->real_gen))
		return 0;
	if (!unlink_flow(at, gen))
		return 0;
	v->found = at + 1;
	return 1;
}

SEPARATE __u32 make_room(__u32 now)
{
	struct victim v = { .now = now };
	struct control *c = get_control();

	if (!c)
		return 0;
	v.young = c->young;
	bpf_loop(TRIES, try_victim, &v, 0);
	if (c->no_room != !v.found)
		WRITE_ONCE(c->no_room, !v.found);
	return v.found;
}

/* overloaded applies a real server's thresholds (ipvsadm -x, -y): no new
 * connections once there are upper, until there are fewer than lower. */
static __always_inline int overloaded(struct real *r)
{
	__u32 upper = r->upper, lower = r->lower, was = READ_ONCE(r->overloaded), n, is;

	if (!upper && !was)
		return 0;
	if (!lower)
		lower = (__u32)((__u64)upper * 3 / 4);
	if (lower > upper) /* nobody wants it to come and go with each connection */
		lower = upper;
	n = READ_ONCE(r->active) + READ_ONCE(r->inactive);
	is = upper && n >= (was ? lower : upper);
	if (is != was && !tracing)
		r->overloaded = is;
	return is;
}

static __always_inline int finished(const struct flow *f, __u32 now)
{
	struct control *c = get_control();
	__u32 state = STATE(READ_ONCE(f->word));

	return state == FLOW_TIME_WAIT || state == FLOW_CLOSE || !alive(f->real_slot, f->real_gen) ||
	       (c && (__s32)(now - f->seen) > (__s32)c->timeout[state & 7]);
}

/* claim enters the way back into the index, or says why not. A connection that
 * is over gives way. */
static __always_inline enum reason claim(struct flow *f, __u32 slot, __u32 now)
{
	__u64 hash = ends_hash(&f->real, &f->client, f->rport, f->cport, PROTO(f->word)), e;
	enum place at = PLACE_TWIN;
	__u32 other, gen;
	struct flow *old;

	if (slot != max_flows) { /* not tracing */
		at = place(hash, slot | INDEX_TO_CLIENT, 0);
		if (at != PLACE_TWIN)
			goto out;
	}
	e = find_entry(hash);
	other = (__u32)e & ~INDEX_TO_CLIENT;
	old = e ? bpf_map_lookup_elem(&flows, &other) : 0;
	gen = old ? READ_ONCE(old->gen) : 0;
	if (slot == max_flows)
		return gen && !finished(old, now) ? REASON_COLLISION : REASON_NONE;
	if (!(gen & 1) || !finished(old, now))
		return REASON_COLLISION;
	end_flow(other, gen);
	at = place(hash, slot | INDEX_TO_CLIENT, 0);
out:
	if (at == PLACE_MADE)
		return REASON_NONE;
	return at == PLACE_FULL ? REASON_TABLE_FULL : REASON_COLLISION;
}

/* begin_flow writes a new connection's record: nobody else knows it, it is in no
 * index and its generation is even. */
static __always_inline void begin_flow(struct flow *f, const struct tuple *t, int v6, __u32 now)
{
	f->word = (t->proto == IPPROTO_UDP ? FLOW_UDP : FLOW_SYN_RECV) | (v6 ? FLOW_V6 : 0) | (__u32)t->proto << 16;
	f->seen = now;
	f->client = t->src;
	f->cport = t->sport;
	f->virt = t->dst;
	f->vport = t->dport;
	f->route[0].stamp = 0;
	f->route[1].stamp = 0;
}

/* lead_to writes which real server it has. */
static __always_inline void lead_to(struct flow *f, const struct real *r, __u32 real, __u32 gen)
{
	__u32 word = (f->word & 0x00ffffff & ~FLOW_LOCAL) | (__u32)r->forward << 24;

	f->real_slot = real;
	f->real_gen = gen;
	if (r->flags & REAL_LOCAL)
		word |= FLOW_LOCAL;
	f->word = word;
	if (r->forward == FORWARD_MASQ) {
		f->real = r->addr;
		/* A service by mark may have SCTP among others; its ports stay. */
		f->rport = r->port && PROTO(word) != IPPROTO_SCTP ? r->port : f->vport;
		f->delta = fold16(addr_delta(&f->virt, &f->real, !is4(&f->virt)));
	} else {
		f->real = f->virt;
		f->rport = f->vport;
	}
}

/* come_alive makes a record that has all its entries a connection. */
static __always_inline void come_alive(struct flow *f, struct real_cpu *rc, __u32 gen)
{
	/* Ordered after all of it (an atomic with a result is a barrier). */
	__sync_val_compare_and_swap(&f->gen, gen - 1, gen);
	count_connections(f->real_slot, 0, 1);
	rc->count.connections++;
}

/* try_real gives the record to a real server, or says why not. */
SEPARATE enum reason try_real(__u32 slot, __u32 real, __u32 now)
{
	struct flow *f = bpf_map_lookup_elem(&flows, &slot);
	struct real *r = bpf_map_lookup_elem(&reals, &real);
	struct real_cpu *rc = real_on_this_cpu(real);
	__u32 gen;

	if (!f || !r || !rc)
		return REASON_NO_REAL;
	gen = READ_ONCE(rc->gen);
	if (!(gen & 1) || r->weight <= 0) /* deleted or quiesced this moment */
		return REASON_NO_REAL;
	if (overloaded(r))
		return REASON_OVERLOADED;
	lead_to(f, r, real, gen);
#ifdef BATUTA_SOCKET
	asm volatile("" : : "r"(now)); /* else nobody would pass it, and the verifier misses it */
#else
	if (slot <= max_flows && (r->forward == FORWARD_MASQ || (r->flags & REAL_LOCAL)))
		return claim(f, slot, now);
#endif
	return REASON_NONE;
}

/* ring_at gives the real server at a place of the ring that begins with entry first. */
static __always_inline __u32 *ring_at(__u32 first, __u32 place)
{
	__u32 at = first + (place >> 1);
	struct ring_entry *e = bpf_map_lookup_elem(&rings, &at);

	return e ? &e->real[place & 1] : 0;
}

struct tries {
	__u32 slot;
	__u32 first;
	__u32 count;
	__u32 start;
	__u32 now;
	__u32 why;
};

static long try_place(__u64 i, struct tries *t)
{
	__u32 at = t->start + (__u32)i, why, *real;

	if (at >= t->count) /* once around at most */
		at -= t->count;
	real = ring_at(t->first, at);
	if (!real)
		return 1;
	why = try_real(t->slot, *real, t->now);
	/* Of several reasons the one that says most is told. */
	if (why == REASON_NONE || t->why == REASON_NO_REAL)
		t->why = why;
	return why == REASON_NONE;
}

/* The least of all: costs are compared as fractions, the first of equals wins. */
struct least {
	__u32 first;
	__u32 choice;
	__u32 best;
	__u32 found;
	__u64 cost;
	__u64 per;
};

static __always_inline void cost_of(const struct real *r, __u32 choice, __u64 *cost, __u64 *per)
{
	__u64 active = READ_ONCE(r->active), weight = (__u32)r->weight;

	*per = 1;
	if (choice == CHOOSE_LC || choice == CHOOSE_WLC || choice == CHOOSE_TWO) {
		/* An inactive connection is a small part of an active one. */
		*cost = active * 256 + READ_ONCE(r->inactive);
		if (choice != CHOOSE_LC)
			*per = weight;
	} else if (choice == CHOOSE_SED) {
		*cost = active + 1;
		*per = weight;
	} else if (choice == CHOOSE_NQ) {
		*cost = active ? active + 1 : 0;
		*per = weight;
	} else { /* fo, ovf: the heaviest; ovf: that is not full */
		*cost = (1 << 16) - weight;
		if (choice == CHOOSE_OVF && active >= weight)
			*cost = 1ull << 20;
	}
}

static __always_inline int less(__u32 choice, __u64 cost, __u64 per, __u64 than, __u64 its_per)
{
	if (choice == CHOOSE_NQ && !cost && !than) /* of idle ones the heaviest */
		return per > its_per;
	return cost * its_per < than * per;
}

static long least_of(__u64 i, struct least *l)
{
	__u32 *at = ring_at(l->first, (__u32)i);
	struct real *r = at ? bpf_map_lookup_elem(&reals, at) : 0;
	__u64 cost, per;

	if (!r)
		return 1;
	if (r->weight <= 0 || overloaded(r))
		return 0;
	cost_of(r, l->choice, &cost, &per);
	if (!l->found || less(l->choice, cost, per, l->cost, l->per)) {
		l->found = 1;
		l->best = (__u32)i;
		l->cost = cost;
		l->per = per;
	}
	return 0;
}

static __always_inline __u32 less_loaded(__u32 first, __u32 a, __u32 b)
{
	__u32 *at_a = ring_at(first, a), *at_b = ring_at(first, b);
	struct real *ra = at_a ? bpf_map_lookup_elem(&reals, at_a) : 0;
	struct real *rb = at_b ? bpf_map_lookup_elem(&reals, at_b) : 0;
	__u64 cost_a, per_a, cost_b, per_b;

	if (!ra || !rb)
		return a;
	cost_of(ra, CHOOSE_TWO, &cost_a, &per_a);
	cost_of(rb, CHOOSE_TWO, &cost_b, &per_b);
	return less(CHOOSE_TWO, cost_b, per_b, cost_a, per_a) ? b : a;
}

static __always_inline __u64 hash_addr(const struct addr *a, __u32 port)
{
	return mix(mix(mix(0x5bd1e995, a->d[0]), a->d[1]), port);
}

/* part is where a number of 32 bits lies among count places: much quicker than
 * a remainder. */
static __always_inline __u32 part(__u64 n, __u32 count)
{
	return n * count >> 32;
}

static __always_inline __u32 turn(struct service *s, __u32 count)
{
	return __sync_fetch_and_add(&s->next, 1) % count;
}

/* choose gives the place in the ring. */
SEPARATE __u32 choose(struct service *s, const struct tuple *t, __u32 first, __u32 count)
{
	struct least l = { .first = first };
	__u64 h, zero;

	if (!s || !t || !count)
		return 0;
	l.choice = s->choice;
	/* Before Linux 6.7 the verifier takes a loop's body to run once, knows what
	 * it begins with, and takes away what only a later round would reach. */
	zero = READ_ONCE(s->zero);
	l.found = zero;
	l.cost = zero;
	l.per = zero;
	if (l.choice == CHOOSE_TURN) {
		if (tracing)
			return READ_ONCE(s->next) % count;
		return turn(s, count);
	}
	if (l.choice == CHOOSE_SOURCE || l.choice == CHOOSE_DESTINATION) {
		if (l.choice == CHOOSE_SOURCE)
			h = hash_addr(&t->src, s->flags & SERVICE_HASH_PORT ? t->sport : 0);
		else
			h = hash_addr(&t->dst, 0);
		return part(h >> 32, count);
	}
	if (l.choice == CHOOSE_TWO) {
		h = tracing ? 0 : (__u64)bpf_get_prandom_u32() << 32 | bpf_get_prandom_u32();
		return less_loaded(first, part((__u32)h, count), part(h >> 32, count));
	}
	bpf_loop(times(count, LEAST_OF), least_of, &l, 0);
	return l.best;
}

/* fits tells whether a rule is for a packet. */
static __always_inline int fits(const struct rule *r, const struct tuple *t, __u32 ifindex)
{
	__u16 port = bpf_ntohs(t->dport);

	return r->service && (!r->proto || r->proto == t->proto) && (!r->ifindex || r->ifindex == ifindex) &&
	       port >= r->first && port <= r->last && r->v6 == !is4(&t->dst) &&
	       !(((t->dst.d[0] ^ r->dst.d[0]) & r->dst_mask.d[0]) | ((t->dst.d[1] ^ r->dst.d[1]) & r->dst_mask.d[1])) &&
	       !(((t->src.d[0] ^ r->src.d[0]) & r->src_mask.d[0]) | ((t->src.d[1] ^ r->src.d[1]) & r->src_mask.d[1]));
}

/* How many rules there may be. */
#define RULES 64

struct match {
	struct tuple t;
	__u32 ifindex;
	__u32 service;
};

static long try_rule(__u64 i, struct match *m)
{
	__u32 at = (__u32)i;
	struct rule *r = bpf_map_lookup_elem(&rules, &at);

	if (!r)
		return 1;
	if (!fits(r, &m->t, m->ifindex))
		return 0;
	m->service = READ_ONCE(r->service);
	return 1;
}

/* classify gives the slot + 1 of the service by mark that a packet belongs to, 0 for none. */
SEPARATE __u32 classify(const struct tuple *t, __u32 ifindex)
{
	struct match m = { .ifindex = ifindex };
	struct control *c = get_control();

	if (!t || !c)
		return 0;
	m.t = *t;
	bpf_loop(times(READ_ONCE(c->rules), RULES), try_rule, &m, 0);
	return m.service;
}

/* is_elsewhere tells whether another plane carries a connection. */
SEPARATE int is_elsewhere(const struct tuple *t)
{
	struct tuple key; /* on the stack: older verifiers take no other */
	__u32 zero = 0;
	void *map;

	if (!t)
		return 0;
	key = *t;
	map = bpf_map_lookup_elem(&elsewhere, &zero);
	return map && bpf_map_lookup_elem(map, &key);
}

/* find_service gives the service that a new connection belongs to: by mark,
 * by its port, or for all ports. 0 also if another plane knows it. */
static __always_inline struct service *find_service(const struct tuple *t, __u32 ifindex)
{
	struct service_key key = { .addr = t->dst, .port = t->dport, .proto = t->proto };
	struct control *c = get_control();
	__u32 features, *slot, marked;

	if (!c)
		return 0;
	features = c->features;
	if (features & FEATURE_RULES) {
		marked = classify(t, ifindex);
		if (marked) {
			marked--;
			if ((features & FEATURE_ELSEWHERE) && is_elsewhere(t))
				return 0;
			return bpf_map_lookup_elem(&services, &marked);
		}
	}
	slot = bpf_map_lookup_elem(&service_slots, &key);
	if (!slot) {
		if (!(features & FEATURE_ANY_PORT))
			return 0;
		key.port = 0;
		slot = bpf_map_lookup_elem(&service_slots, &key);
	}
	if (!slot || ((features & FEATURE_ELSEWHERE) && is_elsewhere(t)))
		return 0;
	return bpf_map_lookup_elem(&services, slot);
}

static __always_inline void stay_key(const struct tuple *t, const struct service *s, __u32 slot,
				     struct stay_key *k)
{
	k->client.d[0] = t->src.d[0] & s->mask.d[0];
	k->client.d[1] = t->src.d[1] & s->mask.d[1];
	k->service = slot;
}

/* home gives the slot + 1 of the real server that a client had before, 0 for none. */
static __always_inline __u32 home(const struct stay_key *k, __u32 now)
{
	struct stay *s = bpf_map_lookup_elem(&stays, k);

	if (!s || (__s32)(now - s->expires) >= 0 || !alive(s->real, s->real_gen))
		return 0;
	return s->real + 1;
}

/* schedule gives record slot to a real server. */
static __always_inline enum reason schedule(CTX *ctx, const struct tuple *to, struct service *s,
					    __u32 slot, __u32 now)
{
	struct tries t = { .slot = slot, .now = now };
	struct stay_key k = {};
	struct stay stay = {};
	__u64 ring = READ_ONCE(s->ring);
	__u32 had = 0;
	struct flow *f;

	t.first = ring >> 32;
	t.count = (__u32)ring;
	if (!t.count)
		return REASON_NO_REAL;
	if (s->flags & SERVICE_STAYS) {
		/* A service is known by its slot, which its real servers know. */
		__u32 *at = ring_at(t.first, 0);
		struct real *r = at ? bpf_map_lookup_elem(&reals, at) : 0;

		if (!r)
			return REASON_NO_REAL;
		stay_key(to, s, r->service, &k);
		had = home(&k, now);
		if (had)
			t.why = try_real(slot, had - 1, now);
	}
	if (!had || t.why != REASON_NONE) {
		had = 0;
		t.why = REASON_NO_REAL;
		t.start = choose(s, to, t.first, t.count);
		try_place(0, &t); /* most often it will do */
		if (t.why != REASON_NONE) {
			t.start++;
			bpf_loop(times(t.count, TRIES), try_place, &t, 0);
		}
		if (t.why != REASON_NONE)
			return t.why;
	}
	trace(ctx, TRACE_HOW, had ? TRACE_STAYED : TRACE_NEW);
	if (!(s->flags & SERVICE_STAYS) || tracing)
		return REASON_NONE;
	f = bpf_map_lookup_elem(&flows, &slot);
	if (!f)
		return REASON_NONE;
	f->word |= FLOW_STAYS;
	stay.real = f->real_slot;
	stay.real_gen = f->real_gen;
	stay.expires = now + s->stays;
	if (bpf_map_update_elem(&stays, &k, &stay, BPF_ANY))
		count_reason(ctx, to, REASON_STAYS_FULL);
	return REASON_NONE;
}
