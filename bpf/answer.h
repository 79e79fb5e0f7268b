/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* answer.h: ICMP errors of the plane's own making.
 *
 * With masq the director's stack tells the sender that a packet is too large
 * or has come to its last hop. With gate and ipip it cannot: for it the
 * packet is addressed to itself. So the packet is turned into the error: cut
 * to its headers, put behind an ICMP header, and goes back in the name of the
 * virtual address (RFC 1812, section 4.3.2; RFC 4443, section 2.4). */
#pragma once

#include "nat.h"
#include "parse.h"
#include "route.h"

/* IP header with all its options, and a transport header without. */
#define QUOTE_MAX 96
#define QUOTE_ROOM 128 /* so that a masked length fits, too */
/* The longest error. Its way is asked for with this length: without one the
 * kernel asks whether the packet as it still is would fit. */
#define ANSWER_MAX (sizeof(struct ipv6hdr) + sizeof(struct icmphdr) + QUOTE_MAX)

/* Room that the stack has not. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u8[QUOTE_ROOM]);
} scratch SEC(".maps");

enum answer {
	ANSWER_TOO_BIG,
	ANSWER_TTL,
};

SEPARATE int answer(struct __sk_buff *skb, const struct packet *p, enum answer what, __u32 mtu)
{
	__u32 len, need, l4, zero = 0;
	__u8 *quote = bpf_map_lookup_elem(&scratch, &zero);
	__u64 sum = 0;

	if (!p || !quote)
		return -1;
	/* Nobody is told of a later fragment (RFC 1122, section 3.2.2). */
	if (p->later)
		return -1;
	l4 = p->l4 - ETH_HLEN;
	/* The kernel keeps what it still has to sum up: the whole TCP header. */
	need = p->t.proto == IPPROTO_TCP ? sizeof(struct tcphdr) : sizeof(struct udphdr);
	len = l4 + need;
	if (len < 28 || len > QUOTE_MAX)
		return -1;
	__builtin_memset(quote, 0, QUOTE_MAX);
	if (bpf_skb_load_bytes(skb, ETH_HLEN, quote, len))
		return -1;
	if (bpf_skb_change_tail(skb, ETH_HLEN + len, 0))
		return -1;
	/* Not by loops, which old kernels' verifiers follow round by round. */
	sum = (__u32)bpf_csum_diff(0, 0, (__be32 *)quote, QUOTE_MAX, 0);
	if (p->t.proto == IPPROTO_TCP || p->t.proto == IPPROTO_UDP) {
		__u32 at = (l4 + (p->t.proto == IPPROTO_TCP ? 16 : 6)) & 0x7e;
		__u16 check;

		if (at > QUOTE_MAX - 2)
			return -1;
		check = *(__u16 *)(quote + at);
		/* A sum that the device would still fill in: it will fill in that
		 * of what is left. */
		if (check && is_partial(p, check)) {
			__u32 head = bpf_csum_diff(0, 0, (__be32 *)quote, l4 & 0x7c, 0);
			__u64 rest = sum + (__u32)~head;

			sum += (__u16)~fold16(rest) + (__u64)(__u16)~check;
		}
	}

	if (p->v6) {
		struct {
			struct ipv6hdr ip;
			struct icmphdr icmp;
		} h = {};
		__u32 body = sizeof(h.icmp) + len;

		if (bpf_skb_adjust_room(skb, sizeof(h), BPF_ADJ_ROOM_MAC, 0))
			return -1;
		*(__be32 *)&h.ip = bpf_htonl(6u << 28);
		h.ip.payload_len = bpf_htons(body);
		h.ip.nexthdr = IPPROTO_ICMPV6;
		h.ip.hop_limit = 64;
		__builtin_memcpy(&h.ip.saddr, &p->t.dst, 16);
		__builtin_memcpy(&h.ip.daddr, &p->t.src, 16);
		h.icmp.type = what == ANSWER_TOO_BIG ? ICMPV6_PKT_TOOBIG : ICMPV6_TIME_EXCEED;
		h.icmp.rest = what == ANSWER_TOO_BIG ? bpf_htonl(mtu) : 0;
		sum += addr_sum(&p->t.dst, 1) + addr_sum(&p->t.src, 1) + bpf_htons(body) +
		       bpf_htons(IPPROTO_ICMPV6) + *(__u16 *)&h.icmp + (__u64)h.icmp.rest;
		h.icmp.checksum = ~fold16(sum);
		if (bpf_skb_store_bytes(skb, ETH_HLEN, &h, sizeof(h), 0))
			return -1;
	} else {
		struct {
			struct iphdr ip;
			struct icmphdr icmp;
		} h = {};
		__u32 *words = (__u32 *)&h.ip;

		if (bpf_skb_adjust_room(skb, sizeof(h), BPF_ADJ_ROOM_MAC, 0))
			return -1;
		h.ip.version = 4;
		h.ip.ihl = 5;
		h.ip.tot_len = bpf_htons(sizeof(h) + len);
		h.ip.frag_off = bpf_htons(IP_DF); /* and so needs no id (RFC 6864) */
		h.ip.ttl = 64;
		h.ip.protocol = IPPROTO_ICMP;
		h.ip.saddr = addr4(&p->t.dst);
		h.ip.daddr = addr4(&p->t.src);
		h.ip.check = ~fold16((__u64)words[0] + words[1] + words[2] + words[3] + words[4]);
		h.icmp.type = what == ANSWER_TOO_BIG ? ICMP_DEST_UNREACH : ICMP_TIME_EXCEEDED;
		h.icmp.code = what == ANSWER_TOO_BIG ? ICMP_FRAG_NEEDED : 0;
		h.icmp.rest = what == ANSWER_TOO_BIG ? bpf_htonl(mtu & 0xffff) : 0;
		sum += *(__u16 *)&h.icmp + (__u64)h.icmp.rest;
		h.icmp.checksum = ~fold16(sum);
		if (bpf_skb_store_bytes(skb, ETH_HLEN, &h, sizeof(h), 0))
			return -1;
	}
	return 0;
}
