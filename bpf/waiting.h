/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* waiting.h: half-open connections of a full table.
 *
 * Where no record is free a SYN gets none. It is carried all the same, and two
 * notes, one for each direction, tell which real server it has; the connection
 * gets its record when its client goes on. So a flood of SYNs ends nobody's
 * connection, and a SYN of it costs no more than one packet. A note is
 * overwritten by the next one that falls on its place: whose it was has to begin
 * anew.
 *
 * A note is the upper 24 bits of the hash of a packet's ends, the lower 16 of
 * its real server's generation, and its slot. Generations of those that are alive
 * are odd: the lowest bit tells instead whether the real server has answered. */
#pragma once

#include "schedule.h"

/* How long notes are looked for after the last was made: as long as a half-open
 * connection has. */
#define WAIT_TICKS 0x10000

#define NOTE_ANSWERED (1ull << 24)
#define WAITS_ANSWERED (1u << 31) /* the same in what waits_for says */

/* Behind the records of passing datagrams (passing_slot) are those of packets
 * that have a note, one for each processor. */
static __always_inline __u32 waiting_slot(void)
{
	return max_flows + 1 + cpus + bpf_get_smp_processor_id();
}

static __always_inline int any_waits(const struct control *c, __u32 now)
{
	return c->waits_until - now - 1 < WAIT_TICKS;
}

/* may_wait tells whether a service's SYNs may do with a note: what a note does not
 * tell, its service's address and port do. No real server's gauge counts it, so
 * those that look for the least of half-open ones would give all to one. */
static __always_inline int may_wait(const struct service *s, __u8 proto)
{
	return proto == IPPROTO_TCP && s->key.port && !(s->flags & SERVICE_STAYS) && s->choice != CHOOSE_LC &&
	       s->choice != CHOOSE_WLC && s->choice != CHOOSE_TWO;
}

/* note_at gives the place of a note: an even one for a client's packets, an odd one
 * for a real server's, so that no connection's overwrite one another. */
static __always_inline __u64 *note_at(__u64 hash, enum direction dir)
{
	__u32 at = ((__u32)hash & note_mask) << 1 | dir;

	return bpf_map_lookup_elem(&notes, &at);
}

/* is_noted tells whether a note is about ends of that hash. */
static __always_inline int is_noted(__u64 note, __u64 hash)
{
	return note && !((note ^ hash) >> 40);
}

static __always_inline int has_note(__u64 hash)
{
	__u64 *at = note_at(hash, TO_REAL);

	return at && is_noted(READ_ONCE(*at), hash);
}

static __always_inline __u64 new_note(__u64 hash, __u32 real, __u32 gen)
{
	return (hash >> 40) << 40 | (__u64)(gen & 0xfffe) << 24 | real;
}

static __always_inline void make_note(__u64 hash, enum direction dir, __u32 real, __u32 gen)
{
	__u64 *at = note_at(hash, dir);

	if (at)
		WRITE_ONCE(*at, new_note(hash, real, gen));
}

/* keep_waiting has notes looked for, from now on. */
static __always_inline void keep_waiting(struct control *c, __u32 now)
{
	if (c->waits_until - now - (WAIT_TICKS - 1024) > 1024) /* not for each packet: processors share it */
		WRITE_ONCE(c->waits_until, now + WAIT_TICKS);
}

/* noted gives the slot + 1 of the real server that a note tells, 0 if there is no
 * note or the real server has gone, with WAITS_ANSWERED if that has answered. */
static __always_inline __u32 noted(__u64 hash, enum direction dir)
{
	__u64 *at = note_at(hash, dir), note = at ? READ_ONCE(*at) : 0;
	__u32 real = note & 0xffffff, gen;
	struct real_cpu *rc;

	if (!is_noted(note, hash))
		return 0;
	rc = real_on_this_cpu(real);
	gen = rc ? READ_ONCE(rc->gen) : 0;
	if (!(gen & 1) || (__u16)gen != ((__u16)(note >> 24) | 1))
		return 0;
	return (real + 1) | (note & NOTE_ANSWERED ? WAITS_ANSWERED : 0);
}

