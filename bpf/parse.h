/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* parse.h: what a packet says of itself. */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

#define IP_DF 0x4000
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff

/* Flags of byte 13 of a TCP header (RFC 9293, section 3.1). */
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* SCTP (RFC 9260): ports, tag and checksum, then chunks. */
#ifndef IPPROTO_SCTP
#define IPPROTO_SCTP 132
#endif
#define SCTP_HEADER 12
#define SCTP_INIT 1
#define SCTP_ABORT 6
#define SCTP_SHUTDOWN 7
#define SCTP_SHUTDOWN_ACK 8
#define SCTP_SHUTDOWN_COMPLETE 14

/* ICMP (RFC 792) and ICMPv6 (RFC 4443); their headers begin alike. */
#define ICMP_DEST_UNREACH 3
#define ICMP_FRAG_NEEDED 4
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMPV6_PKT_TOOBIG 2
#define ICMPV6_TIME_EXCEED 3
#define ICMPV6_PARAMPROB 4
struct icmphdr {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__u32 rest;
};

/* IPv6 extension headers that may come before the transport (RFC 8200). */
#ifndef NEXTHDR_HOP
#define NEXTHDR_HOP 0
#define NEXTHDR_ROUTING 43
#define NEXTHDR_FRAGMENT 44
#define NEXTHDR_DEST 60
#endif
#define EXTENSIONS 4 /* more of them are nobody's honest packet */

/* The transport header begins before this offset: IP's options and IPv6's
 * extension headers are bounded. */
#define L4_LIMIT 0xbf

enum parsed {
	PARSED_OTHER,    /* none of ours: not TCP, UDP, SCTP or an ICMP error */
	PARSED_BAD,      /* cut short */
	PARSED_PORTS,    /* tuple is complete */
	PARSED_FRAGMENT, /* a later fragment: tuple without ports */
	PARSED_ICMP,     /* an ICMP error: tuple without ports */
};

struct packet {
	struct tuple t;
	__u32 l4;       /* offset of the transport header */
	__u32 total;    /* IP length */
	__u32 segment;  /* IP length on the wire: of one segment where the packet is many */
	__be32 id;      /* of the fragments */
	__u8 v6;
	__u8 ttl;
	__u8 tos;
	__u8 flags;     /* TCP's, or as TCP's for SCTP */
	__u8 first;     /* first of several fragments */
	__u8 later;     /* a later one: no ports */
	__u8 whole;     /* IPv4: must not be fragmented */
	__u8 gso;
};

static __always_inline enum parsed parse_ipv4(CTX *ctx, struct packet *p)
{
	void *data = data_of(ctx);
	struct iphdr *ip = data + ETH_HLEN;
	__u32 ihl, frag;

	if ((void *)(ip + 1) > end_of(ctx))
		return PARSED_OTHER;
	ihl = ip->ihl * 4;
	if (ip->version != 4 || ihl < sizeof(*ip))
		return PARSED_OTHER;
	p->t.src = addr_of4(ip->saddr);
	p->t.dst = addr_of4(ip->daddr);
	p->t.proto = ip->protocol;
	p->ttl = ip->ttl;
	p->tos = ip->tos;
	p->id = ip->id;
	p->total = bpf_ntohs(ip->tot_len);
	p->l4 = ETH_HLEN + ihl;
	frag = bpf_ntohs(ip->frag_off);
	p->whole = (frag & IP_DF) != 0;
	p->later = (frag & IP_OFFSET) != 0;
	p->first = (frag & IP_MF) && !p->later;
	return PARSED_PORTS;
}

