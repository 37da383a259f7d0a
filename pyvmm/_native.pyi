# Made by csrc/make_stub.py.
from typing import Any

class _Ffi:
    NULL: Any
    CData: Any
    error: type[Exception]
    def new(self, cdecl: str, init: Any = ...) -> Any: ...
    def cast(self, cdecl: str, value: Any) -> Any: ...
    def gc(self, cdata: Any, destructor: Any, size: int = ...) -> Any: ...
    def sizeof(self, what: Any) -> int: ...
    def typeof(self, what: Any) -> Any: ...
    def getctype(self, cdecl: Any, replace_with: str = ...) -> str: ...
    def offsetof(self, cdecl: Any, *fields: str) -> int: ...
    def buffer(self, cdata: Any, size: int = ...) -> Any: ...
    def from_buffer(
        self, cdecl: Any, python_buffer: Any = ..., require_writable: bool = ...
    ) -> Any: ...
    def string(self, cdata: Any, maxlen: int = ...) -> bytes: ...
    def memmove(self, target: Any, source: Any, size: int) -> None: ...
    def addressof(self, cdata: Any, *fields: Any) -> Any: ...
    def unpack(self, cdata: Any, length: int) -> Any: ...
    @property
    def errno(self) -> int: ...

class _Lib:
    BARE_ADD_CLOSED_SLOT: int
    BARE_ADD_SLOT: int
    BARE_ALLOCATE: int
    BARE_ATTRIBUTES: int
    BARE_CLOSE: int
    BARE_CREATE: int
    BARE_DELETE_SLOT: int
    BARE_FILE_ATTRIBUTES: int
    BARE_FIRST_EXIT: int
    BARE_PARTS: int
    BARE_PART_ALLOCATE: int
    BARE_PART_ATTRIBUTES: int
    BARE_PART_DISCARD: int
    BARE_PART_SWITCH: int
    BARE_PHASES: int
    BARE_PROTECT: int
    BARE_PUNCH: int
    BARE_RESET: int
    BARE_SLOTS: int
    BARE_TIME_PARTS: int
    BARE_TIME_WHOLE: int
    BARE_UNTIMED: int
    BARE_VCPU: int
    CONSOLE_SIZE: int
    CONVERSION_NONE: int
    CONVERSION_TO_PRIVATE: int
    CONVERSION_TO_SHARED: int
    EHWPOISON: int
    FEATURE_HYPERCALL: int
    FEATURE_KEEPS_CONTENTS: int
    FEATURE_TWO_VIEWS: int
    GUARD_LIMIT: int
    GUEST_MEMFD_FLAG_INIT_SHARED: int
    GUEST_MEMFD_FLAG_MMAP: int
    KVM_CAP_ADJUST_CLOCK: int
    KVM_CAP_BINARY_STATS_FD: int
    KVM_CAP_COALESCED_MMIO: int
    KVM_CAP_COALESCED_PIO: int
    KVM_CAP_DIRTY_LOG_RING: int
    KVM_CAP_DIRTY_LOG_RING_ACQ_REL: int
    KVM_CAP_DISABLE_QUIRKS2: int
    KVM_CAP_ENFORCE_PV_FEATURE_CPUID: int
    KVM_CAP_EXIT_HYPERCALL: int
    KVM_CAP_EXIT_ON_EMULATION_FAILURE: int
    KVM_CAP_GET_TSC_KHZ: int
    KVM_CAP_GUEST_MEMFD: int
    KVM_CAP_GUEST_MEMFD_FLAGS: int
    KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES: int
    KVM_CAP_HALT_POLL: int
    KVM_CAP_IRQFD_RESAMPLE: int
    KVM_CAP_IRQ_ROUTING: int
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: int
    KVM_CAP_MAX_VCPUS: int
    KVM_CAP_MAX_VCPU_ID: int
    KVM_CAP_MEMORY_ATTRIBUTES: int
    KVM_CAP_MEMORY_FAULT_INFO: int
    KVM_CAP_MULTI_ADDRESS_SPACE: int
    KVM_CAP_NESTED_STATE: int
    KVM_CAP_NR_MEMSLOTS: int
    KVM_CAP_PMU_CAPABILITY: int
    KVM_CAP_PRE_FAULT_MEMORY: int
    KVM_CAP_READONLY_MEM: int
    KVM_CAP_SPLIT_IRQCHIP: int
    KVM_CAP_SREGS2: int
    KVM_CAP_SYNC_REGS: int
    KVM_CAP_TSC_CONTROL: int
    KVM_CAP_TSC_DEADLINE_TIMER: int
    KVM_CAP_USER_MEMORY: int
    KVM_CAP_USER_MEMORY2: int
    KVM_CAP_VM_DISABLE_NX_HUGE_PAGES: int
    KVM_CAP_VM_TSC_CONTROL: int
    KVM_CAP_VM_TYPES: int
    KVM_CAP_X2APIC_API: int
    KVM_CAP_X86_APIC_BUS_CYCLES_NS: int
    KVM_CAP_X86_BUS_LOCK_EXIT: int
    KVM_CAP_X86_DISABLE_EXITS: int
    KVM_CAP_X86_MSR_FILTER: int
    KVM_CAP_X86_NOTIFY_VMEXIT: int
    KVM_CAP_X86_USER_SPACE_MSR: int
    KVM_CAP_XCRS: int
    KVM_CAP_XSAVE2: int
    KVM_CLOCK_HOST_TSC: int
    KVM_CLOCK_REALTIME: int
    KVM_CLOCK_TSC_STABLE: int
    KVM_COALESCED_MMIO_PAGE_OFFSET: int
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX: int
    KVM_DIRTY_GFN_F_DIRTY: int
    KVM_DIRTY_GFN_F_MASK: int
    KVM_DIRTY_GFN_F_RESET: int
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE: int
    KVM_DIRTY_LOG_PAGE_OFFSET: int
    KVM_ENOSYS: int
    KVM_EOPNOTSUPP: int
    KVM_EXIT_AP_RESET_HOLD: int
    KVM_EXIT_DEBUG: int
    KVM_EXIT_DIRTY_RING_FULL: int
    KVM_EXIT_EXCEPTION: int
    KVM_EXIT_FAIL_ENTRY: int
    KVM_EXIT_HLT: int
    KVM_EXIT_HYPERCALL: int
    KVM_EXIT_HYPERV: int
    KVM_EXIT_INTERNAL_ERROR: int
    KVM_EXIT_INTR: int
    KVM_EXIT_IO: int
    KVM_EXIT_IOAPIC_EOI: int
    KVM_EXIT_IO_IN: int
    KVM_EXIT_IO_OUT: int
    KVM_EXIT_IRQ_WINDOW_OPEN: int
    KVM_EXIT_MEMORY_ERROR: int
    KVM_EXIT_MEMORY_FAULT: int
    KVM_EXIT_MEM_MAP_PRIVATE: int
    KVM_EXIT_MEM_MAP_SHARED: int
    KVM_EXIT_MMIO: int
    KVM_EXIT_NMI: int
    KVM_EXIT_NOTIFY: int
    KVM_EXIT_SET_TPR: int
    KVM_EXIT_SHUTDOWN: int
    KVM_EXIT_SNP_REQ_CERTS: int
    KVM_EXIT_SYSTEM_EVENT: int
    KVM_EXIT_TDX: int
    KVM_EXIT_TPR_ACCESS: int
    KVM_EXIT_UNKNOWN: int
    KVM_EXIT_X86_BUS_LOCK: int
    KVM_EXIT_X86_RDMSR: int
    KVM_EXIT_X86_WRMSR: int
    KVM_EXIT_XEN: int
    KVM_GET_REGS: int
    KVM_GUESTDBG_ENABLE: int
    KVM_GUESTDBG_SINGLESTEP: int
    KVM_GUESTDBG_USE_HW_BP: int
    KVM_HC_CLOCK_PAIRING: int
    KVM_HC_KICK_CPU: int
    KVM_HC_MAP_GPA_RANGE: int
    KVM_HC_SCHED_YIELD: int
    KVM_HC_SEND_IPI: int
    KVM_HC_VAPIC_POLL_IRQ: int
    KVM_INTERNAL_ERROR_EMULATION: int
    KVM_IOAPIC_NUM_PINS: int
    KVM_IOEVENTFD_FLAG_DATAMATCH: int
    KVM_IOEVENTFD_FLAG_DEASSIGN: int
    KVM_IOEVENTFD_FLAG_PIO: int
    KVM_IRQCHIP_IOAPIC: int
    KVM_IRQCHIP_PIC_MASTER: int
    KVM_IRQCHIP_PIC_SLAVE: int
    KVM_IRQFD_FLAG_DEASSIGN: int
    KVM_IRQFD_FLAG_RESAMPLE: int
    KVM_IRQ_ROUTING_IRQCHIP: int
    KVM_IRQ_ROUTING_MSI: int
    KVM_MAP_GPA_RANGE_ENCRYPTED: int
    KVM_MEMORY_ATTRIBUTE_PRIVATE: int
    KVM_MEMORY_EXIT_FLAG_PRIVATE: int
    KVM_MEM_GUEST_MEMFD: int
    KVM_MEM_LOG_DIRTY_PAGES: int
    KVM_MEM_PRIVATE: int
    KVM_MEM_READONLY: int
    KVM_MEM_SHARED_VIEW: int
    KVM_MP_STATE_AP_RESET_HOLD: int
    KVM_MP_STATE_HALTED: int
    KVM_MP_STATE_INIT_RECEIVED: int
    KVM_MP_STATE_RUNNABLE: int
    KVM_MP_STATE_SIPI_RECEIVED: int
    KVM_MP_STATE_UNINITIALIZED: int
    KVM_MSR_EXIT_REASON_FILTER: int
    KVM_MSR_EXIT_REASON_INVAL: int
    KVM_MSR_EXIT_REASON_UNKNOWN: int
    KVM_MSR_FILTER_DEFAULT_DENY: int
    KVM_MSR_FILTER_MAX_RANGES: int
    KVM_MSR_FILTER_READ: int
    KVM_MSR_FILTER_WRITE: int
    KVM_NOTIFY_CONTEXT_INVALID: int
    KVM_PIO_PAGE_OFFSET: int
    KVM_PIT_SPEAKER_DUMMY: int
    KVM_RUN: int
    KVM_SET_MEMORY_ATTRIBUTES2: int
    KVM_SET_REGS: int
    KVM_SREGS2_FLAGS_PDPTRS_VALID: int
    KVM_STATS_BASE_MASK: int
    KVM_STATS_BASE_POW2: int
    KVM_STATS_TYPE_CUMULATIVE: int
    KVM_STATS_TYPE_INSTANT: int
    KVM_STATS_TYPE_LINEAR_HIST: int
    KVM_STATS_TYPE_LOG_HIST: int
    KVM_STATS_TYPE_MASK: int
    KVM_STATS_TYPE_PEAK: int
    KVM_STATS_TYPE_SHIFT: int
    KVM_STATS_UNIT_BOOLEAN: int
    KVM_STATS_UNIT_BYTES: int
    KVM_STATS_UNIT_CYCLES: int
    KVM_STATS_UNIT_MASK: int
    KVM_STATS_UNIT_NONE: int
    KVM_STATS_UNIT_SECONDS: int
    KVM_STATS_UNIT_SHIFT: int
    KVM_SYNC_X86_REGS: int
    KVM_SYSTEM_EVENT_SEV_TERM: int
    KVM_VCPU_TSC_CTRL: int
    KVM_VCPU_TSC_OFFSET: int
    KVM_X2APIC_API_USE_32BIT_IDS: int
    KVM_X86_DEFAULT_VM: int
    KVM_X86_QUIRK_SLOT_ZAP_ALL: int
    KVM_X86_SEV_ES_VM: int
    KVM_X86_SEV_VM: int
    KVM_X86_SNP_VM: int
    KVM_X86_SW_PROTECTED_VM: int
    KVM_X86_TDX_VM: int
    LOOP_REASONS: int
    LOOP_TICK_NS: int
    MEASURES_SIZE: int
    MECHANISM_ATTRIBUTES: int
    MECHANISM_PRESENCE: int
    MECHANISM_PROT_NONE: int
    MECHANISM_SLOTS: int
    MEMORY_MAX_REGIONS: int
    PAGE_PRIVATE: int
    PAGE_SHARED: int
    POLICY_ASK: int
    POLICY_CONVERT: int
    POLICY_DENY: int
    PORT_ASSERT: int
    PORT_ASSERT_HIGH: int
    PORT_CONSOLE: int
    PORT_DOORBELL_GPA: int
    PORT_DOORBELL_GPA_HIGH: int
    PORT_DOORBELL_PAGES: int
    PORT_DOORBELL_PAGES_HIGH: int
    PORT_DOORBELL_RESULT: int
    PORT_DOORBELL_RING: int
    PORT_EXIT: int
    PORT_FEATURES: int
    PORT_MEASURE: int
    PYTHON_WINDOWS: int
    STOP_ASSERT: int
    STOP_BUSY: int
    STOP_CONVERSION_FAILED: int
    STOP_DEADLINE: int
    STOP_EMULATED_ACCESS: int
    STOP_EXIT: int
    STOP_GUARD: int
    STOP_GUEST_EXIT: int
    STOP_HLT: int
    STOP_KICK: int
    STOP_LOG_FULL: int
    STOP_MAX_EXITS: int
    STOP_MEMORY_ERROR: int
    STOP_NONE: int
    STOP_RUN_FAILED: int
    STOP_SIGNAL: int
    STOP_UNKNOWN_WRITE: int
    STUB_OUT_AL: int
    STUB_OUT_AX: int
    SYS_close: int
    SYS_exit_group: int
    SYS_fallocate: int
    SYS_ioctl: int
    SYS_madvise: int
    SYS_mmap: int
    SYS_munmap: int
    UNCLAIMED_GPAS: int
    VECTORS: int
    VECTOR_STUBS: int
    def bare_conversions(
        self, vcpu: int, run: Any, to_private: Any, to_shared: Any, conversions: int, timing: int, /
    ) -> int: ...
    def bare_convert_pairs(
        self, to_private: Any, to_shared: Any, pairs: int, timing: int, /
    ) -> int: ...
    def bare_exits(
        self, vcpu: int, run: Any, reason: int, exits: int, parts: int, ring: Any, latency: Any, /
    ) -> int: ...
    def bare_immediate_exits(self, vcpu: int, run: Any, calls: int, latency: Any, /) -> int: ...
    def bare_interrupts(
        self, vcpu: int, run: Any, vector: int, interrupts: int, latency: Any, /
    ) -> int: ...
    def bare_kicks(
        self,
        vcpu: int,
        run: Any,
        kick_signal: int,
        kicker_cpu: int,
        kicks: int,
        sum: Any,
        latency: Any,
        /,
    ) -> int: ...
    def bare_life(
        self,
        image: Any,
        size: int,
        timer_signal: int,
        prot_none: bool,
        reset: bool,
        phases_ns: Any,
        /,
    ) -> int: ...
    def bare_record_ns(self, records: int, /) -> int: ...
    def bare_system_ioctls(self, kvm: int, calls: int, latency: Any, /) -> int: ...
    def exit_log_split(
        self, log: Any, first: int, conversion: int, parts: int, split: Any, latency: Any, /
    ) -> None: ...
    def guest_cpu_choose(self, cpu: int, /) -> int: ...
    def histogram_add(self, into: Any, from_: Any, /) -> None: ...
    def histogram_bucket_floor(self, bucket: int, /) -> int: ...
    def histogram_clear(self, histogram: Any, /) -> None: ...
    def histogram_percentile(self, histogram: Any, fraction: float, /) -> int: ...
    def histogram_record(self, histogram: Any, value: int, /) -> None: ...
    def host_flush(self, size: int, address: Any, /) -> int: ...
    def host_map(self, size: int, protection: int, flags: int, fd: int, offset: int, /) -> Any: ...
    def host_map_ram(self, size: int, gpa: int, /) -> Any: ...
    def host_unmap(self, size: int, address: Any, /) -> None: ...
    def kvm_ioctl(self, fd: int, request: int, argument: int, /) -> int: ...
    def kvm_ioctl_on(self, fd: int, request: int, argument: Any, /) -> int: ...
    def loop_deinit(self, loop: Any, /) -> None: ...
    def loop_disarm(self, loop: Any, keep_timer: bool, /) -> None: ...
    def loop_finish_record(self, loop: Any, /) -> None: ...
    def loop_forget_kick(self, loop: Any, /) -> None: ...
    def loop_init(self, loop: Any, log_capacity: int, /) -> int: ...
    def loop_kick(self, loop: Any, /) -> None: ...
    def loop_kick_signal(self) -> int: ...
    def loop_kicks(
        self, loop: Any, kicker_cpu: int, kicks: int, sum: Any, latency: Any, /
    ) -> int: ...
    def loop_reasons(self, loop: Any, /) -> int: ...
    def loop_run(self, loop: Any, /) -> int: ...
    def memory_add_ram(self, memory: Any, gpa: int, size: int, host: Any, /) -> None: ...
    def memory_add_region(self, memory: Any, wanted: Any, /) -> int: ...
    def memory_convert(
        self, memory: Any, gpa: int, pages: int, state: int, converted: Any, /
    ) -> int: ...
    def memory_convert_pairs(
        self,
        memory: Any,
        gpa: int,
        pages: int,
        pairs: int,
        private_ns: Any,
        shared_ns: Any,
        to_private: Any,
        to_shared: Any,
        /,
    ) -> int: ...
    def memory_copy(
        self, memory: Any, gpa: int, bytes: Any, size: int, is_write: bool, /
    ) -> int: ...
    def memory_deinit(self, memory: Any, /) -> None: ...
    def memory_forget_vm(self, memory: Any, /) -> None: ...
    def memory_init(self, memory: Any, vm_fd: int, backend: Any, policy: int, /) -> int: ...
    def memory_peek(self, memory: Any, gpa: int, bytes: Any, size: int, /) -> bool: ...
    def monotonic_ns(self) -> int: ...
    def name_thread(self, name: Any, /) -> None: ...
    def page_range_allocate(self, fd: int, offset: int, size: int, /) -> int: ...
    def page_range_pairs(
        self,
        file: int,
        size: int,
        pairs: int,
        allocate_ns: Any,
        discard_ns: Any,
        allocate: Any,
        discard: Any,
        /,
    ) -> int: ...
    def page_range_punch(self, fd: int, offset: int, size: int, /) -> int: ...
    def protocol_create(self) -> Any: ...
    def protocol_destroy(self, protocol: Any, /) -> None: ...
    def protocol_has_unclaimed(self, protocol: Any, /) -> bool: ...
    def protocol_unclaimed_gpas(
        self, protocol: Any, first: Any, room: int, total: Any, /
    ) -> int: ...
    def protocol_unclaimed_ports(
        self, protocol: Any, most: Any, room: int, total: Any, /
    ) -> int: ...
    def record_clock_init(self, clock: Any, /) -> None: ...
    def record_clock_later_ns(self, clock: Any, /) -> int: ...
    def record_clock_ns(self, clock: Any, /) -> int: ...
    def vector_of_stub(self, vcpu_fd: int, memory: Any, run: Any, stubs: int, /) -> int: ...

ffi: _Ffi
lib: _Lib
