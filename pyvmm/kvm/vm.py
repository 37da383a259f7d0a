"""A VM: the ioctls on the descriptor that KVM_CREATE_VM returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyvmm.errors import ConfigurationError, KvmError
from pyvmm.kvm import advice, uapi
from pyvmm.kvm.advice.state import FILES, IoEvent, Slot, VmState, file_of
from pyvmm.kvm.arguments import MOST_U32, integer, need, number, structure
from pyvmm.kvm.clock import Clock
from pyvmm.kvm.dirty_log import DirtyBitmap, bitmap_size
from pyvmm.kvm.fd import Fd, KvmFd
from pyvmm.kvm.guest_memfd import GuestMemfd
from pyvmm.kvm.ioctls import IOCTLS
from pyvmm.kvm.irq_routing import IrqchipRoute, MsiRoute, routing_table
from pyvmm.kvm.mapping import PAGE_SIZE
from pyvmm.kvm.msrs import MsrFilterRange, msr_filter
from pyvmm.kvm.stats import Stats
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.native import ffi, lib


def _descriptor(what: str, fd: int) -> int:
    """A descriptor's number, or -1, as structures without a sign have it."""
    return number(what, fd, -1, MOST_U32) & MOST_U32


class Vm(KvmFd):
    """A virtual machine. Made by :meth:`pyvmm.kvm.Kvm.create_vm`.

    All addresses and sizes are in bytes. All methods raise :class:`KvmError`, and as
    :mod:`pyvmm.errors` says for what cannot be given; the sections are those of
    Documentation/virt/kvm/api.rst in Linux 7.3.
    """

    def __init__(self, fd: int, vm_type: int, vcpu_mmap_size: int) -> None:
        super().__init__(fd, "VM")
        self.vm_type = vm_type
        self._vcpu_mmap_size = vcpu_mmap_size
        self._state = VmState(vm_type, self._ask, self._has_pic)

    def _ask(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION; 0 where the question is unknown too."""
        try:
            return self.ioctl("KVM_CHECK_EXTENSION", capability)
        except KvmError:
            return 0

    def _has_pic(self) -> bool:
        chip = ffi.new("struct kvm_irqchip *")
        result: int = lib.kvm_ioctl_on(self._fd, IOCTLS["KVM_GET_IRQCHIP"].number, chip)
        return result == 0

    @property
    def has_irqchip(self) -> bool:
        """Whether interrupt controllers are in the kernel, all of them or a part."""
        return bool(self._state.controller())

    def _advice(self, call: str, argument: Any, number: int) -> str:
        return advice.of_vm(self._state, call, argument, number)

    # ---- capabilities ----

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION (4.4) on the VM: 0 when this VM does not have it."""
        return self.ioctl("KVM_CHECK_EXTENSION", capability, "capability %s", capability)

    def capabilities(self) -> dict[str, int]:
        """KVM_CHECK_EXTENSION for every capability with a name: its answer, 0 when absent."""
        return {name: self.check_extension(cap) for name, cap in uapi.capabilities().items()}

    def has(self, capability: int) -> bool:
        """Whether this VM has a capability; False also where the question is unknown."""
        return self._ask(capability) > 0

    def enable_cap(self, capability: int, *arguments: int, flags: int = 0) -> int:
        """KVM_ENABLE_CAP (4.37) with up to four arguments."""
        result = self._enable_cap(capability, arguments, flags)
        if capability == lib.KVM_CAP_SPLIT_IRQCHIP:
            self._state.irqchip = "split"
        elif capability in (lib.KVM_CAP_DIRTY_LOG_RING, lib.KVM_CAP_DIRTY_LOG_RING_ACQ_REL):
            self._state.has_dirty_ring = True
        return result

    def map_gpa_range_exits(self) -> bool:
        """Ask for KVM_EXIT_HYPERCALL on KVM_HC_MAP_GPA_RANGE. False where it cannot be had."""
        mask = 1 << int(lib.KVM_HC_MAP_GPA_RANGE)
        if not self.check_extension(lib.KVM_CAP_EXIT_HYPERCALL) & mask:
            return False
        self.enable_cap(lib.KVM_CAP_EXIT_HYPERCALL, mask)
        return True

    def get_stats_fd(self) -> Stats:
        """KVM_GET_STATS_FD (4.133, Linux 5.14): the counters of this VM."""
        return Stats(self.ioctl("KVM_GET_STATS_FD"), self.name)

    def x86_set_msr_filter(
        self, ranges: Sequence[MsrFilterRange], *, deny_others: bool = False
    ) -> None:
        """KVM_X86_SET_MSR_FILTER (4.97): which MSRs guests may touch; () allows all.

        A denied access is a #GP, or an exit with ``enable_cap(KVM_CAP_X86_USER_SPACE_MSR,
        lib.KVM_MSR_EXIT_REASON_FILTER)``.
        """
        request, kept = msr_filter(ranges, deny_others)
        self.ioctl("KVM_X86_SET_MSR_FILTER", request, "%s ranges", len(kept))

    # ---- vCPUs ----

    def create_vcpu(self, index: int) -> Vcpu:
        """KVM_CREATE_VCPU (4.7), and its kvm_run mapped."""
        number("vCPU id", index, 0, MOST_U32)  # kernels cut it
        fd = self.ioctl("KVM_CREATE_VCPU", index, "vCPU %s", index)
        self._state.vcpus.add(index)
        return Vcpu(fd, index, self._vcpu_mmap_size, self._state)

    def set_boot_cpu_id(self, index: int) -> None:
        """KVM_SET_BOOT_CPU_ID (4.41): which vCPU is the bootstrap processor; before any vCPU."""
        number("vCPU id", index, 0, MOST_U32)
        self.ioctl("KVM_SET_BOOT_CPU_ID", index, "vCPU %s", index)

    # ---- memory ----

    def set_user_memory_region(
        self, slot: int, gpa: int, size: int, address: int, flags: int = 0
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION (4.35); size 0 deletes the slot."""
        request = structure(
            "struct kvm_userspace_memory_region",
            slot=slot,
            flags=flags,
            guest_phys_addr=gpa,
            memory_size=size,
            userspace_addr=address,
        )
        made = Slot(gpa, size, address, flags)
        self._set_slot("KVM_SET_USER_MEMORY_REGION", request, slot, made)

    def set_user_memory_region_ext(
        self, slot: int, gpa: int, size: int, address: int, flags: int, fd: int, offset: int = 0
    ) -> None:
        """The same with a private file, as the RFC of December 2021 has it.

        Kernels look at ``fd`` and ``offset`` only when ``flags`` has KVM_MEM_PRIVATE; those
        without that ABI say EINVAL then.
        """
        region = structure(
            "struct kvm_userspace_memory_region",
            slot=slot,
            flags=flags,
            guest_phys_addr=gpa,
            memory_size=size,
            userspace_addr=address,
        )
        request = structure(
            "struct kvm_userspace_memory_region_ext", ofs=offset, fd=_descriptor("fd", fd)
        )
        request.region = region[0]
        made = Slot(gpa, size, address, flags)
        self._set_slot("KVM_SET_USER_MEMORY_REGION", request, slot, made)

    def set_user_memory_region2(
        self,
        slot: int,
        gpa: int,
        size: int,
        address: int,
        flags: int = 0,
        guest_memfd: int = 0,
        guest_memfd_offset: int = 0,
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION2 (4.140, Linux 6.8), which can bind a guest_memfd."""
        request = structure(
            "struct kvm_userspace_memory_region2",
            slot=slot,
            flags=flags,
            guest_phys_addr=gpa,
            memory_size=size,
            userspace_addr=address,
            guest_memfd_offset=guest_memfd_offset,
            guest_memfd=_descriptor("guest_memfd", guest_memfd),
        )
        made = Slot(gpa, size, address, flags, guest_memfd_offset)
        self._set_slot("KVM_SET_USER_MEMORY_REGION2", request, slot, made)
        if size and flags & lib.KVM_MEM_GUEST_MEMFD:
            self._state.slots[slot] = made._replace(file=file_of(guest_memfd))

    def _set_slot(self, name: str, request: Any, slot: int, made: Slot) -> None:
        self.ioctl(name, request, "slot %d, GPA %#x, %#x bytes", slot, made.gpa, made.size)
        if made.size:
            self._state.slots[slot] = made
        else:
            self._state.slots.pop(slot, None)

    def set_memory_attributes(self, gpa: int, size: int, attributes: int) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES (4.141, Linux 6.8) for ``size`` bytes from ``gpa``."""
        request = structure(
            "struct kvm_memory_attributes", address=gpa, size=size, attributes=attributes
        )
        about = "GPA %#x, %#x bytes, attributes %#x"
        self.ioctl("KVM_SET_MEMORY_ATTRIBUTES", request, about, gpa, size, attributes)

    def create_guest_memfd(self, size: int, flags: int = 0) -> GuestMemfd:
        """KVM_CREATE_GUEST_MEMFD (4.142, Linux 6.8): ``size`` bytes that only this VM can map."""
        request = structure("struct kvm_create_guest_memfd", size=size, flags=flags)
        fd = self.ioctl("KVM_CREATE_GUEST_MEMFD", request, "%#x bytes, flags %#x", size, flags)
        file = GuestMemfd(fd, size)
        FILES[file] = self._state
        return file

    def set_tss_addr(self, gpa: int) -> None:
        """KVM_SET_TSS_ADDR (4.36): three pages that Intel without unrestricted guest needs."""
        self.ioctl("KVM_SET_TSS_ADDR", gpa, "GPA %#x", gpa)

    def set_identity_map_addr(self, gpa: int) -> None:
        """KVM_SET_IDENTITY_MAP_ADDR (4.40): one page, needed like the TSS; before any vCPU."""
        address = ffi.new("uint64_t *", number("GPA", gpa))
        self.ioctl("KVM_SET_IDENTITY_MAP_ADDR", address, "GPA %#x", gpa)

    # ---- dirty pages ----

    def get_dirty_log(self, slot: int, pages: int) -> DirtyBitmap:
        """KVM_GET_DIRTY_LOG (4.8): what was written in a slot of ``pages`` pages.

        Starts over, but for KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: then
        :meth:`clear_dirty_log` does.

        The kernel writes a bit for each page that the slot has, however many were asked for.
        So ``pages`` must be all of them, and the slot one that this object's methods made:
        :class:`ConfigurationError` otherwise. What ``ioctl()`` alone made or changed is not
        known here; ``ioctl()`` gets its log.
        """
        integer("pages", pages)
        made = self._state.slots.get(number("slot", slot, 0, MOST_U32))
        if made is None:
            raise ConfigurationError(
                f"dirty log of slot {slot}",
                "this Vm's methods made no such slot, so its size is not known",
                "make it with set_user_memory_region(), or get the log with ioctl()",
            )
        size = made.size
        if pages * PAGE_SIZE != size:
            raise ConfigurationError(
                f"dirty log of slot {slot}",
                f"it has {size // PAGE_SIZE} pages ({size:#x} bytes), and {pages} were asked for",
                f"ask for {size // PAGE_SIZE}",
            )
        bits = ffi.new("char[]", bitmap_size(pages))
        request = ffi.new("struct kvm_dirty_log *", {"slot": slot, "dirty_bitmap": bits})
        self.ioctl("KVM_GET_DIRTY_LOG", request, "slot %s", slot)
        return DirtyBitmap(0, pages, bytes(ffi.buffer(bits)))

    def clear_dirty_log(self, slot: int, bitmap: DirtyBitmap) -> None:
        """KVM_CLEAR_DIRTY_LOG (4.117, Linux 5.0): start over for the pages of a bitmap.

        Its first page must be a multiple of 64, and so must its size but at a slot's end.
        """
        need("bitmap", bitmap, DirtyBitmap)
        request = structure(
            "struct kvm_clear_dirty_log",
            slot=slot,
            num_pages=bitmap.pages,
            first_page=bitmap.first_page,
        )
        need("bits of the bitmap", bitmap.bits, bytes)
        bits = ffi.new("char[]", bitmap.bits.ljust(bitmap_size(bitmap.pages), b"\0"))
        request.dirty_bitmap = bits
        about = f"slot {slot}, pages {bitmap.first_page} to {bitmap.first_page + bitmap.pages - 1}"
        self.ioctl("KVM_CLEAR_DIRTY_LOG", request, about)

    def reset_dirty_rings(self) -> int:
        """KVM_RESET_DIRTY_RINGS (7.36, Linux 5.11): take back harvested entries; how many."""
        return self.ioctl("KVM_RESET_DIRTY_RINGS")

    # ---- coalesced writes, see pyvmm.kvm.coalesced ----

    def register_coalesced_mmio(self, address: int, size: int, *, is_port: bool = False) -> None:
        """KVM_REGISTER_COALESCED_MMIO (4.116): keep writes to a GPA or port range in the ring."""
        self._coalesced_mmio("KVM_REGISTER_COALESCED_MMIO", address, size, is_port)

    def unregister_coalesced_mmio(self, address: int, size: int, *, is_port: bool = False) -> None:
        """KVM_UNREGISTER_COALESCED_MMIO (4.116)."""
        self._coalesced_mmio("KVM_UNREGISTER_COALESCED_MMIO", address, size, is_port)

    def _coalesced_mmio(self, name: str, address: int, size: int, is_port: bool) -> None:
        zone = structure("struct kvm_coalesced_mmio_zone", addr=address, size=size, pio=is_port)
        self.ioctl(name, zone, "%s %#x, %s bytes", "port" if is_port else "GPA", address, size)

    # ---- interrupts ----

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP (4.24): PIC, IOAPIC and, for each vCPU made after, a LAPIC."""
        self.ioctl("KVM_CREATE_IRQCHIP")
        self._state.irqchip = "full"

    def split_irqchip(self, ioapic_pins: int = 24) -> None:
        """KVM_CAP_SPLIT_IRQCHIP (7.5): LAPICs in the kernel, PIC and IOAPIC left to us."""
        self.enable_cap(lib.KVM_CAP_SPLIT_IRQCHIP, ioapic_pins)

    def get_irqchip(self, chip: int) -> Any:
        """KVM_GET_IRQCHIP (4.26): a ``struct kvm_irqchip *``; ``chip`` is KVM_IRQCHIP_*."""
        request = structure("struct kvm_irqchip", chip_id=chip)
        self.ioctl("KVM_GET_IRQCHIP", request, "chip %s", chip)
        return request

    def set_irqchip(self, irqchip: Any) -> None:
        """KVM_SET_IRQCHIP (4.27) from a ``struct kvm_irqchip *``."""
        self.ioctl("KVM_SET_IRQCHIP", irqchip)

    def irq_line(self, gsi: int, level: bool) -> None:
        """KVM_IRQ_LINE (4.25): set an interrupt line."""
        request = structure("struct kvm_irq_level", irq=gsi, level=level)
        self.ioctl("KVM_IRQ_LINE", request, "GSI %s", gsi)

    def irq_line_status(self, gsi: int, level: bool) -> int:
        """KVM_IRQ_LINE_STATUS: the same; 0 masked, 1 delivered, -1 ignored, more: coalesced."""
        request = structure("struct kvm_irq_level", irq=gsi, level=level)
        self.ioctl("KVM_IRQ_LINE_STATUS", request, "GSI %s", gsi)
        return int(request.status)

    def set_gsi_routing(self, routes: Sequence[IrqchipRoute | MsiRoute]) -> None:
        """KVM_SET_GSI_ROUTING (4.52): replaces the whole table."""
        table = routing_table(routes)
        self.ioctl("KVM_SET_GSI_ROUTING", table, "%s routes", table.nr)

    def signal_msi(self, address: int, data: int) -> bool:
        """KVM_SIGNAL_MSI (4.71): send an MSI; whether the guest got it."""
        number("address", address)
        request = structure(
            "struct kvm_msi", address_lo=address & 0xFFFF_FFFF, address_hi=address >> 32, data=data
        )
        return self.ioctl("KVM_SIGNAL_MSI", request, "address %#x, data %#x", address, data) > 0

    def irqfd(
        self, eventfd: Fd, gsi: int, *, resample: Fd | None = None, deassign: bool = False
    ) -> None:
        """KVM_IRQFD (4.75): each signal of ``eventfd`` pulses a GSI.

        With ``resample`` the line stays up until the guest acknowledges, which is signalled
        there.
        """
        flags = lib.KVM_IRQFD_FLAG_DEASSIGN if deassign else 0
        need("eventfd", eventfd, Fd)
        request = structure("struct kvm_irqfd", fd=eventfd.fileno(), gsi=gsi, flags=flags)
        if resample is not None:
            need("resample", resample, Fd)
            request.flags |= lib.KVM_IRQFD_FLAG_RESAMPLE
            request.resamplefd = resample.fileno()
        self.ioctl("KVM_IRQFD", request, "GSI %s", gsi)

    def ioeventfd(
        self,
        eventfd: Fd,
        address: int,
        size: int,
        *,
        is_port: bool = False,
        value: int | None = None,
        deassign: bool = False,
    ) -> None:
        """KVM_IOEVENTFD (4.59): a write of ``size`` bytes there signals, and does not exit.

        ``size`` 0 means any size; with ``value`` only writes of that value signal.
        """
        need("eventfd", eventfd, Fd)
        request = structure("struct kvm_ioeventfd", addr=address, len=size, fd=eventfd.fileno())
        if is_port:
            request.flags |= lib.KVM_IOEVENTFD_FLAG_PIO
        if value is not None:
            request.flags |= lib.KVM_IOEVENTFD_FLAG_DATAMATCH
            request.datamatch = number("value", value)
        if deassign:
            request.flags |= lib.KVM_IOEVENTFD_FLAG_DEASSIGN
        kind = "port" if is_port else "GPA"
        self.ioctl("KVM_IOEVENTFD", request, "%s %#x, %s bytes", kind, address, size)
        made = IoEvent(bool(is_port), address, size, value, eventfd.fileno())
        if not deassign:
            self._state.io_events.append(made)
        elif made in self._state.io_events:
            self._state.io_events.remove(made)

    # ---- timers and clocks ----

    def create_pit2(self, flags: int = 0) -> None:
        """KVM_CREATE_PIT2 (4.71): the timer at its usual ports; needs the irqchip."""
        self.ioctl("KVM_CREATE_PIT2", structure("struct kvm_pit_config", flags=flags))
        self._state.has_pit = True

    def get_pit2(self) -> Any:
        """KVM_GET_PIT2 (4.72): a ``struct kvm_pit_state2 *``."""
        state = ffi.new("struct kvm_pit_state2 *")
        self.ioctl("KVM_GET_PIT2", state)
        return state

    def set_pit2(self, state: Any) -> None:
        """KVM_SET_PIT2 (4.73) from a ``struct kvm_pit_state2 *``."""
        self.ioctl("KVM_SET_PIT2", state)

    def reinject_control(self, reinject: bool) -> None:
        """KVM_REINJECT_CONTROL (4.99): whether the PIT makes up for ticks that were missed."""
        request = structure("struct kvm_reinject_control", pit_reinject=reinject)
        self.ioctl("KVM_REINJECT_CONTROL", request)

    def get_clock(self) -> Clock:
        """KVM_GET_CLOCK (4.29)."""
        data = ffi.new("struct kvm_clock_data *")
        self.ioctl("KVM_GET_CLOCK", data)
        return Clock(
            data.clock,
            data.realtime if data.flags & lib.KVM_CLOCK_REALTIME else None,
            data.host_tsc if data.flags & lib.KVM_CLOCK_HOST_TSC else None,
            data.flags & lib.KVM_CLOCK_TSC_STABLE != 0,
        )

    def set_clock(self, clock_ns: int, realtime_ns: int | None = None) -> None:
        """KVM_SET_CLOCK (4.30). The time since ``realtime_ns`` is added, if it is given."""
        data = structure("struct kvm_clock_data", clock=clock_ns)
        if realtime_ns is not None:
            data.flags = lib.KVM_CLOCK_REALTIME
            data.realtime = number("realtime_ns", realtime_ns)
        self.ioctl("KVM_SET_CLOCK", data, "%s ns", clock_ns)

    def get_tsc_khz(self) -> int:
        """KVM_GET_TSC_KHZ (4.56) of the VM: what vCPUs made from now on start with."""
        return self.ioctl("KVM_GET_TSC_KHZ")

    def set_tsc_khz(self, khz: int) -> None:
        """KVM_SET_TSC_KHZ (4.55) of the VM (Linux 5.18), before any vCPU."""
        number("kHz", khz, 0, MOST_U32)  # the kernel would cut it
        self.ioctl("KVM_SET_TSC_KHZ", khz, "%s kHz", khz)
