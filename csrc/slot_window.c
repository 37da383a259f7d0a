/* SPDX-License-Identifier: MIT */
#include "slot_window.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "kvm_compat.h"
#include "page_range.h"

#define SLOT_NONE UINT32_MAX

int slot_window_init(struct slot_window *window)
{
	uint64_t page;
	uint32_t slot;

	window->slot_of_page = calloc(window->pages, sizeof(*window->slot_of_page));
	window->ranges = calloc(window->slot_count, sizeof(*window->ranges));
	window->free_slots = calloc(window->slot_count, sizeof(*window->free_slots));
	if (!window->slot_of_page || !window->ranges || !window->free_slots) {
		slot_window_deinit(window);
		return -ENOMEM;
	}
	for (page = 0; page < window->pages; page++)
		window->slot_of_page[page] = SLOT_NONE;
	for (slot = 0; slot < window->slot_count; slot++)
		window->free_slots[slot] = window->slot_count - 1 - slot;
	window->free_count = window->slot_count;
	return 0;
}

void slot_window_deinit(struct slot_window *window)
{
	free(window->slot_of_page);
	free(window->ranges);
	free(window->free_slots);
	window->slot_of_page = NULL;
	window->ranges = NULL;
	window->free_slots = NULL;
}

/* memory_size 0 deletes. */
static int set_memslot(const struct slot_window *window, uint32_t slot, uint64_t first,
		       uint64_t pages)
{
	const uint64_t offset = first * PYVMM_PAGE_SIZE;
	struct kvm_userspace_memory_region2 with_file = {
		.slot = window->slot_base + slot,
		.flags = KVM_MEM_GUEST_MEMFD,
		.guest_phys_addr = window->gpa + offset,
		.memory_size = pages * PYVMM_PAGE_SIZE,
		.userspace_addr = (uintptr_t)window->host + offset,
		.guest_memfd_offset = offset,
		.guest_memfd = (uint32_t)window->guest_memfd,
	};
	struct kvm_userspace_memory_region plain = {
		.slot = with_file.slot,
		.guest_phys_addr = with_file.guest_phys_addr,
		.memory_size = with_file.memory_size,
		.userspace_addr = with_file.userspace_addr,
	};
	int result;

	/* A deletion looks at the slot's number and size only. */
	if (window->guest_memfd >= 0 && pages > 0)
		result = ioctl(window->vm_fd, KVM_SET_USER_MEMORY_REGION2, &with_file);
	else
		result = ioctl(window->vm_fd, KVM_SET_USER_MEMORY_REGION, &plain);
	return result < 0 ? -errno : 0;
}

static void own_pages(struct slot_window *window, uint32_t slot, uint64_t first, uint64_t pages)
{
	uint64_t page;

	for (page = first; page < first + pages; page++)
		window->slot_of_page[page] = slot;
}

/* The caller has seen to it that a slot number is free. */
static int add_slot(struct slot_window *window, uint64_t first, uint64_t pages)
{
	const uint32_t slot = window->free_slots[window->free_count - 1];
	const int error = set_memslot(window, slot, first, pages);

	if (error)
		return error;
	window->free_count--;
	window->ranges[slot] = (struct slot_range){ first, pages };
	own_pages(window, slot, first, pages);
	return 0;
}

static int delete_slot(struct slot_window *window, uint32_t slot)
{
	const struct slot_range range = window->ranges[slot];
	const int error = set_memslot(window, slot, 0, 0);

	if (error)
		return error;
	own_pages(window, SLOT_NONE, range.first, range.pages);
	window->ranges[slot].pages = 0;
	window->free_slots[window->free_count++] = slot;
	return 0;
}

/* The end of the run that begins at `first`: pages with a slot, or without. */
static uint64_t run_end(const struct slot_window *window, uint64_t first, uint64_t end)
{
	const int present = window->slot_of_page[first] != SLOT_NONE;
	uint64_t page = first + 1;

	while (page < end && (window->slot_of_page[page] != SLOT_NONE) == present)
		page++;
	return page;
}

/* Join touching slots, so that the window uses the fewest. */
static int compact(struct slot_window *window)
{
	uint64_t first, end, page;
	int error;

	for (first = 0; first < window->pages; first = end) {
		end = run_end(window, first, window->pages);
		if (window->slot_of_page[first] == SLOT_NONE ||
		    window->ranges[window->slot_of_page[first]].pages == end - first)
			continue;
		for (page = first; page < end; page++) {
			if (window->slot_of_page[page] == SLOT_NONE)
				continue;
			error = delete_slot(window, window->slot_of_page[page]);
			if (error)
				return error;
		}
		error = add_slot(window, first, end - first);
		if (error)
			return error;
	}
	return 0;
}

static int reserve_slots(struct slot_window *window, uint32_t wanted)
{
	int error;

	if (window->free_count >= wanted)
		return 0;
	error = compact(window);
	if (error)
		return error;
	return window->free_count >= wanted ? 0 : -ENOSPC;
}

int slot_window_fill(struct slot_window *window, uint64_t first, uint64_t pages)
{
	const uint64_t end = first + pages;
	uint64_t page, next;
	int error;

	for (page = first; page < end; page = next) {
		error = reserve_slots(window, 1);
		if (error)
			return error;
		next = run_end(window, page, end);
		if (window->slot_of_page[page] != SLOT_NONE)
			continue;
		error = add_slot(window, page, next - page);
		if (error)
			return error;
	}
	return 0;
}

int slot_window_clear(struct slot_window *window, uint64_t first, uint64_t pages)
{
	const uint64_t end = first + pages;
	uint64_t page;
	int error;

	for (page = first; page < end; page++) {
		struct slot_range range;
		uint32_t slot;

		/* The slot itself and one number more are enough for both remainders. */
		error = reserve_slots(window, 1);
		if (error)
			return error;
		slot = window->slot_of_page[page];
		if (slot == SLOT_NONE)
			continue;
		range = window->ranges[slot];
		error = delete_slot(window, slot);
		if (error)
			return error;
		if (range.first < first) {
			error = add_slot(window, range.first, first - range.first);
			if (error)
				return error;
		}
		if (range.first + range.pages > end) {
			error = add_slot(window, end, range.first + range.pages - end);
			if (error)
				return error;
		}
	}
	return 0;
}
