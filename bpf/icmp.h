/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* icmp.h: ICMP errors about balanced packets (RFC 5508, section 4.2).
 *
 * An error travels against the packet that it quotes, so the quoted ends,
 * swapped, are the ends of a packet in the error's own direction: the index
 * finds its connection, and says which way it goes. The quoted packet is
 * changed back into what its sender sent. */
#pragma once

#include "conn.h"
#include "nat.h"

struct quote {
	struct iphdr ip;
	__be16 sport;
	__be16 dport;
	__u32 ip_at;   /* offset of the quoted IP header */
	__u32 l4_at;   /* offset of the quoted ports */
};

/* find_quoted reads the quoted packet and finds its connection. */
static __always_inline int find_quoted(struct __sk_buff *skb, const struct packet *p,
				       struct quote *q, struct hit *h)
{
	struct tuple t = {};
	__be16 ports[2];

	q->ip_at = p->l4 + sizeof(struct icmphdr);
	if (bpf_skb_load_bytes(skb, q->ip_at, &q->ip, sizeof(q->ip)))
		return 0;
	if (q->ip.version != 4 || q->ip.ihl < 5 ||
	    (q->ip.protocol != IPPROTO_TCP && q->ip.protocol != IPPROTO_UDP) ||
	    (bpf_ntohs(q->ip.frag_off) & IP_OFFSET) || q->ip.saddr != p->t.dst)
		return 0;
	q->l4_at = q->ip_at + q->ip.ihl * 4;
	if (bpf_skb_load_bytes(skb, q->l4_at, ports, sizeof(ports)))
		return 0;
	q->sport = ports[0];
	q->dport = ports[1];
	t.src = q->ip.daddr;
	t.dst = q->ip.saddr;
	t.sport = q->dport;
	t.dport = q->sport;
	t.proto = q->ip.protocol;
	return find_flow(&t, h);
}

/* rewrite_error translates the error and what it quotes. */
static __always_inline int rewrite_error(struct __sk_buff *skb, const struct packet *p,
					 const struct quote *q, const struct hit *h, int hop)
{
	__u32 icmp_check = p->l4 + __builtin_offsetof(struct icmphdr, checksum);
	int to_real = h->dir == TO_REAL;
	__be32 addr = to_real ? h->f->real : h->f->virt;
	__be16 port = to_real ? h->f->rport : h->f->vport;
	__be32 old_addr = to_real ? q->ip.saddr : q->ip.daddr;
	__be16 old_port = to_real ? q->sport : q->dport;
	__u32 addr_at = q->ip_at + (to_real ? __builtin_offsetof(struct iphdr, saddr) :
					      __builtin_offsetof(struct iphdr, daddr));
	__u32 port_at = q->l4_at + (to_real ? 0 : 2);
	__u32 check_at = q->l4_at + (q->ip.protocol == IPPROTO_TCP ?
					     __builtin_offsetof(struct tcphdr, check) :
					     __builtin_offsetof(struct udphdr, check));
	__u16 ip_check, check;

	/* Address and header checksum cancel out in the ICMP checksum. */
	ip_check = check_replace32(q->ip.check, old_addr, addr);
	if (bpf_skb_store_bytes(skb, addr_at, &addr, 4, 0) ||
	    bpf_skb_store_bytes(skb, q->ip_at + __builtin_offsetof(struct iphdr, check), &ip_check,
				2, 0))
		return -1;
	if (old_port != port) {
		if (bpf_skb_store_bytes(skb, port_at, &port, 2, 0) ||
		    bpf_l4_csum_replace(skb, icmp_check, old_port, port, 2))
			return -1;
	}
	/* The quoted transport checksum, if the quotation reaches that far. */
	if (!bpf_skb_load_bytes(skb, check_at, &check, 2) &&
	    (check || q->ip.protocol == IPPROTO_TCP)) {
		__u16 now = check_replace16(check_replace32(check, old_addr, addr), old_port, port);

		if (bpf_skb_store_bytes(skb, check_at, &now, 2, 0) ||
		    bpf_l4_csum_replace(skb, icmp_check, check, now, 2))
			return -1;
	}
	/* The client hears of the virtual address only, whoever has sent it. */
	return rewrite_ip(skb, h->dir, addr, hop);
}
