/* SPDX-License-Identifier: MIT */
/*
 * The layout of every kernel structure that Python fills or reads, as the x86-64
 * ABI has it (<linux/kvm.h>, <asm/kvm.h>). The numbers were read in the headers:
 * headers that disagree, or a wrong guess in kvm_compat.h, stop the build.
 */
#ifndef PYVMM_KVM_LAYOUT_H
#define PYVMM_KVM_LAYOUT_H

#include "kvm_compat.h"

/* The headers leave these without a type name, and cffi needs one. */
#define NAME(name, type, member) typedef __typeof__(((type *)0)->member) name

NAME(kvm_vcpu_events_exception, struct kvm_vcpu_events, exception);
NAME(kvm_vcpu_events_interrupt, struct kvm_vcpu_events, interrupt);
NAME(kvm_vcpu_events_nmi, struct kvm_vcpu_events, nmi);
NAME(kvm_vcpu_events_smi, struct kvm_vcpu_events, smi);
NAME(kvm_vcpu_events_triple_fault, struct kvm_vcpu_events, triple_fault);
NAME(kvm_ioapic_redirect, struct kvm_ioapic_state, redirtbl[0]);
NAME(kvm_irqchip_chip, struct kvm_irqchip, chip);
NAME(kvm_irq_routing_target, struct kvm_irq_routing_entry, u);
NAME(kvm_run_hw, struct kvm_run, hw);
NAME(kvm_run_fail_entry, struct kvm_run, fail_entry);
NAME(kvm_run_ex, struct kvm_run, ex);
NAME(kvm_run_io, struct kvm_run, io);
NAME(kvm_run_debug, struct kvm_run, debug);
NAME(kvm_run_mmio, struct kvm_run, mmio);
NAME(kvm_run_hypercall, struct kvm_run, hypercall);
NAME(kvm_run_tpr_access, struct kvm_run, tpr_access);
NAME(kvm_run_internal, struct kvm_run, internal);
NAME(kvm_run_system_event, struct kvm_run, system_event);
NAME(kvm_run_eoi, struct kvm_run, eoi);
NAME(kvm_run_msr, struct kvm_run, msr);
NAME(kvm_run_notify, struct kvm_run, notify);
NAME(kvm_run_s, struct kvm_run, s);

