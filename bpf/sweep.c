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

/* One sweep in so many looks after the clients of persistent services, and after
 * what errors have told of paths. */
#define STAYS_EVERY 16
#define STAYS_TICKS (3 * STAYS_EVERY * 1000)

struct sweep {
	__u32 high;
	__u32 now;
	__u32 pressed;
	__u32 live;
	__u32 stays;
	__u32 timeout[8];
};

/* keep_home lets a persistent client's entry live as long as its connections. */
static __always_inline void keep_home(const struct flow *f, __u32 now)
{
	struct real *r = bpf_map_lookup_elem(&reals, &f->real_slot);
	struct service *s = r ? bpf_map_lookup_elem(&services, &r->service) : 0;
	struct stay_key k = {};
	struct stay *stay;

	if (!s)
		return;
	k.client.d[0] = f->client.d[0] & s->mask.d[0];
	k.client.d[1] = f->client.d[1] & s->mask.d[1];
	k.service = r->service;
	stay = bpf_map_lookup_elem(&stays, &k);
	if (stay && stay->real == f->real_slot && stay->real_gen == f->real_gen &&
	    (__s32)(now + STAYS_TICKS - stay->expires) > 0)
		stay->expires = now + STAYS_TICKS;
}

static long sweep_one(void *map, const __u32 *key, struct flow *f, struct sweep *s)
{
	__u32 slot = *key, gen, word, state, limit;

	if (slot >= s->high)
		return 1;
	gen = READ_ONCE(f->gen);
	if (!(gen & 1))
		return 0;
	word = READ_ONCE(f->word);
	state = word & 7;
	limit = word & FLOW_SOCKET ? 0x7fffffff : s->timeout[state];
	if (!alive(f->real_slot, f->real_gen)) {
		/* Its later packets are to be dropped, not reset, for a while. */
		limit = s->pressed ? 0 : s->timeout[FLOW_TIME_WAIT];
	} else if (s->pressed && state != FLOW_ESTABLISHED && state != FLOW_UDP && limit > PRESSED_TICKS) {
		limit = PRESSED_TICKS;
	}
	/* A packet may have come since now was read. */
	if ((__s32)(s->now - f->seen) <= (__s32)limit) {
		s->live++;
		if (s->stays && (word & FLOW_STAYS))
			keep_home(f, s->now);
		return 0;
	}
	end_flow(slot, gen);
	return 0;
}

static long sweep_stay(void *map, const struct stay_key *key, struct stay *stay, struct sweep *s)
{
	if ((__s32)(s->now - stay->expires) >= 0 || !alive(stay->real, stay->real_gen))
		bpf_map_delete_elem(&stays, key);
	return 0;
}

/* A larger size is tried again when an error has expired. */
static long sweep_path(void *map, const struct addr *key, struct path *p, struct sweep *s)
{
	struct control *c = get_control();

	if (c && !is_believed(p, s->now)) {
		bpf_map_delete_elem(&paths, key);
		__sync_fetch_and_add(&c->route_epoch, 1);
	}
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
	s.stays = c->swept % STAYS_EVERY == 0;
	__builtin_memcpy(s.timeout, c->timeout, sizeof(s.timeout));
	bpf_for_each_map_elem(&flows, sweep_one, &s, 0);
	if (s.stays) {
		bpf_for_each_map_elem(&stays, sweep_stay, &s, 0);
		bpf_for_each_map_elem(&paths, sweep_path, &s, 0);
	}
	c->live = s.live;
	c->swept++;
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
