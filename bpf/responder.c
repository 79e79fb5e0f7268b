/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* responder.c: the kernel answers for its machine.
 *
 * Another node asks, when a beat of the daemon here is overdue, whether this
 * machine is there and which run of it this is. The answer is given here, on
 * the way in, whether or not the daemon runs: the question is overwritten in
 * place and goes back by the interface that it came by.
 *
 *      asker ── "???\n" ──▶ ingress ── for another node, no question, wrong key ──▶ stack
 *      asker ◀── "!!!\n" ── redirect
 *
 * internal/heartbeat/question.go has the layout, and Reply, which does the
 * same in Go. Whatever is no question for this node under one of its keys
 * goes on untouched: sockets of the daemon let nothing else than packets pass.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define IP_FRAGMENT 0x3fff /* more to come, or not the first */
#define TTL 64
#define WORDS 8 /* of 64 bits, of a question */
#define QUESTION 0x0a3f3f3f /* "???\n" */
#define ANSWER 0x0a212121   /* "!!!\n" */
#define VERSION 1
#define KEYS 16

/* Where questions are answered: an interface and the port of its beats. */
struct place_key {
	__u32 ifindex;
	__u16 port; /* network order */
	__u16 pad;
};

/* Own addresses there, for questions that came to all; zero is none. */
struct place {
	__u8 mac[6];
	__u8 pad[2];
	__u8 v4[4];
	__u8 local[16]; /* link-local IPv6 */
	__u8 global[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, struct place_key);
	__type(value, struct place);
} places SEC(".maps");

/* Who is asked, and which run of the machine answers. */
struct self {
	__u64 node;
	__u64 run[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct self);
} selves SEC(".maps");

/* The lines of authkeys, by number. */
struct key {
	__u64 half[2];
	__u64 known;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, KEYS);
	__type(key, __u32);
	__type(value, struct key);
} keys SEC(".maps");

enum outcome {
	ANSWERED,
	FOR_OTHERS, /* for another node */
	MALFORMED,  /* another version, no checksum */
	NO_KEY,     /* none of that number */
	WRONG_KEY,
	NO_ADDRESS, /* of our own to answer from */
	FAILED,     /* the kernel refused to change the packet */
	OUTCOMES,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, OUTCOMES);
	__type(key, __u32);
	__type(value, __u64);
} outcomes SEC(".maps");

const struct place_key *unused_place_key __attribute__((unused));
const struct place *unused_place __attribute__((unused));
const struct self *unused_self __attribute__((unused));
const struct key *unused_key __attribute__((unused));
const enum outcome *unused_outcome __attribute__((unused));

static __always_inline int end(__u32 outcome, int action)
{
	__u64 *n = bpf_map_lookup_elem(&outcomes, &outcome);
	if (n)
		(*n)++;
	return action;
}

#define ROTATE(x, n) ((x) << (n) | (x) >> (64 - (n)))

static __always_inline void round(__u64 s[4])
{
	s[0] += s[1];
	s[2] += s[3];
	s[1] = ROTATE(s[1], 13) ^ s[0];
	s[3] = ROTATE(s[3], 16) ^ s[2];
	s[0] = ROTATE(s[0], 32);
	s[2] += s[1];
	s[0] += s[3];
	s[1] = ROTATE(s[1], 17) ^ s[2];
	s[3] = ROTATE(s[3], 21) ^ s[0];
	s[2] = ROTATE(s[2], 32);
}

/* check is SipHash-2-4 of all words but the last. */
static __always_inline __u64 check(const struct key *key, const __u64 *word)
{
	__u64 s[4] = {key->half[0] ^ 0x736f6d6570736575, key->half[1] ^ 0x646f72616e646f6d,
		      key->half[0] ^ 0x6c7967656e657261, key->half[1] ^ 0x7465646279746573};

#pragma unroll
	for (int i = 0; i < WORDS; i++) {
		__u64 m = i == WORDS - 1 ? (__u64)(8 * (WORDS - 1)) << 56 : word[i];
		s[3] ^= m;
		round(s);
		round(s);
		s[0] ^= m;
	}
	s[2] ^= 0xff;
#pragma unroll
	for (int i = 0; i < 4; i++)
		round(s);
	return s[0] ^ s[1] ^ s[2] ^ s[3];
}

static __always_inline bool any(const __u8 address[16])
{
	__u64 half[2];
	__builtin_memcpy(half, address, sizeof(half));
	return half[0] | half[1];
}

/* turn4 and turn6 make the header that of the way back. `to_all` says that the
 * question came by broadcast or multicast. 0: done; else the outcome. */
static __always_inline int turn4(struct __sk_buff *skb, const struct place *p, bool to_all)
{
	__u32 own, at = ETH_HLEN + sizeof(struct iphdr) + offsetof(struct udphdr, check);
	struct iphdr ip;
	__u64 sum;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return FAILED;
	own = ip.daddr;
	if (to_all) {
		__builtin_memcpy(&own, p->v4, 4);
		if (!own)
			return NO_ADDRESS;
		if (bpf_l4_csum_replace(skb, at, ip.daddr, own, BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0 | 4))
			return FAILED;
	}
	ip.daddr = ip.saddr;
	ip.saddr = own;
	ip.ttl = TTL;
	ip.check = 0;
	sum = bpf_csum_diff(0, 0, (__be32 *)&ip, sizeof(ip), 0);
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff);
	sum = (sum & 0xffff) + (sum >> 16);
	ip.check = ~sum;
	return bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), 0) ? FAILED : 0;
}

