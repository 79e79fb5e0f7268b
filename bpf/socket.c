// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)
/* socket.c: clients on the director itself.
 *
 * Their packets to a virtual address would never leave: it is the director's
 * own. So not their packets are led to a real server but their sockets, when
 * they connect, or send where they are not connected: the kernel then knows
 * the real server as the other end, and nothing is done to any packet. What
 * the process asks for (its peer, who sent a datagram) is answered with the
 * virtual address.
 *
 * Each has a record of the connection table, in no index: it is counted,
 * listed and weighed like those of others, and ends with the socket.
 *
 *      connect(VIP)  ──▶ schedule ──▶ connected to the real server
 *      sendto(VIP)   ──▶ schedule, or as the last time
 *      recvfrom, getpeername ◀── real server's address becomes the VIP
 *      close         ──▶ the record ends */
#define BATUTA_SOCKET

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"
#include "table.h"
#include "conn.h"
#include "schedule.h"

/* The network namespace that the table belongs to: others' sockets come by, too. */
const volatile __u64 netns_cookie = 0;

#define GO_ON 1
#define REFUSE 0 /* the process gets EPERM, as from a firewall */

static __always_inline int same_end(const struct addr *a, __be16 port, const struct addr *b, __be16 its_port)
{
	return port == its_port && same_addr(a, b);
}

static __always_inline struct socket_note *note_of(void *sk, __u64 flags)
{
	return bpf_sk_storage_get(&sockets, sk, 0, flags);
}

static __always_inline void forget(struct socket_end *e)
{
	if (e->gen)
		end_flow(e->slot, e->gen);
	e->gen = 0;
}

/* goes_on tells whether a socket's connection is still to be kept to. */
static __always_inline int goes_on(const struct socket_end *e)
{
	__u32 slot = e->slot;
	struct flow *f = bpf_map_lookup_elem(&flows, &slot);

	return f && (e->gen & 1) && READ_ONCE(f->gen) == e->gen && alive(f->real_slot, f->real_gen);
}

/* open_socket schedules a connection of service s. Nothing is left behind when
 * it fails. */
static __always_inline enum reason open_socket(const struct tuple *t, struct service *s, struct socket_end *e)
{
	__u32 slot, gen, now = ticks(), at, established = t->proto == IPPROTO_TCP;
	enum reason why;
	struct real *r;
	struct flow *f;

	if (!(__u32)READ_ONCE(s->ring))
		return REASON_NO_REAL;
	if (take_slot(&slot)) {
		slot = make_room(now) - 1;
		if (slot >= max_flows)
			return REASON_TABLE_FULL;
		count_reason(0, t, REASON_MADE_ROOM);
	}
	f = bpf_map_lookup_elem(&flows, &slot);
	if (!f)
		return REASON_TABLE_FULL;
	f->word = (established ? FLOW_ESTABLISHED : FLOW_UDP) | FLOW_SOCKET | (__u32)t->proto << 16;
	f->seen = now;
	f->client = t->src;
	f->cport = t->sport;
	f->virt = t->dst;
	f->vport = t->dport;
	gen = f->gen + 1;
	why = schedule(0, t, s, slot, now);
	if (why != REASON_NONE)
		goto back;
	at = f->real_slot;
	r = bpf_map_lookup_elem(&reals, &at);
	why = REASON_NO_REAL;
	if (!r)
		goto back;
	e->virt = t->dst;
	e->vport = t->dport;
	e->real = r->addr;
	e->rport = f->rport; /* the virtual one with gate and ipip */
	if (r->flags & REAL_LOCAL)
		e->real = t->dst;
	why = REASON_UNREACHABLE;
	if (is4(&e->real) != is4(&t->dst)) /* a socket has one family */
		goto back;
	e->slot = slot;
	e->gen = 0;
	at = at * cpus + bpf_get_smp_processor_id();
	struct real_cpu *rc = bpf_map_lookup_elem(&real_cpus, &at);
	if (rc)
		ADD(rc->count.connections, 1);
	tell_opened(0, t, f->real_slot);
	why = REASON_NONE;
	if (s->flags & SERVICE_ONE_PACKET)
		goto back;
	e->gen = gen;
	__sync_val_compare_and_swap(&f->gen, gen - 1, gen);
	count_connections(f->real_slot, established, !established);
	return REASON_NONE;
back:
	bpf_map_push_elem(&free_slots, &slot, 0);
	return why;
}

/* lead gives the end that a socket gets instead of the virtual one: 1, or 0
 * if it is none of ours, or -1 if none takes it. anew: a connection that the
 * socket had with the same end is over. */
