// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)
/* sweep.c: connections that have been silent for too long end. The daemon
 * runs this once a second; no connection costs it any work of its own. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "conn.h"
#include "maps.h"

/* When the table is fuller than this, connections that are not worth keeping
 * go early: half-open ones, closed ones, those of deleted real servers. */
#define PRESSED(live) ((live) > max_flows - max_flows / 8)
#define PRESSED_TICKS 5000

struct sweep {
	__u32 high;
	__u32 now;
	__u32 pressed;
	__u32 live;
	__u32 timeout[8];
};

static long sweep_one(void *map, const __u32 *key, struct flow *f, struct sweep *s)
{
	__u32 slot = *key, gen, state, at, limit;
	struct real_cpu *rc;

	if (slot >= s->high)
		return 1;
	gen = READ_ONCE(f->gen);
	if (!(gen & 1))
		return 0;
	state = f->state & 7;
	limit = s->timeout[state];
	at = f->real_slot * cpus;
	rc = bpf_map_lookup_elem(&real_cpus, &at);
	if (!rc || READ_ONCE(rc->gen) != f->real_gen) {
		/* Its later packets are to be dropped, not reset, for a while. */
		limit = s->pressed ? 0 : s->timeout[FLOW_TIME_WAIT];
	} else if (s->pressed && state != FLOW_ESTABLISHED && state != FLOW_UDP && limit > PRESSED_TICKS) {
		limit = PRESSED_TICKS;
	}
	/* A packet may have come since now was read. */
	if ((__s32)(s->now - f->seen) <= (__s32)limit) {
		s->live++;
		return 0;
	}
	end_flow(f, slot, gen);
	return 0;
}

SEC("syscall")
int sweep(void *ctx)
{
	struct control *c = get_control();
	struct sweep s = {};

	if (!c)
		return 0;
	s.high = READ_ONCE(c->next_slot);
	if (s.high > max_flows)
		s.high = max_flows;
	s.now = bpf_ktime_get_ns() >> 20; /* the clock of ticks(), which is not to be had here */
	s.pressed = PRESSED(c->live);
	__builtin_memcpy(s.timeout, c->timeout, sizeof(s.timeout));
	bpf_for_each_map_elem(&flows, sweep_one, &s, 0);
	c->live = s.live;
	c->swept++;
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
