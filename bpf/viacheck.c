/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* viacheck.c: health checks by way of the virtual address.
 *
 * A check's socket is connected to the real server's own address, so that
 * the packet is routed to it. On the way out its destination becomes the
 * virtual address; the frame still goes to the real server (gate), or the
 * packet gets a tunnel's header around it (ipip). What comes back has the
 * virtual address for its sender, which is an address of this host: it gets
 * the real server's before the stack would drop it.
 *
 *      socket ── to RIP ──▶ egress ── to VIP, at RIP's MAC ──▶ real server
 *      socket ◀── from RIP ── ingress ◀── from VIP ─────────────────┘
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define IP_DF 0x4000
#define IP_FRAGMENT 0x3fff /* more to come, or not the first */
#define TTL 64
#define SYN_ACK 0x12 /* of byte 13 of a TCP header */
#define SYN 0x02

/* A socket of a check, by its own port: no other socket has that one. */
struct way_key {
	__u16 port; /* network order, as all ports here */
	__u8 protocol;
	__u8 pad;
};

struct way {
	__u64 cookie; /* of the socket */
	__u8 vip[16]; /* IPv4 addresses are the first four bytes */
	__u8 real[16];
	__u16 port; /* of the real server */
	__u8 family; /* 4 or 6 */
	__u8 tunnel; /* 1: ipip */
	__u32 pad;
};

/* Entries of checks that have ended are pushed out by later ones, or removed
 * by the next connection from their port. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct way_key);
	__type(value, struct way);
} ways SEC(".maps");

const struct way_key *unused_key __attribute__((unused));
const struct way *unused_way __attribute__((unused));

/* What matters of a packet; offsets from the frame's begin. */
struct seen {
	__u32 l4, source, destination; /* offsets of the addresses */
	__u32 size;                    /* of an address */
	__u16 sport, dport;
	__u8 family, protocol, flags;
};

static __always_inline bool look(struct __sk_buff *skb, struct seen *s)
{
	struct udphdr ports;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
			return false;
		if (ip.version != 4 || ip.ihl < 5 || ip.frag_off & bpf_htons(IP_FRAGMENT))
			return false;
		s->family = 4;
		s->size = 4;
		s->protocol = ip.protocol;
		s->source = ETH_HLEN + offsetof(struct iphdr, saddr);
		s->destination = ETH_HLEN + offsetof(struct iphdr, daddr);
		s->l4 = ETH_HLEN + ip.ihl * 4;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
			return false;
		s->family = 6;
		s->size = 16;
		s->protocol = ip.nexthdr;
		s->source = ETH_HLEN + offsetof(struct ipv6hdr, saddr);
		s->destination = ETH_HLEN + offsetof(struct ipv6hdr, daddr);
		s->l4 = ETH_HLEN + sizeof(ip);
	} else {
		return false;
	}
	if (s->protocol != IPPROTO_TCP && s->protocol != IPPROTO_UDP)
		return false;
	if (bpf_skb_load_bytes(skb, s->l4, &ports, sizeof(ports)))
		return false;
	s->sport = ports.source;
	s->dport = ports.dest;
	s->flags = 0;
	if (s->protocol == IPPROTO_TCP && bpf_skb_load_bytes(skb, s->l4 + 13, &s->flags, 1))
		return false;
	return true;
}

/* is tells whether the address at an offset is that one. */
static __always_inline bool is(struct __sk_buff *skb, const struct seen *s, __u32 offset, const __u8 *want)
{
	__u32 have[4] = {}, addr[4];

	if (s->family == 4) {
		if (bpf_skb_load_bytes(skb, offset, have, 4))
			return false;
		__builtin_memcpy(addr, want, 4);
		return have[0] == addr[0];
	}
	if (bpf_skb_load_bytes(skb, offset, have, 16))
		return false;
	__builtin_memcpy(addr, want, 16);
	return have[0] == addr[0] && have[1] == addr[1] && have[2] == addr[2] && have[3] == addr[3];
}

