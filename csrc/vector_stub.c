/* SPDX-License-Identifier: MIT */
#include "vector_stub.h"

#include <string.h>
#include <sys/ioctl.h>

int vector_of_stub(int vcpu_fd, const struct memory *memory, const struct kvm_run *run)
{
	const uint8_t wanted[2] = { run->io.size == 1 ? STUB_OUT_AL : STUB_OUT_AX,
				    (uint8_t)run->io.port };
	struct kvm_sregs sregs;
	struct kvm_regs regs;
	uint8_t code[2];
	uint64_t behind, vector;

	if (run->exit_reason != KVM_EXIT_IO || run->io.direction != KVM_EXIT_IO_OUT ||
	    run->io.count != 1 || run->io.size > 2 || !is_stub_port(run->io.port) ||
	    ioctl(vcpu_fd, KVM_GET_REGS, &regs) < 0 || ioctl(vcpu_fd, KVM_GET_SREGS, &sregs) < 0)
		return -1;
	for (behind = 0; behind <= sizeof(code); behind += sizeof(code)) {
		vector = sregs.cs.base + regs.rip - behind - VECTOR_STUBS;
		/* The guest may have something else there by now. */
		if (vector < VECTORS &&
		    memory_peek(memory, VECTOR_STUBS + vector, code, sizeof(code)) &&
		    memcmp(code, wanted, sizeof(code)) == 0)
			return (int)vector;
	}
	return -1;
}
