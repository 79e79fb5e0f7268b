/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* express.h: the lane of packets that have nothing unusual about them.
 *
 * Nearly every packet belongs to an open connection by masq or gate, comes
 * whole, without options, with hops left, and goes where the one before it
 * went. Such a packet is carried here in one straight line, of the same parts
 * as the general programs, most of it in the processor's registers. The same
 * for packets that open a connection (or belong to none by their service's
 * will), if the first real server chosen takes them and its way is known. Of
 * every other packet nothing is changed; nothing is counted but who gave way in
 * a full table. The general programs would do with each packet what is done
 * here, too. So the lane may leave any packet to them, and the model in Go
 * knows nothing of it. */
#pragma once

#include "conn.h"
#include "nat.h"
#include "route.h"
#include "schedule.h"

/* What the lane says of a packet that it leaves alone; else the program's verdict. */
enum lane {
	LANE_OTHER = -2,
	LANE_NEW = -3,   /* and the index knows no connection of it */
	LANE_OPENS = -4, /* and it may open one */
};

/* No packet with ports is shorter. */
#define SHORTEST (ETH_HLEN + sizeof(struct iphdr) + sizeof(struct udphdr))

/* What the lane has read of a packet. All but its places are constants, so that
 * the compiler writes the lane for each case by itself. */
struct fast {
	void *ip; /* header, in the packet */
	__u8 *l4;
	__u32 ports; /* source, and destination above it */
	int v6;
	__u8 proto;
	enum direction dir;
};

static __always_inline struct addr src_of(const struct fast *p)
{
	return p->v6 ? addr_of6(p->ip + 8) : addr_of4(*(__be32 *)(p->ip + 12));
}

static __always_inline struct addr dst_of(const struct fast *p)
{
	return p->v6 ? addr_of6(p->ip + 24) : addr_of4(*(__be32 *)(p->ip + 16));
}

/* is_at tells whether a packet has this address at that place. That both are of
 * one family is known already. */
static __always_inline int is_at(const struct fast *p, __u32 at, const struct addr *a)
{
	if (p->v6)
		return a->d[0] == *(__u64 *)(p->ip + at) && a->d[1] == *(__u64 *)(p->ip + at + 8);
	return ((__u32 *)a)[3] == *(__u32 *)(p->ip + at);
}

static __always_inline __u32 header_of(const struct fast *p)
{
	return p->v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
}

/* check_at is how far behind the ports the transport's sum is. */
static __always_inline __u32 check_at(const struct fast *p)
{
	return p->proto == IPPROTO_UDP ? __builtin_offsetof(struct udphdr, check) :
					 __builtin_offsetof(struct tcphdr, check);
}

static __always_inline __u32 total_of(const struct fast *p)
{
	return p->v6 ? sizeof(struct ipv6hdr) + bpf_ntohs(*(__be16 *)(p->ip + 4)) : bpf_ntohs(*(__be16 *)(p->ip + 2));
}

/* has_pseudo is is_pseudo of a packet's sum, where that matters: to masq, and to XDP. */
static __always_inline int has_pseudo(const struct fast *p, int masq, __u32 total)
{
	__u16 check = *(__u16 *)(p->l4 + check_at(p));
	struct addr src = src_of(p), dst = dst_of(p);

	if ((!masq && OFFLOADS) || (p->proto == IPPROTO_UDP && !check))
		return 0;
	return is_pseudo(check, addr_sum(&src, p->v6) + addr_sum(&dst, p->v6), p->proto, total - header_of(p));
}

