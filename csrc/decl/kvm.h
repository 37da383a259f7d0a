/*
 * The kernel's structures, as far as Python fills or reads them. "..." is
 * completed by the compiler; the numbers are asserted in kvm_layout.h.
 */
typedef unsigned long long __u64;
typedef long long __s64;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned short __u16;
typedef short __s16;
typedef unsigned char __u8;

/* ---- memory ---- */
struct kvm_userspace_memory_region {
	__u32 slot; __u32 flags; __u64 guest_phys_addr; __u64 memory_size;
	__u64 userspace_addr; ...;
};
struct kvm_userspace_memory_region2 {
	__u32 slot; __u32 flags; __u64 guest_phys_addr; __u64 memory_size;
	__u64 userspace_addr; __u64 guest_memfd_offset; __u32 guest_memfd; ...;
};
struct kvm_userspace_memory_region_ext {
	struct kvm_userspace_memory_region region; __u64 ofs; __u32 fd; __u32 padding[5]; ...;
};
struct kvm_memory_attributes { __u64 address; __u64 size; __u64 attributes; __u64 flags; ...; };
struct kvm_memory_attributes2 {
	__u64 offset; __u64 size; __u64 attributes; __u64 flags; __u64 error_offset;
	__u64 reserved[11]; ...;
};
struct kvm_create_guest_memfd { __u64 size; __u64 flags; __u64 reserved[6]; ...; };
struct kvm_pre_fault_memory { __u64 gpa; __u64 size; __u64 flags; ...; };
struct kvm_dirty_log { __u32 slot; void *dirty_bitmap; ...; };
struct kvm_clear_dirty_log {
	__u32 slot; __u32 num_pages; __u64 first_page; void *dirty_bitmap; ...;
};
struct kvm_dirty_gfn { __u32 flags; __u32 slot; __u64 offset; ...; };
struct kvm_coalesced_mmio_zone { __u64 addr; __u32 size; __u32 pio; ...; };
struct kvm_coalesced_mmio { __u64 phys_addr; __u32 len; __u32 pio; __u8 data[8]; ...; };
struct kvm_coalesced_mmio_ring {
	__u32 first; __u32 last; struct kvm_coalesced_mmio coalesced_mmio[]; ...;
};
struct kvm_translation {
	__u64 linear_address; __u64 physical_address; __u8 valid; __u8 writeable;
	__u8 usermode; ...;
};
struct kvm_enc_region { __u64 addr; __u64 size; ...; };
struct kvm_sev_cmd { __u32 id; __u64 data; __u32 error; __u32 sev_fd; ...; };

/* ---- capabilities, devices, clock ---- */
struct kvm_enable_cap { __u32 cap; __u32 flags; __u64 args[4]; ...; };
struct kvm_create_device { __u32 type; __u32 fd; __u32 flags; ...; };
struct kvm_device_attr { __u32 flags; __u32 group; __u64 attr; __u64 addr; ...; };
struct kvm_clock_data { __u64 clock; __u32 flags; __u64 realtime; __u64 host_tsc; ...; };
struct kvm_one_reg { __u64 id; __u64 addr; ...; };
struct kvm_reg_list { __u64 n; __u64 reg[]; ...; };
struct kvm_pmu_event_filter {
	__u32 action; __u32 nevents; __u32 fixed_counter_bitmap; __u32 flags; __u64 events[]; ...;
};

/* ---- registers ---- */
struct kvm_regs {
	__u64 rax, rbx, rcx, rdx; __u64 rsi, rdi, rsp, rbp;
	__u64 r8, r9, r10, r11; __u64 r12, r13, r14, r15; __u64 rip, rflags; ...;
};
struct kvm_segment {
	__u64 base; __u32 limit; __u16 selector; __u8 type;
	__u8 present, dpl, db, s, l, g, avl; __u8 unusable; ...;
};
struct kvm_dtable { __u64 base; __u16 limit; ...; };
struct kvm_sregs {
	struct kvm_segment cs, ds, es, fs, gs, ss; struct kvm_segment tr, ldt;
	struct kvm_dtable gdt, idt; __u64 cr0, cr2, cr3, cr4, cr8; __u64 efer;
	__u64 apic_base; __u64 interrupt_bitmap[...]; ...;
};
struct kvm_sregs2 {
	struct kvm_segment cs, ds, es, fs, gs, ss; struct kvm_segment tr, ldt;
	struct kvm_dtable gdt, idt; __u64 cr0, cr2, cr3, cr4, cr8; __u64 efer;
	__u64 apic_base; __u64 flags; __u64 pdptrs[4]; ...;
};
struct kvm_fpu {
	__u8 fpr[8][16]; __u16 fcw; __u16 fsw; __u8 ftwx; __u16 last_opcode; __u64 last_ip;
	__u64 last_dp; __u8 xmm[16][16]; __u32 mxcsr; ...;
};
struct kvm_xsave { __u32 region[1024]; ...; };
struct kvm_xcr { __u32 xcr; __u64 value; ...; };
struct kvm_xcrs { __u32 nr_xcrs; __u32 flags; struct kvm_xcr xcrs[...]; ...; };
struct kvm_debugregs { __u64 db[4]; __u64 dr6; __u64 dr7; __u64 flags; ...; };
struct kvm_guest_debug_arch { __u64 debugreg[8]; ...; };
struct kvm_guest_debug { __u32 control; struct kvm_guest_debug_arch arch; ...; };
struct kvm_mp_state { __u32 mp_state; ...; };
struct kvm_signal_mask { __u32 len; __u8 sigset[]; ...; };

