/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* route.h: where a packet leaves.
 *
 * A connection remembers the answer of the kernel's routing table for about a
 * second, or until the daemon hears of a change. The neighbour is resolved by
 * the kernel at each packet, so that its reachability is probed as usual. */
#pragma once

#include "maps.h"
#include "parse.h"

#ifndef AF_INET
#define AF_INET 2
#endif

/* find_route gives REASON_NONE and a route, or the reason why the stack has
 * to carry the packet. src and dst are those the packet will have. Only a
 * route with a non-zero mtu may be remembered. */
static __always_inline enum reason find_route(struct __sk_buff *skb, const struct packet *p,
					      __be32 src, __be32 dst, __be16 sport, __be16 dport,
					      struct route *r)
{
	struct bpf_fib_lookup fib = {
		.family = AF_INET,
		.l4_protocol = p->t.proto,
		.sport = sport,
		.dport = dport,
		.tot_len = p->segment,
		.ifindex = skb->ifindex,
		.tos = p->tos,
		.ipv4_src = src,
		.ipv4_dst = dst,
	};
	long rc = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);

	if (rc == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return REASON_TOO_BIG;
	if (rc != BPF_FIB_LKUP_RET_SUCCESS && rc != BPF_FIB_LKUP_RET_NO_NEIGH)
		return REASON_NO_ROUTE;
	if (fib.family != AF_INET) /* an IPv6 next hop: the stack can */
		return REASON_NO_ROUTE;
	r->ifindex = fib.ifindex;
	r->nexthop = fib.ipv4_dst;
	r->mtu = rc == BPF_FIB_LKUP_RET_SUCCESS ? fib.mtu_result : 0;
	return REASON_NONE;
}

static __always_inline int send(const struct route *r)
{
	struct bpf_redir_neigh nh = { .nh_family = AF_INET };

	nh.ipv4_nh = r->nexthop;
	return bpf_redirect_neigh(r->ifindex, &nh, sizeof(nh), 0);
}

/* route_stamp changes at least every 2^30 ns and whenever the daemon says so. */
static __always_inline __u16 route_stamp(const struct control *c, __u32 now)
{
	__u16 stamp = c->route_epoch + (now >> 10);

	return stamp ? stamp : 1; /* 0 is "never" */
}

/* flow_route is find_route with the connection's memory. */
static __always_inline enum reason flow_route(struct __sk_buff *skb, const struct packet *p,
					      struct flow *f, enum direction dir, __u32 now,
					      __be32 src, __be32 dst, __be16 sport, __be16 dport,
					      struct route *r)
{
	struct control *c = get_control();
	struct route *mine = &f->route[dir];
	enum reason why;
	__u16 stamp;

	if (!c)
		return REASON_NO_ROUTE;
	stamp = route_stamp(c, now);
	if (READ_ONCE(mine->stamp) == stamp) {
		*r = *mine;
		return p->segment > r->mtu ? REASON_TOO_BIG : REASON_NONE;
	}
	why = find_route(skb, p, src, dst, sport, dport, r);
	if (why == REASON_NONE && r->mtu) {
		WRITE_ONCE(mine->stamp, 0);
		mine->ifindex = r->ifindex;
		mine->nexthop = r->nexthop;
		mine->mtu = r->mtu;
		WRITE_ONCE(mine->stamp, stamp);
	}
	return why;
}
