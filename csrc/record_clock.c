/* SPDX-License-Identifier: MIT */
#include "record_clock.h"

#include <cpuid.h>

#define INVARIANT_TSC (1u << 8)
#define LIFETIME_NS 10000000ull	   /* of an anchor */
#define SHORTEST_NS 1000000ull	   /* from one anchor to the next, to tell the rate */
#define LONGEST_NS 1000000000ull   /* beyond this who knows what happened in between */
#define TIGHT_NS 400u		   /* two readings of the clock with a rdtsc in between */
#define TOLERATED_NS 1000u	   /* by which an anchor may differ from what was told */

static bool has_invariant_tsc(void)
{
	/* Asked once: in a virtual machine each cpuid is an exit. */
	static int answer = -1;
	unsigned int eax, ebx, ecx, edx;
	int known = __atomic_load_n(&answer, __ATOMIC_RELAXED);

	if (known < 0) {
		known = __get_cpuid(0x80000007, &eax, &ebx, &ecx, &edx) && (edx & INVARIANT_TSC);
		__atomic_store_n(&answer, known, __ATOMIC_RELAXED);
	}
	return known;
}

void record_clock_init(struct record_clock *clock)
{
	*clock = (struct record_clock){ .uses_tsc = has_invariant_tsc() };
}

uint64_t record_clock_anchor(struct record_clock *clock)
{
	const uint64_t before = monotonic_ns();
	uint64_t tsc, now, elapsed, ticks, told;

	if (!clock->uses_tsc)
		return before;
	tsc = __rdtsc();
	now = monotonic_ns();
	if (now - before > TIGHT_NS) /* interrupted: the old anchor stays, the next call tries */
		return now;
	elapsed = now - clock->anchor_ns;
	ticks = tsc - clock->anchor_tsc;
	/* Too early for a rate: keep the first anchor, and ask the clock until it is time. */
	if (clock->anchor_ns && !clock->rate && elapsed < SHORTEST_NS)
		return now;
	if (clock->anchor_ns && elapsed >= SHORTEST_NS && elapsed < LONGEST_NS && ticks > 0) {
		told = (uint64_t)(((unsigned __int128)ticks * clock->rate) >> RECORD_CLOCK_SHIFT);
		if (clock->rate && (told > elapsed ? told - elapsed : elapsed - told) >
					   TOLERATED_NS + elapsed / 10000)
			clock->rate = 0; /* not the TSC that the rate was found for */
		else
			clock->rate = (uint64_t)(((unsigned __int128)elapsed << RECORD_CLOCK_SHIFT) /
						 ticks);
	} else {
		clock->rate = 0;
	}
	clock->anchor_tsc = tsc;
	clock->anchor_ns = before + (now - before) / 2;
	clock->lifetime = clock->rate ? (uint64_t)(((unsigned __int128)LIFETIME_NS
						   << RECORD_CLOCK_SHIFT) / clock->rate) : 0;
	return now;
}
