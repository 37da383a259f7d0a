/* SPDX-License-Identifier: MIT */
/* System calls for Python: the result, or -errno read right after the call. */
#ifndef PYVMM_KVM_IOCTL_H
#define PYVMM_KVM_IOCTL_H

#include <errno.h>
#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "guest_cpu.h"

static inline long kvm_ioctl(int fd, unsigned long request, uintptr_t argument)
{
	long result;

	if (request == KVM_RUN)
		guest_cpu_enter();
	result = ioctl(fd, request, argument);
	if (result < 0)
		result = -errno;
	if (request == KVM_RUN)
		guest_cpu_leave();
	return result;
}

/* The same with what the argument points to. */
static inline long kvm_ioctl_on(int fd, unsigned long request, void *argument)
{
	return kvm_ioctl(fd, request, (uintptr_t)argument);
}

/* The address, or NULL; errno says why (cffi keeps it: ffi.errno). */
static inline void *host_map(size_t size, int protection, int flags, int fd, int64_t offset)
{
	void *address = mmap(NULL, size, protection, flags, fd, offset);

	return address == MAP_FAILED ? NULL : address;
}

/*
 * Private memory for guest address `gpa`, so that both sides may use pages of 2 MiB; both are
 * aligned to 4 KiB. What is not touched costs nothing. NULL as above.
 */
static inline void *host_map_ram(size_t size, uint64_t gpa)
{
	const size_t huge = 2u << 20;
	char *whole, *found;

	if (size > SIZE_MAX - huge) {
		errno = ENOMEM;
		return NULL;
	}
	whole = mmap(NULL, size + huge, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (whole == MAP_FAILED)
		return NULL;
	found = whole + ((gpa - (uintptr_t)whole) & (huge - 1));
	if (found > whole)
		munmap(whole, (size_t)(found - whole));
	munmap(found + size, huge - (size_t)(found - whole));
	madvise(found, size, MADV_HUGEPAGE); /* where the kernel has them */
	return found;
}

static inline void host_unmap(size_t size, void *address)
{
	munmap(address, size);
}

/*
 * Take pages of `address` out of every page table and of every VM's, so that the next touch looks
 * for them anew. What is in them stays, and at no time can they not be read or written: only the
 * right to execute comes and goes. 0 or -errno.
 */
static inline int host_flush(size_t size, void *address)
{
	if (mprotect(address, size, PROT_READ | PROT_WRITE | PROT_EXEC) < 0 ||
	    mprotect(address, size, PROT_READ | PROT_WRITE) < 0)
		return -errno;
	return 0;
}

/* What /proc and ps show; 15 bytes are kept. */
static inline void name_thread(const char *name)
{
	prctl(PR_SET_NAME, name);
}

#endif
