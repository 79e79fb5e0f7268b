/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* route.h: where a packet leaves.
 *
 * A connection remembers the answer of the kernel's routing table until the
 * daemon hears of a change or an error tells of a narrower tunnel; where no daemon
 * listens, for about half a minute. The neighbor's hardware address is
 * remembered with the next hop for a second; the packet that asks for it again
 * goes by the kernel's own neighbor entry, so that its reachability is probed as
 * usual. */
#pragma once

#include "maps.h"
#include "parse.h"
#include "table.h"
#include "balance.h"

#ifndef AF_INET
#define AF_INET 2
#define AF_INET6 10
#endif

/* How long after its last look-up a next hop's place may be given to another. */
#define HOP_TICKS 80000
#define HOP_WRITTEN 2 /* hop.key while it is */
#define HOP_TRIES 8
#define PROBE_TICKS 1000

/* A hardware address as two numbers: the compiler would go byte by byte. */
struct mac {
	__u32 a;
	__u16 b;
};

static __always_inline void put_macs(void *frame, __u64 dmac, __u64 smac)
{
	struct mac *dst = frame, *src = frame + ETH_ALEN;

	dst->a = dmac;
	dst->b = dmac >> 32;
	src->a = smac;
	src->b = smac >> 32;
}

struct way {
	struct addr nexthop;
	__u32 ifindex;
	__u32 mtu;
	__u64 dmac; /* 0: the kernel's neighbor entry gives the frame's addresses */
	__u64 smac;
};

/* narrowed tells what fits into the way to a tunnel's end, 0 for what its links
 * carry. */
static __always_inline __u32 narrowed(const struct tuple *n)
{
	struct addr dst = n->dst; /* a key on the stack: older verifiers take no other */
	struct path *p;

	if (n->proto != IPPROTO_IPIP && n->proto != IPPROTO_IPV6)
		return 0;
	p = bpf_map_lookup_elem(&paths, &dst);
	return p && is_believed(p, ticks()) ? p->mtu : 0;
}

/* find_route gives REASON_NONE and a way, or the reason why there is none. n
 * holds the ends that the packet will have. Only a way with an mtu may be
 * remembered. */
