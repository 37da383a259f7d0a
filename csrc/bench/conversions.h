/* SPDX-License-Identifier: MIT */
/*
 * The floor of a conversion: its system calls, each timed. See bare_run.h.
 */
#ifndef PYVMM_BENCH_CONVERSIONS_H
#define PYVMM_BENCH_CONVERSIONS_H

#include "../memory.h"
#include "../record_clock.h"
#include "bare_run.h"

/* One system call of a conversion, with all that it needs. */
enum bare_call {
	BARE_ALLOCATE,
	BARE_PUNCH,
	BARE_PROTECT,
	BARE_ADD_SLOT,
	BARE_DELETE_SLOT,
	BARE_ATTRIBUTES,
	BARE_FILE_ATTRIBUTES, /* of pages of a guest_memfd that converts in place */
	BARE_ADD_CLOSED_SLOT, /* of a guest_memfd that is made for it, and closed */
};

/* What the calls are for: the parts that a conversion's time is split into. */
enum bare_part {
	BARE_PART_ALLOCATE,
	BARE_PART_ATTRIBUTES,
	BARE_PART_SWITCH, /* make one view present and the other absent: mprotect or memslots */
	BARE_PART_DISCARD,
	BARE_PARTS,
};

struct bare_step {
	uint32_t call;
	uint32_t part;
	int fd; /* the file, or the VM */
	int guest_memfd; /* of an added slot, or -1 */
	int protection;
	uint32_t slot;
	uint64_t gpa;
	uint64_t offset;
	uint64_t size;
	uint64_t attributes;
	void *host;
};

/* One direction: its calls in order, and the view whose touch asks for it. */
struct bare_direction {
	uint64_t gpa;
	uint64_t size;
	void *host; /* where the access is completed, or NULL where the kernel repeats it */
	const struct bare_step *steps;
	uint64_t step_count;
	struct record_clock clock; /* of the parts; see record_clock_init() */
	/* Sums; what is not timed adds nothing. */
	uint64_t conversions;
	uint64_t whole_ns; /* from one exit to the next, or of the calls where no guest runs */
	uint64_t parts_ns[BARE_PARTS];
};

/* How often the clock is read: not at all, per conversion, or after each call. */
enum bare_timing { BARE_UNTIMED, BARE_TIME_WHOLE, BARE_TIME_PARTS };

/* A guest converts by touching a view or by the doorbell, each exit one conversion. */
int bare_conversions(int vcpu, struct kvm_run *run, struct bare_direction *to_private,
		     struct bare_direction *to_shared, uint64_t conversions,
		     enum bare_timing timing);
/* The calls of both directions by turns, without a guest; pairs of conversions. */
int bare_convert_pairs(struct bare_direction *to_private, struct bare_direction *to_shared,
		       uint64_t pairs, enum bare_timing timing);
/* The same by memory_convert(), which is what a doorbell and the host call. */
int memory_convert_pairs(struct memory *memory, uint64_t gpa, uint64_t pages, uint64_t pairs,
			 uint64_t *private_ns, uint64_t *shared_ns, struct histogram *to_private,
			 struct histogram *to_shared);
/* Allocating and discarding pages of a file by turns, as conversions do it. */
int page_range_pairs(int file, uint64_t size, uint64_t pairs, uint64_t *allocate_ns,
		     uint64_t *discard_ns, struct histogram *allocate, struct histogram *discard);

#endif
