/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* icmp.h: ICMP errors about balanced packets (RFC 5508, section 4.2).
 *
 * An error travels against the packet that it quotes, so the quoted ends,
 * swapped, are the ends of a packet in the error's own direction: the index
 * finds its connection, and says which way it goes. The quoted packet is
 * changed back into what its sender sent. */
#pragma once

#include "conn.h"
#include "fragment.h"
#include "nat.h"

struct quote {
	struct tuple t;  /* of a packet in the error's own direction: swapped */
	__u32 ip_at;     /* offset of the quoted IP header */
	__u32 l4_at;     /* offset of the quoted ports */
};

/* read_quote reads the quoted packet: -1 if it cannot be one of ours. */
SEPARATE int read_quote(struct __sk_buff *skb, const struct packet *p, struct quote *q)
{
	__be16 ports[2];

	if (!p || !q)
		return -1;
	q->ip_at = p->l4 + sizeof(struct icmphdr);
	if (p->v6) {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, q->ip_at, &ip, sizeof(ip)) || ip.version != 6)
			return -1;
		__builtin_memcpy(&q->t.dst, &ip.saddr, 16);
		__builtin_memcpy(&q->t.src, &ip.daddr, 16);
		q->t.proto = ip.nexthdr; /* extension headers before it: not ours to know */
		q->l4_at = q->ip_at + sizeof(ip);
	} else {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, q->ip_at, &ip, sizeof(ip)) || ip.version != 4 ||
		    ip.ihl < 5 || (bpf_ntohs(ip.frag_off) & IP_OFFSET))
			return -1;
		q->t.dst = addr_of4(ip.saddr);
		q->t.src = addr_of4(ip.daddr);
		q->t.proto = ip.protocol;
		q->l4_at = q->ip_at + ip.ihl * 4;
	}
	if ((q->t.proto != IPPROTO_TCP && q->t.proto != IPPROTO_UDP && q->t.proto != IPPROTO_SCTP) ||
	    !same_addr(&q->t.dst, &p->t.dst) ||
	    bpf_skb_load_bytes(skb, q->l4_at, ports, sizeof(ports)))
		return -1;
	q->t.sport = ports[1];
	q->t.dport = ports[0];
	return 0;
}

static __always_inline int find_quoted(struct __sk_buff *skb, const struct packet *p,
				       struct quote *q, struct hit *h)
{
	return !read_quote(skb, p, q) && find_flow(&q->t, h);
}

/* One error in so many ticks is believed. Each makes all connections look up
 * their routes again; who forges them would have them do so at every packet. What
 * is not heard is said again about the next packet that is too big. */
#define PATH_REST 8
/* No smaller size is believed: who forges errors would slow the tunnel down.
 * (RFC 8200, section 5; Linux believes as much of IPv4: route/min_pmtu.) */
#define PATH_LEAST4 552
#define PATH_LEAST6 1280

/* learn_path hears that a packet which we have put into a tunnel was too big
 * on its way (RFC 2003, section 4; RFC 2473, section 7.1). From now on clients
 * are told in time, those of open connections, too. The stack gets the error,
 * too. (By masq and gate nothing is learned: such an error is about the client's
 * packet, and rewrite_error or the network brings it to him.) */
