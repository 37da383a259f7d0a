/* SPDX-License-Identifier: MIT */
/* The registers after an exit: from kvm_run where they are kept in step, or asked for. */
#ifndef PYVMM_EMULATED_REGISTERS_H
#define PYVMM_EMULATED_REGISTERS_H

#include <stdbool.h>
#include <sys/ioctl.h>

#include "../../memory.h"

#define SYNCED_REGISTERS (KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS)
#define CR0_PROTECTED_MODE 0x1u
#define CR0_PAGING (1ull << 31)
#define EFER_LONG_MODE_ACTIVE (1u << 10)
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

/* Of its code: 16, 32 or 64 bits. */
static inline uint32_t code_bits(const struct kvm_sregs *sregs)
{
	if (!(sregs->cr0 & CR0_PROTECTED_MODE))
		return 16;
	if (sregs->efer & EFER_LONG_MODE_ACTIVE && sregs->cs.l)
		return 64;
	return sregs->cs.db ? 32 : 16;
}

/* What the instruction pointer wraps at. */
static inline uint64_t code_mask(const struct kvm_sregs *sregs)
{
	const uint32_t bits = code_bits(sregs);

	return bits == 64 ? UINT64_MAX : bits == 32 ? UINT32_MAX : 0xFFFF;
}

/* What the stack pointer wraps at. */
static inline uint64_t stack_mask(const struct kvm_sregs *sregs)
{
	if (code_bits(sregs) == 64)
		return UINT64_MAX;
	return sregs->cr0 & CR0_PROTECTED_MODE && sregs->ss.db ? UINT32_MAX : 0xFFFF;
}

/* Where segments begin: in 64-bit code at 0, whatever is in them. */
static inline uint64_t code_base(const struct kvm_sregs *sregs)
{
	return code_bits(sregs) == 64 ? 0 : sregs->cs.base;
}

static inline uint64_t stack_base(const struct kvm_sregs *sregs)
{
	return code_bits(sregs) == 64 ? 0 : sregs->ss.base;
}

#endif
