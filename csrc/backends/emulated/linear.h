/* SPDX-License-Identifier: MIT */
/* Memory as the guest's code sees it: by linear addresses, through its page tables. */
#ifndef PYVMM_EMULATED_LINEAR_H
#define PYVMM_EMULATED_LINEAR_H

#include <stdbool.h>
#include <sys/ioctl.h>

#include "../../memory.h"
#include "registers.h"

/* Whose linear addresses they are. */
struct address_space {
	const struct memory *memory;
	int vcpu_fd;
	bool is_paged;
};

static inline struct address_space address_space(const struct memory *memory, int vcpu_fd,
						 const struct kvm_sregs *sregs)
{
	return (struct address_space){ memory, vcpu_fd, (sregs->cr0 & CR0_PAGING) != 0 };
}

/* False where the guest's page tables map nothing. */
static inline bool linear_to_gpa(const struct address_space *space, uint64_t linear, uint64_t *gpa)
{
	struct kvm_translation translation = { .linear_address = linear };

	*gpa = linear;
	if (!space->is_paged)
		return true;
	if (ioctl(space->vcpu_fd, KVM_TRANSLATE, &translation) < 0 || !translation.valid)
		return false;
	*gpa = translation.physical_address;
	return true;
}

/* As memory_peek(), a page at a time. */
static inline bool linear_peek(const struct address_space *space, uint64_t linear, void *bytes,
			       uint64_t size)
{
	char *at = bytes;
	uint64_t gpa, part;

	if (!space->is_paged)
		return memory_peek(space->memory, linear, bytes, size);
	for (; size > 0; at += part, linear += part, size -= part) {
		part = PYVMM_PAGE_SIZE - linear % PYVMM_PAGE_SIZE;
		if (part > size)
			part = size;
		if (!linear_to_gpa(space, linear, &gpa) ||
		    !memory_peek(space->memory, gpa, at, part))
			return false;
	}
	return true;
}

#endif