SEPARATE int learn_path(struct __sk_buff *skb, const struct packet *p)
{
	struct control *c = get_control();
	struct path path = {}, *old;
	struct addr to, inner;
	struct icmphdr h;
	__u32 at, now, last;
	__u8 proto;

	if (!p || !c || bpf_skb_load_bytes(skb, p->l4, &h, sizeof(h)))
		return 0;
	at = p->l4 + sizeof(h);
	path.mtu = bpf_ntohl(h.rest);
	if (p->v6) {
		struct ipv6hdr ip;

		if (h.type != ICMPV6_PKT_TOOBIG || bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.version != 6)
			return 0;
		proto = ip.nexthdr;
		__builtin_memcpy(&to, &ip.saddr, 16);
		if (!same_addr(&to, &p->t.dst))
			return 0;
		__builtin_memcpy(&to, &ip.daddr, 16);
		at += sizeof(ip);
		if (path.mtu < PATH_LEAST6)
			return 0;
	} else {
		struct iphdr ip;

		if (h.type != ICMP_DEST_UNREACH || h.code != ICMP_FRAG_NEEDED ||
		    bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl != 5)
			return 0;
		proto = ip.protocol;
		to = addr_of4(ip.saddr);
		if (!same_addr(&to, &p->t.dst))
			return 0;
		to = addr_of4(ip.daddr);
		at += sizeof(ip);
		path.mtu &= 0xffff; /* RFC 1191, section 4; 0 from those who do not know it */
		if (path.mtu < PATH_LEAST4)
			path.mtu = PATH_LEAST4;
	}
	if ((proto != IPPROTO_IPIP && proto != IPPROTO_IPV6) || !has_role(&to, ADDRESS_REAL))
		return 0;
	/* The packet within, where so much is quoted, was for a virtual address.
	 * (Those of services by mark are known to the rules alone.) */
	if (!(c->features & FEATURE_RULES)) {
		if (proto == IPPROTO_IPV6) {
			if (!bpf_skb_load_bytes(skb, at + 24, &inner, 16) && !has_role(&inner, ADDRESS_VIRTUAL))
				return 0;
		} else {
			__be32 a;

			if (!bpf_skb_load_bytes(skb, at + 16, &a, 4)) {
				inner = addr_of4(a);
				if (!has_role(&inner, ADDRESS_VIRTUAL))
					return 0;
			}
		}
	}
	now = ticks();
	path.expires = now + PATH_TICKS;
	old = bpf_map_lookup_elem(&paths, &to);
	if (old && is_believed(old, now) && old->mtu <= path.mtu)
		return 0; /* a larger one is tried when this one has expired */
	last = READ_ONCE(c->narrowed);
	if (now - last < PATH_REST || __sync_val_compare_and_swap(&c->narrowed, last, now) != last)
		return 0;
	bpf_map_update_elem(&paths, &to, &path, BPF_ANY);
	__sync_fetch_and_add(&c->route_epoch, 1);
	return 0;
}

/* rewrite_error translates the error and what it quotes. */
SEPARATE int rewrite_error(struct __sk_buff *skb, const struct packet *p, const struct quote *q,
				    const struct hit *h, int hop)
{
	int to_real, v6;
	struct flow *f;
	__u32 slot;
	struct addr addr, old;
	__be16 port, old_port;
	__u32 addr_at, port_at, check_at, icmp_check;
	__u64 delta, sum;
	__u16 check;

	if (!p || !q || !h)
		return -1;
	slot = h->slot;
	f = bpf_map_lookup_elem(&flows, &slot);
	if (!f)
		return -1;
	v6 = p->v6;
	to_real = h->dir == TO_REAL;
	addr = to_real ? f->real : f->virt;
	port = to_real ? f->rport : f->vport;
	old = to_real ? q->t.dst : q->t.src;
	old_port = to_real ? q->t.dport : q->t.sport;
	/* Quoted source is what goes to the real server, quoted destination what comes from it. */
	addr_at = q->ip_at + (v6 ? (to_real ? 8 : 24) : (to_real ? 12 : 16));
	port_at = q->l4_at + (to_real ? 0 : 2);
	check_at = q->l4_at + (q->t.proto == IPPROTO_TCP ? 16 : 6);
	icmp_check = p->l4 + __builtin_offsetof(struct icmphdr, checksum);
	delta = addr_delta(&old, &addr, v6);
	sum = port_delta(old_port, port);

	/* The quoted transport checksum, if the quotation reaches that far. */
	if (q->t.proto != IPPROTO_SCTP && !bpf_skb_load_bytes(skb, check_at, &check, 2) &&
	    (check || q->t.proto == IPPROTO_TCP)) {
		__u16 now = check_add(check, delta + port_delta(old_port, port));

		if (bpf_skb_store_bytes(skb, check_at, &now, 2, 0))
			return -1;
		sum += port_delta(check, now);
	}
	if (v6) {
		sum += delta;
		if (bpf_skb_store_bytes(skb, addr_at, &addr, 16, 0))
			return -1;
	} else {
		__u32 at = q->ip_at + __builtin_offsetof(struct iphdr, check);
		__be32 a = addr4(&addr);

		/* Address and header checksum cancel out in the ICMP checksum. */
		if (bpf_skb_load_bytes(skb, at, &check, 2))
			return -1;
		check = check_add(check, delta);
		if (bpf_skb_store_bytes(skb, addr_at, &a, 4, 0) || bpf_skb_store_bytes(skb, at, &check, 2, 0))
			return -1;
	}
	if (bpf_skb_store_bytes(skb, port_at, &port, 2, 0))
		return -1;
	/* The client hears of the virtual address only, whoever has sent it. */
	old = to_real ? p->t.dst : p->t.src;
	delta = addr_delta(&old, &addr, v6);
	if (v6) /* ICMPv6 covers the addresses of its own header, too */
		sum += delta;
	if (bpf_l4_csum_replace(skb, icmp_check, 0, fold32(sum), 0))
		return -1;
	return put_addr(skb, h->dir, &addr, fold16(delta), v6, hop);
}