/* depart changes a packet and sends it. */
static __always_inline int depart(CTX *ctx, const struct fast *p, enum direction dir, int masq, const struct addr *to,
				  __be16 port, __u32 delta, int partial, const struct hop *h)
{
	__u16 *check = (__u16 *)(p->l4 + check_at(p));
	__be16 *end = (__be16 *)(p->l4 + (dir == TO_REAL ? 2 : 0)), was;
	void *frame = p->ip - ETH_HLEN;

	if (!masq) {
		if (hop_down(ctx, p->v6))
			goto refused;
		return leave(ctx, frame, h->ifindex, h->dmac, h->smac);
	}
	was = *end;
	*end = port;
	if (!p->v6)
		put_addr4(p->ip, dir, addr4(to), delta, 1);
	else if (put_addr(ctx, dir, to, delta, 1, 1))
		goto refused;
	if (put_sum(ctx, check, ETH_HLEN + header_of(p) + check_at(p), p->proto, partial, p->v6, delta, was, port))
		goto refused;
	if (OFFLOADS && partial) { /* the kernel has changed it, perhaps elsewhere */
		frame = data_of(ctx);
		if (frame + ETH_HLEN > end_of(ctx))
			goto refused;
	}
	return leave(ctx, frame, h->ifindex, h->dmac, h->smac);
refused:
	count_quietly(REASON_REWRITE);
	return DROP;
}

/* The parts of flow.word that packets of the lane have to do with. */
#define LANE_WORD (0xff0000 | FLOW_LOCAL | FLOW_V6 | 0xff)

/* along carries a packet of a connection's record f. */
static __always_inline int along(CTX *ctx, const struct fast *p, struct flow *f, __u32 slot)
{
	const __u32 at_src = p->v6 ? 8 : 12, at_dst = p->v6 ? 24 : 16;
	const __u32 wanted = p->proto << 16 | (p->v6 ? FLOW_V6 : 0) |
			     (p->proto == IPPROTO_UDP ? FLOW_UDP : FLOW_ESTABLISHED);
	__u32 gen = READ_ONCE(f->gen), word = READ_ONCE(f->word), now, total;
	struct route *mine = &f->route[p->dir == TO_CLIENT];
	struct real_cpu *rc;
	int masq, partial;
	struct control *c;
	struct addr to;
	__be16 port;
	struct hop *h;
	__u32 delta;

	if ((word & LANE_WORD) != wanted)
		return LANE_OTHER;
	asm volatile("" : "+r"(gen)); /* else both are made numbers first, to be tested at once */
	if (!(gen & 1))
		return LANE_OTHER;
	masq = FORWARD(word) == FORWARD_MASQ;
	if (!masq && FORWARD(word) != FORWARD_GATE)
		return LANE_OTHER;
	if (p->dir == TO_REAL) {
		if (!is_at(p, at_src, &f->client) || !is_at(p, at_dst, &f->virt) ||
		    *(__u32 *)&f->cport != p->ports) /* and vport */
			return LANE_OTHER;
	} else if (!is_at(p, at_src, &f->real) || !is_at(p, at_dst, &f->client) ||
		   (f->rport | (__u32)f->cport << 16) != p->ports) {
		return LANE_OTHER;
	}
	rc = real_on_this_cpu(f->real_slot);
	if (!rc || READ_ONCE(rc->gen) != f->real_gen)
		return LANE_OTHER;
	c = get_control();
	if (!c)
		return LANE_OTHER;
	now = ticks_of(c);
	total = total_of(p);
	h = recall(c, mine, now);
	if (!h || total > mine->mtu)
		return LANE_OTHER;
	partial = has_pseudo(p, masq, total);
	if (!OFFLOADS && partial)
		return LANE_OTHER;
	if (!may_leave(ctx, h))
		return LANE_OTHER;
	to = p->dir == TO_REAL ? f->real : f->virt;
	port = p->dir == TO_REAL ? f->rport : f->vport;
	delta = p->dir == TO_REAL ? f->delta : delta_back(f);
	/* As in is_still: the record was ours while we read it, or it was not. */
	asm volatile("" ::: "memory");
	if (READ_ONCE(f->gen) != gen)
		return LANE_OTHER;

	count_packet(rc, p->dir, 1, length_of(ctx) - ETH_HLEN);
	keep_alive(f, now);
	return depart(ctx, p, p->dir, masq, &to, port, delta, partial, h);
}

