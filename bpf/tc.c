// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)
/* tc.c: the programs on network interfaces.
 *
 * ingress balances: it translates packets of virtual services and of their
 * connections and sends them on. What only the stack can do well (fragment,
 * answer with ICMP, deliver here) goes through it: towards real servers
 * translated, towards clients untranslated, since the stack would not accept
 * a virtual address as source. egress then translates what comes out: those
 * replies, the replies of real servers on the director itself, and the ICMP
 * errors of the director's own stack. */
#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "conn.h"
#include "fragment.h"
#include "icmp.h"
#include "maps.h"
#include "nat.h"
#include "parse.h"
#include "route.h"
#include "schedule.h"

/* Carried in tc_index from ingress to egress: this packet is done. */
#define DONE 0xba7a

static __always_inline int drop(enum reason why)
{
	count_reason(why);
	return TC_ACT_SHOT;
}

static __always_inline int pass(enum reason why)
{
	if (why != REASON_NONE)
		count_reason(why);
	return TC_ACT_UNSPEC;
}

static __always_inline int redirect(struct __sk_buff *skb, const struct route *r)
{
	skb->tc_index = DONE;
	return send(r);
}

/* carry takes a packet of connection h onward. ports is 0 for later fragments. */
static __always_inline int carry(struct __sk_buff *skb, struct packet *p, struct hit *h, __u32 now,
				 int ports)
{
	struct flow *f = h->f;
	int to_real = h->dir == TO_REAL;
	__be32 addr = to_real ? f->real : f->virt;
	__be16 port = to_real ? f->rport : f->vport;
	enum reason why = REASON_TTL;
	struct route r = {};
	int rc;

	if (f->flags & FLOW_LOCAL) {
		/* Replies are counted on their way out. */
		if (to_real)
			account(skb, p, h, now);
		return TC_ACT_UNSPEC;
	}
	if (p->ttl > 1)
		why = to_real ? flow_route(skb, p, f, TO_REAL, now, p->t.src, addr, p->t.sport,
					   port, &r) :
				flow_route(skb, p, f, TO_CLIENT, now, addr, p->t.dst, port,
					   p->t.dport, &r);
	/* The record was ours while we read it, or it was not: a slot given to
	 * another connection has another generation. */
	asm volatile("" ::: "memory");
	if (READ_ONCE(f->gen) != h->gen)
		return drop(REASON_RACE);
	if (why != REASON_NONE && !to_real)
		return pass(why); /* egress does the rest */

	account(skb, p, h, now);
	if (ports)
		rc = rewrite(skb, p, h->dir, addr, port, why == REASON_NONE);
	else
		rc = rewrite_ip(skb, h->dir, addr, why == REASON_NONE);
	if (rc)
		return drop(REASON_REWRITE);
	if (why != REASON_NONE)
		return pass(why);
	return redirect(skb, &r);
}

static __always_inline int carry_error(struct __sk_buff *skb, struct packet *p)
{
	struct quote q = {};
	struct hit h = {};
	struct route r = {};
	enum reason why = REASON_TTL;

	if (!find_quoted(skb, p, &q, &h) || (h.f->flags & FLOW_LOCAL))
		return TC_ACT_UNSPEC;
	if (h.dead)
		return drop(REASON_DEAD_FLOW);
	if (p->ttl > 1)
		why = h.dir == TO_REAL ? find_route(skb, p, p->t.src, h.f->real, 0, 0, &r) :
					 find_route(skb, p, h.f->virt, p->t.dst, 0, 0, &r);
	if (why != REASON_NONE && h.dir == TO_CLIENT)
		return pass(why); /* egress does the rest */
	if (rewrite_error(skb, p, &q, &h, why == REASON_NONE))
		return drop(REASON_REWRITE);
	if (why != REASON_NONE)
		return pass(why);
	return redirect(skb, &r);
}

