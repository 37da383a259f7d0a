/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "conversions.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../page_range.h"
#include "../protocol.h"

/* A page in use is asked for again, but not for ever: as long as the backend does, about. */
#define BUSY_TRIES 1000
#define BUSY_PAUSE_NS 20000L

static int set_slot(const struct bare_step *step, uint64_t size)
{
	struct kvm_userspace_memory_region2 with_file = {
		.slot = step->slot,
		.flags = KVM_MEM_GUEST_MEMFD,
		.guest_phys_addr = step->gpa,
		.memory_size = size,
		.userspace_addr = (uintptr_t)step->host,
		.guest_memfd_offset = step->offset,
		.guest_memfd = (uint32_t)step->guest_memfd,
	};
	struct kvm_userspace_memory_region plain = {
		.slot = step->slot,
		.guest_phys_addr = step->gpa,
		.memory_size = size,
		.userspace_addr = (uintptr_t)step->host,
	};

	if (step->guest_memfd >= 0 && size > 0)
		return ioctl(step->fd, KVM_SET_USER_MEMORY_REGION2, &with_file);
	return ioctl(step->fd, KVM_SET_USER_MEMORY_REGION, &plain);
}

static int add_closed_slot(const struct bare_step *step)
{
	struct kvm_create_guest_memfd file = { .size = step->size };
	struct bare_step slot = *step;
	int result, error;

	slot.guest_memfd = ioctl(step->fd, KVM_CREATE_GUEST_MEMFD, &file);
	slot.offset = 0;
	if (slot.guest_memfd < 0)
		return -1;
	result = set_slot(&slot, slot.size);
	error = errno;
	close(slot.guest_memfd);
	errno = error;
	return result;
}

static int take_step(const struct bare_step *step)
{
	struct kvm_memory_attributes attributes = {
		.address = step->gpa,
		.size = step->size,
		.attributes = step->attributes,
	};
	struct kvm_memory_attributes2 of_file = {
		.offset = step->offset,
		.size = step->size,
		.attributes = step->attributes,
	};

	switch (step->call) {
	case BARE_ALLOCATE:
		return fallocate(step->fd, FALLOC_FL_KEEP_SIZE, (off_t)step->offset,
				 (off_t)step->size);
	case BARE_PUNCH:
		return fallocate(step->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
				 (off_t)step->offset, (off_t)step->size);
	case BARE_PROTECT:
		return mprotect(step->host, step->size, step->protection);
	case BARE_ADD_SLOT:
		return set_slot(step, step->size);
	case BARE_DELETE_SLOT:
		return set_slot(step, 0);
	case BARE_ATTRIBUTES:
		return ioctl(step->fd, KVM_SET_MEMORY_ATTRIBUTES, &attributes);
	case BARE_FILE_ATTRIBUTES:
		return ioctl(step->fd, KVM_SET_MEMORY_ATTRIBUTES2, &of_file);
	case BARE_ADD_CLOSED_SLOT:
		return add_closed_slot(step);
	default:
		errno = EINVAL;
		return -1;
	}
}

/* 0 or -errno. */
static int finish_step(const struct bare_step *step)
{
	const struct timespec pause = { .tv_nsec = BUSY_PAUSE_NS };
	int tries = 0;

	while (take_step(step) < 0) {
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN || ++tries == BUSY_TRIES)
			return -errno;
		nanosleep(&pause, NULL);
	}
	return 0;
}

static int convert(struct bare_direction *direction, enum bare_timing timing)
{
	const bool timed = timing == BARE_TIME_PARTS;
	uint64_t at, start = timed ? record_clock_ns(&direction->clock) : 0, end;
	int error;

	for (at = 0; at < direction->step_count; at++) {
		const struct bare_step *step = &direction->steps[at];

		error = finish_step(step);
		if (error)
			return error;
		if (timed && step->part < BARE_PARTS) {
			end = record_clock_later_ns(&direction->clock);
			direction->parts_ns[step->part] += end - start;
			start = end;
		}
	}
	direction->conversions++;
	return 0;
}

static bool touched(const struct bare_direction *direction, uint64_t gpa)
{
	return gpa >= direction->gpa && gpa - direction->gpa < direction->size;
}

/* Run to the next request for a conversion: 0 and the direction, or -errno. */
static int run_to_request(int vcpu, struct kvm_run *run, struct bare_direction *to_private,
			  struct bare_direction *to_shared, struct bare_direction **wanted)
{
	const struct pyvmm_memory_fault *fault = PYVMM_EXIT_PAYLOAD(run);
	const struct pyvmm_memory_error *error = PYVMM_EXIT_PAYLOAD(run);
	int failed = bare_run(vcpu, run);
	uint64_t gpa;

