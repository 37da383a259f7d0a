/* SPDX-License-Identifier: MIT */
/*
 * The RFC of December 2021 ("KVM: mm: fd-based approach for supporting KVM guest
 * private memory", v3): KVM_MEM_PRIVATE slots and KVM_EXIT_MEMORY_ERROR.
 *
 * A page is private when it is present in the private file; allocating it there
 * is the conversion, and so is punching it out. The private view is a
 * KVM_MEM_PRIVATE slot, the shared view an alias slot of the same file. KVM_RUN
 * returns EPERM with the page and with what the access wanted, and repeats the
 * access when it is entered again.
 */
#include <errno.h>
#include <sys/ioctl.h>

#include "backend.h"

static int add_slot(const struct region *region, uint32_t slot, uint64_t gpa, uint32_t flags,
		    void *host)
{
	struct kvm_userspace_memory_region_ext request = {
		.region = {
			.slot = slot,
			.flags = flags,
			.guest_phys_addr = gpa,
			.memory_size = region->pages * PYVMM_PAGE_SIZE,
			.userspace_addr = (uintptr_t)host,
		},
		.fd = (uint32_t)region->private_fd,
	};

	return ioctl(region->vm_fd, KVM_SET_USER_MEMORY_REGION, &request) < 0 ? -errno : 0;
}

static int attach(struct region *region)
{
	int error;

	if (!region_has_two_views(region))
		return -EOPNOTSUPP;
	error = add_slot(region, region->slot_base, region->private_gpa, KVM_MEM_PRIVATE,
			 region->private_host);
	if (error)
		return error;
	return add_slot(region, region->slot_base + 1, region->shared_gpa,
			KVM_MEM_PRIVATE | KVM_MEM_SHARED_VIEW, region->shared_host);
}

static void detach(struct region *region)
{
	struct kvm_userspace_memory_region none = { .slot = region->slot_base };

	for (; none.slot < region->slot_base + 2; none.slot++)
		ioctl(region->vm_fd, KVM_SET_USER_MEMORY_REGION, &none);
}

static enum recognition recognise(const struct memory *memory, struct memory_exit *exit)
{
	const struct kvm_run *run = exit->run;
	const struct pyvmm_memory_error *error = PYVMM_EXIT_PAYLOAD(run);

	(void)memory;
	exit->access = (struct memory_access){ 0 };
	if (!exit->run_errno && run->exit_reason == KVM_EXIT_MMIO) {
		exit->access = mmio_access(run);
		return EMULATED_ACCESS;
	}
	if (exit->run_errno == EPERM && run->exit_reason == KVM_EXIT_MEMORY_ERROR) {
		exit->access.gpa = error->gpa;
		exit->access.size = (uint32_t)error->size;
		return MEMORY_EXIT;
	}
	return NOT_A_MEMORY_EXIT;
}

/* After a failure: of the range, the pages in this state are not in the other one's file. */
static void punch_again(const struct region *region, enum page_state state, int fd, uint64_t first,
			uint64_t pages)
{
	uint64_t page;

	for (page = first; page < first + pages; page++) {
		if (region->states[page] == state)
			page_range_punch(fd, page * PYVMM_PAGE_SIZE, PYVMM_PAGE_SIZE);
	}
}

static int to_private(struct region *region, uint64_t first, uint64_t pages)
{
	const uint64_t offset = first * PYVMM_PAGE_SIZE, size = pages * PYVMM_PAGE_SIZE;
	int error;

	error = page_range_allocate(region->private_fd, offset, size);
	if (!error)
		error = page_range_punch(region->shared_fd, offset, size);
	if (error)
		punch_again(region, PAGE_SHARED, region->private_fd, first, pages);
	return error;
}

static int to_shared(struct region *region, uint64_t first, uint64_t pages)
{
	const uint64_t offset = first * PYVMM_PAGE_SIZE, size = pages * PYVMM_PAGE_SIZE;
	int error;

	/* The shared pages first: only that can fail, and it changes no page's state. */
	error = page_range_allocate(region->shared_fd, offset, size);
	if (!error)
		error = page_range_punch(region->private_fd, offset, size);
	if (error)
		punch_again(region, PAGE_PRIVATE, region->shared_fd, first, pages);
	return error;
}

const struct backend backend_memory_error = {
	.name = "memory_error",
	.attach = attach,
	.detach = detach,
	.recognise = recognise,
	.to_private = to_private,
	.to_shared = to_shared,
	.finish = NULL,
};
