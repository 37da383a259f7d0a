/* SPDX-License-Identifier: MIT */
/*
 * CLOCK_MONOTONIC for exit records, at the price of a rdtsc.
 *
 * clock_gettime() takes 40 to 80 ns right after KVM_RUN, when the CPU's caches and
 * predictors are cold; rdtsc a quarter of that. A record takes two readings.
 *
 * An anchor is one TSC value and the CLOCK_MONOTONIC time of the same moment. A
 * reading adds to it the ticks since then, times the rate that was seen between the
 * last two anchors. An anchor serves for 10 ms; then the next one is taken, so the
 * kernel's own adjustments of CLOCK_MONOTONIC are followed, and an error of the
 * rate by 50 parts in a million is half a microsecond.
 *
 * Guarantees: nanoseconds of CLOCK_MONOTONIC to within a microsecond, and never
 * less than the reading before. Where the CPU does not promise a TSC of constant
 * rate (CPUID 0x80000007, EDX bit 8), and until two anchors are 1 ms apart, every
 * reading is clock_gettime()'s. A TSC that jumps, because the machine was suspended
 * or moved, is out of the anchor's 10 ms: then the clock is asked. A smaller jump is
 * noticed at the next anchor, and the rate is found anew.
 *
 * One thread at a time. No allocation, no lock.
 */
#ifndef PYVMM_RECORD_CLOCK_H
#define PYVMM_RECORD_CLOCK_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>
#include <x86intrin.h>

#define RECORD_CLOCK_SHIFT 32

struct record_clock {
	bool uses_tsc;
	uint64_t anchor_tsc;
	uint64_t anchor_ns; /* 0: there is no anchor yet */
	uint64_t rate;	    /* nanoseconds << RECORD_CLOCK_SHIFT per tick; 0: unknown */
	uint64_t lifetime;  /* ticks for which the anchor serves; 0: for none */
	uint64_t latest;    /* the last reading */
};

static inline uint64_t monotonic_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

void record_clock_init(struct record_clock *clock);
/* Ask the clock itself, and take an anchor if the TSC can be used. */
uint64_t record_clock_anchor(struct record_clock *clock);

static inline uint64_t record_clock_ns(struct record_clock *clock)
{
	const uint64_t ticks = __rdtsc() - clock->anchor_tsc;
	uint64_t now;

	/* A TSC that went back is a very large number of ticks. */
	if (__builtin_expect(ticks >= clock->lifetime, 0))
		now = record_clock_anchor(clock);
	else
		now = clock->anchor_ns +
		      (uint64_t)(((unsigned __int128)ticks * clock->rate) >> RECORD_CLOCK_SHIFT);
	if (now < clock->latest)
		now = clock->latest;
	clock->latest = now;
	return now;
}

#endif
