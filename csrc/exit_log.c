/* SPDX-License-Identifier: MIT */
#include "exit_log.h"

#include <string.h>

void histogram_clear(struct histogram *histogram)
{
	memset(histogram, 0, sizeof(*histogram));
	histogram->min = UINT64_MAX;
}

uint64_t histogram_bucket_floor(uint32_t bucket)
{
	uint32_t shift;

	if (bucket < HISTOGRAM_SUB_BUCKETS)
		return bucket;
	shift = bucket / HISTOGRAM_SUB_BUCKETS - 1;
	return (uint64_t)(HISTOGRAM_SUB_BUCKETS + bucket % HISTOGRAM_SUB_BUCKETS) << shift;
}

static uint64_t bucket_middle(uint32_t bucket)
{
	uint64_t low = histogram_bucket_floor(bucket);
	uint64_t width;

	if (bucket + 1 >= HISTOGRAM_BUCKETS)
		return low;
	width = histogram_bucket_floor(bucket + 1) - low;
	return low + (width - 1) / 2;
}

uint64_t histogram_percentile(const struct histogram *histogram, double fraction)
{
	uint64_t wanted, seen = 0, value;
	uint32_t bucket;

	if (histogram->count == 0)
		return 0;
	wanted = (uint64_t)(fraction * (double)histogram->count + 0.5);
	if (wanted < 1)
		wanted = 1;
	if (wanted > histogram->count)
		wanted = histogram->count;
	for (bucket = 0; bucket < HISTOGRAM_BUCKETS; bucket++) {
		seen += histogram->buckets[bucket];
		if (seen >= wanted)
			break;
	}
	value = bucket_middle(bucket);
	/* The extremes are exact, so no percentile may lie outside them. */
	if (value < histogram->min)
		return histogram->min;
	return value > histogram->max ? histogram->max : value;
}

void histogram_add(struct histogram *into, const struct histogram *from)
{
	uint32_t bucket;

	if (from->count == 0)
		return;
	into->count += from->count;
	into->sum += from->sum;
	if (from->min < into->min)
		into->min = from->min;
	if (from->max > into->max)
		into->max = from->max;
	for (bucket = 0; bucket < HISTOGRAM_BUCKETS; bucket++)
		into->buckets[bucket] += from->buckets[bucket];
}

void exit_log_split(const struct exit_log *log, uint64_t first, int conversion, uint64_t parts,
		    struct exit_split *split, struct histogram *latency)
{
	uint64_t at;

	if (log->capacity == 0 || parts == 0)
		return;
	if (log->written > log->capacity && first < log->written - log->capacity)
		first = log->written - log->capacity;
	for (at = first; at + 1 < log->written; at++) {
		const struct exit_record *exit = &log->records[at & (log->capacity - 1)];
		const struct exit_record *next = &log->records[(at + 1) & (log->capacity - 1)];

		if (conversion >= 0 && exit->conversion != conversion)
			continue;
		split->count++;
		split->handling_ns += exit->time_out - exit->time_in;
		split->conversion_ns += exit->conversion_ns;
		split->outside_ns += next->time_in - exit->time_out;
		if (latency)
			histogram_record(latency, (next->time_in - exit->time_in) / parts);
	}
}
