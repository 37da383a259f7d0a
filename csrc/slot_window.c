/* SPDX-License-Identifier: MIT */
#include "slot_window.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

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

/*
 * Held while a file is open that is to be gone. A fork would take it along, and the slot would
 * have memory for as long as the child lives: fork() waits.
 */
static pthread_mutex_t file_is_open = PTHREAD_MUTEX_INITIALIZER;

static void hold_forks(void)
{
	pthread_mutex_lock(&file_is_open);
}

static void let_forks_go(void)
{
	pthread_mutex_unlock(&file_is_open);
}

static void watch_forks(void)
{
	pthread_atfork(hold_forks, let_forks_go, let_forks_go);
}

/* Make a slot of a file of its own, which is gone afterwards. */
static int bind_closed_file(int vm_fd, struct kvm_userspace_memory_region2 *slot)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct kvm_create_guest_memfd file = { .size = slot->memory_size };
	int fd, error = 0;

	pthread_once(&once, watch_forks);
	hold_forks();
	fd = ioctl(vm_fd, KVM_CREATE_GUEST_MEMFD, &file);
	if (fd < 0) {
		error = -errno;
	} else {
		/* The kernel does not set it, and vfork() waits for nobody. */
		fcntl(fd, F_SETFD, FD_CLOEXEC);
		slot->guest_memfd = (uint32_t)fd;
		slot->guest_memfd_offset = 0;
		if (ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION2, slot) < 0)
			error = -errno;
		close(fd);
	}
	let_forks_go();
	return error;
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
	if (window->guest_memfd == SLOT_CLOSED_FILE && pages > 0)
		return bind_closed_file(window->vm_fd, &with_file);
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

static int is_present(const struct slot_window *window, uint64_t page)
{
	return window->slot_of_page[page] != SLOT_NONE;
}

/* The end of the run that begins at `first`: pages with a slot, or without. */
static uint64_t run_end(const struct slot_window *window, uint64_t first, uint64_t end)
{
	const int present = is_present(window, first);
	uint64_t page = first + 1;

	while (page < end && is_present(window, page) == present)
		page++;
	return page;
}

static uint64_t absent_runs(const struct slot_window *window, uint64_t first, uint64_t end)
{
	uint64_t page, runs = 0;

	for (page = first; page < end; page = run_end(window, page, end))
		runs += !is_present(window, page);
	return runs;
}

/* In rebuild(): noted as present, by the number of a slot that has been deleted. */
static int is_lost(const struct slot_window *window, uint64_t page)
{
	const uint32_t slot = window->slot_of_page[page];

	return slot != SLOT_NONE && page - window->ranges[slot].first >= window->ranges[slot].pages;
}

/* As many as can be had get slots again; the others are absent. 0, or the first -errno. */
static int find_lost_pages(struct slot_window *window)
{
	uint64_t page, next;
	int error = 0, failed;

	for (page = 0; page < window->pages; page = next) {
		next = page + 1;
		if (!is_lost(window, page))
			continue;
		while (next < window->pages && is_lost(window, next))
			next++;
		failed = add_slot(window, page, next - page);
		if (failed)
			own_pages(window, SLOT_NONE, page, next - page);
		error = error ? error : failed;
	}
	return error;
}

/*
 * Make [first, end) present or absent with the fewest slots there can be: one for
 * each run of present pages.
 */
static int rebuild(struct slot_window *window, uint64_t first, uint64_t end, int present)
{
	int is_wanted, was_wanted = 0, error = 0, failed;
	uint64_t page, runs = 0;
	uint32_t slot;

	for (page = 0; page < window->pages; page++) {
		is_wanted = page >= first && page < end ? present : is_present(window, page);
		runs += is_wanted && !was_wanted;
		was_wanted = is_wanted;
	}
	if (runs > window->slot_count)
		return -ENOSPC;
	for (slot = 0; slot < window->slot_count && !error; slot++) {
		if (window->ranges[slot].pages == 0)
			continue;
		error = set_memslot(window, slot, 0, 0);
		if (error)
			break;
		window->ranges[slot].pages = 0;
		window->free_slots[window->free_count++] = slot;
	}
	/* The numbers of deleted slots still say which pages were present. */
	if (!error)
		own_pages(window, present ? 0 : SLOT_NONE, first, end - first);
	failed = find_lost_pages(window);
	return error ? error : failed;
}

int slot_window_fill(struct slot_window *window, uint64_t first, uint64_t pages)
{
	const uint64_t end = first + pages;
	uint64_t page, next;
	int error;

	if (absent_runs(window, first, end) > window->free_count)
		return rebuild(window, first, end, 1);
	for (page = first; page < end; page = next) {
		next = run_end(window, page, end);
		if (is_present(window, page))
			continue;
		error = add_slot(window, page, next - page);
		if (error)
			return error;
	}
	return 0;
}

void slot_window_delete(struct slot_window *window)
{
	uint32_t slot;

	for (slot = 0; window->ranges && slot < window->slot_count; slot++) {
		if (window->ranges[slot].pages > 0)
			delete_slot(window, slot);
	}
}

/* Whether one slot reaches beyond both ends of [first, end), so that two are left of it. */
static int splits_a_slot(const struct slot_window *window, uint64_t first, uint64_t end)
{
	const struct slot_range *range;

	if (!is_present(window, first))
		return 0;
	range = &window->ranges[window->slot_of_page[first]];
	return range->first < first && range->first + range->pages > end;
}

/* A slot is deleted but for what of it is outside [first, end). */
static int cut_slot(struct slot_window *window, uint32_t slot, uint64_t first, uint64_t end)
{
	const struct slot_range range = window->ranges[slot];
	int error = delete_slot(window, slot);

	if (error)
		return error;
	if (range.first < first)
		error = add_slot(window, range.first, first - range.first);
	if (!error && range.first + range.pages > end)
		error = add_slot(window, end, range.first + range.pages - end);
	if (error) /* the neighbours have done nothing */
		slot_window_fill(window, range.first, range.pages);
	return error;
}

int slot_window_clear(struct slot_window *window, uint64_t first, uint64_t pages)
{
	const uint64_t end = first + pages;
	uint64_t page;
	int error;

	if (window->free_count == 0 && splits_a_slot(window, first, end))
		return rebuild(window, first, end, 0);
	for (page = first; page < end; page++) {
		if (!is_present(window, page))
			continue;
		error = cut_slot(window, window->slot_of_page[page], first, end);
		if (error)
			return error;
	}
	return 0;
}