static __always_inline int turn6(struct __sk_buff *skb, const struct place *p, bool to_all)
{
	__u32 at = ETH_HLEN + sizeof(struct ipv6hdr) + offsetof(struct udphdr, check);
	struct in6_addr own;
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return FAILED;
	own = ip.daddr;
	if (to_all) {
		bool local = ip.saddr.s6_addr[0] == 0xfe && (ip.saddr.s6_addr[1] & 0xc0) == 0x80;

		if (!any(local ? p->local : p->global))
			local = !local; /* better than none */
		__builtin_memcpy(&own, local ? p->local : p->global, sizeof(own));
		if (!any(own.s6_addr))
			return NO_ADDRESS;
		if (bpf_l4_csum_replace(skb, at, 0, bpf_csum_diff((__be32 *)&ip.daddr, 16, (__be32 *)&own, 16, 0), BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0))
			return FAILED;
	}
	ip.daddr = ip.saddr;
	ip.saddr = own;
	ip.hop_limit = TTL;
	return bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), 0) ? FAILED : 0;
}

SEC("tc")
int respond(struct __sk_buff *skb)
{
	__u64 word[WORDS], answer[WORDS];
	struct place_key where = {};
	bool to_all = skb->pkt_type != PACKET_HOST;
	__u32 l4, number, zero = 0;
	struct place *p;
	struct self *self;
	struct key *key;
	struct ethhdr eth;
	struct udphdr udp;
	int failed;

	if (skb->pkt_type != PACKET_HOST && skb->pkt_type != PACKET_BROADCAST && skb->pkt_type != PACKET_MULTICAST)
		return TC_ACT_UNSPEC;
	if (skb->vlan_present) /* of another network */
		return TC_ACT_UNSPEC;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
			return TC_ACT_UNSPEC;
		if (ip.version != 4 || ip.ihl != 5 || ip.protocol != IPPROTO_UDP || ip.frag_off & bpf_htons(IP_FRAGMENT))
			return TC_ACT_UNSPEC;
		l4 = ETH_HLEN + sizeof(ip);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
			return TC_ACT_UNSPEC;
		if (ip.version != 6 || ip.nexthdr != IPPROTO_UDP)
			return TC_ACT_UNSPEC;
		l4 = ETH_HLEN + sizeof(ip);
	} else {
		return TC_ACT_UNSPEC;
	}
	if (bpf_skb_load_bytes(skb, l4, &udp, sizeof(udp)) || udp.len != bpf_htons(sizeof(udp) + sizeof(word)))
		return TC_ACT_UNSPEC;
	if (bpf_skb_load_bytes(skb, l4 + sizeof(udp), word, sizeof(word)) || (__u32)word[0] != QUESTION)
		return TC_ACT_UNSPEC;
	where.ifindex = skb->ifindex;
	where.port = udp.dest;
	p = bpf_map_lookup_elem(&places, &where);
	self = bpf_map_lookup_elem(&selves, &zero);
	if (!p || !self)
		return TC_ACT_UNSPEC;
	if ((__u8)(word[0] >> 32) != VERSION || !udp.check)
		return end(MALFORMED, TC_ACT_UNSPEC);
	if (word[2] != self->node)
		return end(FOR_OTHERS, TC_ACT_UNSPEC);
	number = (__u8)(word[0] >> 40);
	key = bpf_map_lookup_elem(&keys, &number);
	if (!key || !key->known)
		return end(NO_KEY, TC_ACT_UNSPEC);
	if (check(key, word) != word[WORDS - 1])
		return end(WRONG_KEY, TC_ACT_UNSPEC);

	__builtin_memcpy(answer, word, sizeof(answer));
	answer[0] = (word[0] & ~0xffffffffULL) | ANSWER;
	answer[4] = self->run[0];
	answer[5] = self->run[1];
	answer[6] = 0; /* room for the lease */
	answer[7] = check(key, answer);

	/* The address first: what fails for want of one leaves the packet as it is. */
	failed = skb->protocol == bpf_htons(ETH_P_IP) ? turn4(skb, p, to_all) : turn6(skb, p, to_all);
	if (failed)
		return end(failed, failed == NO_ADDRESS ? TC_ACT_UNSPEC : TC_ACT_SHOT);
	if (bpf_l4_csum_replace(skb, l4 + offsetof(struct udphdr, check), 0, bpf_csum_diff((__be32 *)word, sizeof(word), (__be32 *)answer, sizeof(answer), 0), BPF_F_MARK_MANGLED_0) ||
	    bpf_skb_store_bytes(skb, l4 + sizeof(udp), answer, sizeof(answer), 0))
		return end(FAILED, TC_ACT_SHOT);
	__be16 ports[2] = {udp.dest, udp.source}; /* their sum stays */
	if (bpf_skb_store_bytes(skb, l4, ports, sizeof(ports), 0) || bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)))
		return end(FAILED, TC_ACT_SHOT);
	__u8 own[ETH_ALEN];
	__builtin_memcpy(own, to_all ? p->mac : eth.h_dest, ETH_ALEN);
	__builtin_memcpy(eth.h_dest, eth.h_source, ETH_ALEN);
	__builtin_memcpy(eth.h_source, own, ETH_ALEN);
	if (bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0))
		return end(FAILED, TC_ACT_SHOT);
	return end(ANSWERED, bpf_redirect(skb->ifindex, 0));
}

char _license[] SEC("license") = "Dual BSD/GPL";
