/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* express.h: the lane of packets that have nothing unusual about them.
 *
 * Nearly every packet belongs to an open connection by masq or gate, comes
 * whole, without options, with hops left, and goes where the one before it
 * went. Such a packet is carried here in one straight line, of the same parts
 * as the general programs, but nothing that it knows ever leaves the
 * processor's registers. Of every other packet nothing is changed nor counted:
 * the general programs do what they would have done with this one, too. So the
 * lane may leave any packet to them, and the model in Go knows nothing of it. */
#pragma once

#include "conn.h"
#include "nat.h"
#include "route.h"

/* What the lane says of a packet that it leaves alone; else the program's verdict. */
enum lane {
	LANE_OTHER = -2,
	LANE_NEW = -3, /* and the index knows no connection of it */
};

/* What the lane has read of a packet. Constants are known to the compiler. */
struct fast {
	void *ip; /* header, in the packet */
	__u8 *l4;
	int v6;       /* constant */
	__u32 header; /* constant: bytes */
	__u32 ports;  /* source, and destination above it */
	__u32 field;  /* offset of the transport's sum */
	__u8 proto;
};

static __always_inline struct addr src_of(const struct fast *p)
{
	return p->v6 ? addr_of6(p->ip + 8) : addr_of4(*(__be32 *)(p->ip + 12));
}

static __always_inline struct addr dst_of(const struct fast *p)
{
	return p->v6 ? addr_of6(p->ip + 24) : addr_of4(*(__be32 *)(p->ip + 16));
}

/* is_at tells whether a packet has this address at that place. That both are of
 * one family is known already. */
static __always_inline int is_at(const struct fast *p, __u32 at, const struct addr *a)
{
	if (p->v6)
		return a->d[0] == *(__u64 *)(p->ip + at) && a->d[1] == *(__u64 *)(p->ip + at + 8);
	return ((__u32 *)a)[3] == *(__u32 *)(p->ip + at);
}

/* along carries a packet of a connection's record f in one direction, a constant. */
static __always_inline int along(CTX *ctx, const struct fast *p, struct flow *f, __u32 slot, enum direction dir)
{
	const __u32 at_src = p->v6 ? 8 : 12, at_dst = p->v6 ? 24 : 16;
	__u32 gen = READ_ONCE(f->gen), word = READ_ONCE(f->word), now, total;
	struct route *mine = &f->route[dir == TO_CLIENT];
	__u16 *check = (__u16 *)(p->l4 + p->field);
	int masq, partial = 0;
	struct real_cpu *rc;
	struct control *c;
	__be16 port, was;
	struct addr to;
	struct hop *h;
	__u32 delta;

	if (!(gen & 1) || (word & (0xff0000 | FLOW_LOCAL | FLOW_V6 | 0xff)) !=
				  (p->proto << 16 | (p->v6 ? FLOW_V6 : 0) |
				   (p->proto == IPPROTO_UDP ? FLOW_UDP : FLOW_ESTABLISHED)))
		return LANE_OTHER;
	masq = FORWARD(word) == FORWARD_MASQ;
	if (!masq && FORWARD(word) != FORWARD_GATE)
		return LANE_OTHER;
	if (dir == TO_REAL) {
		if (!is_at(p, at_src, &f->client) || !is_at(p, at_dst, &f->virt) ||
		    *(__u32 *)&f->cport != p->ports) /* and vport */
			return LANE_OTHER;
	} else if (!is_at(p, at_src, &f->real) || !is_at(p, at_dst, &f->client) ||
		   (f->rport | (__u32)f->cport << 16) != p->ports) {
		return LANE_OTHER;
	}
	rc = real_on_this_cpu(f->real_slot);
	if (!rc || READ_ONCE(rc->gen) != f->real_gen)
		return LANE_OTHER;
	c = get_control();
	if (!c)
		return LANE_OTHER;
	now = ticks_of(c);
	total = p->v6 ? sizeof(struct ipv6hdr) + bpf_ntohs(*(__be16 *)(p->ip + 4)) : bpf_ntohs(*(__be16 *)(p->ip + 2));
	h = recall(mine, route_stamp(c, now, slot), now);
	if (!h || total > mine->mtu)
		return LANE_OTHER;
	if ((masq || !OFFLOADS) && (p->proto == IPPROTO_TCP || *check)) {
		struct addr src = src_of(p), dst = dst_of(p);

		partial = is_pseudo(*check, addr_sum(&src, p->v6) + addr_sum(&dst, p->v6), p->proto, total - p->header);
		if (!OFFLOADS && partial)
			return LANE_OTHER;
	}
	if (!may_leave(ctx, h))
		return LANE_OTHER;
	to = dir == TO_REAL ? f->real : f->virt;
	port = dir == TO_REAL ? f->rport : f->vport;
	delta = dir == TO_REAL ? f->delta : delta_back(f);
	/* As in tc.c: the record was ours while we read it, or it was not. */
	asm volatile("" ::: "memory");
	if (READ_ONCE(f->gen) != gen)
		return LANE_OTHER;

	count_packet(rc, dir, 1, length_of(ctx) - ETH_HLEN);
	keep_alive(f, now);
	if (!masq) {
		if (hop_down(ctx, p->v6))
			goto refused;
		return leave(ctx, h, p->v6);
	}
	was = *(__be16 *)(p->l4 + (dir == TO_REAL ? 2 : 0));
	*(__be16 *)(p->l4 + (dir == TO_REAL ? 2 : 0)) = port;
	if (!p->v6)
		put_addr4(p->ip, dir, addr4(&to), delta, 1);
	else if (put_addr(ctx, dir, &to, delta, 1, 1))
		goto refused;
	if (put_sum(ctx, check, ETH_HLEN + p->header + p->field, p->proto, partial, p->v6, delta, was, port))
		goto refused;
	return leave(ctx, h, p->v6);
refused:
	count_quietly(REASON_REWRITE);
	return DROP;
}