SEC("tc")
int ingress(struct __sk_buff *skb)
{
	struct packet p = {};
	struct hit h = {};
	struct service *s;
	enum reason why;
	int known;
	__u32 now;

	/* Tagged frames come by again on their VLAN's own interface. */
	if (skb->protocol != bpf_htons(ETH_P_IP) || skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return TC_ACT_UNSPEC;
	if (skb->tc_index == DONE)
		skb->tc_index = 0;

	switch (parse(skb, &p)) {
	case PARSED_PORTS:
		break;
	case PARSED_ICMP:
		return carry_error(skb, &p);
	case PARSED_FRAGMENT:
		now = ticks();
		switch (find_fragment(&p, &h, now)) {
		case 0:
			return TC_ACT_UNSPEC;
		case 1:
			if (h.dead)
				return drop(REASON_DEAD_FLOW);
			return carry(skb, &p, &h, now, 0);
		}
		return drop(REASON_LATE_FRAGMENT);
	case PARSED_BAD:
		return fragment_matters(&p) ? drop(REASON_BAD_PACKET) : TC_ACT_UNSPEC;
	default:
		return TC_ACT_UNSPEC;
	}

	now = ticks();
	known = find_flow(&p.t, &h);
	if (known) {
		int opens = p.t.proto == IPPROTO_UDP ||
			    (p.tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN;

		if (h.dir == TO_REAL && opens && (h.dead || p.t.proto == IPPROTO_TCP) &&
		    over(&h, now)) {
			s = find_service(&p.t);
			if (!s)
				return drop(REASON_DEAD_FLOW);
			end_flow(h.f, h.slot, h.gen);
			goto fresh;
		}
		if (h.dead)
			return drop(REASON_DEAD_FLOW);
		goto carry;
	}

	s = find_service(&p.t);
	if (!s) {
		if (p.first)
			note_first(&p, 0, now);
		return TC_ACT_UNSPEC;
	}
	if (p.t.proto == IPPROTO_TCP && (p.tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) != TCP_SYN)
		return pass(REASON_NO_FLOW);
fresh:
	why = open_flow(&p, s, now, &h);
	if (why != REASON_NONE)
		return drop(why);
carry:
	if (p.first)
		note_first(&p, &h, now);
	return carry(skb, &p, &h, now, 1);
}

SEC("tc")
int egress(struct __sk_buff *skb)
{
	struct packet p = {};
	struct quote q = {};
	struct hit h = {};
	int ports = 1;
	__u32 now;

	if (skb->protocol != bpf_htons(ETH_P_IP))
		return TC_ACT_UNSPEC;
	if (skb->tc_index == DONE) {
		skb->tc_index = 0;
		return TC_ACT_UNSPEC;
	}
	now = ticks();
	switch (parse(skb, &p)) {
	case PARSED_PORTS:
		if (!find_flow(&p.t, &h)) {
			if (p.first)
				note_first(&p, 0, now);
			return TC_ACT_UNSPEC;
		}
		break;
	case PARSED_FRAGMENT:
		switch (find_fragment(&p, &h, now)) {
		case 0:
			return TC_ACT_UNSPEC;
		case 1:
			ports = 0;
			break;
		default:
			return drop(REASON_LATE_FRAGMENT);
		}
		break;
	case PARSED_ICMP:
		if (!find_quoted(skb, &p, &q, &h) || (h.f->flags & FLOW_LOCAL))
			return TC_ACT_UNSPEC;
		if (rewrite_error(skb, &p, &q, &h, 0))
			return drop(REASON_REWRITE);
		return TC_ACT_UNSPEC;
	default:
		return TC_ACT_UNSPEC;
	}

	if (h.dir != TO_CLIENT)
		return TC_ACT_UNSPEC;
	if (h.dead)
		return drop(REASON_DEAD_FLOW);
	if (ports && p.first)
		note_first(&p, &h, now);
	account(skb, &p, &h, now);
	if (h.f->flags & FLOW_LOCAL)
		return TC_ACT_UNSPEC;
	if (ports ? rewrite(skb, &p, TO_CLIENT, h.f->virt, h.f->vport, 0) :
		    rewrite_ip(skb, TO_CLIENT, h.f->virt, 0))
		return drop(REASON_REWRITE);
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual BSD/GPL";