/* waits_for gives the slot + 1 of the real server that a client of service s waits
 * for, 0 for none, with WAITS_ANSWERED if that has answered. */
SEPARATE __u32 waits_for(const struct tuple *t, const struct service *s, __u32 now)
{
	struct control *c = get_control();
	struct service *its;
	struct real *r;
	__u32 real, at;

	if (!t || !s || !c || !any_waits(c, now) || !may_wait(s, t->proto))
		return 0;
	real = noted(tuple_hash(t), TO_REAL);
	if (!real)
		return 0;
	at = (real & ~WAITS_ANSWERED) - 1;
	r = bpf_map_lookup_elem(&reals, &at);
	if (!r)
		return 0;
	at = r->service;
	its = bpf_map_lookup_elem(&services, &at);
	return its && its->key.port == s->key.port && same_addr(&its->key.addr, &s->key.addr) ? real : 0;
}

/* note_both writes the notes of a connection whose record nobody else sees. */
SEPARATE int note_both(__u32 slot, __u32 now)
{
	struct flow *f = bpf_map_lookup_elem(&flows, &slot);
	struct control *c = get_control();

	if (!f || !c)
		return 0;
	keep_waiting(c, now);
	make_note(ends_hash(&f->client, &f->virt, f->cport, f->vport, IPPROTO_TCP), TO_REAL, f->real_slot, f->real_gen);
	if (FORWARD(f->word) == FORWARD_MASQ && !(f->word & FLOW_LOCAL))
		make_note(ends_hash(&f->real, &f->client, f->rport, f->cport, IPPROTO_TCP), TO_CLIENT, f->real_slot, f->real_gen);
	return 0;
}

/* answers_waiting tells whether a packet is a real server's to a client that waits
 * for it, and writes the record of such a connection: it is in no index. */
SEPARATE int answers_waiting(const struct tuple *t, __u32 now)
{
	__u32 slot = waiting_slot(), real, at;
	struct tuple to = {};
	__u64 hash, *note;
	struct service *s;
	struct real_cpu *rc;
	struct flow *f;
	struct real *r;

	if (!t || t->proto != IPPROTO_TCP)
		return 0;
	real = noted(tuple_hash(t), TO_CLIENT);
	if (!real)
		return 0;
	real--;
	r = bpf_map_lookup_elem(&reals, &real);
	rc = real_on_this_cpu(real);
	f = bpf_map_lookup_elem(&flows, &slot);
	if (!r || !rc || !f || r->forward != FORWARD_MASQ || (r->flags & REAL_LOCAL) || !same_addr(&r->addr, &t->src))
		return 0;
	at = r->service;
	s = bpf_map_lookup_elem(&services, &at);
	if (!s || !may_wait(s, IPPROTO_TCP) || t->sport != (r->port ? r->port : s->key.port))
		return 0;
	to.src = t->dst;
	to.sport = t->dport;
	to.dst = s->key.addr;
	to.dport = s->key.port;
	to.proto = IPPROTO_TCP;
	begin_flow(f, &to, !is4(&to.dst), now);
	lead_to(f, r, real, READ_ONCE(rc->gen));
	hash = tuple_hash(&to);
	note = note_at(hash, TO_REAL);
	if (note && READ_ONCE(*note) == new_note(hash, real, f->real_gen))
		WRITE_ONCE(*note, new_note(hash, real, f->real_gen) | NOTE_ANSWERED);
	return 1;
}

/* find_waiting finds the connection that a real server's packet belongs to, if its
 * client waits for it. What would open a connection answers none. */
static __always_inline int find_waiting(const struct packet *p, struct hit *h, __u32 now)
{
	struct control *c = get_control();

	if (!c || !any_waits(c, now) || opens(p) || !answers_waiting(&p->t, now))
		return 0;
	h->slot = waiting_slot();
	h->f = bpf_map_lookup_elem(&flows, &h->slot);
	if (!h->f)
		return 0;
	h->gen = h->f->gen + 1;
	h->word = h->f->word;
	h->rc = real_on_this_cpu(h->f->real_slot);
	h->dir = TO_CLIENT;
	h->dead = 0;
	return h->rc != 0;
}