static __always_inline int lane(CTX *ctx, int v6)
{
	struct fast p = { .v6 = v6, .header = v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr) };
	void *data = data_of(ctx), *end = end_of(ctx);
	struct iphdr *ip = data + ETH_HLEN;
	struct ipv6hdr *ip6 = data + ETH_HLEN;
	struct addr src, dst;
	struct flow *f;
	__u64 entry;
	__u32 slot;

	p.ip = ip;
	p.l4 = data + ETH_HLEN + p.header;
	if (p.l4 + sizeof(struct udphdr) > (__u8 *)end)
		return LANE_OTHER;
	if (v6) {
		src = src_of(&p);
		dst = dst_of(&p);
		p.proto = ip6->nexthdr;
		if (*(__u8 *)ip6 >> 4 != 6 || ip6->hop_limit <= 1 || is4(&src) || is4(&dst))
			return LANE_OTHER;
	} else {
		p.proto = ip->protocol;
		if (*(__u8 *)ip != 0x45 || ip->ttl <= 1 || ip->frag_off & bpf_htons(IP_MF | IP_OFFSET))
			return LANE_OTHER;
	}
	p.field = __builtin_offsetof(struct udphdr, check);
	if (p.proto != IPPROTO_UDP) {
		if (p.proto != IPPROTO_TCP || p.l4 + sizeof(struct tcphdr) > (__u8 *)end ||
		    p.l4[13] & (TCP_FIN | TCP_SYN | TCP_RST))
			return LANE_OTHER;
		p.field = __builtin_offsetof(struct tcphdr, check);
	}
	p.ports = *(__u32 *)p.l4;
	entry = find_entry(v6 ? ends_hash(&src, &dst, p.ports, p.ports >> 16, p.proto) :
				ends4_hash(*(__u64 *)&ip->saddr, p.ports, p.proto));
	if (!entry)
		return LANE_NEW;
	slot = (__u32)entry & ~INDEX_TO_CLIENT;
	f = bpf_map_lookup_elem(&flows, &slot);
	if (!f)
		return LANE_OTHER;
	return entry & INDEX_TO_CLIENT ? along(ctx, &p, f, slot, TO_CLIENT) : along(ctx, &p, f, slot, TO_REAL);
}

static __attribute__((noinline)) int lane4(CTX *ctx)
{
	return lane(ctx, 0);
}

static __attribute__((noinline)) int lane6(CTX *ctx)
{
	return lane(ctx, 1);
}

/* express carries a packet, or says why it did not. */
static __always_inline int express(CTX *ctx)
{
	__be16 type = ether_type(ctx);

	if (tracing || segment_size(ctx))
		return LANE_OTHER;
	if (type == bpf_htons(ETH_P_IP))
		return lane4(ctx);
	if (type == bpf_htons(ETH_P_IPV6))
		return lane6(ctx);
	return LANE_OTHER;
}
