/* SPDX-License-Identifier: MIT */
/*
 * The merged ABI (Linux 6.8): guest_memfd, memory attributes and
 * KVM_EXIT_MEMORY_FAULT (Documentation/virt/kvm/api.rst, 4.140 to 4.142 and 5).
 *
 * One view: one slot with a guest_memfd. The attribute is the page state.
 * Two views: a software-protected VM takes the attribute for what the guest
 * meant, so no access would ever be wrong. Both windows are therefore arranged
 * so that the wrong access has nothing to land on:
 *                     private window                shared window (one plain slot)
 *   page is private   guest_memfd slot, PRIVATE     PRIVATE: no guest_memfd, faults
 *   page is shared    no slot, PRIVATE: faults      attribute 0
 * Every wrong access is a genuine KVM_EXIT_MEMORY_FAULT, and the kernel repeats it.
 *
 * The flag in a fault may be stale: what counts is the page state under the lock.
 * Behind private pages no address is readable, so that KVM's emulator cannot
 * silently use a shared copy; its attempt is KVM_EXIT_MMIO inside a region.
 */
#include <errno.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "backend.h"

static int set_attributes(const struct region *region, uint64_t view, uint64_t first,
			  uint64_t pages, uint64_t attributes)
{
	struct kvm_memory_attributes request = {
		.address = view + first * PYVMM_PAGE_SIZE,
		.size = pages * PYVMM_PAGE_SIZE,
		.attributes = attributes,
	};

	/* EINTR and EAGAIN leave the attributes as they were. */
	while (ioctl(region->vm_fd, KVM_SET_MEMORY_ATTRIBUTES, &request) < 0) {
		if (errno != EINTR && errno != EAGAIN)
			return -errno;
	}
	return 0;
}

static int attach(struct region *region)
{
	const bool two_views = region_has_two_views(region);
	struct slot_window window = {
		.vm_fd = region->vm_fd,
		.gpa = region->private_gpa,
		.pages = region->pages,
		.host = two_views ? region->private_host : region->shared_host,
		.guest_memfd = region->private_fd,
		.slot_base = region->slot_base,
		.slot_count = two_views ? region->slot_count - 1 : region->slot_count,
	};
	int error;

	region->private_window = window;
	error = slot_window_init(&region->private_window);
	if (error)
		return error;
	if (!two_views)
		return slot_window_fill(&region->private_window, 0, region->pages);

	window.gpa = region->shared_gpa;
	window.host = region->shared_host;
	window.guest_memfd = -1;
	window.slot_base += window.slot_count;
	window.slot_count = 1;
	region->shared_window = window;
	error = slot_window_init(&region->shared_window);
	if (!error)
		error = slot_window_fill(&region->shared_window, 0, region->pages);
	if (!error)
		error = set_attributes(region, region->private_gpa, 0, region->pages,
				       KVM_MEMORY_ATTRIBUTE_PRIVATE);
	return error;
}

static void detach(struct region *region)
{
	delete_windows(region);
	if (region_has_two_views(region))
		set_attributes(region, region->private_gpa, 0, region->pages, 0);
}

/* One view: what the host may no longer touch becomes PROT_NONE. */
static int protect_shared(const struct region *region, uint64_t first, uint64_t pages,
			  int protection)
{
	char *address = (char *)region->shared_host + first * PYVMM_PAGE_SIZE;

	return mprotect(address, pages * PYVMM_PAGE_SIZE, protection) < 0 ? -errno : 0;
}

/* What the private view needs in order to work, and the host in order not to see it. */
static int show_private(struct region *region, uint64_t first, uint64_t pages)
{
	if (region_has_two_views(region))
		return slot_window_fill(&region->private_window, first, pages);
	return protect_shared(region, first, pages, PROT_NONE);
}

static int hide_private(struct region *region, uint64_t first, uint64_t pages)
{
	if (region_has_two_views(region))
		return slot_window_clear(&region->private_window, first, pages);
	return protect_shared(region, first, pages, PROT_READ | PROT_WRITE);
}

/* After a failure: what was shared, or private, is so again. */
static void back_to_shared(struct region *region, uint64_t first, uint64_t pages)
{
	uint64_t page;

	for (page = first; page < first + pages; page++) {
		if (region->states[page] != PAGE_SHARED)
			continue;
		set_attributes(region, region->shared_gpa, page, 1, 0);
		hide_private(region, page, 1);
		page_range_punch(region->private_fd, page * PYVMM_PAGE_SIZE, PYVMM_PAGE_SIZE);
	}
}

static void back_to_private(struct region *region, uint64_t first, uint64_t pages)
{
	uint64_t page;

	for (page = first; page < first + pages; page++) {
		if (region->states[page] != PAGE_PRIVATE)
			continue;
		set_attributes(region, region->shared_gpa, page, 1, KVM_MEMORY_ATTRIBUTE_PRIVATE);
		show_private(region, page, 1);
		page_range_punch(region->shared_fd, page * PYVMM_PAGE_SIZE, PYVMM_PAGE_SIZE);
	}
}

/*
 * What can fail for want of memory comes before the old pages are discarded. Those
 * are discarded when nothing maps them any more: that costs no TLB flush.
 */
static int to_private(struct region *region, uint64_t first, uint64_t pages)
{
	const uint64_t offset = first * PYVMM_PAGE_SIZE, size = pages * PYVMM_PAGE_SIZE;
	int error;

	error = page_range_allocate(region->private_fd, offset, size);
	if (!error)
		error = set_attributes(region, region->shared_gpa, first, pages,
				       KVM_MEMORY_ATTRIBUTE_PRIVATE);
	if (!error)
		error = show_private(region, first, pages);
	if (!error)
		error = page_range_punch(region->shared_fd, offset, size);
	if (error)
		back_to_shared(region, first, pages);
	return error;
}

static int to_shared(struct region *region, uint64_t first, uint64_t pages)
{
	const uint64_t offset = first * PYVMM_PAGE_SIZE, size = pages * PYVMM_PAGE_SIZE;
	int error;

	error = page_range_allocate(region->shared_fd, offset, size);
	if (!error)
		error = hide_private(region, first, pages);
	if (!error)
		error = set_attributes(region, region->shared_gpa, first, pages, 0);
	if (!error)
		error = page_range_punch(region->private_fd, offset, size);
	if (error)
		back_to_private(region, first, pages);
	return error;
}

const struct backend backend_guest_memfd = {
	.name = "guest_memfd",
	.attach = attach,
	.detach = detach,
	.recognise = recognise_memory_fault,
	.to_private = to_private,
	.to_shared = to_shared,
	.finish = NULL,
};