/* lane is given the packet's bounds; that it holds the shortest one of IPv4 is known. */
static __always_inline int lane(CTX *ctx, void *data, void *end, int v6)
{
	const __u32 header = v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	struct iphdr *ip = data + ETH_HLEN;
	struct ipv6hdr *ip6 = data + ETH_HLEN;
	struct fast p = { .v6 = v6, .ip = ip, .l4 = data + ETH_HLEN + header };
	struct addr src, dst;
	struct flow *f;
	__u64 entry;
	__u32 slot;
	__u8 proto;

	if (v6) {
		if (p.l4 + sizeof(struct udphdr) > (__u8 *)end)
			return LANE_OTHER;
		src = src_of(&p);
		dst = dst_of(&p);
		proto = ip6->nexthdr;
		if (*(__u8 *)ip6 >> 4 != 6 || ip6->hop_limit <= 1 || is4(&src) || is4(&dst))
			return LANE_OTHER;
	} else {
		proto = ip->protocol;
		if (*(__u8 *)ip != 0x45 || ip->ttl <= 1 || ip->frag_off & bpf_htons(IP_MF | IP_OFFSET))
			return LANE_OTHER;
	}
	if (proto == IPPROTO_TCP) {
		if (p.l4 + sizeof(struct tcphdr) > (__u8 *)end)
			return LANE_OTHER;
		if (p.l4[13] & (TCP_FIN | TCP_SYN | TCP_RST))
			return (p.l4[13] & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK)) == TCP_SYN ? LANE_OPENS : LANE_OTHER;
	} else if (proto != IPPROTO_UDP) {
		return LANE_OTHER;
	}
	p.ports = *(__u32 *)p.l4;
	entry = find_entry(v6 ? ends_hash(&src, &dst, p.ports, p.ports >> 16, proto) :
				ends4_hash(*(__u64 *)&ip->saddr, p.ports, proto));
	if (!entry)
		return proto == IPPROTO_UDP ? LANE_OPENS : LANE_NEW;
	slot = (__u32)entry & ~INDEX_TO_CLIENT;
	f = bpf_map_lookup_elem(&flows, &slot);
	if (!f)
		return LANE_OTHER;
	if (proto == IPPROTO_UDP) {
		p.proto = IPPROTO_UDP;
		if (entry & INDEX_TO_CLIENT) {
			p.dir = TO_CLIENT;
			return along(ctx, &p, f, slot);
		}
		p.dir = TO_REAL;
		return along(ctx, &p, f, slot);
	}
	p.proto = IPPROTO_TCP;
	if (p.l4 + sizeof(struct tcphdr) > (__u8 *)end) /* known, but not to the verifier */
		return LANE_OTHER;
	if (entry & INDEX_TO_CLIENT) {
		p.dir = TO_CLIENT;
		return along(ctx, &p, f, slot);
	}
	p.dir = TO_REAL;
	return along(ctx, &p, f, slot);
}

static __attribute__((noinline)) int lane4(CTX *ctx, void *data, void *end)
{
	return lane(ctx, data, end, 0);
}

static __attribute__((noinline)) int lane6(CTX *ctx, void *data, void *end)
{
	return lane(ctx, data, end, 1);
}

/* enter makes a connection of a record that is written. */
static __always_inline int enter(struct flow *f, __u32 slot, __u64 hash, struct real_cpu *rc)
{
	if (place(hash, slot, 1) != PLACE_MADE)
		return 0;
	if (FORWARD(f->word) == FORWARD_MASQ &&
	    place(ends_hash(&f->real, &f->client, f->rport, f->cport, PROTO(f->word)), slot | INDEX_TO_CLIENT, 0) != PLACE_MADE) {
		unplace(hash, slot);
		return 0;
	}
	come_alive(f, rc, f->gen + 1);
	return 1;
}

/* opened carries a packet that opens a connection of a service, or belongs to none
 * by its service's will, if the first real server that is chosen takes it and is a
 * neighbor to which the way is known. Else it gives back what it has taken. */