#define SIZE(type, size) _Static_assert(sizeof(type) == (size), "size of " #type)
#define OFFSET(type, member, offset) \
	_Static_assert(offsetof(type, member) == (offset), #type "." #member)

/* ---- memory ---- */

SIZE(struct kvm_userspace_memory_region, 32);
OFFSET(struct kvm_userspace_memory_region, slot, 0);
OFFSET(struct kvm_userspace_memory_region, flags, 4);
OFFSET(struct kvm_userspace_memory_region, guest_phys_addr, 8);
OFFSET(struct kvm_userspace_memory_region, memory_size, 16);
OFFSET(struct kvm_userspace_memory_region, userspace_addr, 24);

SIZE(struct kvm_userspace_memory_region2, 160);
OFFSET(struct kvm_userspace_memory_region2, slot, 0);
OFFSET(struct kvm_userspace_memory_region2, flags, 4);
OFFSET(struct kvm_userspace_memory_region2, guest_phys_addr, 8);
OFFSET(struct kvm_userspace_memory_region2, memory_size, 16);
OFFSET(struct kvm_userspace_memory_region2, userspace_addr, 24);
OFFSET(struct kvm_userspace_memory_region2, guest_memfd_offset, 32);
OFFSET(struct kvm_userspace_memory_region2, guest_memfd, 40);
OFFSET(struct kvm_userspace_memory_region2, pad1, 44);
OFFSET(struct kvm_userspace_memory_region2, pad2, 48);

SIZE(struct kvm_userspace_memory_region_ext, 64);
OFFSET(struct kvm_userspace_memory_region_ext, region, 0);
OFFSET(struct kvm_userspace_memory_region_ext, ofs, 32);
OFFSET(struct kvm_userspace_memory_region_ext, fd, 40);
OFFSET(struct kvm_userspace_memory_region_ext, padding, 44);

SIZE(struct kvm_memory_attributes, 32);
OFFSET(struct kvm_memory_attributes, address, 0);
OFFSET(struct kvm_memory_attributes, size, 8);
OFFSET(struct kvm_memory_attributes, attributes, 16);
OFFSET(struct kvm_memory_attributes, flags, 24);

SIZE(struct kvm_memory_attributes2, 128);
OFFSET(struct kvm_memory_attributes2, offset, 0);
OFFSET(struct kvm_memory_attributes2, size, 8);
OFFSET(struct kvm_memory_attributes2, attributes, 16);
OFFSET(struct kvm_memory_attributes2, flags, 24);
OFFSET(struct kvm_memory_attributes2, error_offset, 32);
OFFSET(struct kvm_memory_attributes2, reserved, 40);

SIZE(struct kvm_create_guest_memfd, 64);
OFFSET(struct kvm_create_guest_memfd, size, 0);
OFFSET(struct kvm_create_guest_memfd, flags, 8);
OFFSET(struct kvm_create_guest_memfd, reserved, 16);

SIZE(struct kvm_pre_fault_memory, 64);
OFFSET(struct kvm_pre_fault_memory, gpa, 0);
OFFSET(struct kvm_pre_fault_memory, size, 8);
OFFSET(struct kvm_pre_fault_memory, flags, 16);

SIZE(struct kvm_dirty_log, 16);
OFFSET(struct kvm_dirty_log, slot, 0);
OFFSET(struct kvm_dirty_log, dirty_bitmap, 8);

SIZE(struct kvm_clear_dirty_log, 24);
OFFSET(struct kvm_clear_dirty_log, slot, 0);
OFFSET(struct kvm_clear_dirty_log, num_pages, 4);
OFFSET(struct kvm_clear_dirty_log, first_page, 8);
OFFSET(struct kvm_clear_dirty_log, dirty_bitmap, 16);

SIZE(struct kvm_dirty_gfn, 16);
OFFSET(struct kvm_dirty_gfn, flags, 0);
OFFSET(struct kvm_dirty_gfn, slot, 4);
OFFSET(struct kvm_dirty_gfn, offset, 8);

SIZE(struct kvm_coalesced_mmio_zone, 16);
OFFSET(struct kvm_coalesced_mmio_zone, addr, 0);
OFFSET(struct kvm_coalesced_mmio_zone, size, 8);
OFFSET(struct kvm_coalesced_mmio_zone, pio, 12);

SIZE(struct kvm_coalesced_mmio, 24);
OFFSET(struct kvm_coalesced_mmio, phys_addr, 0);
OFFSET(struct kvm_coalesced_mmio, len, 8);
OFFSET(struct kvm_coalesced_mmio, pio, 12);
OFFSET(struct kvm_coalesced_mmio, data, 16);

SIZE(struct kvm_coalesced_mmio_ring, 8);
OFFSET(struct kvm_coalesced_mmio_ring, first, 0);
OFFSET(struct kvm_coalesced_mmio_ring, last, 4);
OFFSET(struct kvm_coalesced_mmio_ring, coalesced_mmio, 8);

SIZE(struct kvm_translation, 24);
OFFSET(struct kvm_translation, linear_address, 0);
OFFSET(struct kvm_translation, physical_address, 8);
OFFSET(struct kvm_translation, valid, 16);
OFFSET(struct kvm_translation, writeable, 17);
OFFSET(struct kvm_translation, usermode, 18);

SIZE(struct kvm_enc_region, 16);
OFFSET(struct kvm_enc_region, addr, 0);
OFFSET(struct kvm_enc_region, size, 8);

SIZE(struct kvm_sev_cmd, 24);
OFFSET(struct kvm_sev_cmd, id, 0);
OFFSET(struct kvm_sev_cmd, data, 8);
OFFSET(struct kvm_sev_cmd, error, 16);
OFFSET(struct kvm_sev_cmd, sev_fd, 20);

/* ---- capabilities, devices, clock ---- */

SIZE(struct kvm_enable_cap, 104);
OFFSET(struct kvm_enable_cap, cap, 0);
OFFSET(struct kvm_enable_cap, flags, 4);
OFFSET(struct kvm_enable_cap, args, 8);

SIZE(struct kvm_create_device, 12);
OFFSET(struct kvm_create_device, type, 0);
OFFSET(struct kvm_create_device, fd, 4);
OFFSET(struct kvm_create_device, flags, 8);

SIZE(struct kvm_device_attr, 24);
OFFSET(struct kvm_device_attr, flags, 0);
OFFSET(struct kvm_device_attr, group, 4);
OFFSET(struct kvm_device_attr, attr, 8);
OFFSET(struct kvm_device_attr, addr, 16);

SIZE(struct kvm_clock_data, 48);
OFFSET(struct kvm_clock_data, clock, 0);
OFFSET(struct kvm_clock_data, flags, 8);
OFFSET(struct kvm_clock_data, realtime, 16);
OFFSET(struct kvm_clock_data, host_tsc, 24);

SIZE(struct kvm_one_reg, 16);
OFFSET(struct kvm_one_reg, id, 0);
OFFSET(struct kvm_one_reg, addr, 8);

SIZE(struct kvm_reg_list, 8);
OFFSET(struct kvm_reg_list, n, 0);
OFFSET(struct kvm_reg_list, reg, 8);

SIZE(struct kvm_pmu_event_filter, 32);
OFFSET(struct kvm_pmu_event_filter, action, 0);
OFFSET(struct kvm_pmu_event_filter, nevents, 4);
OFFSET(struct kvm_pmu_event_filter, fixed_counter_bitmap, 8);
OFFSET(struct kvm_pmu_event_filter, flags, 12);
OFFSET(struct kvm_pmu_event_filter, events, 32);

/* ---- registers ---- */

SIZE(struct kvm_regs, 144);
OFFSET(struct kvm_regs, rax, 0);
OFFSET(struct kvm_regs, rbx, 8);
OFFSET(struct kvm_regs, rcx, 16);
OFFSET(struct kvm_regs, rdx, 24);
OFFSET(struct kvm_regs, rsi, 32);
OFFSET(struct kvm_regs, rdi, 40);
OFFSET(struct kvm_regs, rsp, 48);
OFFSET(struct kvm_regs, rbp, 56);
OFFSET(struct kvm_regs, r8, 64);
OFFSET(struct kvm_regs, r9, 72);
OFFSET(struct kvm_regs, r10, 80);
OFFSET(struct kvm_regs, r11, 88);
OFFSET(struct kvm_regs, r12, 96);
OFFSET(struct kvm_regs, r13, 104);
OFFSET(struct kvm_regs, r14, 112);
OFFSET(struct kvm_regs, r15, 120);
OFFSET(struct kvm_regs, rip, 128);
OFFSET(struct kvm_regs, rflags, 136);

SIZE(struct kvm_segment, 24);
OFFSET(struct kvm_segment, base, 0);
OFFSET(struct kvm_segment, limit, 8);
OFFSET(struct kvm_segment, selector, 12);
OFFSET(struct kvm_segment, type, 14);
OFFSET(struct kvm_segment, present, 15);
OFFSET(struct kvm_segment, dpl, 16);
OFFSET(struct kvm_segment, db, 17);
OFFSET(struct kvm_segment, s, 18);
OFFSET(struct kvm_segment, l, 19);
OFFSET(struct kvm_segment, g, 20);
OFFSET(struct kvm_segment, avl, 21);
OFFSET(struct kvm_segment, unusable, 22);

SIZE(struct kvm_dtable, 16);
OFFSET(struct kvm_dtable, base, 0);
OFFSET(struct kvm_dtable, limit, 8);

SIZE(struct kvm_sregs, 312);
OFFSET(struct kvm_sregs, cs, 0);
OFFSET(struct kvm_sregs, ds, 24);
OFFSET(struct kvm_sregs, es, 48);
OFFSET(struct kvm_sregs, fs, 72);
OFFSET(struct kvm_sregs, gs, 96);
OFFSET(struct kvm_sregs, ss, 120);
OFFSET(struct kvm_sregs, tr, 144);
OFFSET(struct kvm_sregs, ldt, 168);
OFFSET(struct kvm_sregs, gdt, 192);
OFFSET(struct kvm_sregs, idt, 208);
OFFSET(struct kvm_sregs, cr0, 224);
OFFSET(struct kvm_sregs, cr2, 232);
OFFSET(struct kvm_sregs, cr3, 240);
OFFSET(struct kvm_sregs, cr4, 248);
OFFSET(struct kvm_sregs, cr8, 256);
OFFSET(struct kvm_sregs, efer, 264);
OFFSET(struct kvm_sregs, apic_base, 272);
OFFSET(struct kvm_sregs, interrupt_bitmap, 280);

SIZE(struct kvm_sregs2, 320);
OFFSET(struct kvm_sregs2, cs, 0);
OFFSET(struct kvm_sregs2, ds, 24);
OFFSET(struct kvm_sregs2, es, 48);
OFFSET(struct kvm_sregs2, fs, 72);
OFFSET(struct kvm_sregs2, gs, 96);
OFFSET(struct kvm_sregs2, ss, 120);
OFFSET(struct kvm_sregs2, tr, 144);
OFFSET(struct kvm_sregs2, ldt, 168);
OFFSET(struct kvm_sregs2, gdt, 192);
OFFSET(struct kvm_sregs2, idt, 208);
OFFSET(struct kvm_sregs2, cr0, 224);
OFFSET(struct kvm_sregs2, cr2, 232);
OFFSET(struct kvm_sregs2, cr3, 240);
OFFSET(struct kvm_sregs2, cr4, 248);
OFFSET(struct kvm_sregs2, cr8, 256);
OFFSET(struct kvm_sregs2, efer, 264);
OFFSET(struct kvm_sregs2, apic_base, 272);
OFFSET(struct kvm_sregs2, flags, 280);
OFFSET(struct kvm_sregs2, pdptrs, 288);

SIZE(struct kvm_fpu, 416);
OFFSET(struct kvm_fpu, fpr, 0);
OFFSET(struct kvm_fpu, fcw, 128);
OFFSET(struct kvm_fpu, fsw, 130);
OFFSET(struct kvm_fpu, ftwx, 132);
OFFSET(struct kvm_fpu, last_opcode, 134);
OFFSET(struct kvm_fpu, last_ip, 136);
OFFSET(struct kvm_fpu, last_dp, 144);
OFFSET(struct kvm_fpu, xmm, 152);
OFFSET(struct kvm_fpu, mxcsr, 408);

SIZE(struct kvm_xsave, 4096);
OFFSET(struct kvm_xsave, region, 0);

SIZE(struct kvm_xcr, 16);
OFFSET(struct kvm_xcr, xcr, 0);
OFFSET(struct kvm_xcr, value, 8);

SIZE(struct kvm_xcrs, 392);
OFFSET(struct kvm_xcrs, nr_xcrs, 0);
OFFSET(struct kvm_xcrs, flags, 4);
OFFSET(struct kvm_xcrs, xcrs, 8);

SIZE(struct kvm_debugregs, 128);
OFFSET(struct kvm_debugregs, db, 0);
OFFSET(struct kvm_debugregs, dr6, 32);
OFFSET(struct kvm_debugregs, dr7, 40);
OFFSET(struct kvm_debugregs, flags, 48);

SIZE(struct kvm_guest_debug_arch, 64);
OFFSET(struct kvm_guest_debug_arch, debugreg, 0);

SIZE(struct kvm_guest_debug, 72);
OFFSET(struct kvm_guest_debug, control, 0);
OFFSET(struct kvm_guest_debug, arch, 8);

SIZE(struct kvm_mp_state, 4);
OFFSET(struct kvm_mp_state, mp_state, 0);

SIZE(struct kvm_signal_mask, 4);
OFFSET(struct kvm_signal_mask, len, 0);
OFFSET(struct kvm_signal_mask, sigset, 4);

SIZE(struct kvm_msr_entry, 16);
OFFSET(struct kvm_msr_entry, index, 0);
OFFSET(struct kvm_msr_entry, data, 8);

SIZE(struct kvm_msrs, 8);
OFFSET(struct kvm_msrs, nmsrs, 0);
OFFSET(struct kvm_msrs, entries, 8);

SIZE(struct kvm_msr_list, 4);
OFFSET(struct kvm_msr_list, nmsrs, 0);
OFFSET(struct kvm_msr_list, indices, 4);

SIZE(struct kvm_msr_filter_range, 24);
OFFSET(struct kvm_msr_filter_range, flags, 0);
OFFSET(struct kvm_msr_filter_range, nmsrs, 4);
OFFSET(struct kvm_msr_filter_range, base, 8);
OFFSET(struct kvm_msr_filter_range, bitmap, 16);

SIZE(struct kvm_msr_filter, 392);
OFFSET(struct kvm_msr_filter, flags, 0);
OFFSET(struct kvm_msr_filter, ranges, 8);

SIZE(struct kvm_cpuid_entry, 24);
OFFSET(struct kvm_cpuid_entry, function, 0);
OFFSET(struct kvm_cpuid_entry, eax, 4);
OFFSET(struct kvm_cpuid_entry, ebx, 8);
OFFSET(struct kvm_cpuid_entry, ecx, 12);
OFFSET(struct kvm_cpuid_entry, edx, 16);

SIZE(struct kvm_cpuid, 8);
OFFSET(struct kvm_cpuid, nent, 0);
OFFSET(struct kvm_cpuid, entries, 8);

SIZE(struct kvm_cpuid_entry2, 40);
OFFSET(struct kvm_cpuid_entry2, function, 0);
OFFSET(struct kvm_cpuid_entry2, index, 4);
OFFSET(struct kvm_cpuid_entry2, flags, 8);
OFFSET(struct kvm_cpuid_entry2, eax, 12);
OFFSET(struct kvm_cpuid_entry2, ebx, 16);
OFFSET(struct kvm_cpuid_entry2, ecx, 20);
OFFSET(struct kvm_cpuid_entry2, edx, 24);

SIZE(struct kvm_cpuid2, 8);
OFFSET(struct kvm_cpuid2, nent, 0);
OFFSET(struct kvm_cpuid2, entries, 8);

SIZE(kvm_vcpu_events_exception, 8);
OFFSET(kvm_vcpu_events_exception, injected, 0);
OFFSET(kvm_vcpu_events_exception, nr, 1);
OFFSET(kvm_vcpu_events_exception, has_error_code, 2);
OFFSET(kvm_vcpu_events_exception, pending, 3);
OFFSET(kvm_vcpu_events_exception, error_code, 4);

SIZE(kvm_vcpu_events_interrupt, 4);
OFFSET(kvm_vcpu_events_interrupt, injected, 0);
OFFSET(kvm_vcpu_events_interrupt, nr, 1);
OFFSET(kvm_vcpu_events_interrupt, soft, 2);
OFFSET(kvm_vcpu_events_interrupt, shadow, 3);

SIZE(kvm_vcpu_events_nmi, 4);
OFFSET(kvm_vcpu_events_nmi, injected, 0);
OFFSET(kvm_vcpu_events_nmi, pending, 1);
OFFSET(kvm_vcpu_events_nmi, masked, 2);

SIZE(kvm_vcpu_events_smi, 4);
OFFSET(kvm_vcpu_events_smi, smm, 0);
OFFSET(kvm_vcpu_events_smi, pending, 1);
OFFSET(kvm_vcpu_events_smi, smm_inside_nmi, 2);
OFFSET(kvm_vcpu_events_smi, latched_init, 3);

SIZE(kvm_vcpu_events_triple_fault, 1);
OFFSET(kvm_vcpu_events_triple_fault, pending, 0);

SIZE(struct kvm_vcpu_events, 64);
OFFSET(struct kvm_vcpu_events, exception, 0);
OFFSET(struct kvm_vcpu_events, interrupt, 8);
OFFSET(struct kvm_vcpu_events, nmi, 12);
OFFSET(struct kvm_vcpu_events, sipi_vector, 16);
OFFSET(struct kvm_vcpu_events, flags, 20);
OFFSET(struct kvm_vcpu_events, smi, 24);
OFFSET(struct kvm_vcpu_events, triple_fault, 28);
OFFSET(struct kvm_vcpu_events, exception_has_payload, 55);
OFFSET(struct kvm_vcpu_events, exception_payload, 56);

/* ---- interrupts and timers ---- */

SIZE(struct kvm_lapic_state, 1024);
OFFSET(struct kvm_lapic_state, regs, 0);

SIZE(struct kvm_interrupt, 4);
OFFSET(struct kvm_interrupt, irq, 0);

SIZE(struct kvm_irq_level, 8);
OFFSET(struct kvm_irq_level, irq, 0);
OFFSET(struct kvm_irq_level, status, 0);
OFFSET(struct kvm_irq_level, level, 4);

SIZE(struct kvm_pic_state, 16);
OFFSET(struct kvm_pic_state, last_irr, 0);
OFFSET(struct kvm_pic_state, irr, 1);
OFFSET(struct kvm_pic_state, imr, 2);
OFFSET(struct kvm_pic_state, isr, 3);
OFFSET(struct kvm_pic_state, priority_add, 4);
OFFSET(struct kvm_pic_state, irq_base, 5);
OFFSET(struct kvm_pic_state, read_reg_select, 6);
OFFSET(struct kvm_pic_state, poll, 7);
OFFSET(struct kvm_pic_state, special_mask, 8);
OFFSET(struct kvm_pic_state, init_state, 9);
OFFSET(struct kvm_pic_state, auto_eoi, 10);
OFFSET(struct kvm_pic_state, rotate_on_auto_eoi, 11);
OFFSET(struct kvm_pic_state, special_fully_nested_mode, 12);
OFFSET(struct kvm_pic_state, init4, 13);
OFFSET(struct kvm_pic_state, elcr, 14);
OFFSET(struct kvm_pic_state, elcr_mask, 15);

SIZE(kvm_ioapic_redirect, 8);
OFFSET(kvm_ioapic_redirect, bits, 0);

SIZE(struct kvm_ioapic_state, 216);
OFFSET(struct kvm_ioapic_state, base_address, 0);
OFFSET(struct kvm_ioapic_state, ioregsel, 8);
OFFSET(struct kvm_ioapic_state, id, 12);
OFFSET(struct kvm_ioapic_state, irr, 16);
OFFSET(struct kvm_ioapic_state, redirtbl, 24);

SIZE(kvm_irqchip_chip, 512);
OFFSET(kvm_irqchip_chip, pic, 0);
OFFSET(kvm_irqchip_chip, ioapic, 0);

SIZE(struct kvm_irqchip, 520);
OFFSET(struct kvm_irqchip, chip_id, 0);
OFFSET(struct kvm_irqchip, chip, 8);

SIZE(struct kvm_pit_config, 64);
OFFSET(struct kvm_pit_config, flags, 0);

SIZE(struct kvm_pit_channel_state, 24);
OFFSET(struct kvm_pit_channel_state, count, 0);
OFFSET(struct kvm_pit_channel_state, latched_count, 4);
OFFSET(struct kvm_pit_channel_state, count_latched, 6);
OFFSET(struct kvm_pit_channel_state, status_latched, 7);
OFFSET(struct kvm_pit_channel_state, status, 8);
OFFSET(struct kvm_pit_channel_state, read_state, 9);
OFFSET(struct kvm_pit_channel_state, write_state, 10);
OFFSET(struct kvm_pit_channel_state, write_latch, 11);
OFFSET(struct kvm_pit_channel_state, rw_mode, 12);
OFFSET(struct kvm_pit_channel_state, mode, 13);
OFFSET(struct kvm_pit_channel_state, bcd, 14);
OFFSET(struct kvm_pit_channel_state, gate, 15);
OFFSET(struct kvm_pit_channel_state, count_load_time, 16);

SIZE(struct kvm_pit_state, 72);
OFFSET(struct kvm_pit_state, channels, 0);

SIZE(struct kvm_pit_state2, 112);
OFFSET(struct kvm_pit_state2, channels, 0);
OFFSET(struct kvm_pit_state2, flags, 72);

SIZE(struct kvm_reinject_control, 32);
OFFSET(struct kvm_reinject_control, pit_reinject, 0);

SIZE(struct kvm_msi, 32);
OFFSET(struct kvm_msi, address_lo, 0);
OFFSET(struct kvm_msi, address_hi, 4);
OFFSET(struct kvm_msi, data, 8);
OFFSET(struct kvm_msi, flags, 12);
OFFSET(struct kvm_msi, devid, 16);

SIZE(struct kvm_irqfd, 32);
OFFSET(struct kvm_irqfd, fd, 0);
OFFSET(struct kvm_irqfd, gsi, 4);
OFFSET(struct kvm_irqfd, flags, 8);
OFFSET(struct kvm_irqfd, resamplefd, 12);

SIZE(struct kvm_ioeventfd, 64);
OFFSET(struct kvm_ioeventfd, datamatch, 0);
OFFSET(struct kvm_ioeventfd, addr, 8);
OFFSET(struct kvm_ioeventfd, len, 16);
OFFSET(struct kvm_ioeventfd, fd, 20);
OFFSET(struct kvm_ioeventfd, flags, 24);

SIZE(struct kvm_irq_routing_irqchip, 8);
OFFSET(struct kvm_irq_routing_irqchip, irqchip, 0);
OFFSET(struct kvm_irq_routing_irqchip, pin, 4);

SIZE(struct kvm_irq_routing_msi, 16);
OFFSET(struct kvm_irq_routing_msi, address_lo, 0);
OFFSET(struct kvm_irq_routing_msi, address_hi, 4);
OFFSET(struct kvm_irq_routing_msi, data, 8);
OFFSET(struct kvm_irq_routing_msi, devid, 12);

SIZE(struct kvm_irq_routing_xen_evtchn, 12);
OFFSET(struct kvm_irq_routing_xen_evtchn, port, 0);
OFFSET(struct kvm_irq_routing_xen_evtchn, vcpu, 4);
OFFSET(struct kvm_irq_routing_xen_evtchn, priority, 8);

SIZE(kvm_irq_routing_target, 32);
OFFSET(kvm_irq_routing_target, irqchip, 0);
OFFSET(kvm_irq_routing_target, msi, 0);

SIZE(struct kvm_irq_routing_entry, 48);
OFFSET(struct kvm_irq_routing_entry, gsi, 0);
OFFSET(struct kvm_irq_routing_entry, type, 4);
OFFSET(struct kvm_irq_routing_entry, flags, 8);
OFFSET(struct kvm_irq_routing_entry, u, 16);

SIZE(struct kvm_irq_routing, 8);
OFFSET(struct kvm_irq_routing, nr, 0);
OFFSET(struct kvm_irq_routing, flags, 4);
OFFSET(struct kvm_irq_routing, entries, 8);

SIZE(struct kvm_tpr_access_ctl, 40);
OFFSET(struct kvm_tpr_access_ctl, enabled, 0);
OFFSET(struct kvm_tpr_access_ctl, flags, 4);

SIZE(struct kvm_vapic_addr, 8);
OFFSET(struct kvm_vapic_addr, vapic_addr, 0);

SIZE(struct kvm_x86_mce, 64);
OFFSET(struct kvm_x86_mce, status, 0);
OFFSET(struct kvm_x86_mce, addr, 8);
OFFSET(struct kvm_x86_mce, misc, 16);
OFFSET(struct kvm_x86_mce, mcg_status, 24);
OFFSET(struct kvm_x86_mce, bank, 32);

/* ---- nested, Hyper-V and Xen guests ---- */

SIZE(struct kvm_nested_state, 128);
OFFSET(struct kvm_nested_state, flags, 0);
OFFSET(struct kvm_nested_state, format, 2);
OFFSET(struct kvm_nested_state, size, 4);

SIZE(struct kvm_hyperv_eventfd, 24);
OFFSET(struct kvm_hyperv_eventfd, conn_id, 0);
OFFSET(struct kvm_hyperv_eventfd, fd, 4);
OFFSET(struct kvm_hyperv_eventfd, flags, 8);

SIZE(struct kvm_xen_hvm_config, 56);
OFFSET(struct kvm_xen_hvm_config, flags, 0);
OFFSET(struct kvm_xen_hvm_config, msr, 4);

SIZE(struct kvm_xen_hvm_attr, 72);
OFFSET(struct kvm_xen_hvm_attr, type, 0);

SIZE(struct kvm_xen_vcpu_attr, 72);
OFFSET(struct kvm_xen_vcpu_attr, type, 0);

/* ---- binary statistics ---- */

SIZE(struct kvm_stats_header, 24);
OFFSET(struct kvm_stats_header, flags, 0);
OFFSET(struct kvm_stats_header, name_size, 4);
OFFSET(struct kvm_stats_header, num_desc, 8);
OFFSET(struct kvm_stats_header, id_offset, 12);
OFFSET(struct kvm_stats_header, desc_offset, 16);
OFFSET(struct kvm_stats_header, data_offset, 20);

SIZE(struct kvm_stats_desc, 16);
OFFSET(struct kvm_stats_desc, flags, 0);
OFFSET(struct kvm_stats_desc, exponent, 4);
OFFSET(struct kvm_stats_desc, size, 6);
OFFSET(struct kvm_stats_desc, offset, 8);
OFFSET(struct kvm_stats_desc, bucket_size, 12);
OFFSET(struct kvm_stats_desc, name, 16);

/* ---- kvm_run; the members of its union lie at 32 ---- */

SIZE(kvm_run_hw, 8);
OFFSET(kvm_run_hw, hardware_exit_reason, 0);

SIZE(kvm_run_fail_entry, 16);
OFFSET(kvm_run_fail_entry, hardware_entry_failure_reason, 0);
OFFSET(kvm_run_fail_entry, cpu, 8);

SIZE(kvm_run_ex, 8);
OFFSET(kvm_run_ex, exception, 0);
OFFSET(kvm_run_ex, error_code, 4);

SIZE(kvm_run_io, 16);
OFFSET(kvm_run_io, direction, 0);
OFFSET(kvm_run_io, size, 1);
OFFSET(kvm_run_io, port, 2);
OFFSET(kvm_run_io, count, 4);
OFFSET(kvm_run_io, data_offset, 8);

SIZE(kvm_run_mmio, 24);
OFFSET(kvm_run_mmio, phys_addr, 0);
OFFSET(kvm_run_mmio, data, 8);
OFFSET(kvm_run_mmio, len, 16);
OFFSET(kvm_run_mmio, is_write, 20);

SIZE(kvm_run_hypercall, 72);
OFFSET(kvm_run_hypercall, nr, 0);
OFFSET(kvm_run_hypercall, args, 8);
OFFSET(kvm_run_hypercall, ret, 56);
OFFSET(kvm_run_hypercall, longmode, 64);

SIZE(kvm_run_tpr_access, 16);
OFFSET(kvm_run_tpr_access, rip, 0);
OFFSET(kvm_run_tpr_access, is_write, 8);

SIZE(kvm_run_internal, 136);
OFFSET(kvm_run_internal, suberror, 0);
OFFSET(kvm_run_internal, ndata, 4);
OFFSET(kvm_run_internal, data, 8);

SIZE(kvm_run_system_event, 136);
OFFSET(kvm_run_system_event, type, 0);
OFFSET(kvm_run_system_event, ndata, 4);
OFFSET(kvm_run_system_event, data, 8);

SIZE(kvm_run_eoi, 1);
OFFSET(kvm_run_eoi, vector, 0);

SIZE(kvm_run_msr, 24);
OFFSET(kvm_run_msr, error, 0);
OFFSET(kvm_run_msr, reason, 8);
OFFSET(kvm_run_msr, index, 12);
OFFSET(kvm_run_msr, data, 16);

SIZE(kvm_run_notify, 4);
OFFSET(kvm_run_notify, flags, 0);

SIZE(struct kvm_hyperv_exit, 56);
OFFSET(struct kvm_hyperv_exit, type, 0);

SIZE(struct kvm_xen_exit, 80);
OFFSET(struct kvm_xen_exit, type, 0);

SIZE(struct kvm_debug_exit_arch, 32);
OFFSET(struct kvm_debug_exit_arch, exception, 0);
OFFSET(struct kvm_debug_exit_arch, pc, 8);
OFFSET(struct kvm_debug_exit_arch, dr6, 16);
OFFSET(struct kvm_debug_exit_arch, dr7, 24);

SIZE(kvm_run_debug, 32);
OFFSET(kvm_run_debug, arch, 0);

SIZE(struct kvm_sync_regs, 520);
OFFSET(struct kvm_sync_regs, regs, 0);
OFFSET(struct kvm_sync_regs, sregs, 144);
OFFSET(struct kvm_sync_regs, events, 456);

SIZE(kvm_run_s, 2048);
OFFSET(kvm_run_s, regs, 0);

SIZE(struct kvm_run, 2352);
OFFSET(struct kvm_run, request_interrupt_window, 0);
OFFSET(struct kvm_run, immediate_exit, 1);
OFFSET(struct kvm_run, exit_reason, 8);
OFFSET(struct kvm_run, ready_for_interrupt_injection, 12);
OFFSET(struct kvm_run, if_flag, 13);
OFFSET(struct kvm_run, flags, 14);
OFFSET(struct kvm_run, cr8, 16);
OFFSET(struct kvm_run, apic_base, 24);
OFFSET(struct kvm_run, hw, 32);
OFFSET(struct kvm_run, fail_entry, 32);
OFFSET(struct kvm_run, ex, 32);
OFFSET(struct kvm_run, io, 32);
OFFSET(struct kvm_run, debug, 32);
OFFSET(struct kvm_run, mmio, 32);
OFFSET(struct kvm_run, hypercall, 32);
OFFSET(struct kvm_run, tpr_access, 32);
OFFSET(struct kvm_run, internal, 32);
OFFSET(struct kvm_run, system_event, 32);
OFFSET(struct kvm_run, eoi, 32);
OFFSET(struct kvm_run, hyperv, 32);
OFFSET(struct kvm_run, msr, 32);
OFFSET(struct kvm_run, xen, 32);
OFFSET(struct kvm_run, notify, 32);
OFFSET(struct kvm_run, kvm_valid_regs, 288);
OFFSET(struct kvm_run, kvm_dirty_regs, 296);
OFFSET(struct kvm_run, s, 304);

SIZE(struct pyvmm_memory_fault, 24);
OFFSET(struct pyvmm_memory_fault, flags, 0);
OFFSET(struct pyvmm_memory_fault, gpa, 8);
OFFSET(struct pyvmm_memory_fault, size, 16);

SIZE(struct pyvmm_memory_error, 24);
OFFSET(struct pyvmm_memory_error, type, 0);
OFFSET(struct pyvmm_memory_error, gpa, 8);
OFFSET(struct pyvmm_memory_error, size, 16);

SIZE(struct pyvmm_tdx, 64);
OFFSET(struct pyvmm_tdx, flags, 0);
OFFSET(struct pyvmm_tdx, nr, 8);
OFFSET(struct pyvmm_tdx, ret, 16);
OFFSET(struct pyvmm_tdx, data, 24);

SIZE(struct pyvmm_snp_req_certs, 24);
OFFSET(struct pyvmm_snp_req_certs, gpa, 0);
OFFSET(struct pyvmm_snp_req_certs, npages, 8);
OFFSET(struct pyvmm_snp_req_certs, ret, 16);

#undef NAME
#undef SIZE
#undef OFFSET

#endif
