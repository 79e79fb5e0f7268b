/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* nat.h: changing the ends of a packet, with every checksum that covers them.
 *
 * Sums are changed in place (RFC 1624). What the transport sum means is known
 * to the kernel only: complete, or still to be filled in by the device, in
 * which case the field holds the sum of the pseudo header. A field that does
 * not hold that sum is complete; one that does is left to the kernel's
 * helper, which is slower and always right. */
#pragma once

#include "conn.h"
#include "parse.h"

static __always_inline __u32 fold32(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (__u32)sum + (__u32)(sum >> 32);
}

static __always_inline __u16 fold16(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* The same for a few numbers of 16 bits. */
static __always_inline __u16 fold_few(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return sum + (sum >> 16);
}

/* check_add is a checksum after delta was added to what it covers. */
static __always_inline __u16 check_add(__u16 check, __u64 delta)
{
	return ~fold16((__u16)~check + delta);
}

static __always_inline __u64 addr_sum(const struct addr *a, int v6)
{
	__u64 sum = a->d[1] >> 32;

	if (v6)
		sum += (__u32)a->d[1] + (a->d[0] >> 32) + (__u32)a->d[0];
	return sum;
}

/* addr_delta is what a sum gains when one address takes the other's place. */
static __always_inline __u64 addr_delta(const struct addr *was, const struct addr *is, int v6)
{
	/* Three words more than any sum: the complement of up to four words. */
	return fold32(addr_sum(is, v6) + (~(__u64)fold32(addr_sum(was, v6)) & 0xffffffff));
}

static __always_inline __u16 check_add_few(__u16 check, __u32 delta)
{
	return ~fold_few((__u16)~check + delta);
}

static __always_inline __u32 port_delta(__be16 was, __be16 is)
{
	return (__u32)is + (__u16)~was;
}

/* hop_down counts one hop. */
static __always_inline int hop_down(CTX *ctx, int v6)
{
	void *data = data_of(ctx), *end = end_of(ctx);

	if (v6) {
		struct ipv6hdr *ip = data + ETH_HLEN;
		__u16 was, is;

		if ((void *)(ip + 1) > end)
			return -1;
		was = *(__u16 *)&ip->nexthdr;
		ip->hop_limit--;
		is = *(__u16 *)&ip->nexthdr;
		/* No sum in the header makes up for it: a device's sum of the packet follows. */
		sum_changed(ctx, port_delta(was, is));
	} else {
		struct iphdr *ip = data + ETH_HLEN;

		if ((void *)(ip + 1) > end)
			return -1;
		ip->check = check_add(ip->check, (__u16)~bpf_htons(0x0100));
		ip->ttl--;
	}
	return 0;
}

/* put_addr4 writes the source (towards the client) or the destination, and
 * counts one hop if hop is 1. delta is folded. */
static __always_inline void put_addr4(struct iphdr *ip, enum direction dir, __be32 a, __u32 delta, int hop)
{
	if (hop) {
		delta += (__u16)~bpf_htons(0x0100);
		ip->ttl--;
	}
	ip->check = check_add_few(ip->check, delta);
	if (dir == TO_REAL)
		ip->daddr = a;
	else
		ip->saddr = a;
}

/* put_addr is the same for both families. */
static __always_inline int put_addr(CTX *ctx, enum direction dir, const struct addr *a,
				    __u32 delta, int v6, int hop)
{
	void *data = data_of(ctx);

	if (v6) {
		__u64 *at = data + ETH_HLEN + (dir == TO_REAL ? 24 : 8);

		if (data + ETH_HLEN + sizeof(struct ipv6hdr) > end_of(ctx))
			return -1;
		at[0] = a->d[0];
		at[1] = a->d[1];
		return hop ? hop_down(ctx, 1) : 0;
	}
	if (data + ETH_HLEN + sizeof(struct iphdr) > end_of(ctx))
		return -1;
	put_addr4(data + ETH_HLEN, dir, addr4(a), delta, hop);
	return 0;
}

/* is_pseudo tells whether a field may hold the sum of the pseudo header; ends is
 * that of its addresses. It does if the difference is a multiple of 65535, which a
 * number of 64 bits is if times its inverse (modulo 2^64) it is no more than as many of
 * them as there are: two instructions where a sum is folded by twelve. */
static __always_inline int is_pseudo(__u16 check, __u64 ends, __u8 proto, __u16 len)
{
	__u64 diff = ends + bpf_htons(proto) + bpf_htons(len) + 0xffff - check;

	/* 0 and 0xffff are one number. */
	return (__u16)(check - 1) >= 0xfffe || diff * 0xfffefffefffeffffull <= ~0ull / 0xffff;
}

static __always_inline int is_partial(const struct packet *p, __u16 check)
{
	return p->gso || is_pseudo(check, addr_sum(&p->t.src, p->v6) + addr_sum(&p->t.dst, p->v6), p->t.proto,
				   p->total + ETH_HLEN - p->l4);
}

/* is_whole tells whether the transport's sum is complete: on interfaces that are
 * none, their sender may have left it to a device. */
static __always_inline int is_whole(CTX *ctx, const struct packet *p)
{
	__u8 *l4 = data_of(ctx) + (p->l4 & 0xff);

	if (p->t.proto == IPPROTO_TCP) {
		if (l4 + sizeof(struct tcphdr) > (__u8 *)end_of(ctx))
			return 0;
		return !is_partial(p, ((struct tcphdr *)l4)->check);
	}
	if (p->t.proto == IPPROTO_UDP) {
		if (l4 + sizeof(struct udphdr) > (__u8 *)end_of(ctx))
			return 0;
		return !((struct udphdr *)l4)->check || !is_partial(p, ((struct udphdr *)l4)->check);
	}
	return 1;
}

/* delta_back is what a sum gains when virt takes real's place again. */
static __always_inline __u16 delta_back(const struct flow *f)
{
	__u16 delta = ~f->delta;

	return delta ? delta : 0xffff; /* the same number, and never 0 */
}

/* delta_of is what a packet's sums gain by its new address. */
static __always_inline __u16 delta_of(const struct hit *h)
{
	return h->dir == TO_REAL ? h->f->delta : delta_back(h->f);
}

/* put_sum changes the transport's sum for an address, whose change is delta, and a
 * port that have changed. check is the field in the packet, at its offset;
 * nothing points into the packet any more afterwards. */
static __always_inline int put_sum(CTX *ctx, __u16 *check, __u32 at, __u8 proto, int partial, int v6,
				   __u32 delta, __be16 was, __be16 is)
{
	if (proto == IPPROTO_UDP && !*check)
		return 0; /* it has none, and so it stays */
	if (!OFFLOADS || !partial) {
		__u16 sum = check_add_few(*check, delta + port_delta(was, is));

		*check = sum || proto != IPPROTO_UDP ? sum : 0xffff;
		/* A device's sum of the packet follows: header and transport sums
		 * make up for what changed, IPv4's twice. */
		if (!v6)
			sum_changed(ctx, ~delta);
#if OFFLOADS
	} else {
		__u64 flags = proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;

		if (bpf_l4_csum_replace(ctx, at, 0, delta, BPF_F_PSEUDO_HDR | flags))
			return -1;
		if (was != is && bpf_l4_csum_replace(ctx, at, was, is, flags | 2))
			return -1;
#endif
	}
	return 0;
}

/* put_port changes the port and the transport's sum, which is that far behind the
 * first one. Direction and distance are constants: older verifiers keep no bounds
 * of a packet beyond what they do not know. */
static __always_inline int put_port(CTX *ctx, const struct packet *p, const struct tuple *n, __u32 delta,
				    enum direction dir, __u8 *l4, __u32 field)
{
	__be16 was = dir == TO_REAL ? p->t.dport : p->t.sport, is = dir == TO_REAL ? n->dport : n->sport;
	__u16 *check = (__u16 *)(l4 + field);

	*(__be16 *)(l4 + (dir == TO_REAL ? 2 : 0)) = is;
	return put_sum(ctx, check, (p->l4 & 0xff) + field, p->t.proto, OFFLOADS && is_partial(p, *check), p->v6, delta,
		       was, is);
}

static __always_inline int rewrite_end(CTX *ctx, const struct packet *p, const struct tuple *n, __u32 delta,
				   enum direction dir, int hop)
{
	__u8 *l4 = data_of(ctx) + (p->l4 & 0xff);

	if (p->later) {
		; /* no ports */
	} else if (p->t.proto == IPPROTO_TCP) {
		if (l4 + sizeof(struct tcphdr) > (__u8 *)end_of(ctx) ||
		    put_port(ctx, p, n, delta, dir, l4, __builtin_offsetof(struct tcphdr, check)))
			return -1;
	} else if (p->t.proto == IPPROTO_UDP) {
		if (l4 + sizeof(struct udphdr) > (__u8 *)end_of(ctx) ||
		    put_port(ctx, p, n, delta, dir, l4, __builtin_offsetof(struct udphdr, check)))
			return -1;
	} /* SCTP's sum covers no addresses, and its ports stay */
	return put_addr(ctx, dir, dir == TO_REAL ? &n->dst : &n->src, delta, p->v6, hop);
}

/* How rewrite is told. */
#define COUNT_HOP 2

/* rewrite changes destination (to the real server) or source (to the client) into
 * that of n, masq; what sums gain by the address is delta, folded to 16 bits, and
 * never 0. how is an enum direction, and whether a hop is counted. */
SEPARATE int rewrite(CTX *ctx, const struct packet *p, const struct tuple *n, __u32 delta, __u32 how)
{
	if (!p || !n)
		return -1;
	if (how & TO_CLIENT)
		return rewrite_end(ctx, p, n, (__u16)delta, TO_CLIENT, how & COUNT_HOP);
	return rewrite_end(ctx, p, n, (__u16)delta, TO_REAL, how & COUNT_HOP);
}
