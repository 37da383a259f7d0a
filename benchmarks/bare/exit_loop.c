/* SPDX-License-Identifier: MIT */
/*
 * The floor of an exit: KVM_RUN in a loop, and the value of a 32-bit port write kept.
 * With clock_reads it also reads the clock so often per exit, which is the floor of
 * recording when an exit came and how long it took.
 */
#include <errno.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

/* 0, or -errno; -EPROTO for an exit that the guest does not make. */
int exit_loop(int vcpu, void *kvm_run, uint16_t port, uint64_t exits, uint32_t *value,
	      int clock_reads)
{
	struct kvm_run *run = kvm_run;
	struct timespec now;
	int i;

	while (exits > 0) {
		if (ioctl(vcpu, KVM_RUN, 0) < 0) {
			if (errno != EINTR)
				return -errno;
			run->immediate_exit = 0;
			continue;
		}
		exits--;
		for (i = 0; i < clock_reads; i++)
			clock_gettime(CLOCK_MONOTONIC, &now);
		if (run->exit_reason != KVM_EXIT_IO || run->io.port != port)
			return -EPROTO;
		memcpy(value, (char *)run + run->io.data_offset, sizeof(*value));
	}
	return 0;
}
