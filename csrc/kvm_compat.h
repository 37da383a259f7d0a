/* SPDX-License-Identifier: MIT */
/*
 * The kernel interface this project is compiled against.
 *
 * Everything comes from <linux/kvm.h>; what the build host's headers are too
 * old to know is supplied below, each with the version it came in. Guarantees:
 *   - a name that the headers define is never redefined;
 *   - the size and the offsets of every structure that is handed to the kernel
 *     are asserted in kvm_layout.h, so a wrong header stops the build and not
 *     the guest.
 */
#ifndef PYVMM_KVM_COMPAT_H
#define PYVMM_KVM_COMPAT_H

#include <linux/kvm.h>
#include <linux/kvm_para.h>
#include <stddef.h>
#include <stdint.h>

/* ---- Linux 6.2 to 6.5 ---- */

#ifndef KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP
#define KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP 225 /* Linux 6.2 */
#endif
#ifndef KVM_CAP_PMU_EVENT_MASKED_EVENTS
#define KVM_CAP_PMU_EVENT_MASKED_EVENTS 226 /* Linux 6.3 */
#endif
#ifndef KVM_EXIT_HYPERCALL_LONG_MODE
#define KVM_EXIT_HYPERCALL_LONG_MODE 1ULL /* Linux 6.4; before, a field called longmode */
#endif

/* ---- Linux 6.8: guest_memfd, memory attributes, KVM_EXIT_MEMORY_FAULT ---- */

#ifndef KVM_SET_USER_MEMORY_REGION2
#define KVM_CAP_USER_MEMORY2 231
#define KVM_CAP_MEMORY_FAULT_INFO 232
#define KVM_CAP_MEMORY_ATTRIBUTES 233
#define KVM_CAP_GUEST_MEMFD 234
#define KVM_CAP_VM_TYPES 235

#define KVM_MEM_GUEST_MEMFD (1UL << 2)
#define KVM_MEMORY_ATTRIBUTE_PRIVATE (1ULL << 3)
#define KVM_EXIT_MEMORY_FAULT 39
#define KVM_MEMORY_EXIT_FLAG_PRIVATE (1ULL << 3)

struct kvm_userspace_memory_region2 {
	__u32 slot;
	__u32 flags;
	__u64 guest_phys_addr;
	__u64 memory_size;
	__u64 userspace_addr;
	__u64 guest_memfd_offset;
	__u32 guest_memfd;
	__u32 pad1;
	__u64 pad2[14];
};

struct kvm_memory_attributes {
	__u64 address;
	__u64 size;
	__u64 attributes;
	__u64 flags;
};

struct kvm_create_guest_memfd {
	__u64 size;
	__u64 flags;
	__u64 reserved[6];
};

#define KVM_SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct kvm_userspace_memory_region2)
#define KVM_SET_MEMORY_ATTRIBUTES _IOW(KVMIO, 0xd2, struct kvm_memory_attributes)
#define KVM_CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct kvm_create_guest_memfd)
#endif

#ifndef KVM_X86_DEFAULT_VM
#define KVM_X86_DEFAULT_VM 0
#define KVM_X86_SW_PROTECTED_VM 1 /* Linux 6.8 */
#endif
#ifndef KVM_X86_SEV_VM
#define KVM_X86_SEV_VM 2 /* Linux 6.10 */
#define KVM_X86_SEV_ES_VM 3
#endif
#ifndef KVM_X86_SNP_VM
#define KVM_X86_SNP_VM 4 /* Linux 6.11 */
#endif
#ifndef KVM_X86_TDX_VM
#define KVM_X86_TDX_VM 5 /* Linux 6.16 */
#endif

/* ---- Linux 6.11: pre-faulting ---- */

#ifndef KVM_PRE_FAULT_MEMORY
#define KVM_CAP_PRE_FAULT_MEMORY 236
struct kvm_pre_fault_memory {
	__u64 gpa;
	__u64 size;
	__u64 flags;
	__u64 padding[5];
};
#define KVM_PRE_FAULT_MEMORY _IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)
#endif

