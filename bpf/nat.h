/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* nat.h: changing one end of a packet, with every checksum that covers it.
 *
 * The transport checksum is changed by the kernel's helper, because only the
 * kernel knows what it means now: complete, still to be filled in by the
 * device (then only the pseudo header counts), or summed by the device on
 * receipt (then that sum must follow). */
#pragma once

#include "parse.h"

/* One's complement sum with m replaced by n (RFC 1624, equation 3). */
static __always_inline __u32 sum_replace(__u32 sum, __u16 m, __u16 n)
{
	return sum + (__u16)~m + n;
}

static __always_inline __u16 sum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static __always_inline __u16 check_replace16(__u16 check, __u16 m, __u16 n)
{
	return sum_fold(sum_replace((__u16)~check, m, n));
}

static __always_inline __u16 check_replace32(__u16 check, __u32 m, __u32 n)
{
	__u32 sum = sum_replace((__u16)~check, m, n);

	return sum_fold(sum_replace(sum, m >> 16, n >> 16));
}

/* rewrite_ip changes the source or destination of the IP header and, if hop,
 * counts one hop. */
static __always_inline int rewrite_ip(struct __sk_buff *skb, enum direction dir, __be32 addr,
				      int hop)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + ETH_HLEN;

	if ((void *)(ip + 1) > end)
		return -1;
	if (dir == TO_REAL) {
		ip->check = check_replace32(ip->check, ip->daddr, addr);
		ip->daddr = addr;
	} else {
		ip->check = check_replace32(ip->check, ip->saddr, addr);
		ip->saddr = addr;
	}
	if (hop) {
		ip->check = check_replace16(ip->check, bpf_htons(ip->ttl << 8),
					    bpf_htons((ip->ttl - 1) << 8));
		ip->ttl--;
	}
	return 0;
}

/* rewrite changes destination (to the real server) or source (to the client)
 * of a packet that carries its ports. */
static __always_inline int rewrite(struct __sk_buff *skb, const struct packet *p,
				   enum direction dir, __be32 addr, __be16 port, int hop)
{
	__be32 old_addr = dir == TO_REAL ? p->t.dst : p->t.src;
	__be16 old_port = dir == TO_REAL ? p->t.dport : p->t.sport;
	__u32 check = p->l4, flags = 0;
	void *data, *end;
	__be16 *l4;

	if (p->t.proto == IPPROTO_TCP) {
		check += __builtin_offsetof(struct tcphdr, check);
	} else {
		check += __builtin_offsetof(struct udphdr, check);
		flags = BPF_F_MARK_MANGLED_0; /* zero stays zero: no checksum */
	}
	if (bpf_l4_csum_replace(skb, check, old_addr, addr, BPF_F_PSEUDO_HDR | flags | 4))
		return -1;
	if (old_port != port) {
		if (bpf_l4_csum_replace(skb, check, old_port, port, flags | 2))
			return -1;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		l4 = data + (p->l4 & 0x7f);
		if ((void *)(l4 + 2) > end)
			return -1;
		l4[dir == TO_REAL ? 1 : 0] = port;
	}
	return rewrite_ip(skb, dir, addr, hop);
}
