/* The kernel's structures, as far as Python fills or reads them. */
typedef unsigned long long __u64;
typedef unsigned int __u32;
typedef unsigned short __u16;
typedef unsigned char __u8;

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
struct kvm_create_guest_memfd { __u64 size; __u64 flags; __u64 reserved[6]; ...; };
struct kvm_pre_fault_memory { __u64 gpa; __u64 size; __u64 flags; ...; };
struct kvm_enable_cap { __u32 cap; __u32 flags; __u64 args[4]; ...; };

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
struct kvm_translation {
	__u64 linear_address; __u64 physical_address; __u8 valid; __u8 writeable;
	__u8 usermode; ...;
};
struct kvm_cpuid_entry2 {
	__u32 function; __u32 index; __u32 flags; __u32 eax; __u32 ebx; __u32 ecx;
	__u32 edx; ...;
};
struct kvm_cpuid2 { __u32 nent; __u32 padding; struct kvm_cpuid_entry2 entries[]; };
struct kvm_mp_state { __u32 mp_state; ...; };
struct kvm_pit_config { __u32 flags; ...; };

/* The members of kvm_run's union; their types are named in build_native.py. */
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
struct kvm_debug_exit_arch { __u32 exception; __u64 pc; __u64 dr6; __u64 dr7; ...; };
typedef struct { struct kvm_debug_exit_arch arch; ...; } kvm_run_debug;
struct kvm_vcpu_events { ...; };
struct kvm_sync_regs { struct kvm_regs regs; struct kvm_sregs sregs; struct kvm_vcpu_events events; ...; };
typedef struct { struct kvm_sync_regs regs; ...; } kvm_run_s;

struct kvm_run {
	__u8 request_interrupt_window; __u8 immediate_exit; __u32 exit_reason;
	__u8 ready_for_interrupt_injection; __u8 if_flag; __u16 flags;
	__u64 cr8; __u64 apic_base;
	kvm_run_hw hw; kvm_run_fail_entry fail_entry; kvm_run_ex ex; kvm_run_io io;
	kvm_run_debug debug; kvm_run_mmio mmio; kvm_run_hypercall hypercall;
	kvm_run_tpr_access tpr_access; kvm_run_internal internal;
	kvm_run_system_event system_event; kvm_run_eoi eoi; kvm_run_msr msr; kvm_run_notify notify;
	__u64 kvm_valid_regs; __u64 kvm_dirty_regs; kvm_run_s s;
	...;
};
struct pyvmm_memory_fault { __u64 flags; __u64 gpa; __u64 size; ...; };
struct pyvmm_memory_error { __u32 type; __u64 gpa; __u64 size; ...; };
