/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* context.h: what tc and XDP have in different ways. The rest of the core is
 * written once; CTX is the packet as the hook gives it.
 *
 * At XDP a packet is what came from the wire: all of it is there to be read,
 * its sums are complete, and nobody else knows them. */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_helpers.h>

#ifdef BATUTA_XDP
#define CTX struct xdp_md
#define OFFLOADS 0 /* no sum is the device's to fill in */
#define DROP XDP_DROP
#define PASS XDP_PASS
#else
#define CTX struct __sk_buff
#define OFFLOADS 1
#define DROP TC_ACT_SHOT
#define PASS TC_ACT_UNSPEC
#endif

/* Read by these and not by the compiler's own code, which would reckon with
 * the context's address; the verifier allows no such thing. */
static __always_inline void *data_of(CTX *ctx)
{
	void *p;

	asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(p) : "r"(ctx), "i"(__builtin_offsetof(CTX, data)));
	return p;
}

static __always_inline void *end_of(CTX *ctx)
{
	void *p;

	asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(p) : "r"(ctx), "i"(__builtin_offsetof(CTX, data_end)));
	return p;
}

#ifdef BATUTA_XDP

static __always_inline __u32 length_of(CTX *ctx)
{
	return ctx->data_end - ctx->data;
}

static __always_inline __u32 ifindex_of(CTX *ctx)
{
	return ctx->ingress_ifindex;
}

/* ether_type is 0 for what is too short. */
static __always_inline __be16 ether_type(CTX *ctx)
{
	void *frame = data_of(ctx);

	return frame + ETH_HLEN > end_of(ctx) ? 0 : *(__be16 *)(frame + 2 * ETH_ALEN);
}

/* pull makes the first bytes directly readable. */
static __always_inline int pull(CTX *ctx, __u32 len)
{
	return data_of(ctx) + len > end_of(ctx);
}

static __always_inline long load_bytes(CTX *ctx, __u32 at, void *to, __u32 len)
{
	return bpf_xdp_load_bytes(ctx, at, to, len);
}

static __always_inline __u32 segments_of(CTX *ctx)
{
	return 1;
}

static __always_inline __u32 segment_size(CTX *ctx)
{
	return 0;
}

/* sum_changed tells the kernel that a device's sum of the packet follows. */
static __always_inline void sum_changed(CTX *ctx, __u32 diff)
{
}

#else

static __always_inline __u32 length_of(CTX *ctx)
{
	return ctx->len;
}

static __always_inline __u32 ifindex_of(CTX *ctx)
{
	return ctx->ifindex;
}

static __always_inline __be16 ether_type(CTX *ctx)
{
	return ctx->protocol;
}

static __always_inline int pull(CTX *ctx, __u32 len)
{
	if (data_of(ctx) + len <= end_of(ctx))
		return 0;
	return len > ctx->len || bpf_skb_pull_data(ctx, len);
}

static __always_inline long load_bytes(CTX *ctx, __u32 at, void *to, __u32 len)
{
	return bpf_skb_load_bytes(ctx, at, to, len);
}

static __always_inline __u32 segments_of(CTX *ctx)
{
	return ctx->gso_segs ? ctx->gso_segs : 1;
}

static __always_inline __u32 segment_size(CTX *ctx)
{
	return ctx->gso_size;
}

static __always_inline void sum_changed(CTX *ctx, __u32 diff)
{
	bpf_csum_update(ctx, diff);
}

#endif
