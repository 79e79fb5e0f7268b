/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* tunnel.h: a packet inside another one: 4in4 (RFC 2003), 6in4 (RFC 4213),
 * 4in6 and 6in6 (RFC 2473). */
#pragma once

#include "nat.h"
#include "parse.h"

#define TUNNEL_TTL 64

static __always_inline __u32 tunnel_room(const struct addr *real)
{
	return is4(real) ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
}

/* put_outer makes room behind the Ethernet header and fills it. At XDP the
 * frame begins earlier, and has the type of the outer header. */
static __always_inline int put_outer(CTX *ctx, const void *outer, __u32 len, int v6)
{
#ifdef BATUTA_XDP
	struct ethhdr *eth;

	if (bpf_xdp_adjust_head(ctx, -(int)len))
		return -1;
	eth = data_of(ctx);
	if ((void *)(eth + 1) + len > end_of(ctx))
		return -1;
	__builtin_memcpy(eth + 1, outer, len);
	eth->h_proto = v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	return 0;
#else
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | (v6 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4);

	if (bpf_skb_adjust_room(ctx, len, BPF_ADJ_ROOM_MAC, flags))
		return -1;
	return bpf_skb_store_bytes(ctx, ETH_HLEN, outer, len, 0);
#endif
}

/* encapsulate puts an outer header before the packet. The inner one may be
 * fragmented no less than before: its DF is the outer one's, too. */
SEPARATE int encapsulate(CTX *ctx, const struct packet *p, const struct addr *src,
				  const struct addr *dst)
{
	__u8 inner;
	__u32 len;

	if (!p || !src || !dst)
		return -1;
	inner = p->v6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
	len = p->total;
	if (is4(dst)) {
		struct iphdr ip = {
			.version = 4,
			.ihl = 5,
			.tos = p->tos,
			.ttl = TUNNEL_TTL,
			.protocol = inner,
			.saddr = addr4(src),
			.daddr = addr4(dst),
		};
		__u32 *w = (__u32 *)&ip;

		ip.tot_len = bpf_htons(len + sizeof(ip));
		if (p->v6 || p->whole)
			ip.frag_off = bpf_htons(IP_DF);
		else
			ip.id = p->id; /* as unlike others' as the inner one's */
		ip.check = ~fold16((__u64)w[0] + w[1] + w[2] + w[3] + w[4]);
		return put_outer(ctx, &ip, sizeof(ip), 0);
	} else {
		struct ipv6hdr ip = {};

		*(__be32 *)&ip = bpf_htonl(6u << 28 | (__u32)p->tos << 20);
		ip.payload_len = bpf_htons(len);
		ip.nexthdr = inner;
		ip.hop_limit = TUNNEL_TTL;
		__builtin_memcpy(&ip.saddr, src, 16);
		__builtin_memcpy(&ip.daddr, dst, 16);
		return put_outer(ctx, &ip, sizeof(ip), 1);
	}
}
