/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* parse.h: what a packet says of itself. */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

#define IP_MF 0x2000
#define IP_OFFSET 0x1fff

/* Flags of byte 13 of a TCP header (RFC 9293, section 3.1). */
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* ICMP (RFC 792); the kernel's own header needs a C library. */
#define ICMP_DEST_UNREACH 3
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
struct icmphdr {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__u32 rest;
};

enum parsed {
	PARSED_OTHER,    /* none of ours: not TCP, UDP or an ICMP error */
	PARSED_BAD,      /* cut short */
	PARSED_PORTS,    /* tuple is complete */
	PARSED_FRAGMENT, /* a later fragment: tuple without ports */
	PARSED_ICMP,     /* an ICMP error: tuple without ports */
};

struct packet {
	struct tuple t;
	__u32 l4;       /* offset of the transport header */
	__u32 segment;  /* IP length on the wire: of one segment where the packet is many */
	__be16 id;
	__u8 ttl;
	__u8 tos;
	__u8 tcp_flags;
	__u8 first;     /* first of several fragments */
};

static __always_inline enum parsed parse(struct __sk_buff *skb, struct packet *p)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + ETH_HLEN;
	__u32 ihl, frag, l4_len;
	void *l4;

	/* Most packets have their headers in the linear part. */
	if (data + ETH_HLEN + sizeof(*ip) + sizeof(struct tcphdr) > end) {
		__u32 want = ETH_HLEN + 60 + sizeof(struct tcphdr);

		if (want > skb->len)
			want = skb->len;
		if (bpf_skb_pull_data(skb, want))
			return PARSED_OTHER;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		ip = data + ETH_HLEN;
		if ((void *)(ip + 1) > end)
			return PARSED_OTHER;
	}
	ihl = ip->ihl * 4;
	if (ip->version != 4 || ihl < sizeof(*ip))
		return PARSED_OTHER;
	p->t.src = ip->saddr;
	p->t.dst = ip->daddr;
	p->t.proto = ip->protocol;
	p->ttl = ip->ttl;
	p->tos = ip->tos;
	p->id = ip->id;
	p->segment = bpf_ntohs(ip->tot_len);
	p->l4 = ETH_HLEN + ihl;
	frag = bpf_ntohs(ip->frag_off) & (IP_MF | IP_OFFSET);
	if (frag & IP_OFFSET) {
		if (p->t.proto == IPPROTO_TCP || p->t.proto == IPPROTO_UDP)
			return PARSED_FRAGMENT;
		return PARSED_OTHER;
	}
	p->first = frag != 0;

	l4 = (void *)ip + ihl;
	if (p->t.proto == IPPROTO_TCP) {
		struct tcphdr *tcp = l4;

		if ((void *)(tcp + 1) > end)
			return PARSED_BAD;
		p->t.sport = tcp->source;
		p->t.dport = tcp->dest;
		p->tcp_flags = ((__u8 *)tcp)[13];
		l4_len = tcp->doff * 4;
	} else if (p->t.proto == IPPROTO_UDP) {
		struct udphdr *udp = l4;

		if ((void *)(udp + 1) > end)
			return PARSED_BAD;
		p->t.sport = udp->source;
		p->t.dport = udp->dest;
		l4_len = sizeof(*udp);
	} else if (p->t.proto == IPPROTO_ICMP) {
		struct icmphdr *icmp = l4;

		if ((void *)(icmp + 1) > end || p->first)
			return PARSED_OTHER;
		if (icmp->type == ICMP_DEST_UNREACH || icmp->type == ICMP_TIME_EXCEEDED ||
		    icmp->type == ICMP_PARAMETERPROB)
			return PARSED_ICMP;
		return PARSED_OTHER;
	} else {
		return PARSED_OTHER;
	}
	if (skb->gso_size)
		p->segment = ihl + l4_len + skb->gso_size;
	return PARSED_PORTS;
}
