/* SPDX-License-Identifier: MIT */
/*
 * What is remembered of exits: a bounded ring of records, and log-linear
 * histograms of latencies.
 *
 * Guarantees: recording never allocates, blocks or fails. One thread writes, the
 * one that runs the vCPU; a reader looks while that thread is not in the loop.
 * A ring that is full overwrites its oldest record; how many were lost untaken
 * follows from written, drained and capacity.
 * A histogram's bucket is at most 1/32 (3.2 %) wider than its lower end; count,
 * minimum and maximum are exact. Times are CLOCK_MONOTONIC nanoseconds, as
 * record_clock.h tells them.
 */
#ifndef PYVMM_EXIT_LOG_H
#define PYVMM_EXIT_LOG_H

#include <stdint.h>

#include "record_clock.h"

#define HISTOGRAM_SUB_BITS 5
#define HISTOGRAM_SUB_BUCKETS (1u << HISTOGRAM_SUB_BITS)
#define HISTOGRAM_BUCKETS ((64 - HISTOGRAM_SUB_BITS + 1) * HISTOGRAM_SUB_BUCKETS)

struct histogram {
	uint64_t count;
	uint64_t sum;
	uint64_t min; /* UINT64_MAX while empty */
	uint64_t max;
	uint64_t buckets[HISTOGRAM_BUCKETS];
};

enum exit_conversion {
	CONVERSION_NONE = 0,
	CONVERSION_TO_SHARED = 1,
	CONVERSION_TO_PRIVATE = 2,
};

/* An exit: from the return of one KVM_RUN to the call of the next. */
struct exit_record {
	uint64_t time_in;
	uint64_t time_out;
	uint64_t address; /* GPA, port or hypercall number; 0 where there is none */
	uint32_t reason; /* the kernel's exit_reason */
	uint32_t size; /* bytes of the access */
	uint8_t is_write;
	uint8_t conversion; /* enum exit_conversion */
	uint8_t reserved[6];
	uint64_t conversion_ns;
};

struct exit_log {
	struct exit_record *records; /* owned by the vCPU's loop */
	uint64_t capacity; /* a power of two, or 0 */
	uint64_t written; /* ever; the newest is records[(written - 1) % capacity] */
	uint64_t drained; /* how many of them a reader has taken */
};

static inline uint32_t histogram_bucket(uint64_t value)
{
	uint32_t shift;

	if (value < HISTOGRAM_SUB_BUCKETS)
		return (uint32_t)value;
	shift = 63u - (uint32_t)__builtin_clzll(value) - HISTOGRAM_SUB_BITS;
	return (shift + 1) * HISTOGRAM_SUB_BUCKETS +
	       ((uint32_t)(value >> shift) - HISTOGRAM_SUB_BUCKETS);
}

static inline void histogram_record(struct histogram *histogram, uint64_t value)
{
	histogram->count++;
	histogram->sum += value;
	if (value < histogram->min)
		histogram->min = value;
	if (value > histogram->max)
		histogram->max = value;
	histogram->buckets[histogram_bucket(value)]++;
}

void histogram_clear(struct histogram *histogram);
/* The lowest value that falls into a bucket. */
uint64_t histogram_bucket_floor(uint32_t bucket);
/* The value below or at which `fraction` (0 to 1) of all lie; 0 when empty. */
uint64_t histogram_percentile(const struct histogram *histogram, double fraction);
void histogram_add(struct histogram *into, const struct histogram *from);
/*
 * Where the time from one exit to the next went, summed over the exits of a log.
 * handling_ns is from KVM_RUN's return to its next call, outside_ns from there to the
 * next return; conversion_ns is the part of handling that converted pages.
 */
struct exit_split {
	uint64_t count;
	uint64_t handling_ns;
	uint64_t conversion_ns;
	uint64_t outside_ns;
};

/*
 * Add the exits from record `first` on that are still in the ring and have a successor.
 * `conversion` is an enum exit_conversion, or -1 for all. `latency` gets each exit's whole
 * time divided by `parts`; it may be NULL.
 */
void exit_log_split(const struct exit_log *log, uint64_t first, int conversion, uint64_t parts,
		    struct exit_split *split, struct histogram *latency);

#endif
