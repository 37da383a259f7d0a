/* SPDX-License-Identifier: MIT */
/* The registers after an exit: from kvm_run where they are kept in step, or asked for. */
#ifndef PYVMM_EMULATED_REGISTERS_H
#define PYVMM_EMULATED_REGISTERS_H

#include <stdbool.h>
#include <sys/ioctl.h>

#include "../../memory.h"

#define SYNCED_REGISTERS (KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS)
#define CR0_PROTECTED_MODE 0x1u
#define LONGEST_INSTRUCTION 15u

struct registers {
	const struct kvm_regs *regs;
	const struct kvm_sregs *sregs;
	/* Where they are, unless in kvm_run. */
	struct kvm_regs own_regs;
	struct kvm_sregs own_sregs;
};

static inline bool get_registers(const struct memory_exit *exit, struct registers *registers)
{
	struct kvm_sync_regs *synced = &exit->run->s.regs;

	if ((exit->run->kvm_valid_regs & SYNCED_REGISTERS) == SYNCED_REGISTERS) {
		registers->regs = &synced->regs;
		registers->sregs = &synced->sregs;
		return true;
	}
	registers->regs = &registers->own_regs;
	registers->sregs = &registers->own_sregs;
	return ioctl(exit->vcpu_fd, KVM_GET_REGS, &registers->own_regs) == 0 &&
	       ioctl(exit->vcpu_fd, KVM_GET_SREGS, &registers->own_sregs) == 0;
}

#endif
