/* SPDX-License-Identifier: MIT */
/*
 * The floor of an exit: the shortest C that answers it. See bare_run.h.
 */
#ifndef PYVMM_BENCH_EXITS_H
#define PYVMM_BENCH_EXITS_H

#include "bare_run.h"

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

#endif
