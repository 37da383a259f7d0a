/* SPDX-License-Identifier: MIT */
/*
 * CLOCK_MONOTONIC for exit records, at the price of a rdtsc.
 *
 * clock_gettime() takes 40 to 80 ns right after KVM_RUN, when the CPU's caches and
 * predictors are cold; rdtsc a quarter of that. A record takes two readings: its
 * beginning is record_clock_ns(), its end record_clock_later_ns().
 *
 * An anchor is one TSC value and the time that is told for it. A beginning adds the
 * ticks since then, times the rate that was seen between the last two anchors. An
 * anchor serves for 10 ms, the first ones for twice the time that their rate was seen
 * for; then the next beginning takes another one, so the kernel's own adjustments of
 * CLOCK_MONOTONIC are followed. The new anchor tells what the old one would have told:
 * there is no step. What that is wrong by is made good by the rate, while it serves.
 *
 * No anchor is taken between a beginning and its end: both are on one scale, and the
 * time between them is the ticks between them times the rate. An end that comes later
 * than an anchor serves asks the kernel's clock how long it was.
 *
 * Guarantees: nanoseconds of CLOCK_MONOTONIC to within a microsecond, and never
 * less than the reading before. Every reading is clock_gettime()'s until two anchors
 * are 1 ms apart, and where the TSC cannot be relied upon: the CPU does not promise a
 * constant rate (CPUID 0x80000007, EDX bit 8), or the kernel does not use it as its own
 * clock, which it does only where all CPUs have the same. A TSC that jumps, because the
 * machine was suspended or moved, is out of the anchor's 10 ms: then the clock is asked.
 * A smaller jump is noticed at the next anchor, and the rate is found anew.
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
	uint64_t anchor_tsc;
	uint64_t anchor_ns; /* what is told for it */
	uint64_t rate; /* nanoseconds << RECORD_CLOCK_SHIFT per tick; 0: unknown */
	uint64_t lifetime; /* ticks for which the anchor serves; 0: for none */
	uint64_t latest_tsc; /* of the last reading */
	uint64_t latest; /* what was told */
	/* What only the slow way needs. */
	uint64_t anchor_clock_ns; /* what CLOCK_MONOTONIC said; 0: there is no anchor yet */
	uint64_t latest_clock_ns; /* the same of the last reading, where there is no rate */
	bool uses_tsc;
};

static inline uint64_t monotonic_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

/* After all that was to be done before it: two rdtsc in no order may give the same. */
static inline uint64_t record_clock_tsc(void)
{
	_mm_lfence();
	return __rdtsc();
}

static inline uint64_t record_clock_scaled(uint64_t ticks, uint64_t rate)
{
	return (uint64_t)(((unsigned __int128)ticks * rate) >> RECORD_CLOCK_SHIFT);
}

/* Reads a file of the kernel's, once in a process: not for the exit path. */
void record_clock_init(struct record_clock *clock);
/* The slow ways of the two below: with a new anchor, and by the kernel's clock. */
uint64_t record_clock_anchor(struct record_clock *clock);
uint64_t record_clock_ask(struct record_clock *clock);

/* The beginning of a record. */
static inline uint64_t record_clock_ns(struct record_clock *clock)
{
	const uint64_t tsc = __rdtsc(), ticks = tsc - clock->anchor_tsc;
	uint64_t now;

	/* A TSC that went back is a very large number of ticks. */
	if (__builtin_expect(ticks >= clock->lifetime, 0))
		return record_clock_anchor(clock);
	now = clock->anchor_ns + record_clock_scaled(ticks, clock->rate);
	clock->latest_tsc = tsc;
	if (clock->latest < now)
		clock->latest = now;
	return clock->latest;
}

/* An end of the record that began last. */
static inline uint64_t record_clock_later_ns(struct record_clock *clock)
{
	const uint64_t tsc = record_clock_tsc(), ticks = tsc - clock->latest_tsc;

	if (__builtin_expect(ticks >= clock->lifetime, 0))
		return record_clock_ask(clock);
	clock->latest_tsc = tsc;
	return clock->latest += record_clock_scaled(ticks, clock->rate);
}

#endif
