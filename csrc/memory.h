/* SPDX-License-Identifier: MIT */
/*
 * All memory of a guest: plain RAM, regions, and the conversion of their pages.
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

#include <stdbool.h>
#include <stdint.h>

#include "gate.h"
#include "kvm_compat.h"
#include "region.h"

#define MEMORY_MAX_REGIONS 16
#define MEMORY_MAX_RAM 16

enum memory_policy { POLICY_CONVERT = 0, POLICY_DENY = 1, POLICY_ASK = 2 };

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
	uint32_t region_count;
	uint32_t ram_count;
	uint64_t generation;
	struct gate gate;
	struct ram ram[MEMORY_MAX_RAM];
	struct region regions[MEMORY_MAX_REGIONS];
};

/* An access that the kernel could not do, as a backend understood it. */
struct memory_access {
	uint64_t gpa;
	uint32_t size;
	bool is_write;
	bool is_fetch; /* of an instruction */
};

enum memory_verdict {
	MEMORY_NOT_MINE, /* no memory exit, or outside every region */
	MEMORY_DONE, /* re-enter */
	MEMORY_ASK, /* the policy asks Python, or denies */
	MEMORY_FAILED, /* the conversion failed: see error */
	MEMORY_UNKNOWN, /* what else the instruction wrote cannot be known */
	MEMORY_EMULATED, /* KVM's emulator reached for private memory */
};

struct memory_exit {
	/*
	 * Set by the caller. `generation` is memory.generation when the guest was entered, or when
	 * the read was finished after which its instruction goes on: see memory_note_entry().
	 */
	int vcpu_fd;
	int run_errno; /* of KVM_RUN, or 0 */
	struct kvm_run *run;
	uint32_t sync_registers; /* KVM_SYNC_X86_*: what may be asked for in kvm_run */
	bool timed;
	bool approved; /* after MEMORY_ASK: convert the page of `access`, whatever the policy */
	uint64_t generation;

	/* Found. */
	struct memory_access access;
	enum page_state wanted; /* what the access needs */
	bool raced; /* pages may have changed between the access and now */
	bool goes_on; /* a read is finished, and its instruction may write yet */
	uint64_t approved_gpa; /* of the page that was approved; UINT64_MAX: none */
	uint64_t converted; /* pages that changed state */
	uint64_t conversion_ns; /* 0 unless timed */
	int error; /* negative errno */
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
/* Look at what KVM_RUN returned and do what it needs. */
enum memory_verdict memory_handle_exit(struct memory *memory, struct memory_exit *exit);

/* The region that has this GPA in one of its views, or NULL. */
struct region *memory_find(const struct memory *memory, uint64_t gpa);

/*
 * For an access, with the region's lock held: convert one page, if the policy lets it or it was
 * approved, and count it. MEMORY_DONE, MEMORY_ASK or MEMORY_FAILED.
 */
enum memory_verdict memory_convert_page(struct memory *memory, struct region *region, uint64_t gpa,
					struct memory_exit *exit);
/* With the region's lock held: bytes of one view's file, within it. All of it, or -errno. */
int memory_transfer(const struct region *region, uint64_t gpa, void *bytes, uint64_t size,
		    bool is_write);

static inline uint64_t memory_generation(const struct memory *memory)
{
	return __atomic_load_n(&memory->generation, __ATOMIC_ACQUIRE);
}

/* Before KVM_RUN. An instruction that goes on relies on what it has read before. */
static inline void memory_note_entry(const struct memory *memory, struct memory_exit *exit)
{
	if (!exit->goes_on)
		exit->generation = memory_generation(memory);
	exit->goes_on = false;
}

#endif
