/* SPDX-License-Identifier: MIT */
/*
 * A region: guest memory whose pages are shared or private, and where its pages are seen.
 *
 * A region has a private file and a shared file, one page of each for every page,
 * and one or two views: GPA windows through which a guest reaches it. With two
 * views an access through the wrong one converts the page; with one view the
 * window follows the page state. memory.h says who locks it and who owns what.
 */
#ifndef PYVMM_REGION_H
#define PYVMM_REGION_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "gate.h"
#include "page_range.h"
#include "slot_window.h"

enum page_state { PAGE_SHARED = 0, PAGE_PRIVATE = 1 };

/* How a backend makes a page's wrong view absent. */
enum memory_mechanism {
	MECHANISM_PROT_NONE = 0, /* host mapping without access */
	MECHANISM_SLOTS = 1, /* no memslot */
	MECHANISM_ATTRIBUTES = 2, /* KVM_SET_MEMORY_ATTRIBUTES, of the VM or of the file */
	MECHANISM_PRESENCE = 3, /* page present in the private file */
};

struct backend;

struct region {
	/* What memory_add_region() is told. */
	uint64_t private_gpa; /* of the only view, where there is one */
	uint64_t shared_gpa; /* equals private_gpa where there is one view */
	uint64_t pages;
	int private_fd;
	int shared_fd;
	void *private_host; /* behind the private view */
	void *shared_host; /* behind the shared view */
	uint32_t slot_base; /* slot numbers the region may use */
	uint32_t slot_count;
	uint32_t mechanism;
	bool keep_contents; /* of pages that are converted; otherwise they read zero */

	/* C's own from here on. */
	int vm_fd;
	const struct backend *backend;
	pthread_mutex_t lock;
	uint8_t *states; /* enum page_state for each page */
	struct slot_window private_window;
	struct slot_window shared_window;
	struct slot_window private_nothing; /* slots without memory, where a backend needs them */
	struct slot_window shared_nothing;
	struct gate *gate; /* of the struct memory */
	uint64_t to_private; /* pages */
	uint64_t to_shared;
	uint64_t implicit;
	uint64_t explicit_;
	uint64_t spurious; /* memory exits that found the page as they wanted it */
	uint64_t busy; /* times that the kernel refused a conversion because a page was in use */
	uint64_t busy_page; /* the last such page */
	int32_t lost; /* errno of a conversion that could not be undone: ENOTRECOVERABLE since */
};

static inline bool region_has_two_views(const struct region *region)
{
	return region->shared_gpa != region->private_gpa;
}

static inline bool view_has(uint64_t view_gpa, uint64_t pages, uint64_t gpa)
{
	return gpa >= view_gpa && gpa - view_gpa < pages * PYVMM_PAGE_SIZE;
}

static inline bool region_has(const struct region *region, uint64_t gpa)
{
	return view_has(region->private_gpa, region->pages, gpa) ||
	       view_has(region->shared_gpa, region->pages, gpa);
}

/* Of a GPA that the region has: from the start of the view that has it. */
static inline uint64_t region_offset(const struct region *region, uint64_t gpa)
{
	if (view_has(region->private_gpa, region->pages, gpa))
		return gpa - region->private_gpa;
	return gpa - region->shared_gpa;
}

static inline uint64_t region_page(const struct region *region, uint64_t gpa)
{
	return region_offset(region, gpa) / PYVMM_PAGE_SIZE;
}

/* What an access through this view wants; with one view, what the page is. */
static inline enum page_state region_wants(const struct region *region, uint64_t gpa)
{
	if (!region_has_two_views(region))
		return (enum page_state)region->states[region_page(region, gpa)];
	return view_has(region->private_gpa, region->pages, gpa) ? PAGE_PRIVATE : PAGE_SHARED;
}

/* Whether an access at this GPA would be a wrong one. Without the lock: at the moment. */
static inline bool region_is_absent(const struct region *region, uint64_t gpa)
{
	return region->states[region_page(region, gpa)] != region_wants(region, gpa);
}

#endif
