/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* fragment.h: later fragments follow their first one.
 *
 * Only the first fragment carries ports. It leaves a note of what it was, and
 * the later ones do the same. A later one that comes before its first is
 * dropped and counted if it concerns a virtual address or a real server: the
 * stack owns the virtual address and could not translate it, and a real
 * server's address is not for clients to see. */
#pragma once

#include "conn.h"

#define FRAGMENT_TICKS 30000 /* as long as a stack waits for the rest (RFC 791 says 15 s at least) */

static __always_inline void fragment_key(const struct packet *p, struct fragment_key *k)
{
	k->src = p->t.src;
	k->dst = p->t.dst;
	k->id = p->id;
	k->proto = p->t.proto;
}

static __always_inline int has_role(const struct addr *a, __u32 role)
{
	struct addr key = *a; /* before Linux 6.2 a key lies on the stack */
	__u32 *roles = bpf_map_lookup_elem(&addresses, &key);

	return roles && (*roles & role);
}

static __always_inline int fragment_matters(const struct packet *p)
{
	return has_role(&p->t.dst, ADDRESS_VIRTUAL) || has_role(&p->t.src, ADDRESS_REAL);
}

/* note_first remembers what a first fragment was; gen is 0 if it was not balanced. */
SEPARATE int note_first(const struct packet *p, __u32 slot, __u32 gen, __u32 now)
{
	struct fragment_key k = {};
	struct fragment note = { .seen = now, .fate = FRAGMENT_PASS };

	if (!p || tracing)
		return 0;
	if (gen) {
		note.fate = FRAGMENT_FLOW;
		note.slot = slot;
		note.gen = gen;
	} else if (!fragment_matters(p)) {
		return 0;
	}
	fragment_key(p, &k);
	bpf_map_update_elem(&fragments, &k, &note, BPF_ANY);
	return 0;
}

/* find_fragment tells what to do with a later fragment: 1 follow h, 0 leave
 * it alone, -1 drop it. */
static __always_inline int find_fragment(const struct packet *p, struct hit *h, __u32 now)
{
	struct fragment_key k = {};
	struct fragment *note;

	fragment_key(p, &k);
	note = bpf_map_lookup_elem(&fragments, &k);
	if (note && now - note->seen < FRAGMENT_TICKS) {
		if (note->fate == FRAGMENT_PASS)
			return 0;
		if (follow(note->slot, h) && h->gen == note->gen)
			return 1;
	}
	return fragment_matters(p) ? -1 : 0;
}
