// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)
/* tc.c: the programs on network interfaces.
 *
 * ingress balances: it takes packets of virtual services and of their
 * connections and sends them on. With masq, what only the stack can do well
 * (fragment, answer with ICMP, deliver here) goes through it: towards real
 * servers translated, towards clients untranslated, since the stack would not
 * accept a virtual address as source. egress then translates what comes out:
 * those replies, the replies of real servers on the director itself, and the
 * ICMP errors of the director's own stack. With gate and ipip the stack would
 * take the packets for its own, so ingress does all. */
#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
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
#include "answer.h"
#include "fragment.h"
#include "icmp.h"
#include "express.h"

static __always_inline int drop(struct __sk_buff *skb, const struct packet *p, enum reason why)
{
	count_reason(skb, &p->t, why);
	return TC_ACT_SHOT;
}

static __always_inline int drop_out(struct __sk_buff *skb, const struct packet *p, enum reason why)
{
	count_from(skb, &p->t, why, HOOK_EGRESS);
	return TC_ACT_SHOT;
}

static __always_inline int pass(struct __sk_buff *skb, const struct packet *p, enum reason why)
{
	if (why != REASON_NONE)
		count_reason(skb, &p->t, why);
	return TC_ACT_UNSPEC;
}

/* refuse tells the sender what the stack would tell it, were it masq. */
static __always_inline int refuse(struct __sk_buff *skb, const struct packet *p, enum reason why, __u32 mtu,
				  struct way *w)
{
	struct tuple n = { .src = p->t.dst, .dst = p->t.src, .proto = p->v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP };

	if (why == REASON_NO_ROUTE)
		return drop(skb, p, REASON_UNREACHABLE);
	count_reason(skb, &p->t, why == REASON_TOO_BIG ? REASON_OVERSIZE : REASON_LAST_HOP);
	if (find_route(skb, p, &n, ANSWER_MAX, w) != REASON_NONE ||
	    answer(skb, p, why == REASON_TOO_BIG ? ANSWER_TOO_BIG : ANSWER_TTL, mtu))
		return TC_ACT_SHOT;
	w->dmac = 0;
	return send(skb, w);
}

/* carry_as_is takes a packet to its real server by gate or ipip. */
static __always_inline int carry_as_is(struct __sk_buff *skb, const struct packet *p, const struct hit *h,
				       const struct tuple *n, const struct way *w)
{
	if (hop_down(skb, p->v6))
		return drop(skb, p, REASON_REWRITE);
	if (FORWARD(h->word) == FORWARD_IPIP && encapsulate(skb, p, &n->src, &n->dst))
		return drop(skb, p, REASON_REWRITE);
	return send(skb, w);
}

/* carry takes a packet of connection h onward. */
static __always_inline int carry(struct __sk_buff *skb, struct packet *p, struct hit *h, __u32 now)
{
	struct flow *f = h->f;
	int masq = FORWARD(h->word) == FORWARD_MASQ;
	enum reason why = REASON_TTL;
	struct way w = {};
	struct tuple n;
	__u32 room = 0;
	__u16 delta;

	if (tracing) {
		trace(skb, TRACE_REAL, f->real_slot + 1);
		if (!skb->cb[TRACE_HOW])
			trace(skb, TRACE_HOW, TRACE_KNOWN);
		if (h->slot < max_flows)
			trace(skb, TRACE_FLOW, h->slot + 1);
	}
	if (h->word & FLOW_LOCAL) {
		/* Replies are counted on their way out. */
		if (h->dir == TO_REAL)
			account(skb, p, h, now);
		return TC_ACT_UNSPEC;
	}
	if (!ends_after(p, h, &n))
		return drop(skb, p, REASON_DEAD_FLOW);
	delta = delta_of(h);
	if (FORWARD(h->word) == FORWARD_IPIP)
		room = tunnel_room(&n.dst);
	if (p->ttl > 1)
		why = flow_route(skb, p, h, &n, room, &w);
	if (!is_still(h))
		return drop(skb, p, REASON_RACE);
	if (why != REASON_NONE && h->dir == TO_CLIENT)
		return pass(skb, p, why); /* egress does the rest */

	account(skb, p, h, now);
	if (!masq) {
		if (why != REASON_NONE)
			return refuse(skb, p, why, w.mtu - room, &w);
		return carry_as_is(skb, p, h, &n, &w);
	}
	if (rewrite(skb, p, &n, delta, h->dir | (why == REASON_NONE ? COUNT_HOP : 0)))
		return drop(skb, p, REASON_REWRITE);
	if (why != REASON_NONE)
		return pass(skb, p, why);
	return send(skb, &w);
}

/* errors carries ICMP errors. (It reads the packet again, and has a frame of
 * its own, since older kernels' verifiers leave no room for that in general's.) */
