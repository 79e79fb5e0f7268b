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

/* No packet with ports is shorter. */
#define SHORTEST (ETH_HLEN + sizeof(struct iphdr) + sizeof(struct udphdr))

/* What the lane has read of a packet. All but its places are constants, so that
 * the compiler writes the lane for each case by itself. */
struct fast {
	void *ip; /* header, in the packet */
	__u8 *l4;
	__u32 ports; /* source, and destination above it */
	int v6;
	__u8 proto;
	enum direction dir;
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

/* The parts of flow.word that packets of the lane have to do with. */
#define LANE_WORD (0xff0000 | FLOW_LOCAL | FLOW_V6 | 0xff)

/* along carries a packet of a connection's record f. */
static __always_inline int along(CTX *ctx, const struct fast *p, struct flow *f, __u32 slot)
{
	const __u32 header = p->v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	const __u32 at_src = p->v6 ? 8 : 12, at_dst = p->v6 ? 24 : 16;
	const __u32 at_check = p->proto == IPPROTO_UDP ? __builtin_offsetof(struct udphdr, check) :
							 __builtin_offsetof(struct tcphdr, check);
	const __u32 wanted = p->proto << 16 | (p->v6 ? FLOW_V6 : 0) |
			     (p->proto == IPPROTO_UDP ? FLOW_UDP : FLOW_ESTABLISHED);
	__u32 gen = READ_ONCE(f->gen), word = READ_ONCE(f->word), now, total;
	struct route *mine = &f->route[p->dir == TO_CLIENT];
	__u16 *check = (__u16 *)(p->l4 + at_check);
	int masq, partial = 0;
	struct real_cpu *rc;
	struct control *c;
	__be16 port, was;
	struct addr to;
	struct hop *h;
	__u32 delta;

	if (!(gen & 1) || (word & LANE_WORD) != wanted)
		return LANE_OTHER;
	masq = FORWARD(word) == FORWARD_MASQ;
	if (!masq && FORWARD(word) != FORWARD_GATE)
		return LANE_OTHER;
	if (p->dir == TO_REAL) {
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
	h = recall(c, mine, now);
	if (!h || total > mine->mtu)
		return LANE_OTHER;
	if ((masq || !OFFLOADS) && (p->proto == IPPROTO_TCP || *check)) {
		struct addr src = src_of(p), dst = dst_of(p);

		partial = is_pseudo(*check, addr_sum(&src, p->v6) + addr_sum(&dst, p->v6), p->proto, total - header);
		if (!OFFLOADS && partial)
			return LANE_OTHER;
	}
	if (!may_leave(ctx, h))
		return LANE_OTHER;
	to = p->dir == TO_REAL ? f->real : f->virt;
	port = p->dir == TO_REAL ? f->rport : f->vport;
	delta = p->dir == TO_REAL ? f->delta : delta_back(f);
	/* As in is_still: the record was ours while we read it, or it was not. */
	asm volatile("" ::: "memory");
	if (READ_ONCE(f->gen) != gen)
		return LANE_OTHER;

	count_packet(rc, p->dir, 1, length_of(ctx) - ETH_HLEN);
	keep_alive(f, now);
	if (!masq) {
		if (hop_down(ctx, p->v6))
			goto refused;
		return leave(ctx, h);
	}
	was = *(__be16 *)(p->l4 + (p->dir == TO_REAL ? 2 : 0));
	*(__be16 *)(p->l4 + (p->dir == TO_REAL ? 2 : 0)) = port;
	if (!p->v6)
		put_addr4(p->ip, p->dir, addr4(&to), delta, 1);
	else if (put_addr(ctx, p->dir, &to, delta, 1, 1))
		goto refused;
	if (put_sum(ctx, check, ETH_HLEN + header + at_check, p->proto, partial, p->v6, delta, was, port))
		goto refused;
	return leave(ctx, h);
refused:
	count_quietly(REASON_REWRITE);
	return DROP;
}

/* lane is given the packet's bounds; that it holds the shortest one of IPv4 is known. */
static __always_inline int lane(CTX *ctx, void *data, void *end, int v6)
{
	const __u32 header = v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	struct iphdr *ip = data + ETH_HLEN;
	struct ipv6hdr *ip6 = data + ETH_HLEN;
	struct fast p = { .v6 = v6, .ip = ip, .l4 = data + ETH_HLEN + header };
	struct addr src, dst;
	struct flow *f;
	__u64 entry;
	__u32 slot;
	__u8 proto;

	if (v6) {
		if (p.l4 + sizeof(struct udphdr) > (__u8 *)end)
			return LANE_OTHER;
		src = src_of(&p);
		dst = dst_of(&p);
		proto = ip6->nexthdr;
		if (*(__u8 *)ip6 >> 4 != 6 || ip6->hop_limit <= 1 || is4(&src) || is4(&dst))
			return LANE_OTHER;
	} else {
		proto = ip->protocol;
		if (*(__u8 *)ip != 0x45 || ip->ttl <= 1 || ip->frag_off & bpf_htons(IP_MF | IP_OFFSET))
			return LANE_OTHER;
	}
	if (proto != IPPROTO_UDP && (proto != IPPROTO_TCP || p.l4 + sizeof(struct tcphdr) > (__u8 *)end ||
				     p.l4[13] & (TCP_FIN | TCP_SYN | TCP_RST)))
		return LANE_OTHER;
	p.ports = *(__u32 *)p.l4;
	entry = find_entry(v6 ? ends_hash(&src, &dst, p.ports, p.ports >> 16, proto) :
				ends4_hash(*(__u64 *)&ip->saddr, p.ports, proto));
	if (!entry)
		return LANE_NEW;
	slot = (__u32)entry & ~INDEX_TO_CLIENT;
	f = bpf_map_lookup_elem(&flows, &slot);
	if (!f)
		return LANE_OTHER;
	if (proto == IPPROTO_UDP) {
		p.proto = IPPROTO_UDP;
		if (entry & INDEX_TO_CLIENT) {
			p.dir = TO_CLIENT;
			return along(ctx, &p, f, slot);
		}
		p.dir = TO_REAL;
		return along(ctx, &p, f, slot);
	}
	p.proto = IPPROTO_TCP;
	if (p.l4 + sizeof(struct tcphdr) > (__u8 *)end) /* known, but not to the verifier */
		return LANE_OTHER;
	if (entry & INDEX_TO_CLIENT) {
		p.dir = TO_CLIENT;
		return along(ctx, &p, f, slot);
	}
	p.dir = TO_REAL;
	return along(ctx, &p, f, slot);
}

static __attribute__((noinline)) int lane4(CTX *ctx, void *data, void *end)
{
	return lane(ctx, data, end, 0);
}

static __attribute__((noinline)) int lane6(CTX *ctx, void *data, void *end)
{
	return lane(ctx, data, end, 1);
}

/* express carries a packet of an Ethernet type, or says why it did not. */
static __always_inline int express(CTX *ctx, void *data, void *end, __be16 type)
{
	if (tracing || segment_size(ctx) || data + SHORTEST > end)
		return LANE_OTHER;
	if (type == bpf_htons(ETH_P_IP))
		return lane4(ctx, data, end);
	if (type == bpf_htons(ETH_P_IPV6))
		return lane6(ctx, data, end);
	return LANE_OTHER;
}
