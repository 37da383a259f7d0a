/* SPDX-License-Identifier: MIT */
/*
 * Private memory on any KVM: two memfds, and a page's wrong view is absent.
 *
 * Two views: KVM_EXIT_MMIO names the GPA that was touched. Absent means
 *   prot_none  the slot stays, the host mapping behind the page is PROT_NONE
 *              (where KVM's emulator answers that with KVM_EXIT_MMIO), or
 *   slots      no memslot covers the page.
 * The kernel has decoded the access and waits for its data, so it is completed
 * here and not repeated. Three things cannot be completed, but come with RIP unmoved
 * and are repeated once the page is there: an instruction fetch, as
 * KVM_EXIT_INTERNAL_ERROR; a locked instruction whose page another vCPU converts between its read
 * and its write, as the same; and the frame of an exception or interrupt,
 * as KVM_EXIT_SHUTDOWN where KVM's emulator delivers it.
 * One view: one slot, and the mapping behind a page is replaced by the other
 * file's; nothing is ever absent.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "../backend.h"
#include "frames.h"
#include "pushed_words.h"
#include "registers.h"

static void *host_at(void *base, uint64_t first)
{
	return (char *)base + first * PYVMM_PAGE_SIZE;
}

static int attach(struct region *region)
{
	struct slot_window window = {
		.vm_fd = region->vm_fd,
		.gpa = region->private_gpa,
		.pages = region->pages,
		.host = region->private_host,
		.guest_memfd = -1,
		.slot_base = region->slot_base,
		.slot_count = region->slot_count / 2,
	};
	int error;

	if (!region_has_two_views(region))
		window.host = region->shared_host;
	region->private_window = window;
	error = slot_window_init(&region->private_window);
	if (error)
		return error;
	if (!region_has_two_views(region))
		return slot_window_fill(&region->private_window, 0, region->pages);

	window.gpa = region->shared_gpa;
	window.host = region->shared_host;
	window.slot_base += region->slot_count / 2;
	region->shared_window = window;
	error = slot_window_init(&region->shared_window);
	if (error)
		return error;
	error = slot_window_fill(&region->shared_window, 0, region->pages);
	if (error || region->mechanism == MECHANISM_SLOTS)
		return error;
	return slot_window_fill(&region->private_window, 0, region->pages);
}

/* Let a range of the single window show the other file. */
static int show(struct region *region, int fd, uint64_t first, uint64_t pages)
{
	void *address = host_at(region->shared_host, first);
	void *mapped = mmap(address, pages * PYVMM_PAGE_SIZE, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_FIXED, fd, (off_t)(first * PYVMM_PAGE_SIZE));

	return mapped == MAP_FAILED ? -errno : 0;
}

static int protect(void *base, uint64_t first, uint64_t pages, int protection)
{
	return mprotect(host_at(base, first), pages * PYVMM_PAGE_SIZE, protection) < 0 ? -errno : 0;
}

/* One of a region's two sides: its file, its mapping and its window. */
struct side {
	int fd;
	void *host;
	struct slot_window *window;
};

static int make_present(struct region *region, const struct side *side, uint64_t first,
			uint64_t pages)
{
	if (!region_has_two_views(region))
		return show(region, side->fd, first, pages);
	if (region->mechanism == MECHANISM_SLOTS)
		return slot_window_fill(side->window, first, pages);
	return protect(side->host, first, pages, PROT_READ | PROT_WRITE);
}

static int make_absent(struct region *region, const struct side *side, uint64_t first,
		       uint64_t pages)
{
	if (!region_has_two_views(region))
		return 0; /* show() has replaced it */
	if (region->mechanism == MECHANISM_SLOTS)
		return slot_window_clear(side->window, first, pages);
	return protect(side->host, first, pages, PROT_NONE);
}

/* What can fail for want of memory comes first, and is undone. */
static int move_pages(struct region *region, const struct side *from, const struct side *to,
		      enum page_state state, uint64_t first, uint64_t pages)
{
	const uint64_t offset = first * PYVMM_PAGE_SIZE, size = pages * PYVMM_PAGE_SIZE;
	uint64_t page;
	int error;