static __attribute__((noinline)) int errors(struct __sk_buff *skb)
{
	struct packet packet = {}, *p = &packet;
	enum reason why = REASON_TTL;
	struct quote q = {};
	struct hit h = {};
	struct way w = {};
	struct tuple n;
	__u32 room = 0;

	if (parse(skb, p) != PARSED_ICMP)
		return TC_ACT_UNSPEC;
	if (!find_quoted(skb, p, &q, &h)) {
		learn_path(skb, p);
		return TC_ACT_UNSPEC;
	}
	if (h.word & FLOW_LOCAL)
		return TC_ACT_UNSPEC;
	if (h.dead)
		return drop(skb, p, REASON_DEAD_FLOW);
	if (!ends_after(p, &h, &n))
		return drop(skb, p, REASON_DEAD_FLOW);
	if (FORWARD(h.word) == FORWARD_IPIP)
		room = tunnel_room(&n.dst);
	n.sport = 0;
	n.dport = 0;
	if (p->ttl > 1)
		why = find_route(skb, p, &n, p->segment + room, &w);
	w.dmac = 0;
	if (FORWARD(h.word) != FORWARD_MASQ) /* nobody is told about an error (RFC 1122, 3.2.2) */
		return why != REASON_NONE ? drop(skb, p, REASON_UNREACHABLE) : carry_as_is(skb, p, &h, &n, &w);
	if (why != REASON_NONE && h.dir == TO_CLIENT)
		return pass(skb, p, why); /* egress does the rest */
	if (rewrite_error(skb, p, &q, &h, why == REASON_NONE))
		return drop(skb, p, REASON_REWRITE);
	if (why != REASON_NONE)
		return pass(skb, p, why);
	return send(skb, &w);
}

#define AN_ERROR (-4) /* no verdict of the kernel's */

/* general is for whatever the lane has left. */
static __attribute__((noinline)) int general(struct __sk_buff *skb, int may_be)
{
	struct packet p = {};
	struct hit h = {};
	struct service *s;
	enum reason why;
	__u32 now;

	switch (parse(skb, &p)) {
	case PARSED_PORTS:
		break;
	case PARSED_ICMP:
		return AN_ERROR;
	case PARSED_FRAGMENT:
		now = ticks_now();
		switch (find_fragment(&p, &h, now)) {
		case 0:
			return TC_ACT_UNSPEC;
		case 1:
			if (h.dead)
				return drop(skb, &p, REASON_DEAD_FLOW);
			goto carry;
		}
		return drop(skb, &p, REASON_LATE_FRAGMENT);
	case PARSED_BAD:
		return fragment_matters(&p) ? drop(skb, &p, REASON_BAD_PACKET) : TC_ACT_UNSPEC;
	default:
		return TC_ACT_UNSPEC;
	}

	now = ticks_now();
	switch (balance(skb, &p, may_be, &h, &s, now, &why)) {
	case BALANCE_NOT:
		if (p.first)
			note_first(&p, 0, 0, now);
		return TC_ACT_UNSPEC;
	case BALANCE_PASS:
		return pass(skb, &p, why);
	case BALANCE_DROP:
		return drop(skb, &p, why);
	default:
		break;
	}
	if (p.first)
		note_first(&p, slot_of(&h), h.gen, now);
carry:
	return carry(skb, &p, &h, now);
}

SEC("tc")
int ingress(struct __sk_buff *skb)
{
	int verdict;

	/* Tagged frames come by again on their VLAN's own interface. */
	if (skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return TC_ACT_UNSPEC;
	if (skb->tc_index == DONE)
		skb->tc_index = 0;
	verdict = express(skb, data_of(skb), end_of(skb), skb->protocol);
	if (verdict > LANE_OTHER)
		return verdict;
	verdict = general(skb, verdict != LANE_NEW);
	return verdict == AN_ERROR ? errors(skb) : verdict;
}

/* replies is for what the stack sends. */
static __attribute__((noinline)) int replies(struct __sk_buff *skb)
{
	struct packet p = {};
	struct tuple n;
	struct quote q = {};
	struct hit h = {};
	__u32 now;

	now = ticks_now();
	switch (parse(skb, &p)) {
	case PARSED_PORTS:
		if (!find_flow(&p.t, &h) && !find_waiting(&p, &h, now)) {
			if (p.first)
				note_first(&p, 0, 0, now);
			return TC_ACT_UNSPEC;
		}
		break;
	case PARSED_FRAGMENT:
		switch (find_fragment(&p, &h, now)) {
		case 0:
			return TC_ACT_UNSPEC;
		case 1:
			break;
		default:
			return drop_out(skb, &p, REASON_LATE_FRAGMENT);
		}
		break;
	case PARSED_ICMP:
		if (!find_quoted(skb, &p, &q, &h) || (h.word & FLOW_LOCAL) ||
		    FORWARD(h.word) != FORWARD_MASQ)
			return TC_ACT_UNSPEC;
		if (rewrite_error(skb, &p, &q, &h, 0))
			return drop_out(skb, &p, REASON_REWRITE);
		return TC_ACT_UNSPEC;
	default:
		return TC_ACT_UNSPEC;
	}

	if (h.dir != TO_CLIENT)
		return TC_ACT_UNSPEC;
	if (h.dead)
		return drop_out(skb, &p, REASON_DEAD_FLOW);
	if (p.first)
		note_first(&p, slot_of(&h), h.gen, now);
	account(skb, &p, &h, now);
	if (h.word & FLOW_LOCAL)
		return TC_ACT_UNSPEC;
	if (!ends_after(&p, &h, &n) || rewrite(skb, &p, &n, delta_of(&h), TO_CLIENT))
		return drop_out(skb, &p, REASON_REWRITE);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int egress(struct __sk_buff *skb)
{
	if (skb->tc_index != DONE)
		return replies(skb);
	skb->tc_index = 0;
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual BSD/GPL";