static __always_inline int opened(CTX *ctx, const struct fast *p, struct service *s, const struct tuple *t, __u64 hash)
{
	__u64 ring = READ_ONCE(s->ring);
	__u32 first = ring >> 32, count = (__u32)ring, gen, real, now, slot = 0, total, *at;
	int alone = s->flags & SERVICE_ONE_PACKET, waits = 0, masq, partial;
	struct control *c = get_control();
	struct real_cpu *rc;
	struct route *way;
	struct flow *f = 0;
	struct addr to = {};
	struct real *r;
	__u16 delta = 0;
	__be16 port = 0;
	struct hop *h;

	if (!c || !count || !(alone || c->plain_routes))
		return LANE_NEW;
	now = ticks_of(c);
	if (p->proto == IPPROTO_TCP && any_waits(c, now) && has_note(hash))
		return LANE_NEW;
	if (!alone && take_slot(&slot)) {
		waits = may_wait(s, p->proto) && !READ_ONCE(c->no_room);
		if (!waits) { /* who gives way may be the one that the real server has too many */
			slot = make_room(now) - 1;
			if (slot >= max_flows)
				return LANE_NEW;
			count_quietly(REASON_MADE_ROOM);
		}
	}
	if (!alone && !waits) {
		f = bpf_map_lookup_elem(&flows, &slot);
		if (!f)
			return LANE_NEW;
	}
	at = ring_at(first, s->choice == CHOOSE_TURN ? turn(s, count) : choose(s, t, first, count));
	if (!at)
		goto undo;
	real = *at;
	r = bpf_map_lookup_elem(&reals, &real);
	rc = real_on_this_cpu(real);
	if (!r || !rc)
		goto undo;
	gen = READ_ONCE(rc->gen);
	masq = r->forward == FORWARD_MASQ;
	if (!(gen & 1) || r->weight <= 0 || r->upper || r->overloaded || (r->flags & REAL_LOCAL) ||
	    (alone ? r->forward != FORWARD_GATE : !masq && r->forward != FORWARD_GATE))
		goto undo;
	total = total_of(p);
	way = alone ? &rc->route : &rc->direct;
	h = recall(c, way, now);
	if (!h || total > way->mtu || !(alone || same_addr(&h->nexthop, &r->addr)))
		goto undo;
	partial = has_pseudo(p, masq, total);
	if ((!OFFLOADS && partial) || !may_leave(ctx, h))
		goto undo;
	if (f) {
		begin_flow(f, t, p->v6, now);
		lead_to(f, r, real, gen);
		if (!masq && p->proto == IPPROTO_TCP)
			f->word |= FLOW_ANSWERED; /* as next_word says: the client alone tells */
		f->route[TO_REAL] = *way;
		to = f->real;
		port = f->rport;
		delta = f->delta;
		if (!enter(f, slot, hash, rc))
			goto undo;
	} else if (waits) {
		to = r->addr;
		port = r->port ? r->port : t->dport;
		delta = fold16(addr_delta(&t->dst, &to, p->v6));
		keep_waiting(c, now);
		make_note(hash, TO_REAL, real, gen);
		if (masq)
			make_note(ends_hash(&to, &t->src, port, t->sport, IPPROTO_TCP), TO_CLIENT, real, gen);
		count_quietly(REASON_WAITS);
	} else {
		rc->count.connections++;
	}
	count_packet(rc, TO_REAL, 1, length_of(ctx) - ETH_HLEN);
	return depart(ctx, p, TO_REAL, masq, &to, port, delta, partial, h);
undo:
	if (f)
		bpf_map_push_elem(&free_slots, &slot, 0);
	if (s->choice == CHOOSE_TURN)
		__sync_fetch_and_add(&s->next, -1);
	return LANE_NEW;
}

/* service_at finds the service of an address and port. Whichever slot is remembered,
 * the service there says whether it is the one. */