/* ---- Linux 6.11 and 6.12 ---- */

#ifndef KVM_CAP_X86_APIC_BUS_CYCLES_NS
#define KVM_CAP_X86_APIC_BUS_CYCLES_NS 237 /* Linux 6.11 */
#endif
#ifndef KVM_CAP_X86_GUEST_MODE
#define KVM_CAP_X86_GUEST_MODE 238 /* Linux 6.12 */
#define KVM_RUN_X86_GUEST_MODE (1 << 2)
#endif
#ifndef KVM_X86_QUIRK_SLOT_ZAP_ALL
#define KVM_X86_QUIRK_SLOT_ZAP_ALL (1 << 7) /* Linux 6.12 */
#endif

/* ---- Linux 6.16: TDX; later: certificates of SEV-SNP guests ---- */

#ifndef KVM_EXIT_TDX
#define KVM_EXIT_TDX 40
#endif
#ifndef KVM_EXIT_SNP_REQ_CERTS
#define KVM_EXIT_SNP_REQ_CERTS 43 /* Linux 7.0 */
#endif

/* ---- Linux 6.18: guest_memfd that the host can map ---- */

#ifndef KVM_CAP_GUEST_MEMFD_FLAGS
#define KVM_CAP_GUEST_MEMFD_FLAGS 244
#endif
#ifndef GUEST_MEMFD_FLAG_MMAP
#define GUEST_MEMFD_FLAG_MMAP (1ULL << 0)
#endif
#ifndef GUEST_MEMFD_FLAG_INIT_SHARED
#define GUEST_MEMFD_FLAG_INIT_SHARED (1ULL << 1)
#endif

/* ---- Linux 7.4, as it is in linux-next: the page state belongs to the guest_memfd ---- */

#ifndef KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES
#define KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES 252 /* may be another once it is released */
#endif
#ifndef KVM_SET_MEMORY_ATTRIBUTES2
struct kvm_memory_attributes2 {
	union {
		__u64 address;
		__u64 offset;
	};
	__u64 size;
	__u64 attributes;
	__u64 flags;
	__u64 error_offset;
	__u64 reserved[11];
};
#define KVM_SET_MEMORY_ATTRIBUTES2 _IOWR(KVMIO, 0xd2, struct kvm_memory_attributes2)
#endif

/* ---- The RFC of December 2021, v3; never in a released kernel ---- */

#define KVM_MEM_PRIVATE (1UL << 2)
#define KVM_MEM_SHARED_VIEW (1UL << 3) /* the alias slot of this project's patch */
#define KVM_EXIT_MEMORY_ERROR 36
#define KVM_EXIT_MEM_MAP_SHARED 1
#define KVM_EXIT_MEM_MAP_PRIVATE 2

/* What KVM_SET_USER_MEMORY_REGION copies when KVM_MEM_PRIVATE is set. */
struct kvm_userspace_memory_region_ext {
	struct kvm_userspace_memory_region region;
	__u64 ofs;
	__u32 fd;
	__u32 padding[5];
};

/* ---- kvm_run's union, for the exits that old headers do not name ---- */

struct pyvmm_memory_fault { /* KVM_EXIT_MEMORY_FAULT */
	__u64 flags;
	__u64 gpa;
	__u64 size;
};

struct pyvmm_memory_error { /* KVM_EXIT_MEMORY_ERROR */
	__u32 type;
	__u32 pad;
	__u64 gpa;
	__u64 size;
};

struct pyvmm_tdx { /* KVM_EXIT_TDX */
	__u64 flags;
	__u64 nr;
	__u64 ret;
	__u64 data[5];
};

struct pyvmm_snp_req_certs { /* KVM_EXIT_SNP_REQ_CERTS */
	__u64 gpa;
	__u64 npages;
	__u64 ret;
};

#define PYVMM_EXIT_PAYLOAD(run) ((void *)&(run)->hw)

#endif
