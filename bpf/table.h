/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* table.h: the index of the connection table.
 *
 * A tuple has two buckets, each a cache line of eight entries; an entry goes
 * into the first free place of the first, else of the second. The index has
 * twice as many places as all connections need, so that both are full for
 * about one in four thousand tuples of a full table (those are refused, as if
 * the table were full). An entry leads to a record, and the record's own
 * addresses decide. */
#pragma once

#include "maps.h"

static __always_inline __u64 mix(__u64 h, __u64 v)
{
	h = (h ^ v) * 0x9e3779b97f4a7c15ull;
	return h ^ h >> 32;
}

/* A product carries upwards only: what differs in the upper half alone must be
 * folded down and multiplied again, or tuples that differ in the last bytes of
 * addresses and in ports (a flood, a scan) come together in few buckets. */
static __always_inline __u64 ports_hash(__u64 h, __u32 ports, __u8 proto)
{
	return mix(mix(h, (__u64)proto << 32 | ports), 0);
}

static __always_inline __u64 ends_hash(const struct addr *src, const struct addr *dst, __be16 sport,
				       __be16 dport, __u8 proto)
{
	/* IPv4 addresses lie in the upper halves: in one word they are both whole. */
	__u64 h = mix(seed ^ (src->d[1] >> 32 | src->d[1] << 32), dst->d[1]);

	if (src->d[0] | dst->d[0]) {
		h = mix(h, src->d[1]);
		h = mix(h, src->d[0]);
		h = mix(h, dst->d[0]);
	}
	return ports_hash(h, (__u32)dport << 16 | sport, proto);
}

/* ends4_hash is the same of two IPv4 addresses, as they follow one another in a
 * header, and two ports likewise. */
static __always_inline __u64 ends4_hash(__u64 ends, __u32 ports, __u8 proto)
{
	return ports_hash(mix(seed ^ (MAPPED << 32 | MAPPED), ends), ports, proto);
}

static __always_inline __u64 tuple_hash(const struct tuple *t)
{
	return ends_hash(&t->src, &t->dst, t->sport, t->dport, t->proto);
}

static __always_inline __u32 tag_of(__u64 hash)
{
	return (__u32)(hash >> 32) | 1;
}

static __always_inline __u32 first_bucket(__u64 hash)
{
	return (__u32)hash & index_mask;
}

static __always_inline __u32 second_bucket(__u32 first, __u32 tag)
{
	return (first ^ ((tag >> 1) * 0x5bd1e995 | 1)) & index_mask; /* another one: the last bit differs */
}

/* Tags are looked at without their slots: what is entered or removed between
 * one look and the other leads to a record that is not the tuple's. */
static __always_inline __u64 find_in(__u32 at, __u32 tag)
{
	struct bucket *b = bpf_map_lookup_elem(&flow_index, &at);
	__u32 *half = (__u32 *)b;
	int i;

	if (!b)
		return 0;
#pragma unroll
	for (i = 0; i < 8; i++)
		if (READ_ONCE(half[2 * i + 1]) == tag) /* one at most, and most often one of the first */
			return (__u64)tag << 32 | READ_ONCE(half[2 * i]);
	return 0;
}

/* find_entry gives the entry of a tuple's hash, 0 if there is none. */
static __always_inline __u64 find_entry(__u64 hash)
{
	__u32 tag = tag_of(hash), first = first_bucket(hash);
	__u64 e = find_in(first, tag);

	return e ? e : find_in(second_bucket(first, tag), tag);
}

/* has_tag tells whether a bucket has a tag in another place than that one. */
static __always_inline int has_tag(struct bucket *b, __u32 tag, int but)
{
	__u32 *half = (__u32 *)b;
	int i;

#pragma unroll
	for (i = 0; i < 8; i++)
		if (READ_ONCE(half[2 * i + 1]) == tag && i != but)
			return 1;
	return 0;
}

enum place {
	PLACE_MADE,
	PLACE_FULL,
	PLACE_TWIN,
};

/* place enters a tuple's hash with a record's slot and direction, or says why
 * not: another tuple's entry with the same tag counts as a twin too. Two processors that enter one tuple at
 * the same moment may both find a twin, never none. (Who has just looked for one,
 * and found none, need not look before that.) */
SEPARATE enum place place(__u64 hash, __u32 slot, int looked)
{
	__u32 tag = tag_of(hash), first = first_bucket(hash);
	__u64 entry = (__u64)tag << 32 | slot;
	struct bucket *one, *two, *b;
	__u32 other = second_bucket(first, tag);
	int half, i;

	one = bpf_map_lookup_elem(&flow_index, &first);
	two = bpf_map_lookup_elem(&flow_index, &other);
	if (!one || !two)
		return PLACE_FULL;
	if (!looked && (has_tag(one, tag, -1) || has_tag(two, tag, -1)))
		return PLACE_TWIN;
	for (half = 0; half < 2; half++) {
		b = half ? two : one;
		for (i = 0; i < 8; i++) {
			if (READ_ONCE(b->entry[i]) ||
			    __sync_val_compare_and_swap(&b->entry[i], 0, entry))
				continue;
			if (has_tag(one, tag, half ? -1 : i) || has_tag(two, tag, half ? i : -1)) {
				__sync_val_compare_and_swap(&b->entry[i], entry, 0);
				return PLACE_TWIN;
			}
			return PLACE_MADE;
		}
	}
	return PLACE_FULL;
}

static __always_inline int empty(__u32 at, __u64 entry)
{
	struct bucket *b = bpf_map_lookup_elem(&flow_index, &at);
	int i;

	if (!b)
		return 0;
#pragma unroll
	for (i = 0; i < 8; i++)
		if (READ_ONCE(b->entry[i]) == entry)
			return __sync_val_compare_and_swap(&b->entry[i], entry, 0) == entry;
	return 0;
}

/* unplace removes what place entered, if it is there. */
SEPARATE int unplace(__u64 hash, __u32 slot)
{
	__u32 tag = tag_of(hash), first = first_bucket(hash);
	__u64 entry = (__u64)tag << 32 | slot;

	return empty(first, entry) || empty(second_bucket(first, tag), entry);
}
