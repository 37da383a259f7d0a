/* SPDX-License-Identifier: MIT */
/*
 * The memslots behind one GPA window whose pages come and go.
 *
 * A page is present when a slot covers it. Slots are made for ranges, and split
 * only where a range is taken out; KVM has no call that changes a slot's size,
 * so a split is one delete and up to two adds, and for that moment the
 * neighbours are absent too: who sees them absent must simply re-enter.
 *
 * Guarantees: slot numbers stay within [slot_base, slot_base + slot_count); when
 * they run out the window is rebuilt from the fewest ranges. Where even those are
 * too many the call fails with -ENOSPC and has changed nothing. After any other failure the
 * window knows which pages have a slot, and pages outside of the range lack theirs only where
 * the kernel refused to make it twice. No allocation after init. The caller holds the region's
 * lock; the window borrows the VM's fd, the mapping and the guest_memfd.
 *
 * A slot of a guest_memfd that has been closed has no memory: every access is a
 * KVM_EXIT_MEMORY_FAULT. For a moment the file is open, so no vCPU may be in the guest, and
 * fork(), by which a child would keep it open, waits. vfork() does not: what it starts has the
 * file until it executes a program.
 */
#ifndef PYVMM_SLOT_WINDOW_H
#define PYVMM_SLOT_WINDOW_H

#include <stdint.h>

#define SLOT_PLAIN (-1)
#define SLOT_CLOSED_FILE (-2)

struct slot_window {
	int vm_fd;
	uint64_t gpa;
	uint64_t pages;
	void *host; /* the address behind page 0 */
	int guest_memfd; /* SLOT_PLAIN, SLOT_CLOSED_FILE, or a descriptor */
	uint32_t slot_base;
	uint32_t slot_count;
	/* For each page the number of its slot, counted from slot_base, or SLOT_NONE. */
	uint32_t *slot_of_page;
	/* For each slot its first page and how many it has. */
	struct slot_range {
		uint64_t first;
		uint64_t pages;
	} *ranges;
	uint32_t *free_slots;
	uint32_t free_count;
};

/* 0 or -ENOMEM. All pages are absent. Fill in the public fields first. */
int slot_window_init(struct slot_window *window);
void slot_window_deinit(struct slot_window *window);
/* Make pages present, or absent; those that already are stay as they are. */
int slot_window_fill(struct slot_window *window, uint64_t first, uint64_t pages);
int slot_window_clear(struct slot_window *window, uint64_t first, uint64_t pages);
/* Delete what slots there are, also of a window that init() refused. */
void slot_window_delete(struct slot_window *window);

#endif