static __always_inline int lead(struct bpf_sock *sk, const struct tuple *t, int anew, struct socket_end *to)
{
	struct service *s = find_service(t, 0);
	struct socket_note *note;
	enum reason why;
	__u32 i, at;

	if (!s)
		return 0;
	note = note_of(sk, BPF_SK_STORAGE_GET_F_CREATE);
	if (!note) { /* no memory */
		count_reason(0, t, REASON_TABLE_FULL);
		return -1;
	}
	at = note->next;
	for (i = 0; i < SOCKET_ENDS; i++) {
		struct socket_end *e = &note->end[i];

		if (!same_end(&e->virt, e->vport, &t->dst, t->dport))
			continue;
		if (!anew && goes_on(e)) {
			note->last = i;
			*to = *e;
			return 1;
		}
		at = i;
		break;
	}
	if (at >= SOCKET_ENDS)
		at = 0;
	forget(&note->end[at]);
	why = open_socket(t, s, to);
	if (why != REASON_NONE) {
		count_reason(0, t, why);
		return -1;
	}
	note->end[at] = *to;
	note->next = at + 1;
	note->last = at;
	return 1;
}

/* asked fills in what the socket is about to speak to: 0 if that cannot be ours.
 * A socket that is not bound has no address yet: then all clients on the
 * director are one, of the address 0. */
static __always_inline int asked(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct tuple *t, int v6)
{
	if (bpf_get_netns_cookie(ctx) != netns_cookie)
		return 0;
	if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP)
		return 0;
	t->proto = ctx->protocol;
	t->dport = ctx->user_port;
	t->sport = bpf_htons(sk->src_port);
	if (v6) {
		__u32 a[4] = { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] };

		__builtin_memcpy(&t->dst, a, 16);
		if (is4(&t->dst)) {
			t->src = addr_of4(sk->src_ip4);
			return 1;
		}
		__u32 b[4] = { sk->src_ip6[0], sk->src_ip6[1], sk->src_ip6[2], sk->src_ip6[3] };

		__builtin_memcpy(&t->src, b, 16);
	} else {
		t->dst = addr_of4(ctx->user_ip4);
		t->src = addr_of4(sk->src_ip4);
	}
	return 1;
}

static __always_inline void put_end(struct bpf_sock_addr *ctx, const struct addr *a, __be16 port, int v6)
{
	if (v6) {
		ctx->user_ip6[0] = a->d[0];
		ctx->user_ip6[1] = a->d[0] >> 32;
		ctx->user_ip6[2] = a->d[1];
		ctx->user_ip6[3] = a->d[1] >> 32;
	} else {
		ctx->user_ip4 = addr4(a);
	}
	ctx->user_port = port;
}

static __always_inline int forward(struct bpf_sock_addr *ctx, int v6, int anew)
{
	struct bpf_sock *sk = ctx->sk;
	struct socket_end to = {};
	struct tuple t = {};

	if (!sk || !asked(ctx, sk, &t, v6))
		return GO_ON;
	switch (lead(sk, &t, anew && t.proto == IPPROTO_TCP, &to)) {
	case 0:
		return GO_ON;
	case 1:
		put_end(ctx, &to.real, to.rport, v6);
		return GO_ON;
	}
	return REFUSE;
}

/* backward answers with the virtual end. */
static __always_inline int backward(struct bpf_sock_addr *ctx, int v6)
{
	struct bpf_sock *sk = ctx->sk;
	struct socket_note *note;
	struct addr from;
	__be16 port;
	__u32 i;

	if (!sk)
		return GO_ON;
	note = note_of(sk, 0);
	if (!note)
		return GO_ON;
	port = ctx->user_port;
	if (v6) {
		__u32 a[4] = { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] };

		__builtin_memcpy(&from, a, 16);
	} else {
		from = addr_of4(ctx->user_ip4);
	}
	for (i = 0; i < SOCKET_ENDS; i++) {
		struct socket_end *e = &note->end[(note->last + i) % SOCKET_ENDS];

		if (same_end(&e->real, e->rport, &from, port)) {
			put_end(ctx, &e->virt, e->vport, v6);
			break;
		}
	}
	return GO_ON;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return forward(ctx, 0, 1);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return forward(ctx, 1, 1);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return forward(ctx, 0, 0);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return forward(ctx, 1, 0);
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	return backward(ctx, 0);
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	return backward(ctx, 1);
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	return backward(ctx, 0);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	return backward(ctx, 1);
}

SEC("cgroup/sock_release")
int release(struct bpf_sock *sk)
{
	struct socket_note *note = note_of(sk, 0);
	__u32 i;

	for (i = 0; note && i < SOCKET_ENDS; i++)
		forget(&note->end[i]);
	return 1;
}

char _license[] SEC("license") = "Dual BSD/GPL";
