/* SPDX-License-Identifier: MIT */
/*
 * What one kernel ABI for private memory must be able to do. A backend is one
 * file, or a folder, with one `const struct backend`, called backend_ and its name.
 *
 * All calls but recognise() are made with the region's lock held. finish() may give it up to
 * take another region's, and takes it again: nobody holds two. Every int is 0
 * or -errno. to_private() and to_shared() get a range whose first and last page
 * have the other state; pages between may have the wanted one already, and must
 * keep their contents. After a failure the pages must still be what they were.
 */
#ifndef PYVMM_BACKEND_H
#define PYVMM_BACKEND_H

#include <errno.h>

#include "../memory.h"

enum recognition {
	NOT_A_MEMORY_EXIT,
	MEMORY_EXIT, /* an access wanted the page in the state of the view it used */
	MEMORY_EXIT_IF_ABSENT, /* or something else, where the page is there and was all the time */
	PERHAPS_A_RACE, /* KVM's emulator failed: a conversion came between, or it cannot do it */
	EMULATED_ACCESS, /* KVM's emulator wanted memory that it cannot reach */
};

struct backend {
	const char *name;
	/* Set up the windows; all pages are shared. */
	int (*attach)(struct region *region);
	/* Delete the slots that a failed attach() has left. */
	void (*detach)(struct region *region);
	/* exit->access of what KVM_RUN returned. Its GPA may lie outside every region. */
	enum recognition (*recognise)(const struct memory *memory, struct memory_exit *exit);
	int (*to_private)(struct region *region, uint64_t first, uint64_t pages);
	int (*to_shared)(struct region *region, uint64_t first, uint64_t pages);
	/*
	 * The page of the exit is as wanted: finish the access, where the kernel does not repeat
	 * it. May be NULL. MEMORY_ASK, MEMORY_FAILED: of a page that exit->access now names.
	 * MEMORY_UNKNOWN: the access cannot be finished without a guess.
	 */
	enum memory_verdict (*finish)(struct memory *memory, struct region *region,
				      struct memory_exit *exit);
	/* The host's bytes of shared pages, where the shared file takes no read() and write(). */
	int (*transfer)(const struct region *region, void *bytes, uint64_t size, uint64_t offset,
			bool is_write);
};

/* detach() for a backend whose slots are those of its windows. */
static inline void delete_windows(struct region *region)
{
	slot_window_delete(&region->private_window);
	slot_window_delete(&region->shared_window);
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

/* recognise() where a wrong access is a KVM_EXIT_MEMORY_FAULT that the kernel repeats. */
static inline enum recognition recognise_memory_fault(const struct memory *memory,
						      struct memory_exit *exit)
{
	const struct kvm_run *run = exit->run;
	const struct pyvmm_memory_fault *fault = PYVMM_EXIT_PAYLOAD(run);

	(void)memory;
	exit->access = (struct memory_access){ 0 };
	if (!exit->run_errno && run->exit_reason == KVM_EXIT_MMIO) {
		exit->access = mmio_access(run);
		return EMULATED_ACCESS;
	}
	if (exit->run_errno == EFAULT && run->exit_reason == KVM_EXIT_MEMORY_FAULT) {
		exit->access.gpa = fault->gpa;
		exit->access.size = (uint32_t)fault->size;
		return MEMORY_EXIT;
	}
	return NOT_A_MEMORY_EXIT;
}

#endif
