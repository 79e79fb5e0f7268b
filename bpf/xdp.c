// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)
/* xdp.c: the quick way, before the kernel makes anything of a packet.
 *
 * It carries what can be carried at once: a packet of a connection, or one that
 * opens one, whose next hop is known, to an interface that takes packets from
 * XDP. All else is passed on as it came, and the ingress program of tc.c does
 * its work: fragments, ICMP errors, neighbors that are not resolved yet,
 * packets too large or at their last hop, real servers on the director, sums
 * that the sender has left to a device. Nothing is counted for those here. */
#define BATUTA_XDP

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"
#include "parse.h"
#include "table.h"
#include "conn.h"
#include "schedule.h"
#include "balance.h"
#include "nat.h"
#include "route.h"
#include "tunnel.h"

#define PORTS 16384 /* interfaces with greater numbers are left to tc.c */

/* By the interface's number: its own hardware address if it carries this
 * program, and PORT_TAKES if it takes packets from here. Looked at for each
 * packet, so it is no hash map, whose look-up takes ten times as long. */
#define PORT_TAKES (1ULL << 48)

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PORTS);
	__type(key, __u32);
	__type(value, __u64);
} ports SEC(".maps");

/* The interfaces that take packets from here. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, PORTS);
	__type(key, __u32);
	__type(value, __u32);
} takers SEC(".maps");

static __always_inline int drop(struct xdp_md *ctx, const struct packet *p, enum reason why)
{
	count_reason(ctx, &p->t, why);
	return XDP_DROP;
}

/* for_us tells whether the frame is addressed to the interface that it came by. */
static __always_inline int for_us(struct xdp_md *ctx)
{
	__u32 ifindex = ctx->ingress_ifindex;
	struct ethhdr *eth = data_of(ctx);
	__u64 *own, dmac = 0;

	if ((void *)(eth + 1) > end_of(ctx))
		return 0;
	own = bpf_map_lookup_elem(&ports, &ifindex);
	__builtin_memcpy(&dmac, eth->h_dest, ETH_ALEN);
	return own && (*own & (PORT_TAKES - 1)) == dmac;
}

static __always_inline int takes(__u32 ifindex)
{
	__u64 *port = bpf_map_lookup_elem(&ports, &ifindex);

	return port && *port & PORT_TAKES;
}

/* is_whole tells whether the transport's sum is complete: on interfaces that are
 * none, their sender may have left it to a device (nat.h). */
static __always_inline int is_whole(struct xdp_md *ctx, const struct packet *p)
{
	__u8 *l4 = data_of(ctx) + (p->l4 & 0xff);

	if (p->t.proto == IPPROTO_TCP) {
		if (l4 + sizeof(struct tcphdr) > (__u8 *)end_of(ctx))
			return 0;
		return !is_partial(p, ((struct tcphdr *)l4)->check);
	}
	if (p->t.proto == IPPROTO_UDP) {
		if (l4 + sizeof(struct udphdr) > (__u8 *)end_of(ctx))
			return 0;
		return !((struct udphdr *)l4)->check || !is_partial(p, ((struct udphdr *)l4)->check);
	}
	return 1;
}

/* leave passes a packet on. A one-packet service is asked again at tc. */
static __always_inline int leave(struct service *s, const struct hit *h)
{
	if (!s || h->slot < max_flows)
		return XDP_PASS;
	h->rc->count.connections--;
	/* A persistent client's real server is remembered by now: tc takes no turn. */
	if (s->choice == CHOOSE_TURN && !(s->flags & SERVICE_STAYS))
		__sync_fetch_and_add(&s->next, -1);
	return XDP_PASS;
}

static __always_inline int put_macs(struct xdp_md *ctx, const struct way *w)
{
	struct ethhdr *eth = data_of(ctx);

	if ((void *)(eth + 1) > end_of(ctx))
		return -1;
	__builtin_memcpy(eth->h_dest, &w->dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, &w->smac, ETH_ALEN);
	return 0;
}

SEC("xdp")
int quick(struct xdp_md *ctx)
{
	struct packet p = {};
	struct service *s;
	struct hit h = {};
	struct way w = {};
	struct new_end e = {};
	struct tuple n;
	enum reason why;
	__u32 now, room = 0;

	if (!for_us(ctx) || parse(ctx, &p) != PARSED_PORTS || p.first || p.ttl <= 1)
		return XDP_PASS;
	if (!is_whole(ctx, &p))
		return XDP_PASS;
	now = ticks();
	switch (balance(ctx, &p, &h, &s, now, &why)) {
	case BALANCE_DROP:
		return drop(ctx, &p, why);
	case BALANCE_CARRY:
		break;
	default:
		return XDP_PASS;
	}
	if (h.word & FLOW_LOCAL)
		return leave(s, &h);
	if (FORWARD(h.word) == FORWARD_MASQ) {
		new_end(&h, &e);
	} else if (FORWARD(h.word) == FORWARD_IPIP) {
		if (!ends_after(&p, &h, &n))
			return drop(ctx, &p, REASON_DEAD_FLOW);
		room = tunnel_room(&n.dst);
	}
	why = flow_route(ctx, &p, &h, now, room, &w);
	if (why != REASON_NONE || !w.dmac || !takes(w.ifindex))
		return leave(s, &h);
	/* As in tc.c: the record was ours while we read it, or it was not. */
	asm volatile("" ::: "memory");
	if (h.slot < max_flows && READ_ONCE(h.f->gen) != h.gen)
		return drop(ctx, &p, REASON_RACE);

	account(ctx, &p, &h, now);
	if (FORWARD(h.word) == FORWARD_MASQ) {
		if (rewrite(ctx, &p, h.dir, &e, 1))
			return drop(ctx, &p, REASON_REWRITE);
	} else if (hop_down(ctx, p.v6) || (FORWARD(h.word) == FORWARD_IPIP && encapsulate(ctx, &p, &n.src, &n.dst))) {
		return drop(ctx, &p, REASON_REWRITE);
	}
	if (put_macs(ctx, &w))
		return drop(ctx, &p, REASON_REWRITE);
	return bpf_redirect_map(&takers, w.ifindex, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
