/* SPDX-License-Identifier: MIT */
/*
 * Regions whose pages are shared or private, and the conversion between the two.
 *
 * A region has a private file and a shared file, one page of each for every page,
 * and one or two views: GPA windows through which a guest reaches it. With two
 * views an access through the wrong one converts the page; with one view the
 * window follows the page state.
 *
 * Locking: each region has one lock. It covers the page states, the slots behind
 * its windows and the counters; it is held over a whole conversion and over the
 * completion of an access, never over KVM_RUN. memory.generation counts finished
 * conversions of all regions; it changes under the lock, before it is released,
 * so a vCPU that entered the guest during a conversion sees it change.
 * Ownership: Python owns every fd and mapping and keeps them for as long as the
 * struct memory lives; C owns the arrays it allocates in memory_add_region().
 */
#ifndef PYVMM_MEMORY_H
#define PYVMM_MEMORY_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "kvm_compat.h"
#include "slot_window.h"

#define MEMORY_MAX_REGIONS 16
#define MEMORY_MAX_RAM 16

enum page_state { PAGE_SHARED = 0, PAGE_PRIVATE = 1 };

enum memory_policy { POLICY_CONVERT = 0, POLICY_DENY = 1, POLICY_ASK = 2 };

/* How a backend makes a page's wrong view absent. */
enum memory_mechanism {
	MECHANISM_PROT_NONE = 0,  /* host mapping without access */
	MECHANISM_SLOTS = 1,	  /* no memslot */
	MECHANISM_ATTRIBUTES = 2, /* KVM_SET_MEMORY_ATTRIBUTES */
	MECHANISM_PRESENCE = 3,	  /* page present in the private file */
};

struct backend;

struct region {
	/* What memory_add_region() is told. */
	uint64_t private_gpa; /* of the only view, where there is one */
	uint64_t shared_gpa;  /* equals private_gpa where there is one view */
	uint64_t pages;
	int private_fd;
	int shared_fd;
	void *private_host; /* behind the private view */
	void *shared_host;  /* behind the shared view */
	uint32_t slot_base; /* slot numbers the region may use */
	uint32_t slot_count;
	uint32_t mechanism;

	/* C's own from here on. */
	int vm_fd;
	const struct backend *backend;
	pthread_mutex_t lock;
	uint8_t *states; /* enum page_state for each page */
	struct slot_window private_window;
	struct slot_window shared_window;
	uint64_t to_private; /* pages */
	uint64_t to_shared;
	uint64_t implicit;
	uint64_t explicit_;
	uint64_t spurious; /* memory exits that found the page as they wanted it */
};

/* Plain memory, to look into. */
struct ram {
	uint64_t gpa;
	uint64_t size;
	const char *host;
};

struct memory {
	int vm_fd;
	const struct backend *backend;
	uint32_t policy;
	uint32_t synced_registers; /* KVM_SYNC_X86_*: what the backend wants at memory exits */
	uint32_t region_count;
	uint32_t ram_count;
	uint64_t generation;
	struct ram ram[MEMORY_MAX_RAM];
	struct region regions[MEMORY_MAX_REGIONS];
};

/* An access that the kernel could not do, as a backend understood it. */
struct memory_access {
	uint64_t gpa;
	uint32_t size;
	bool is_write;
	bool is_fetch; /* of an instruction */
	bool is_frame; /* the push of an exception's or interrupt's frame */
};

enum memory_verdict {
	MEMORY_NOT_MINE, /* no memory exit, or outside every region */
	MEMORY_DONE,	 /* re-enter */
	MEMORY_ASK,	 /* the policy asks Python, or denies */
	MEMORY_FAILED,	 /* the conversion failed: see error */
	MEMORY_EMULATED, /* KVM's emulator reached for private memory */
};

struct memory_exit {
	/* Set by the caller when the guest is entered: memory.generation, and run->if_flag. */
	uint64_t generation;
	bool interrupts_on;
	struct memory_access access;
	enum page_state wanted; /* what the access needs */
	uint64_t converted;	/* pages that changed state */
	uint64_t conversion_ns; /* 0 unless timed */
	int error;		/* negative errno */
};

int memory_init(struct memory *memory, int vm_fd, const char *backend, uint32_t policy);
void memory_deinit(struct memory *memory);
/* The VM's descriptor is about to be closed: what would use its number gets -EBADF. */
void memory_forget_vm(struct memory *memory);
/* `wanted` holds the public fields; the region's windows are set up. 0 or -errno. */
int memory_add_region(struct memory *memory, const struct region *wanted);
/* What is more than MEMORY_MAX_RAM is not looked into. */
void memory_add_ram(struct memory *memory, uint64_t gpa, uint64_t size, const void *host);
/* Look at a few bytes as the guest sees them now; false where it would see no memory. */
bool memory_peek(const struct memory *memory, uint64_t gpa, void *bytes, uint64_t size);
/*
 * Change pages on request of the guest or the host. 0, or -EINVAL for anything
 * unaligned, empty, outside a region, past its view's end or not a state (then
 * nothing changed), or the -errno of what failed.
 */
int memory_convert(struct memory *memory, uint64_t gpa, uint64_t pages, uint32_t state,
		   uint64_t *converted);
/*
 * Read or write shared pages of one view as the host. 0, -EINVAL where no region is,
 * -EACCES when a page is private, or the -errno of what failed.
 */
int memory_copy(struct memory *memory, uint64_t gpa, void *bytes, uint64_t size, bool is_write);
/*
 * Look at what KVM_RUN returned and do what it needs. `approved` after MEMORY_ASK: the page
 * of exit->access may be converted, whatever the policy.
 */
enum memory_verdict memory_handle_exit(struct memory *memory, int vcpu_fd, struct kvm_run *run,
				       int run_errno, bool timed, bool approved,
				       struct memory_exit *exit);

static inline uint64_t memory_generation(const struct memory *memory)
{
	return __atomic_load_n(&memory->generation, __ATOMIC_ACQUIRE);
}

#endif