SEPARATE enum reason find_route(CTX *ctx, const struct packet *p,
				const struct tuple *n, __u32 len, struct way *w)
{
	struct bpf_fib_lookup fib = {};
	__u32 narrow;
	int v6;
	long rc;

	if (!p || !n || !w)
		return REASON_NO_ROUTE;
	v6 = !is4(&n->dst);
	narrow = narrowed(n);
	fib.l4_protocol = n->proto;
	fib.sport = n->sport;
	fib.dport = n->dport;
	fib.tot_len = len > 0xffff ? 0xffff : len;
	fib.ifindex = ifindex_of(ctx);
	if (v6) {
		fib.family = AF_INET6;
		fib.flowinfo = bpf_htonl((__u32)p->tos << 20);
		__builtin_memcpy(fib.ipv6_src, &n->src, 16);
		__builtin_memcpy(fib.ipv6_dst, &n->dst, 16);
	} else {
		fib.family = AF_INET;
		fib.tos = p->tos & ~3; /* without ECN */
		fib.ipv4_src = addr4(&n->src);
		fib.ipv4_dst = addr4(&n->dst);
	}
	rc = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
	w->mtu = fib.mtu_result;
	if (narrow && (len > narrow || w->mtu > narrow))
		w->mtu = narrow;
	if (rc == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return REASON_TOO_BIG;
	if (rc != BPF_FIB_LKUP_RET_SUCCESS && rc != BPF_FIB_LKUP_RET_NO_NEIGH)
		return REASON_NO_ROUTE;
	if (fib.family != (v6 ? AF_INET6 : AF_INET)) /* an IPv6 next hop for IPv4: the stack can */
		return REASON_NO_ROUTE;
	if (narrow && len > narrow)
		return REASON_TOO_BIG;
	w->ifindex = fib.ifindex;
	if (v6)
		__builtin_memcpy(&w->nexthop, fib.ipv6_dst, 16);
	else
		w->nexthop = addr_of4(fib.ipv4_dst);
	if (rc == BPF_FIB_LKUP_RET_NO_NEIGH) {
		w->mtu = 0;
	} else {
		__builtin_memcpy(&w->dmac, fib.dmac, ETH_ALEN);
		__builtin_memcpy(&w->smac, fib.smac, ETH_ALEN);
	}
	return REASON_NONE;
}

/* route_stamp is what a route by a next hop is remembered under. It is never 0, and
 * another one when routes have changed or the hop's place has another owner. */
static __always_inline __u16 route_stamp(__u32 epoch, __u32 owners)
{
	return (epoch + owners) | 0x8000;
}

/* is_fresh tells whether a next hop is known well enough: its hardware address may
 * have changed since. */
static __always_inline int is_fresh(const struct hop *h, __u32 now)
{
	return now - h->seen < PROBE_TICKS;
}

#ifndef BATUTA_XDP

/* Carried in tc_index from ingress to egress: this packet is done. */
#define DONE 0xba7a

static __always_inline int may_leave(struct __sk_buff *skb, const struct hop *h)
{
	return h->dmac != 0;
}

/* leave sends a frame to a next hop's hardware address. */
static __always_inline int leave(struct __sk_buff *skb, void *frame, __u32 ifindex, __u64 dmac, __u64 smac)
{
	put_macs(frame, dmac, smac);
	skb->tc_index = DONE;
	return bpf_redirect(ifindex, 0);
}

/* send sends a packet to hardware addresses that are known, else by the kernel's neighbor entry. */
static __always_inline int send(struct __sk_buff *skb, const struct way *w)
{
	struct bpf_redir_neigh nh = {};
	void *frame = data_of(skb);

	trace(skb, TRACE_IFINDEX, w->ifindex);
	if (w->dmac && frame + ETH_HLEN <= end_of(skb))
		return leave(skb, frame, w->ifindex, w->dmac, w->smac);
	skb->tc_index = DONE;
	if (is4(&w->nexthop)) {
		nh.nh_family = AF_INET;
		nh.ipv4_nh = addr4(&w->nexthop);
	} else {
		nh.nh_family = AF_INET6;
		__builtin_memcpy(nh.ipv6_nh, &w->nexthop, 16);
	}
	return bpf_redirect_neigh(w->ifindex, &nh, sizeof(nh), 0);
}
#endif

#define NO_HOP 0xffff

/* keep_hop gives the place of a next hop in the shared table, above it how many
 * owners that has had; NO_HOP if there is none. */
SEPARATE __u32 keep_hop(const struct way *w, __u32 now)
{
	__u64 key, has, dmac, *ether;
	__u32 i, ifindex, owners;

	if (!w)
		return NO_HOP;
	ifindex = w->ifindex;
	ether = bpf_map_lookup_elem(&ethers, &ifindex);
	dmac = ether && *ether ? w->dmac : 0;
	key = mix(mix(mix(seed, w->nexthop.d[0]), w->nexthop.d[1]), w->ifindex) | 1;
	for (i = 0; i < HOP_TRIES; i++) {
		__u32 at = ((__u32)key + i) & hop_mask;
		struct hop *h = bpf_map_lookup_elem(&hops, &at);

		if (!h)
			return NO_HOP;
		owners = READ_ONCE(h->owners); /* before the key: whose place it was then */
		has = READ_ONCE(h->key);
		if (has == key) {
			if (h->ifindex != w->ifindex || !same_addr(&h->nexthop, &w->nexthop))
				continue;
#ifndef BATUTA_XDP /* where no packet tells the kernel that its neighbor is in use */
			h->seen = now;
#endif
			if (dmac && h->dmac != dmac)
				h->dmac = dmac;
			return owners << 16 | at;
		}
		if (has == HOP_WRITTEN || (has && now - READ_ONCE(h->seen) < HOP_TICKS))
			continue;
		if (__sync_val_compare_and_swap(&h->key, has, HOP_WRITTEN) != has)
			continue;
		owners = __sync_fetch_and_add(&h->owners, 1) + 1;
		h->nexthop = w->nexthop;
		h->ifindex = w->ifindex;
		h->dmac = dmac;
		h->smac = w->smac;
		/* Whoever sees it used (is_fresh) sees that it has another owner. */
		__sync_lock_test_and_set(&h->seen, now);
		__sync_lock_test_and_set(&h->key, key);
		return owners << 16 | at;
	}
	return NO_HOP;
}

/* recall gives the next hop that was remembered, 0 if none was or it must be asked
 * for again. */
static __always_inline struct hop *recall(const struct control *c, const struct route *mine, __u32 now)
{
	__u32 at = mine->hop;
	struct hop *h = bpf_map_lookup_elem(&hops, &at);

	return h && is_fresh(h, now) && READ_ONCE(mine->stamp) == route_stamp(c->route_epoch, READ_ONCE(h->owners)) ? h : 0;
}

/* remember keeps a route in r, for packets of connection f. Whoever asks afterwards
 * whose r still is comes after it (an atomic with a result is a barrier). */
static __always_inline void remember(struct flow *f, struct route *r, __u32 hop, __u32 mtu, __u16 stamp, __u32 now)
{
	WRITE_ONCE(r->stamp, 0);
	r->hop = hop;
	r->mtu = mtu > 0xffff ? 0xffff : mtu;
	WRITE_ONCE(r->stamp, stamp);
	__sync_lock_test_and_set(&f->seen, now);
}

/* route_of is what a connection's record remembers; those that are in no index
 * leave it to their real server. */
static __always_inline struct route *route_of(struct flow *f, struct real_cpu *rc, __u32 slot, __u32 dir)
{
	return is_alone(slot) ? &rc->route : &f->route[dir == TO_CLIENT];
}

/* is_plain tells whether a packet's real server, should it be a neighbor, is
 * reached as by any other connection's packets. */
static __always_inline int is_plain(const struct control *c, const struct packet *p, __u32 word, __u32 dir)
{
	return c->plain_routes && !(p->tos & ~3) && dir == TO_REAL && FORWARD(word) != FORWARD_IPIP && !tracing;
}

/* keep_route has connection and real server remember a way that was found under
 * that epoch; entry is the connection's, as in the index. A next hop that has not
 * been asked for lately is asked by tc, whose packet goes by the kernel's neighbor
 * entry. */
SEPARATE int keep_route(const struct packet *p, const struct tuple *n, __u32 entry, struct way *w, __u32 epoch)
{
	__u32 slot = entry & ~INDEX_TO_CLIENT, dir = entry & INDEX_TO_CLIENT ? TO_CLIENT : TO_REAL;
	struct flow *f = bpf_map_lookup_elem(&flows, &slot);
	struct control *c = get_control();
	__u32 real, now, at;
	struct real_cpu *rc;
	struct hop *h;
	struct real *r;
	__u16 stamp;

	if (!c || !p || !n || !w || !f)
		return 0;
	real = f->real_slot;
	rc = real_on_this_cpu(real);
	now = ticks_of(c);
	at = keep_hop(w, now);
	if (!rc || at == NO_HOP)
		goto out;
	stamp = route_stamp(epoch, at >> 16);
	at &= 0xffff;
	if (is_plain(c, p, f->word, dir) && same_addr(&w->nexthop, &n->dst))
		remember(f, &rc->direct, at, w->mtu, stamp, now);
	remember(f, route_of(f, rc, slot, dir), at, w->mtu, stamp, now);
	/* Of a real server that has become another meanwhile nothing is remembered. */
	r = bpf_map_lookup_elem(&reals, &real);
	if (is_alone(slot) && (!r || !same_addr(&r->addr, &n->dst) || r->forward != FORWARD(f->word)))
		rc->route.stamp = 0;
	h = bpf_map_lookup_elem(&hops, &at);
	if (!OFFLOADS && h && is_fresh(h, now))
		return 0;
out:
	if (OFFLOADS || at != NO_HOP)
		w->dmac = 0;
	return 0;
}

/* is_still tells whether the record is still the connection's that was found: a slot
 * given to another has another generation, and what was read or remembered may be
 * the other's. */
static __always_inline int is_still(const struct hit *h)
{
	asm volatile("" ::: "memory");
	if (h->slot >= max_flows || READ_ONCE(h->f->gen) == h->gen)
		return 1;
	h->f->route[TO_REAL].stamp = 0;
	h->f->route[TO_CLIENT].stamp = 0;
	return 0;
}

/* known_route gives the way that a connection or, for its first packet, its real
 * server remembers, 0 if there is none. */
SEPARATE int known_route(const struct packet *p, const struct tuple *n, __u32 entry, struct way *w)
{
	__u32 slot = entry & ~INDEX_TO_CLIENT, dir = entry & INDEX_TO_CLIENT ? TO_CLIENT : TO_REAL, now;
	struct flow *f = bpf_map_lookup_elem(&flows, &slot);
	struct real_cpu *rc = f ? real_on_this_cpu(f->real_slot) : 0;
	struct control *c = get_control();
	struct route *r;
	struct hop *h;

	if (!p || !n || !w || !rc || !c)
		return 0;
	now = ticks_of(c);
	r = route_of(f, rc, slot, dir);
	h = recall(c, r, now);
	if (!h) {
		h = is_plain(c, p, f->word, dir) ? recall(c, &rc->direct, now) : 0;
		if (!h || !same_addr(&h->nexthop, &n->dst))
			return 0;
		remember(f, r, rc->direct.hop, rc->direct.mtu, rc->direct.stamp, now);
	}
	w->mtu = r->mtu;
	w->ifindex = h->ifindex;
	w->dmac = h->dmac;
	w->smac = h->smac;
	w->nexthop = h->nexthop;
	return 1;
}

/* flow_route gives the way of a connection's packet, or the reason why there is
 * none. n holds the ends that the packet will have, room is what will be put
 * before it. */
static __always_inline enum reason flow_route(CTX *ctx, const struct packet *p, const struct hit *hit,
					      const struct tuple *n, __u32 room, struct way *w)
{
	struct control *c = get_control();
	enum reason why;
	__u32 epoch;

	if (!c)
		return REASON_NO_ROUTE;
	if (known_route(p, n, slot_of(hit), w)) {
		if (OFFLOADS && room) /* a tunnel's packet gets its header later */
			w->dmac = 0;
		return p->segment + room > w->mtu ? REASON_TOO_BIG : REASON_NONE;
	}
	epoch = READ_ONCE(c->route_epoch); /* before the look-up, or a change meanwhile would be forgotten */
	why = find_route(ctx, p, n, p->segment + room, w);
	if (why == REASON_NONE && w->mtu && !tracing)
		keep_route(p, n, slot_of(hit), w, epoch);
	else if (OFFLOADS)
		w->dmac = 0;
	return why;
}
