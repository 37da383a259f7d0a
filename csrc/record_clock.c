/* SPDX-License-Identifier: MIT */
#include "record_clock.h"

#include <cpuid.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define INVARIANT_TSC (1u << 8)
#define LIFETIME_NS 10000000ull /* of an anchor, at most */
#define SHORTEST_NS 1000000ull /* from one anchor to the next, to tell the rate */
#define LONGEST_NS 1000000000ull /* beyond this who knows what happened in between */
#define TIGHT_NS 400u /* two readings of the clock with a rdtsc in between */
#define TOLERATED_NS 1000u /* by which an anchor may differ from what was told */

static const char clocksource[] =
	"/sys/devices/system/clocksource/clocksource0/current_clocksource";

/* The kernel leaves the TSC alone where CPUs differ in it, or where it was seen to be wrong. */
static bool kernel_uses_tsc(void)
{
	const int file = open(clocksource, O_RDONLY | O_CLOEXEC);
	char name[4];
	bool answer;

	if (file < 0)
		return false;
	answer = read(file, name, sizeof(name)) == sizeof(name) &&
		 memcmp(name, "tsc\n", sizeof(name)) == 0;
	close(file);
	return answer;
}

static bool can_use_tsc(void)
{
	/* Asked once: in a virtual machine each cpuid is an exit. */
	static int answer = -1;
	unsigned int eax, ebx, ecx, edx;
	int known = __atomic_load_n(&answer, __ATOMIC_RELAXED);

	if (known < 0) {
		known = __get_cpuid(0x80000007, &eax, &ebx, &ecx, &edx) && (edx & INVARIANT_TSC) &&
			kernel_uses_tsc();
		__atomic_store_n(&answer, known, __ATOMIC_RELAXED);
	}
	return known;
}

void record_clock_init(struct record_clock *clock)
{
	*clock = (struct record_clock){ .uses_tsc = can_use_tsc() };
}

/* Who knows what the TSC did: the next beginning starts anew. */
static void forget_anchor(struct record_clock *clock)
{
	clock->anchor_clock_ns = 0;
	clock->rate = 0;
	clock->lifetime = 0;
}

/* A reading that the clock itself gave; never less than the one before. */
static uint64_t tell(struct record_clock *clock, uint64_t tsc, uint64_t now)
{
	clock->latest_tsc = tsc;
	clock->latest_clock_ns = now;
	if (clock->latest < now)
		clock->latest = now;
	return clock->latest;
}

uint64_t record_clock_anchor(struct record_clock *clock)
{
	const uint64_t before = monotonic_ns();
	uint64_t tsc, after, now, elapsed, ticks, told, rate, serves;
	int64_t behind;
	bool is_fresh;

	if (!clock->uses_tsc)
		return tell(clock, 0, before);
	tsc = record_clock_tsc();
	after = monotonic_ns();
	now = before + (after - before) / 2;
	elapsed = now - clock->anchor_clock_ns;
	ticks = tsc - clock->anchor_tsc;
	told = clock->anchor_ns + record_clock_scaled(ticks, clock->rate);
	is_fresh = ticks < 2 * clock->lifetime;
	if (after - before >
	    TIGHT_NS) { /* interrupted: the old anchor stays, the next call tries */
		if (is_fresh)
			return tell(clock, tsc, told);
		forget_anchor(clock);
		return tell(clock, tsc, after);
	}
	/* Too early for a rate: keep the first anchor, and ask the clock until it is time. */
	if (clock->anchor_clock_ns && !clock->rate && elapsed < SHORTEST_NS)
		return tell(clock, tsc, now);
	behind = (int64_t)(now - told);
	if (!clock->anchor_clock_ns || elapsed < SHORTEST_NS || elapsed >= LONGEST_NS ||
	    ticks == 0) {
		forget_anchor(clock);
	} else if (clock->rate &&
		   (uint64_t)(behind < 0 ? -behind : behind) > TOLERATED_NS + elapsed / 10000) {
		forget_anchor(clock); /* not the TSC that the rate was found for */
	} else {
		rate = (uint64_t)(((unsigned __int128)elapsed << RECORD_CLOCK_SHIFT) / ticks);
		/* Two anchors may be 400 ns wrong together, and so is the time between them. */
		serves = elapsed < LIFETIME_NS / 2 ? 2 * elapsed : LIFETIME_NS;
		clock->lifetime =
			(uint64_t)(((unsigned __int128)serves << RECORD_CLOCK_SHIFT) / rate);
		clock->rate = rate;
		if (is_fresh) { /* go on from what was told, and be right at the next anchor */
			clock->rate += (uint64_t)((__int128)rate * behind / (int64_t)serves);
			now = told;
		}
	}
	clock->anchor_tsc = tsc;
	clock->anchor_ns = now;
	clock->anchor_clock_ns = before + (after - before) / 2;
	return tell(clock, tsc, now);
}

uint64_t record_clock_ask(struct record_clock *clock)
{
	const uint64_t now = monotonic_ns();
	uint64_t since = clock->latest_clock_ns;

	if (clock->lifetime) { /* it is long ago, or the TSC jumped */
		since = clock->anchor_ns +
			record_clock_scaled(clock->latest_tsc - clock->anchor_tsc, clock->rate);
		forget_anchor(clock);
	}
	clock->latest_clock_ns = now;
	if (now > since)
		clock->latest += now - since;
	return clock->latest;
}
