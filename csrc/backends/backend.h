/* SPDX-License-Identifier: MIT */
/*
 * What one kernel ABI for private memory must be able to do. A backend is one
 * file with one `const struct backend`, listed in memory.c.
 *
 * All calls but recognise() are made with the region's lock held. Every int is 0
 * or -errno. to_private() and to_shared() get a range whose first and last page
 * have the other state; pages between may have the wanted one already, and must
 * keep their contents. After a failure the pages must still be what they were.
 */
#ifndef PYVMM_BACKEND_H
#define PYVMM_BACKEND_H

#include "../memory.h"
#include "../page_range.h"
#include "../pushed_words.h"

enum recognition {
	NOT_A_MEMORY_EXIT,
	MEMORY_EXIT,	 /* an access wanted the page in the state of the view it used */
	EMULATED_ACCESS, /* KVM's emulator wanted memory that it cannot reach */
};

struct backend {
	const char *name;
	uint32_t synced_registers; /* KVM_SYNC_X86_*: wanted in kvm_run at memory exits */
	/* Set up the windows; all pages are shared. */
	int (*attach)(struct region *region);
	/* Delete the slots that a failed attach() has left. */
	void (*detach)(struct region *region);
	/* What KVM_RUN returned: the access, if it was one. `gpa` may lie outside every region. */
	enum recognition (*recognise)(const struct memory *memory, int vcpu_fd,
				      const struct kvm_run *run, int run_errno,
				      struct memory_access *access);
	int (*to_private)(struct region *region, uint64_t first, uint64_t pages);
	int (*to_shared)(struct region *region, uint64_t first, uint64_t pages);
	/* Finish the access by hand, where the kernel does not repeat it; may be NULL. */
	void (*complete)(const struct memory *memory, struct region *region, int vcpu_fd,
			 struct kvm_run *run, const struct memory_access *access);
	/* What the instruction wrote beside that, where the exit does not tell; may be NULL. */
	uint32_t (*find_rest)(const struct memory *memory, int vcpu_fd, const struct kvm_run *run,
			      const struct memory_exit *exit,
			      struct pushed_word words[MOST_PUSHED_WORDS]);
};

/* detach() for a backend whose slots are those of its windows. */
static inline void delete_windows(struct region *region)
{
	slot_window_delete(&region->private_window);
	slot_window_delete(&region->shared_window);
}

extern const struct backend backend_emulated;
extern const struct backend backend_guest_memfd;
extern const struct backend backend_memory_error;

/* The region that has this GPA in one of its views, or NULL. */
struct region *memory_find(const struct memory *memory, uint64_t gpa);

static inline bool region_has_two_views(const struct region *region)
{
	return region->shared_gpa != region->private_gpa;
}

/* The access behind a KVM_EXIT_MMIO. */
static inline struct memory_access mmio_access(const struct kvm_run *run)
{
	return (struct memory_access){
		.gpa = run->mmio.phys_addr,
		.size = run->mmio.len,
		.is_write = run->mmio.is_write,
	};
}

static inline bool view_has(uint64_t view_gpa, uint64_t pages, uint64_t gpa)
{
	return gpa >= view_gpa && gpa - view_gpa < pages * PYVMM_PAGE_SIZE;
}

#endif
