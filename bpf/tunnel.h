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

/* encapsulate puts an outer header before the packet. The inner one may be
 * fragmented no less than before: its DF is the outer one's, too. */
SEPARATE int encapsulate(struct __sk_buff *skb, const struct packet *p, const struct addr *src,
				  const struct addr *dst)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;
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
		if (bpf_skb_adjust_room(skb, sizeof(ip), BPF_ADJ_ROOM_MAC, flags | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4))
			return -1;
		return bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), 0);
	} else {
		struct ipv6hdr ip = {};

		*(__be32 *)&ip = bpf_htonl(6u << 28 | (__u32)p->tos << 20);
		ip.payload_len = bpf_htons(len);
		ip.nexthdr = inner;
		ip.hop_limit = TUNNEL_TTL;
		__builtin_memcpy(&ip.saddr, src, 16);
		__builtin_memcpy(&ip.daddr, dst, 16);
		if (bpf_skb_adjust_room(skb, sizeof(ip), BPF_ADJ_ROOM_MAC, flags | BPF_F_ADJ_ROOM_ENCAP_L3_IPV6))
			return -1;
		return bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), 0);
	}
}