static __always_inline struct service *service_at(const struct tuple *t)
{
	struct service_key key = { .addr = t->dst, .port = t->dport, .proto = t->proto };
	__u64 hash = mix(mix(seed ^ t->dst.d[0], t->dst.d[1]), (__u32)t->proto << 16 | t->dport), *last, had;
	__u32 at = hash & (RECENT - 1), *slot;
	struct service *s;

	last = bpf_map_lookup_elem(&recent, &at);
	had = last ? READ_ONCE(*last) : 0;
	if (!((had ^ hash) >> 32)) {
		at = had;
		s = bpf_map_lookup_elem(&services, &at);
		if (s && s->used && s->key.port == key.port && s->key.proto == key.proto &&
		    same_addr(&s->key.addr, &key.addr))
			return s;
	}
	slot = bpf_map_lookup_elem(&service_slots, &key);
	s = slot ? bpf_map_lookup_elem(&services, slot) : 0;
	if (s && last)
		WRITE_ONCE(*last, hash >> 32 << 32 | *slot);
	return s;
}

/* opens_here is told that the lane has found a packet ordinary that may open a
 * connection. */
static __always_inline int opens_here(CTX *ctx, int v6)
{
	void *data = data_of(ctx), *end = end_of(ctx);
	struct fast p = { .v6 = v6, .ip = data + ETH_HLEN };
	struct control *c = get_control();
	struct tuple t = {};
	struct service *s;
	__u64 hash;
	__u32 tos;

	p.l4 = p.ip + header_of(&p);
	if (!c || p.l4 + sizeof(struct udphdr) > (__u8 *)end)
		return LANE_OTHER;
	t.src = src_of(&p);
	t.dst = dst_of(&p);
	p.ports = *(__u32 *)p.l4;
	t.sport = p.ports;
	t.dport = p.ports >> 16;
	t.proto = v6 ? ((struct ipv6hdr *)p.ip)->nexthdr : ((struct iphdr *)p.ip)->protocol;
	tos = v6 ? bpf_ntohs(*(__be16 *)p.ip) >> 4 : ((struct iphdr *)p.ip)->tos;
	hash = v6 ? ends_hash(&t.src, &t.dst, t.sport, t.dport, t.proto) :
		    ends4_hash(*(__u64 *)(p.ip + 12), p.ports, t.proto);
	if (t.proto != IPPROTO_UDP && find_entry(hash))
		return LANE_OTHER;
	if (READ_ONCE(c->watched) || (c->features & (FEATURE_RULES | FEATURE_ELSEWHERE)) || (tos & 0xfc))
		return LANE_NEW;
	s = service_at(&t);
	if (!s && !(c->features & FEATURE_ANY_PORT))
		return PASS;
	if (!s || (s->flags & SERVICE_STAYS))
		return LANE_NEW;
	if (t.proto == IPPROTO_UDP) {
		p.proto = IPPROTO_UDP;
		return opened(ctx, &p, s, &t, hash);
	}
	p.proto = IPPROTO_TCP;
	if (p.l4 + sizeof(struct tcphdr) > (__u8 *)end)
		return LANE_NEW;
	return opened(ctx, &p, s, &t, hash);
}

SEPARATE int opens4(CTX *ctx)
{
	return opens_here(ctx, 0);
}

SEPARATE int opens6(CTX *ctx)
{
	return opens_here(ctx, 1);
}

/* express carries a packet of an Ethernet type, or says why it did not. */
static __always_inline int express(CTX *ctx, void *data, void *end, __be16 type)
{
	int verdict;

	if (tracing || segment_size(ctx) || data + SHORTEST > end)
		return LANE_OTHER;
	if (type == bpf_htons(ETH_P_IP)) {
		verdict = lane4(ctx, data, end);
		return verdict == LANE_OPENS ? opens4(ctx) : verdict;
	}
	if (type == bpf_htons(ETH_P_IPV6)) {
		verdict = lane6(ctx, data, end);
		return verdict == LANE_OPENS ? opens6(ctx) : verdict;
	}
	return LANE_OTHER;
}