struct kvm_msr_entry { __u32 index; __u64 data; ...; };
struct kvm_msrs { __u32 nmsrs; struct kvm_msr_entry entries[]; ...; };
struct kvm_msr_list { __u32 nmsrs; __u32 indices[]; ...; };
struct kvm_msr_filter_range { __u32 flags; __u32 nmsrs; __u32 base; __u8 *bitmap; ...; };
struct kvm_msr_filter { __u32 flags; struct kvm_msr_filter_range ranges[...]; ...; };

struct kvm_cpuid_entry { __u32 function; __u32 eax; __u32 ebx; __u32 ecx; __u32 edx; ...; };
struct kvm_cpuid { __u32 nent; struct kvm_cpuid_entry entries[]; ...; };
struct kvm_cpuid_entry2 {
	__u32 function; __u32 index; __u32 flags; __u32 eax; __u32 ebx; __u32 ecx;
	__u32 edx; ...;
};
struct kvm_cpuid2 { __u32 nent; struct kvm_cpuid_entry2 entries[]; ...; };

/* Members without a type of their own are named in kvm_layout.h. */
typedef struct {
	__u8 injected; __u8 nr; __u8 has_error_code; __u8 pending; __u32 error_code; ...;
} kvm_vcpu_events_exception;
typedef struct { __u8 injected; __u8 nr; __u8 soft; __u8 shadow; ...; } kvm_vcpu_events_interrupt;
typedef struct { __u8 injected; __u8 pending; __u8 masked; ...; } kvm_vcpu_events_nmi;
typedef struct { __u8 smm; __u8 pending; __u8 smm_inside_nmi; __u8 latched_init; ...; }
	kvm_vcpu_events_smi;
typedef struct { __u8 pending; ...; } kvm_vcpu_events_triple_fault;
struct kvm_vcpu_events {
	kvm_vcpu_events_exception exception; kvm_vcpu_events_interrupt interrupt;
	kvm_vcpu_events_nmi nmi; __u32 sipi_vector; __u32 flags; kvm_vcpu_events_smi smi;
	kvm_vcpu_events_triple_fault triple_fault; __u8 exception_has_payload;
	__u64 exception_payload; ...;
};

/* ---- interrupts and timers ---- */
struct kvm_lapic_state { char regs[...]; ...; };
struct kvm_interrupt { __u32 irq; ...; };
struct kvm_irq_level { __u32 irq; __s32 status; __u32 level; ...; };
struct kvm_pic_state {
	__u8 last_irr; __u8 irr; __u8 imr; __u8 isr; __u8 priority_add; __u8 irq_base;
	__u8 read_reg_select; __u8 poll; __u8 special_mask; __u8 init_state; __u8 auto_eoi;
	__u8 rotate_on_auto_eoi; __u8 special_fully_nested_mode; __u8 init4; __u8 elcr;
	__u8 elcr_mask; ...;
};
typedef union { __u64 bits; ...; } kvm_ioapic_redirect;
struct kvm_ioapic_state {
	__u64 base_address; __u32 ioregsel; __u32 id; __u32 irr; kvm_ioapic_redirect redirtbl[...];
	...;
};
typedef union { struct kvm_pic_state pic; struct kvm_ioapic_state ioapic; ...; } kvm_irqchip_chip;
struct kvm_irqchip { __u32 chip_id; kvm_irqchip_chip chip; ...; };
struct kvm_pit_config { __u32 flags; ...; };
struct kvm_pit_channel_state {
	__u32 count; __u16 latched_count; __u8 count_latched; __u8 status_latched; __u8 status;
	__u8 read_state; __u8 write_state; __u8 write_latch; __u8 rw_mode; __u8 mode; __u8 bcd;
	__u8 gate; __s64 count_load_time; ...;
};
struct kvm_pit_state { struct kvm_pit_channel_state channels[3]; ...; };
struct kvm_pit_state2 { struct kvm_pit_channel_state channels[3]; __u32 flags; ...; };
struct kvm_reinject_control { __u8 pit_reinject; ...; };
struct kvm_msi {
	__u32 address_lo; __u32 address_hi; __u32 data; __u32 flags; __u32 devid; ...;
};
struct kvm_irqfd { __u32 fd; __u32 gsi; __u32 flags; __u32 resamplefd; ...; };
struct kvm_ioeventfd {
	__u64 datamatch; __u64 addr; __u32 len; __s32 fd; __u32 flags; ...;
};
struct kvm_irq_routing_irqchip { __u32 irqchip; __u32 pin; ...; };
struct kvm_irq_routing_msi {
	__u32 address_lo; __u32 address_hi; __u32 data; __u32 devid; ...;
};
struct kvm_irq_routing_xen_evtchn { __u32 port; __u32 vcpu; __u32 priority; ...; };
typedef union {
	struct kvm_irq_routing_irqchip irqchip; struct kvm_irq_routing_msi msi; ...;
} kvm_irq_routing_target;
struct kvm_irq_routing_entry {
	__u32 gsi; __u32 type; __u32 flags; kvm_irq_routing_target u; ...;
};
struct kvm_irq_routing { __u32 nr; __u32 flags; struct kvm_irq_routing_entry entries[]; ...; };
struct kvm_tpr_access_ctl { __u32 enabled; __u32 flags; ...; };
struct kvm_vapic_addr { __u64 vapic_addr; ...; };
struct kvm_x86_mce {
	__u64 status; __u64 addr; __u64 misc; __u64 mcg_status; __u8 bank; ...;
};

