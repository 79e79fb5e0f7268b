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
 * program. Looked at for each packet, so it is no hash map, whose look-up takes
 * ten times as long. */
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

/* may_send tells whether a packet can leave from here, and asks the kernel to
 * send it should the program say XDP_REDIRECT. */
static __always_inline int may_send(struct xdp_md *ctx, __u32 ifindex, __u64 dmac)
{
	return dmac && bpf_redirect_map(&takers, ifindex, 0) == XDP_REDIRECT;
}

static __always_inline int may_leave(struct xdp_md *ctx, const struct hop *h)
{
	return may_send(ctx, h->ifindex, h->dmac);
}

static __always_inline int leave(struct xdp_md *ctx, void *frame, __u32 ifindex, __u64 dmac, __u64 smac)
{
	put_macs(frame, dmac, smac);
	return XDP_REDIRECT; /* to whom may_send has named */
}

#include "express.h"

/* hand_on passes a packet on. A one-packet service is asked again at tc. */
static __always_inline int hand_on(struct service *s, const struct hit *h)
{
	if (!s || !is_alone(h->slot))
		return XDP_PASS;
	h->rc->count.connections--;
	/* A persistent client's real server is remembered by now: tc takes no turn. */
	if (s->choice == CHOOSE_TURN && !(s->flags & SERVICE_STAYS))
		__sync_fetch_and_add(&s->next, -1);
	return XDP_PASS;
}

/* general is for whatever the lane has left. */
static __attribute__((noinline)) int general(struct xdp_md *ctx, int may_be)
{
	struct packet p = {};
	struct service *s;
	struct hit h = {};
	struct way w = {};
	struct tuple n;
	enum reason why;
	__u32 now, room = 0;
	__u16 delta;
	void *frame;

	if (parse(ctx, &p) != PARSED_PORTS || p.first || p.ttl <= 1)
		return XDP_PASS;
	if (!is_whole(ctx, &p))
		return XDP_PASS;
	now = ticks_now();
	switch (balance(ctx, &p, may_be, &h, &s, now, &why)) {
	case BALANCE_DROP:
		return drop(ctx, &p, why);
	case BALANCE_CARRY:
		break;
	default:
		return XDP_PASS;
	}
	if (h.word & FLOW_LOCAL)
		return hand_on(s, &h);
	if (!ends_after(&p, &h, &n))
		return drop(ctx, &p, REASON_DEAD_FLOW);
	delta = delta_of(&h);
	if (FORWARD(h.word) == FORWARD_IPIP)
		room = tunnel_room(&n.dst);
	why = flow_route(ctx, &p, &h, &n, room, &w);
	if (why != REASON_NONE || !may_send(ctx, w.ifindex, w.dmac))
		return hand_on(s, &h);
	if (!is_still(&h))
		return drop(ctx, &p, REASON_RACE);

	account(ctx, &p, &h, now);
	if (FORWARD(h.word) == FORWARD_MASQ) {
		if (rewrite(ctx, &p, &n, delta, h.dir | COUNT_HOP))
			return drop(ctx, &p, REASON_REWRITE);
	} else if (hop_down(ctx, p.v6) || (FORWARD(h.word) == FORWARD_IPIP && encapsulate(ctx, &p, &n.src, &n.dst))) {
		return drop(ctx, &p, REASON_REWRITE);
	}
	frame = data_of(ctx);
	if (frame + ETH_HLEN > end_of(ctx))
		return drop(ctx, &p, REASON_REWRITE);
	return leave(ctx, frame, w.ifindex, w.dmac, w.smac);
}

SEC("xdp")
int quick(struct xdp_md *ctx)
{
	void *data = data_of(ctx), *end = end_of(ctx);
	__u32 ifindex = ctx->ingress_ifindex;
	struct mac *dst = data, *own;
	int verdict;

	if (data + SHORTEST > end)
		return XDP_PASS;
	/* Addressed to the interface that it came by? */
	own = bpf_map_lookup_elem(&ports, &ifindex);
	if (!own || dst->a != own->a || dst->b != own->b)
		return XDP_PASS;
	verdict = express(ctx, data, end, *(__be16 *)(data + 2 * ETH_ALEN));
	return verdict > LANE_OTHER ? verdict : general(ctx, verdict != LANE_NEW);
}

char _license[] SEC("license") = "Dual BSD/GPL";