	while (!failed && run->exit_reason == KVM_EXIT_IO) {
		const uint32_t *value = (uint32_t *)((char *)run + run->io.data_offset);

		if (run->io.port == PORT_DOORBELL_RING) {
			*wanted = *value == DOORBELL_TO_PRIVATE ? to_private : to_shared;
			return 0;
		}
		failed = bare_run(vcpu, run);
	}
	if (!failed && run->exit_reason == KVM_EXIT_MMIO)
		gpa = run->mmio.phys_addr;
	else if (failed == -EFAULT && run->exit_reason == KVM_EXIT_MEMORY_FAULT)
		gpa = fault->gpa;
	else if (failed == -EPERM && run->exit_reason == KVM_EXIT_MEMORY_ERROR)
		gpa = error->gpa;
	else
		return failed ? failed : -EPROTO;
	*wanted = touched(to_private, gpa) ? to_private : to_shared;
	if (!touched(*wanted, gpa))
		return -EPROTO;
	if ((*wanted)->host && run->exit_reason == KVM_EXIT_MMIO)
		return (int)(gpa - (*wanted)->gpa) + 1;
	return 0;
}

int bare_conversions(int vcpu, struct kvm_run *run, struct bare_direction *to_private,
		     struct bare_direction *to_shared, uint64_t conversions,
		     enum bare_timing timing)
{
	ON_GUEST_CPU;
	struct bare_direction *direction = NULL, *previous;
	uint64_t start = 0, now;
	int offset, error;

	for (;;) {
		previous = direction;
		offset = run_to_request(vcpu, run, to_private, to_shared, &direction);
		if (offset < 0)
			return offset;
		if (timing == BARE_TIME_WHOLE) {
			now = monotonic_ns();
			if (previous)
				previous->whole_ns += now - start;
			start = now;
		}
		error = convert(direction, timing);
		if (error)
			return error;
		if (offset > 0) /* one more than the offset of an access to complete */
			memcpy((char *)direction->host + (offset - 1), run->mmio.data,
			       run->mmio.len);
		if (--conversions == 0)
			break;
	}
	/* The last one ends here: its own whole time is not known, so it is not counted. */
	if (timing == BARE_TIME_WHOLE)
		direction->conversions--;
	return 0;
}

int bare_convert_pairs(struct bare_direction *to_private, struct bare_direction *to_shared,
		       uint64_t pairs, enum bare_timing timing)
{
	uint64_t start, middle;
	int error;

	for (; pairs > 0; pairs--) {
		start = monotonic_ns();
		error = convert(to_private, timing);
		if (error)
			return error;
		middle = monotonic_ns();
		to_private->whole_ns += middle - start;
		error = convert(to_shared, timing);
		if (error)
			return error;
		to_shared->whole_ns += monotonic_ns() - middle;
	}
	return 0;
}

int memory_convert_pairs(struct memory *memory, uint64_t gpa, uint64_t pages, uint64_t pairs,
			 uint64_t *private_ns, uint64_t *shared_ns, struct histogram *to_private,
			 struct histogram *to_shared)
{
	uint64_t start, middle, end, converted;
	int error;

	for (; pairs > 0; pairs--) {
		start = monotonic_ns();
		error = memory_convert(memory, gpa, pages, PAGE_PRIVATE, &converted);
		if (error)
			return error;
		middle = monotonic_ns();
		error = memory_convert(memory, gpa, pages, PAGE_SHARED, &converted);
		if (error)
			return error;
		end = monotonic_ns();
		*private_ns += middle - start;
		*shared_ns += end - middle;
		if (to_private)
			histogram_record(to_private, middle - start);
		if (to_shared)
			histogram_record(to_shared, end - middle);
	}
	return 0;
}

int page_range_pairs(int file, uint64_t size, uint64_t pairs, uint64_t *allocate_ns,
		     uint64_t *discard_ns, struct histogram *allocate, struct histogram *discard)
{
	uint64_t start, middle, end;
	int error;

	for (; pairs > 0; pairs--) {
		start = monotonic_ns();
		error = page_range_allocate(file, 0, size);
		if (error)
			return error;
		middle = monotonic_ns();
		error = page_range_punch(file, 0, size);
		if (error)
			return error;
		end = monotonic_ns();
		*allocate_ns += middle - start;
		*discard_ns += end - middle;
		if (allocate)
			histogram_record(allocate, middle - start);
		if (discard)
			histogram_record(discard, end - middle);
	}
	return 0;
}
