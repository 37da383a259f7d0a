/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "exits.h"

#include <string.h>

#include "../record_clock.h"

#define CALIBRATION_NS 5000000 /* more than the record clock takes to find the TSC's rate */

static void answer(struct kvm_run *run)
{
	uint64_t kept = 0;

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		if (run->io.direction == KVM_EXIT_IO_IN)
			memset((char *)run + run->io.data_offset, 0xFF, run->io.size);
		else
			memcpy(&kept, (char *)run + run->io.data_offset, sizeof(uint32_t));
		break;
	case KVM_EXIT_MMIO:
		if (!run->mmio.is_write)
			memset(run->mmio.data, 0xFF, sizeof(run->mmio.data));
		else
			memcpy(&kept, run->mmio.data, sizeof(kept));
		break;
	case KVM_EXIT_HYPERCALL:
		run->hypercall.ret = 0;
		break;
	default:
		break;
	}
	__asm__ volatile("" : : "r"(kept));
}

int bare_exits(int vcpu, struct kvm_run *run, uint32_t reason, uint64_t exits, uint64_t parts,
	       struct kvm_coalesced_mmio_ring *ring, struct histogram *latency)
{
	ON_GUEST_CPU;
	uint64_t start = 0;
	int error;

	for (; exits > 0; exits--) {
		if (latency)
			start = monotonic_ns();
		error = bare_run(vcpu, run);
		if (error)
			return error;
		if (run->exit_reason != reason)
			return -EPROTO;
		answer(run);
		if (ring)
			ring->first = ring->last;
		if (latency)
			histogram_record(latency, (monotonic_ns() - start) / parts);
	}
	return 0;
}

int bare_immediate_exits(int vcpu, struct kvm_run *run, uint64_t calls, struct histogram *latency)
{
	uint64_t start = 0;

	for (; calls > 0; calls--) {
		if (latency)
			start = monotonic_ns();
		run->immediate_exit = 1;
		if (ioctl(vcpu, KVM_RUN, 0) == 0)
			return -EPROTO;
		if (errno != EINTR)
			return -errno;
		if (latency)
			histogram_record(latency, monotonic_ns() - start);
	}
	run->immediate_exit = 0;
	return 0;
}

int bare_system_ioctls(int kvm, uint64_t calls, struct histogram *latency)
{
	uint64_t start = 0;

	for (; calls > 0; calls--) {
		if (latency)
			start = monotonic_ns();
		if (ioctl(kvm, KVM_GET_API_VERSION, 0) < 0)
			return -errno;
		if (latency)
			histogram_record(latency, monotonic_ns() - start);
	}
	return 0;
}

uint64_t bare_record_ns(uint64_t records)
{
	const uint64_t until = monotonic_ns() + CALIBRATION_NS;
	uint64_t before = 0, now, least = UINT64_MAX;
	struct record_clock clock;

	record_clock_init(&clock);
	while (monotonic_ns() < until)
		record_clock_ns(&clock);
	for (; records > 0; records--) {
		/* Where an anchor may be taken, nothing is measured. */
		if (records % 1000 == 0)
			before = record_clock_ns(&clock);
		now = record_clock_later_ns(&clock);
		if (before && now - before < least)
			least = now - before;
		before = now;
	}
	return least;
}

int bare_interrupts(int vcpu, struct kvm_run *run, uint32_t vector, uint64_t interrupts,
		    struct histogram *latency)
{
	ON_GUEST_CPU;
	struct kvm_interrupt request = { .irq = vector };
	uint64_t start = 0;
	int error;

	for (; interrupts > 0; interrupts--) {
		if (latency)
			start = monotonic_ns();
		if (ioctl(vcpu, KVM_INTERRUPT, &request) < 0)
			return -errno;
		error = bare_run(vcpu, run);
		if (error)
			return error;
		if (run->exit_reason != KVM_EXIT_IO)
			return -EPROTO;
		answer(run);
		if (latency)
			histogram_record(latency, monotonic_ns() - start);
	}
	return 0;
}