	error = page_range_allocate(to->fd, offset, size);
	if (!error)
		error = make_present(region, to, first, pages);
	if (!error)
		error = make_absent(region, from, first, pages);
	if (!error)
		error = page_range_punch(from->fd, offset, size);
	if (!error)
		return 0;
	for (page = first; page < first + pages; page++) {
		if (region->states[page] == state)
			continue;
		make_absent(region, to, page, 1);
		make_present(region, from, page, 1);
		page_range_punch(to->fd, page * PYVMM_PAGE_SIZE, PYVMM_PAGE_SIZE);
	}
	return error;
}

static int to_private(struct region *region, uint64_t first, uint64_t pages)
{
	const struct side from = { region->shared_fd, region->shared_host, &region->shared_window };
	const struct side to = { region->private_fd, region->private_host,
				 &region->private_window };

	return move_pages(region, &from, &to, PAGE_PRIVATE, first, pages);
}

static int to_shared(struct region *region, uint64_t first, uint64_t pages)
{
	const struct side from = { region->private_fd, region->private_host,
				   &region->private_window };
	const struct side to = { region->shared_fd, region->shared_host, &region->shared_window };

	return move_pages(region, &from, &to, PAGE_SHARED, first, pages);
}

static enum recognition recognise(const struct memory *memory, struct memory_exit *exit)
{
	const struct kvm_run *run = exit->run;

	exit->access = (struct memory_access){ 0 };
	if (exit->run_errno)
		return NOT_A_MEMORY_EXIT;
	if (run->exit_reason == KVM_EXIT_MMIO) {
		exit->access = mmio_access(run);
		return MEMORY_EXIT;
	}
	if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR &&
	    run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION) {
		if (!find_fetch(memory, exit))
			return PERHAPS_A_RACE; /* or an instruction that KVM cannot do */
		exit->access.is_fetch = true;
		return MEMORY_EXIT_IF_ABSENT; /* or the same */
	}
	if (run->exit_reason == KVM_EXIT_SHUTDOWN && find_frame(memory, exit)) {
		exit->access.is_write = true;
		return MEMORY_EXIT_IF_ABSENT; /* or a triple fault */
	}
	return NOT_A_MEMORY_EXIT;
}

/* The bytes that the exit tells of. */
static void complete(const struct region *region, struct memory_exit *exit)
{
	const struct memory_access *access = &exit->access;
	const bool is_private =
		region_has_two_views(region) && region_wants(region, access->gpa) == PAGE_PRIVATE;
	char *host = is_private ? region->private_host : region->shared_host;
	const uint64_t offset = region_offset(region, access->gpa);
	const uint64_t room = region->pages * PYVMM_PAGE_SIZE - offset;
	uint64_t size = access->size;

	if (size > sizeof(exit->run->mmio.data))
		size = sizeof(exit->run->mmio.data);
	if (size > room)
		size = room;
	if (access->is_write)
		memcpy(host + offset, exit->run->mmio.data, size);
	else
		memcpy(exit->run->mmio.data, host + offset, size);
}

static enum memory_verdict finish(struct memory *memory, struct region *region,
				  struct memory_exit *exit)
{
	enum memory_verdict verdict = MEMORY_DONE;

	if (exit->run->exit_reason == KVM_EXIT_SHUTDOWN)
		hand_over_event(memory, region->vm_fd, exit);
	if (exit->run->exit_reason == KVM_EXIT_MMIO) {
		complete(region, exit);
		if (exit->access.is_write)
			verdict = store_pushed_words(memory, region, exit);
	}
	/* A guest that had one will have more: from the next on, kvm_run has the registers. */
	if (verdict == MEMORY_DONE)
		exit->run->kvm_valid_regs |= exit->sync_registers & SYNCED_REGISTERS;
	return verdict;
}

const struct backend backend_emulated = {
	.name = "emulated",
	.attach = attach,
	.detach = delete_windows,
	.recognise = recognise,
	.to_private = to_private,
	.to_shared = to_shared,
	.finish = finish,
};
