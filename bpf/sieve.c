/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* sieve.c: the filter of a heartbeat socket in a flood.
 *
 * Packets cost the heartbeats' process nothing if they are dropped before they
 * are in its socket. That process tells what it knows: the senders that
 * messages come from, and of each the generation and number below which it
 * wants no more. Here packets are read so far that recordings, and forgeries
 * that do not hit the numbers, are told from what may be new:
 *
 *      ###                       not a message: dropped
 *      18:(0)st=active,          a field: LENGTH:(TYPE)NAME=VALUE,
 *      ...
 *      10:(0)seq=1c3,            ── number ──────┐
 *      15:(0)hg=6b030429,        ── generation ──┴─ admitted, dropped, or a share
 *
 * What cannot be understood is admitted: the door behind the socket has the
 * keys and the last word. What may be right in a rare case (another life, a
 * node long away, an address never seen) is admitted in a share.
 * A test holds the answers against the same rules written in Go.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define NETSTRING 0x0a232323 /* "###\n" */
#define TEXT 0x0a3e3e3e      /* ">>>\n" */
#define LONGEST 16384	     /* bytes of a message */
#define SENDERS 64
#define FIELDS 200   /* of a message: no more are valid */
#define SHARE 64     /* one packet of so many is admitted; a power of two */
#define REACH 250    /* so far ahead numbers may be: more missing ones nobody asks for */
#define PERIOD 1000000 /* ns between two messages without a number; a node may send 1,000 of them a second */
#define BURST (500ULL * PERIOD)

/* An address; IPv4 as ::ffff:0:0/96. */
struct address {
	__u8 byte[16];
};

/* What is known of who sends from there. */
struct sender {
	__u32 generation; /* 0: nothing, all its packets are admitted */
	__u32 number;	  /* of that generation: up to it nothing is new */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SENDERS);
	__type(key, struct address);
	__type(value, struct sender);
} senders SEC(".maps");

/* When the next message without a number is due, ns. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SENDERS);
	__type(key, struct address);
	__type(value, __u64);
} turns SEC(".maps");

/* Whether of strangers only a share is admitted. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} shut SEC(".maps");

const struct address *unused_address __attribute__((unused));
const struct sender *unused_sender __attribute__((unused));

static __always_inline int admit(void) { return -1; /* all of the packet */ }
static __always_inline int drop(void) { return 0; }

static __always_inline int share(void)
{
	return bpf_get_prandom_u32() & (SHARE - 1) ? drop() : admit();
}

static __always_inline bool source(struct __sk_buff *skb, struct address *a)
{
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		a->byte[10] = a->byte[11] = 0xff;
		return !bpf_skb_load_bytes_relative(skb, offsetof(struct iphdr, saddr), a->byte + 12, 4, BPF_HDR_START_NET);
	}
	return skb->protocol == bpf_htons(ETH_P_IPV6) &&
	       !bpf_skb_load_bytes_relative(skb, offsetof(struct ipv6hdr, saddr), a->byte, 16, BPF_HDR_START_NET);
}

/* A field's beginning: enough for LENGTH:(0)seq= of two digits. */
#define HEAD 10

/* hexadecimal reads the digits of a value up to its comma. -1: it is none. */
static __always_inline __s64 hexadecimal(const __u8 *digit)
{
	__u64 n = 0;

#pragma unroll
	for (int i = 0; i < 9; i++) {
		__u8 c = digit[i];

		if (c == ',')
			return i ? (__s64)n : -1;
		if (c >= '0' && c <= '9')
			c -= '0';
		else if (c >= 'a' && c <= 'f')
			c -= 'a' - 10;
		else
			return -1;
		n = n << 4 | c;
	}
	return -1;
}

#define NAME(a, b, c, d, e, f, g, h) \
	((__u64)(a) | (__u64)(b) << 8 | (__u64)(c) << 16 | (__u64)(d) << 24 | (__u64)(e) << 32 | (__u64)(f) << 40 | (__u64)(g) << 48 | (__u64)(h) << 56)