/* replace writes another address, and what follows for the checksums. */
static __always_inline bool replace(struct __sk_buff *skb, const struct seen *s, __u32 offset, const __u8 *old, const __u8 *new)
{
	__u32 from[4], to[4], check = s->l4 + offsetof(struct tcphdr, check);
	__u64 flags = BPF_F_PSEUDO_HDR;
	__s64 diff;

	if (s->protocol == IPPROTO_UDP) {
		check = s->l4 + offsetof(struct udphdr, check);
		flags |= BPF_F_MARK_MANGLED_0;
	}
	__builtin_memcpy(from, old, 16);
	__builtin_memcpy(to, new, 16);
	if (s->family == 4) {
		if (bpf_l4_csum_replace(skb, check, from[0], to[0], flags | 4) ||
		    bpf_l3_csum_replace(skb, ETH_HLEN + offsetof(struct iphdr, check), from[0], to[0], 4))
			return false;
		return !bpf_skb_store_bytes(skb, offset, to, 4, 0);
	}
	diff = bpf_csum_diff(from, 16, to, 16, 0);
	if (bpf_l4_csum_replace(skb, check, 0, diff, flags))
		return false;
	return !bpf_skb_store_bytes(skb, offset, to, 16, 0);
}

/* wrap puts a tunnel's header (RFC 2003, RFC 2473) around a packet. */
static __always_inline bool wrap(struct __sk_buff *skb, const struct seen *s, const struct way *w)
{
	if (s->family == 4) {
		struct iphdr outer = {.version = 4, .ihl = 5, .ttl = TTL, .protocol = IPPROTO_IPIP, .frag_off = bpf_htons(IP_DF)};
		if (bpf_skb_load_bytes(skb, s->source, &outer.saddr, 4))
			return false;
		__builtin_memcpy(&outer.daddr, w->real, 4);
		outer.tot_len = bpf_htons(skb->len - ETH_HLEN + sizeof(outer));
		__u64 sum = bpf_csum_diff(0, 0, (__be32 *)&outer, sizeof(outer), 0);
		sum = (sum & 0xffff) + (sum >> 16 & 0xffff);
		sum = (sum & 0xffff) + (sum >> 16);
		outer.check = ~sum;
		if (bpf_skb_adjust_room(skb, sizeof(outer), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4))
			return false;
		return !bpf_skb_store_bytes(skb, ETH_HLEN, &outer, sizeof(outer), 0);
	}
	struct ipv6hdr outer = {.version = 6, .hop_limit = TTL, .nexthdr = IPPROTO_IPV6};
	if (bpf_skb_load_bytes(skb, s->source, &outer.saddr, 16))
		return false;
	__builtin_memcpy(&outer.daddr, w->real, 16);
	outer.payload_len = bpf_htons(skb->len - ETH_HLEN);
	if (bpf_skb_adjust_room(skb, sizeof(outer), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6))
		return false;
	return !bpf_skb_store_bytes(skb, ETH_HLEN, &outer, sizeof(outer), 0);
}

/* TC_ACT_UNSPEC: the next program decides, whatever was done here. A packet
 * that could not be changed is dropped: half a change would be a wrong answer. */
SEC("tc")
int via_egress(struct __sk_buff *skb)
{
	struct seen s;
	struct way_key key = {};
	struct way *found, w;

	if (!look(skb, &s))
		return TC_ACT_UNSPEC;
	key.port = s.sport;
	key.protocol = s.protocol;
	found = bpf_map_lookup_elem(&ways, &key);
	if (!found || found->family != s.family || found->port != s.dport)
		return TC_ACT_UNSPEC;
	__builtin_memcpy(&w, found, sizeof(w));
	if (!is(skb, &s, s.destination, w.real))
		return TC_ACT_UNSPEC;
	/* Another socket has the port now. The last packets of a connection
	 * come without their socket: only beginnings are looked at. */
	if ((s.protocol == IPPROTO_UDP || (s.flags & SYN_ACK) == SYN) && bpf_get_socket_cookie(skb) != w.cookie) {
		bpf_map_delete_elem(&ways, &key);
		return TC_ACT_UNSPEC;
	}
	if (!replace(skb, &s, s.destination, w.real, w.vip))
		return TC_ACT_SHOT;
	if (w.tunnel && !wrap(skb, &s, &w))
		return TC_ACT_SHOT;
	return TC_ACT_UNSPEC;
}

SEC("tc")
int via_ingress(struct __sk_buff *skb)
{
	struct seen s;
	struct way_key key = {};
	struct way *found, w;

	if (!look(skb, &s))
		return TC_ACT_UNSPEC;
	key.port = s.dport;
	key.protocol = s.protocol;
	found = bpf_map_lookup_elem(&ways, &key);
	if (!found || found->family != s.family || found->port != s.sport)
		return TC_ACT_UNSPEC;
	__builtin_memcpy(&w, found, sizeof(w));
	if (!is(skb, &s, s.source, w.vip))
		return TC_ACT_UNSPEC;
	return replace(skb, &s, s.source, w.vip, w.real) ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}

char _license[] SEC("license") = "Dual BSD/GPL";