/* ---- nested, Hyper-V and Xen guests: reached by raw ioctls ---- */
struct kvm_nested_state { __u16 flags; __u16 format; __u32 size; ...; };
struct kvm_hyperv_eventfd { __u32 conn_id; __s32 fd; __u32 flags; ...; };
struct kvm_xen_hvm_config { __u32 flags; __u32 msr; ...; };
struct kvm_xen_hvm_attr { __u16 type; ...; };
struct kvm_xen_vcpu_attr { __u16 type; ...; };

/* ---- binary statistics ---- */
struct kvm_stats_header {
	__u32 flags; __u32 name_size; __u32 num_desc; __u32 id_offset; __u32 desc_offset;
	__u32 data_offset; ...;
};
struct kvm_stats_desc {
	__u32 flags; __s16 exponent; __u16 size; __u32 offset; __u32 bucket_size; char name[]; ...;
};

/* ---- kvm_run and the members of its union ---- */
typedef struct { __u64 hardware_exit_reason; ...; } kvm_run_hw;
typedef struct { __u64 hardware_entry_failure_reason; __u32 cpu; ...; } kvm_run_fail_entry;
typedef struct { __u32 exception; __u32 error_code; ...; } kvm_run_ex;
typedef struct {
	__u8 direction; __u8 size; __u16 port; __u32 count; __u64 data_offset; ...;
} kvm_run_io;
typedef struct { __u64 phys_addr; __u8 data[8]; __u32 len; __u8 is_write; ...; } kvm_run_mmio;
typedef struct { __u64 nr; __u64 args[6]; __u64 ret; __u32 longmode; ...; } kvm_run_hypercall;
typedef struct { __u64 rip; __u32 is_write; ...; } kvm_run_tpr_access;
typedef struct { __u32 suberror; __u32 ndata; __u64 data[16]; ...; } kvm_run_internal;
typedef struct { __u32 type; __u32 ndata; __u64 data[16]; ...; } kvm_run_system_event;
typedef struct { __u8 vector; ...; } kvm_run_eoi;
typedef struct { __u8 error; __u32 reason; __u32 index; __u64 data; ...; } kvm_run_msr;
typedef struct { __u32 flags; ...; } kvm_run_notify;
struct kvm_hyperv_exit { __u32 type; ...; };
struct kvm_xen_exit { __u32 type; ...; };
struct kvm_debug_exit_arch { __u32 exception; __u64 pc; __u64 dr6; __u64 dr7; ...; };
typedef struct { struct kvm_debug_exit_arch arch; ...; } kvm_run_debug;
struct kvm_sync_regs {
	struct kvm_regs regs; struct kvm_sregs sregs; struct kvm_vcpu_events events; ...;
};
typedef struct { struct kvm_sync_regs regs; ...; } kvm_run_s;

struct kvm_run {
	__u8 request_interrupt_window; __u8 immediate_exit; __u32 exit_reason;
	__u8 ready_for_interrupt_injection; __u8 if_flag; __u16 flags;
	__u64 cr8; __u64 apic_base;
	kvm_run_hw hw; kvm_run_fail_entry fail_entry; kvm_run_ex ex; kvm_run_io io;
	kvm_run_debug debug; kvm_run_mmio mmio; kvm_run_hypercall hypercall;
	kvm_run_tpr_access tpr_access; kvm_run_internal internal;
	kvm_run_system_event system_event; kvm_run_eoi eoi; struct kvm_hyperv_exit hyperv;
	kvm_run_msr msr; struct kvm_xen_exit xen; kvm_run_notify notify;
	__u64 kvm_valid_regs; __u64 kvm_dirty_regs; kvm_run_s s;
	...;
};
struct pyvmm_memory_fault { __u64 flags; __u64 gpa; __u64 size; ...; };
struct pyvmm_memory_error { __u32 type; __u64 gpa; __u64 size; ...; };
struct pyvmm_tdx { __u64 flags; __u64 nr; __u64 ret; __u64 data[5]; ...; };
struct pyvmm_snp_req_certs { __u64 gpa; __u64 npages; __u64 ret; ...; };
