/* SPDX-License-Identifier: MIT */
/*
 * The floor of a conversion on the emulated backend with PROT_NONE windows: KVM_RUN,
 * and after each KVM_EXIT_MMIO the system calls of csrc/backends/emulated.c in the same
 * order. The guest writes to a region's first page, by turns through its private and its
 * shared view.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define PAGE 4096

struct side {
	uint64_t gpa;
	int fd;
	void *host;
};

static int convert(const struct side *from, const struct side *to)
{
	if (fallocate(to->fd, FALLOC_FL_KEEP_SIZE, 0, PAGE) < 0 ||
	    mprotect(to->host, PAGE, PROT_READ | PROT_WRITE) < 0 ||
	    mprotect(from->host, PAGE, PROT_NONE) < 0 ||
	    fallocate(from->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, PAGE) < 0)
		return -errno;
	return 0;
}

/* 0, or -errno; -EPROTO for an exit that the guest does not make. */
int conversion_loop(int vcpu, void *kvm_run, const struct side *private_side,
		    const struct side *shared_side, uint64_t conversions)
{
	const struct side *from, *to;
	struct kvm_run *run = kvm_run;
	int error;

	while (conversions > 0) {
		if (ioctl(vcpu, KVM_RUN, 0) < 0) {
			if (errno != EINTR)
				return -errno;
			run->immediate_exit = 0;
			continue;
		}
		if (run->exit_reason != KVM_EXIT_MMIO)
			return -EPROTO;
		to = run->mmio.phys_addr == private_side->gpa ? private_side : shared_side;
		from = to == private_side ? shared_side : private_side;
		if (run->mmio.phys_addr != to->gpa)
			return -EPROTO;
		error = convert(from, to);
		if (error)
			return error;
		memcpy(to->host, run->mmio.data, run->mmio.len);
		conversions--;
	}
	return 0;
}
