/* SPDX-License-Identifier: MIT */
#include "vector_stub.h"

#include <string.h>
#include <sys/ioctl.h>

#define CR0_PAGING (1ull << 31)

/* Whether a linear address is that of a GPA now. */
static bool is_at(int vcpu_fd, const struct kvm_sregs *sregs, uint64_t linear, uint64_t gpa)
{
	struct kvm_translation translation = { .linear_address = linear };

	if (!(sregs->cr0 & CR0_PAGING))
		return linear == gpa;
	return ioctl(vcpu_fd, KVM_TRANSLATE, &translation) == 0 && translation.valid &&
	       translation.physical_address == gpa;
}

int vector_of_stub(int vcpu_fd, const struct memory *memory, const struct kvm_run *run,
		   uint64_t stubs)
{
	const uint8_t wanted[2] = { run->io.size == 1 ? STUB_OUT_AL : STUB_OUT_AX,
				    (uint8_t)run->io.port };
	struct kvm_sregs sregs;
	struct kvm_regs regs;
	uint8_t code[2];
	uint64_t behind, vector;

	if (run->exit_reason != KVM_EXIT_IO || run->io.direction != KVM_EXIT_IO_OUT ||
	    run->io.count != 1 || !is_stub_port(run->io.port) ||
	    ioctl(vcpu_fd, KVM_GET_REGS, &regs) < 0 || ioctl(vcpu_fd, KVM_GET_SREGS, &sregs) < 0)
		return -1;
	for (behind = 0; behind <= sizeof(code); behind += sizeof(code)) {
		vector = sregs.cs.base + regs.rip - behind - stubs;
		/* The guest may have something else there by now. */
		if (vector < VECTORS && memory_peek(memory, stubs + vector, code, sizeof(code)) &&
		    memcmp(code, wanted, sizeof(code)) == 0 &&
		    is_at(vcpu_fd, &sregs, stubs + vector, stubs + vector))
			return (int)vector;
	}
	return -1;
}