#define SEQ NAME(':', '(', '0', ')', 's', 'e', 'q', '=')
#define HG NAME(':', '(', '0', ')', 'h', 'g', '=', 0)

/* A walk over the fields of a message. */
struct walk {
	struct __sk_buff *skb;
	__u32 at;		  /* the next field */
	__u32 number, generation; /* where these values begin; 0: not met */
};

/* step looks at one field; 1 ends the walk. Of two fields of a name the first
 * counts. */
static long step(__u32 i, struct walk *w)
{
	__u32 length = 0, digits;
	__u64 name;
	__u8 h[HEAD];

	/* The signature behind the last field is longer than a head. */
	if (w->at > LONGEST || bpf_skb_load_bytes(w->skb, w->at, h, HEAD))
		return 1;
	if (h[1] == ':')
		digits = 1;
	else if (h[2] == ':')
		digits = 2;
	else if (h[3] == ':')
		digits = 3;
	else if (h[4] == ':')
		digits = 4;
	else
		return 1; /* the end, or none of ours */
#pragma unroll
	for (int j = 0; j < 4; j++)
		if (j < digits) {
			if (h[j] < '0' || h[j] > '9')
				return 1;
			length = length * 10 + h[j] - '0';
		}
	if (digits <= 2) { /* numbers are short */
		if (digits == 1)
			__builtin_memcpy(&name, h + 1, sizeof(name));
		else
			__builtin_memcpy(&name, h + 2, sizeof(name));
		if (name == SEQ && !w->number)
			w->number = w->at + digits + 8;
		if ((name & ~0ULL >> 8) == HG && !w->generation)
			w->generation = w->at + digits + 7;
	}
	w->at += digits + 1 + length + 1;
	return w->number && w->generation;
}

/* value is the number at that place; -1: there is none. */
static __always_inline __s64 value(struct __sk_buff *skb, __u32 at)
{
	__u8 digit[9]; /* with the comma */

	if (!at || bpf_skb_load_bytes(skb, at, digit, sizeof(digit)))
		return -1;
	return hexadecimal(digit);
}

SEC("socket")
int sieve(struct __sk_buff *skb)
{
	struct address from = {};
	struct walk w = {.skb = skb, .at = sizeof(struct udphdr) + 4};
	__s64 number, generation;
	struct sender *s;
	__u32 word, zero = 0, *closed;
	__u64 now, next, *turn;

	if (skb->len > sizeof(struct udphdr) + LONGEST || bpf_skb_load_bytes(skb, sizeof(struct udphdr), &word, sizeof(word)))
		return drop();
	if (word != NETSTRING && word != TEXT)
		return drop();
	if (!source(skb, &from))
		return admit();
	s = bpf_map_lookup_elem(&senders, &from);
	if (!s) {
		closed = bpf_map_lookup_elem(&shut, &zero);
		return closed && *closed ? share() : admit();
	}
	if (!s->generation || word == TEXT)
		return admit();
	bpf_loop(FIELDS, step, &w, 0);
	number = value(skb, w.number);
	generation = value(skb, w.generation);
	if (generation < 0)
		return admit();
	if (generation == s->generation && number >= 0)
		return number > s->number && number <= (__u64)s->number + REACH ? admit() : share();
	if (generation == (__u64)s->generation + 1)
		return number <= REACH ? admit() /* or it has none */ : share();
	if (generation != s->generation)
		return share();
	/* Messages of delivery have no number. Two processors may both take the
	 * same turn: no harm. */
	turn = bpf_map_lookup_elem(&turns, &from);
	if (!turn)
		return admit();
	now = bpf_ktime_get_ns();
	next = *turn;
	if (next + BURST < now)
		next = now - BURST;
	if (next > now)
		return share();
	*turn = next + PERIOD;
	return admit();
}

char _license[] SEC("license") = "Dual BSD/GPL";
