/* SPDX-License-Identifier: MIT */
/*
 * The floor that a benchmark compares with: the same system calls from the shortest
 * C there is, on the same vCPU in the same process.
 *
 * Nothing of the VMM uses these. They know no deadline, no kick and no log; the guests
 * they run are the benchmarks' own, which never stop exiting. A signal is run over.
 * Every function returns 0 or -errno; -EPROTO means an exit that the guest does not
 * make. Descriptors, mappings and histograms belong to the caller; a histogram may be
 * NULL, and costs two readings of the clock per operation when it is not.
 */
#ifndef PYVMM_BARE_LOOPS_H
#define PYVMM_BARE_LOOPS_H

#include <stdbool.h>
#include <stdint.h>

#include "exit_log.h"
#include "kvm_compat.h"
#include "memory.h"
#include "vcpu_loop.h"

/*
 * Exits of one reason, answered as csrc/protocol.c does: a written value is kept, a read
 * gets all ones. `ring` is emptied at each exit, or NULL. An exit stands for `parts`
 * operations of the guest, by which the histogram's values are divided.
 */
int bare_exits(int vcpu, struct kvm_run *run, uint32_t reason, uint64_t exits, uint64_t parts,
	       struct kvm_coalesced_mmio_ring *ring, struct histogram *latency);
/* KVM_RUN that returns before it enters the guest, by immediate_exit. */
int bare_immediate_exits(int vcpu, struct kvm_run *run, uint64_t calls, struct histogram *latency);
/* KVM_GET_API_VERSION: the least that an ioctl can do. */
int bare_system_ioctls(int kvm, uint64_t calls, struct histogram *latency);
/* The least nanoseconds from one reading of the record clock to the next. */
uint64_t bare_record_ns(uint64_t records);
/* KVM_INTERRUPT, then KVM_RUN until the guest has taken it and exits. */
int bare_interrupts(int vcpu, struct kvm_run *run, uint32_t vector, uint64_t interrupts,
		    struct histogram *latency);
/*
 * From immediate_exit and a signal to KVM_RUN's EINTR, added to `sum` for each kick. Another
 * thread sends them on a CPU of its own (-1: wherever it may run), 8 to 24 us after the last,
 * so that they find the vCPU at every point of its way.
 */
int bare_kicks(int vcpu, struct kvm_run *run, int kick_signal, int kicker_cpu, uint64_t kicks,
	       uint64_t *sum, struct histogram *latency);
/* The same by loop_kick() to the return of loop_run(). */
int loop_kicks(struct vcpu_loop *loop, int kicker_cpu, uint64_t kicks, uint64_t *sum,
	       struct histogram *latency);

/* One system call of a conversion, with all that it needs. */
enum bare_call {
	BARE_ALLOCATE,
	BARE_PUNCH,
	BARE_PROTECT,
	BARE_ADD_SLOT,
	BARE_DELETE_SLOT,
	BARE_ATTRIBUTES,
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
	int fd;		 /* the file, or the VM */
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
			 uint64_t *private_ns, uint64_t *shared_ns,
			 struct histogram *to_private, struct histogram *to_shared);
/* Allocating and discarding pages of a file by turns, as conversions do it. */
int page_range_pairs(int file, uint64_t size, uint64_t pairs, uint64_t *allocate_ns,
		     uint64_t *discard_ns, struct histogram *allocate, struct histogram *discard);

/* A machine's life, phase by phase: the system calls of pyvmm's Machine in their order. */
enum bare_phase {
	BARE_CREATE,	 /* /dev/kvm and the VM */
	BARE_SLOTS,	 /* memory: RAM and one region of the emulated backend */
	BARE_VCPU,	 /* with its CPUID, its kvm_run and its registers */
	BARE_FIRST_EXIT, /* with the deadline's timer */
	BARE_RESET,	 /* registers as at the start, and an exit again */
	BARE_CLOSE,
	BARE_PHASES,
};

/* `prot_none`: the emulated backend's mechanism; otherwise it is slots. */
int bare_life(const void *image, uint64_t size, int timer_signal, bool prot_none, bool reset,
	      uint64_t phases_ns[BARE_PHASES]);

#endif
