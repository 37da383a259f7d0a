/* SPDX-License-Identifier: MIT */
/*
 * Sizes and offsets of the register structures that Python fills, asserted
 * against the kernel's x86 ABI (arch/x86/include/uapi/asm/kvm.h).
 */
#ifndef PYVMM_KVM_LAYOUT_H
#define PYVMM_KVM_LAYOUT_H

#include "kvm_compat.h"

PYVMM_ASSERT_SIZE(struct kvm_regs, 144);
PYVMM_ASSERT_OFFSET(struct kvm_regs, rip, 128);
PYVMM_ASSERT_OFFSET(struct kvm_regs, rflags, 136);
PYVMM_ASSERT_SIZE(struct kvm_segment, 24);
PYVMM_ASSERT_SIZE(struct kvm_dtable, 16);
PYVMM_ASSERT_SIZE(struct kvm_sregs, 312);
PYVMM_ASSERT_OFFSET(struct kvm_sregs, cr0, 224);
PYVMM_ASSERT_OFFSET(struct kvm_sregs, efer, 264);
PYVMM_ASSERT_OFFSET(struct kvm_sregs, interrupt_bitmap, 280);
PYVMM_ASSERT_SIZE(struct kvm_translation, 24);
PYVMM_ASSERT_SIZE(struct kvm_enable_cap, 104);
PYVMM_ASSERT_SIZE(struct kvm_cpuid_entry2, 40);
PYVMM_ASSERT_SIZE(struct kvm_cpuid2, 8);
PYVMM_ASSERT_SIZE(struct kvm_mp_state, 4);
PYVMM_ASSERT_SIZE(struct kvm_pit_config, 64);

#endif