static __always_inline enum parsed parse_ipv6(CTX *ctx, struct packet *p)
{
	void *data = data_of(ctx);
	struct ipv6hdr *ip = data + ETH_HLEN;
	__u8 next;
	int i;

	if ((void *)(ip + 1) > end_of(ctx))
		return PARSED_OTHER;
	if (ip->version != 6)
		return PARSED_OTHER;
	p->t.src = addr_of6(&ip->saddr);
	p->t.dst = addr_of6(&ip->daddr);
	/* On the wire these mean nothing (RFC 4291, 2.5.5.2); in our tables they are IPv4. */
	if (is4(&p->t.src) || is4(&p->t.dst))
		return PARSED_OTHER;
	p->v6 = 1;
	p->ttl = ip->hop_limit;
	p->tos = (bpf_ntohs(*(__be16 *)ip) >> 4) & 0xff;
	p->total = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	p->l4 = ETH_HLEN + sizeof(*ip);
	next = ip->nexthdr;
	for (i = 0; i < EXTENSIONS; i++) {
		__u8 h[8];

		if (next != NEXTHDR_HOP && next != NEXTHDR_ROUTING && next != NEXTHDR_DEST &&
		    next != NEXTHDR_FRAGMENT)
			break;
		if (p->l4 > L4_LIMIT || load_bytes(ctx, p->l4, h, sizeof(h)))
			return PARSED_OTHER;
		if (next == NEXTHDR_FRAGMENT) {
			__u32 frag = h[2] << 8 | h[3];

			__builtin_memcpy(&p->id, h + 4, 4);
			p->later = frag >> 3 != 0;
			p->first = (frag & 1) && !p->later;
			p->l4 += 8;
		} else {
			p->l4 += 8 + h[1] * 8;
		}
		next = h[0];
		if (p->later)
			break;
	}
	p->t.proto = next;
	return p->l4 > L4_LIMIT ? PARSED_OTHER : PARSED_PORTS;
}

static __always_inline int is_error(const struct packet *p, __u8 type)
{
	if (p->v6)
		return type >= 1 && type <= ICMPV6_PARAMPROB;
	return type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB;
}

static __always_inline enum parsed parse(CTX *ctx, struct packet *p)
{
	__be16 type = ether_type(ctx);
	__u32 l4_len, need;
	__u8 *l4;

	/* Most packets have their headers in the linear part. */
	if (type == bpf_htons(ETH_P_IP)) {
		if (pull(ctx, ETH_HLEN + sizeof(struct iphdr)) || parse_ipv4(ctx, p) == PARSED_OTHER)
			return PARSED_OTHER;
	} else if (type == bpf_htons(ETH_P_IPV6)) {
		if (pull(ctx, ETH_HLEN + sizeof(struct ipv6hdr)) || parse_ipv6(ctx, p) == PARSED_OTHER)
			return PARSED_OTHER;
	} else {
		return PARSED_OTHER;
	}
	p->segment = p->total;

	if (p->t.proto == IPPROTO_TCP)
		need = sizeof(struct tcphdr);
	else if (p->t.proto == IPPROTO_UDP)
		need = sizeof(struct udphdr);
	else if (p->t.proto == IPPROTO_SCTP)
		need = SCTP_HEADER + 4;
	else if (p->t.proto == (p->v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP) && !p->first && !p->later)
		need = sizeof(struct icmphdr);
	else
		return PARSED_OTHER;
	if (p->later)
		return PARSED_FRAGMENT;
	if (pull(ctx, (p->l4 & 0xff) + need))
		return PARSED_BAD;
	l4 = data_of(ctx) + (p->l4 & 0xff);
	if (need == sizeof(struct udphdr)) { /* also ICMP */
		if (l4 + sizeof(struct udphdr) > (__u8 *)end_of(ctx))
			return PARSED_BAD;
		if (p->t.proto != IPPROTO_UDP)
			return is_error(p, l4[0]) ? PARSED_ICMP : PARSED_OTHER;
		l4_len = sizeof(struct udphdr);
	} else if (need == sizeof(struct tcphdr)) {
		if (l4 + sizeof(struct tcphdr) > (__u8 *)end_of(ctx))
			return PARSED_BAD;
		p->flags = l4[13];
		l4_len = (l4[12] >> 4) * 4;
	} else {
		__u8 chunk;

		if (l4 + SCTP_HEADER + 4 > (__u8 *)end_of(ctx))
			return PARSED_BAD;
		chunk = l4[SCTP_HEADER];
		p->flags = chunk == SCTP_INIT ? TCP_SYN :
			   chunk == SCTP_ABORT || chunk == SCTP_SHUTDOWN_COMPLETE ? TCP_RST :
			   chunk == SCTP_SHUTDOWN || chunk == SCTP_SHUTDOWN_ACK ? TCP_FIN | TCP_ACK :
										  TCP_ACK;
		l4_len = SCTP_HEADER;
	}
	p->t.sport = *(__be16 *)l4;
	p->t.dport = *(__be16 *)(l4 + 2);
	if (segment_size(ctx)) {
		p->gso = 1;
		p->segment = p->l4 - ETH_HLEN + l4_len + segment_size(ctx);
	}
	return PARSED_PORTS;
}

/* opens tells whether the packet may begin a connection. */
static __always_inline int opens(const struct packet *p)
{
	return p->t.proto == IPPROTO_UDP || (p->flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN;
}
