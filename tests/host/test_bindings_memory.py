"""Memory: slots of each kind, dirty pages, coalesced writes, guest_memfd, statistics."""

from __future__ import annotations

import errno
from contextlib import closing

import pytest
from bare_vm import RAM_SIZE, RAM_SLOT, BareVm

from pyvmm.errors import ConfigurationError, KvmError
from pyvmm.guest.boot import START
from pyvmm.kvm import Kvm
from pyvmm.kvm.coalesced import CoalescedRing, CoalescedWrite
from pyvmm.kvm.dirty_log import DirtyBitmap
from pyvmm.kvm.dirty_ring import DirtyPage, DirtyRing
from pyvmm.kvm.exits import DirtyRingFullExit, HltExit, IoExit, MmioExit
from pyvmm.kvm.mapping import Mapping
from pyvmm.kvm.uapi import VmType
from pyvmm.kvm.vm import Vm
from pyvmm.native import lib

pytestmark = pytest.mark.usefixtures("no_leak")

PAGES = RAM_SIZE // 0x1000
# The page that the code is in: hardware KVM maps it writable at once, and calls it dirty.
CODE_PAGE = START >> 12
WRITE_PAGES_9_AND_12 = "movb $1, 0x9000\nmovw $0, %ax\nmovb $1, 0xc123\nhlt\nmovb $1, 0xa000\nhlt"


def test_region2() -> None:
    with BareVm("mov $0x9000, %ax\nmov %ax, %ds\nmov 0x10, %al\nhlt") as bare:
        if not bare.vm.has(lib.KVM_CAP_USER_MEMORY2):
            pytest.skip("no KVM_CAP_USER_MEMORY2")
        more = Mapping(0x1000)
        more.view[0x10] = 0x5A
        bare.vm.set_user_memory_region2(3, 0x90000, 0x1000, more.address)
        bare.run_to_hlt()
        assert bare.vcpu.get_regs().rax & 0xFF == 0x5A
        bare.vm.set_user_memory_region2(3, 0x90000, 0, 0)
        more.close()


def test_a_deleted_slot_is_mmio() -> None:
    with BareVm("mov $0x9000, %ax\nmov %ax, %ds\nmov 0x10, %al\nmov 0x10, %al\nhlt") as bare:
        more = Mapping(0x1000)
        bare.vm.set_user_memory_region(3, 0x90000, 0x1000, more.address)
        bare.vm.set_user_memory_region(3, 0x90000, 0, more.address)
        assert bare.run() == MmioExit(0x90010, 1, False, b"")
        more.close()


def test_a_read_only_slot_exits_on_writes() -> None:
    code = "mov $0x9000, %ax\nmov %ax, %ds\nmov 0x10, %bl\nmovb $7, 0x11\nhlt"
    with BareVm(code) as bare:
        if not bare.vm.has(lib.KVM_CAP_READONLY_MEM):
            pytest.skip("no KVM_CAP_READONLY_MEM")
        rom = Mapping(0x1000)
        rom.view[0x10] = 0x77
        bare.vm.set_user_memory_region(3, 0x90000, 0x1000, rom.address, lib.KVM_MEM_READONLY)
        assert bare.run() == MmioExit(0x90011, 1, True, b"\7")
        assert bare.vcpu.get_regs().rbx == 0x77
        assert rom.view[0x11] == 0
        rom.close()


def test_the_rfcs_region_where_no_kernel_has_it() -> None:
    """A released kernel says EINVAL to KVM_MEM_PRIVATE; without the bit it is a plain slot."""
    with BareVm() as bare:
        more = Mapping(0x1000)
        bare.vm.set_user_memory_region_ext(3, 0x90000, 0x1000, more.address, 0, -1)
        bare.vm.set_user_memory_region_ext(3, 0x90000, 0, more.address, 0, -1)
        with pytest.raises(KvmError) as caught:
            bare.vm.set_user_memory_region_ext(
                3, 0x90000, 0x1000, more.address, lib.KVM_MEM_PRIVATE, -1
            )
        assert caught.value.errno in (errno.EINVAL, errno.EBADF)
        assert "slot 3, GPA 0x90000" in str(caught.value)
        more.close()


def test_memory_attributes() -> None:
    with BareVm() as bare:
        supported = bare.vm.check_extension(lib.KVM_CAP_MEMORY_ATTRIBUTES)
        if supported:
            pytest.skip("this KVM has memory attributes on default VMs")
        with pytest.raises(KvmError) as caught:
            bare.vm.set_memory_attributes(0x1000, 0x2000, lib.KVM_MEMORY_ATTRIBUTE_PRIVATE)
        assert caught.value.errno in (errno.ENOTTY, errno.EINVAL)
        assert "GPA 0x1000, 0x2000 bytes, attributes 0x8" in str(caught.value)


def test_memory_attributes_of_a_protected_vm() -> None:
    with BareVm() as bare:
        if VmType.SW_PROTECTED not in bare.kvm.vm_types():
            pytest.skip("no VM type KVM_X86_SW_PROTECTED_VM")
        with bare.kvm.create_vm(VmType.SW_PROTECTED) as vm:
            vm.set_memory_attributes(0, 0x1000, lib.KVM_MEMORY_ATTRIBUTE_PRIVATE)
            vm.set_memory_attributes(0, 0x1000, 0)


def test_guest_memfd() -> None:
    with BareVm() as bare:
        for vm_type in bare.kvm.vm_types():
            if vm_type not in (VmType.DEFAULT, VmType.SW_PROTECTED):
                continue  # those want more before they take memory
            with bare.kvm.create_vm(vm_type) as vm:
                if vm.has(lib.KVM_CAP_GUEST_MEMFD):
                    check_guest_memfd(vm)
                    return
        pytest.skip("no KVM_CAP_GUEST_MEMFD")


def check_guest_memfd(vm: Vm) -> None:
    with vm.create_guest_memfd(0x4000) as file:
        file.allocate(0, 0x2000)
        file.punch(0, 0x2000)
        with pytest.raises(KvmError):
            file.map()
    with pytest.raises(KvmError) as caught:
        vm.create_guest_memfd(0x4001)
    assert "0x4001 bytes" in str(caught.value)


def test_guest_memfd_as_guest_memory() -> None:
    """One that can be mapped is the memory behind a slot, here and there."""
    flags = lib.GUEST_MEMFD_FLAG_MMAP | lib.GUEST_MEMFD_FLAG_INIT_SHARED
    with BareVm("mov $0x9000, %ax\nmov %ax, %ds\nincb 0x10\nhlt") as bare:
        if bare.vm.check_extension(lib.KVM_CAP_GUEST_MEMFD_FLAGS) & flags != flags:
            pytest.skip("no GUEST_MEMFD_FLAG_MMAP and GUEST_MEMFD_FLAG_INIT_SHARED")
        with bare.vm.create_guest_memfd(0x1000, flags) as file:
            mapping = file.map()
            mapping.view[0x10] = 41
            bare.vm.set_user_memory_region2(
                3, 0x90000, 0x1000, mapping.address, lib.KVM_MEM_GUEST_MEMFD, file.fileno()
            )
            bare.run_to_hlt()
            assert mapping.view[0x10] == 42
            bare.vm.set_user_memory_region2(3, 0x90000, 0, 0)
            mapping.close()


def test_pre_fault_memory() -> None:
    with BareVm() as bare:
        try:
            assert bare.vcpu.pre_fault_memory(0, 0x4000) == 0
        except KvmError as error:
            assert error.remedy
            assert "GPA 0x0, 0x4000 bytes" in str(error)
            pytest.skip(f"cannot pre-fault here: {error}")


# ---- dirty pages ----


def test_dirty_log() -> None:
    with BareVm(WRITE_PAGES_9_AND_12, slot_flags=lib.KVM_MEM_LOG_DIRTY_PAGES) as bare:
        bare.vm.get_dirty_log(RAM_SLOT, PAGES)
        bare.run_to_hlt()
        assert set(bare.vm.get_dirty_log(RAM_SLOT, PAGES)) - {CODE_PAGE} == {9, 12}
        assert list(bare.vm.get_dirty_log(RAM_SLOT, PAGES)) == []
        bare.run_to_hlt()
        assert set(bare.vm.get_dirty_log(RAM_SLOT, PAGES)) - {CODE_PAGE} == {10}


def test_dirty_log_needs_the_flag() -> None:
    with BareVm() as bare:
        with pytest.raises(KvmError, match="slot 0") as caught:
            bare.vm.get_dirty_log(RAM_SLOT, PAGES)
        assert "KVM_MEM_LOG_DIRTY_PAGES" in caught.value.remedy


def test_dirty_log_of_another_size_is_refused() -> None:
    """The kernel writes the whole slot's bitmap, which a smaller one has no room for."""
    pages = 0x8000
    with Kvm() as kvm, kvm.create_vm() as vm, closing(Mapping(pages * 0x1000)) as ram:
        flags = lib.KVM_MEM_LOG_DIRTY_PAGES
        for asked in (8, pages):
            with pytest.raises(ConfigurationError, match=r"slot 3: .*no such slot.*ioctl\(\)"):
                vm.get_dirty_log(3, asked)
        vm.set_user_memory_region(3, 0, pages * 0x1000, ram.address, flags)
        for asked in (0, 8, pages - 1, pages + 1, -pages, 1 << 40):
            with pytest.raises(ConfigurationError) as caught:
                vm.get_dirty_log(3, asked)
            for part in ("slot 3", f"{pages} pages", f"{asked} were asked"):
                assert part in str(caught.value)
        with pytest.raises(KvmError, match="EINVAL"):  # nor does a size change
            vm.set_user_memory_region(3, 0, 0x1000, ram.address, flags)
        assert list(vm.get_dirty_log(3, pages)) == []
        vm.set_user_memory_region(3, 0, 0, 0)
        with pytest.raises(ConfigurationError, match="no such slot"):
            vm.get_dirty_log(3, pages)
        vm.set_user_memory_region(3, 0, 0x8000, ram.address, flags)
        assert len(vm.get_dirty_log(3, 8).bits) == 8


def test_dirty_log_of_each_way_to_make_a_slot() -> None:
    flags = lib.KVM_MEM_LOG_DIRTY_PAGES
    with Kvm() as kvm, kvm.create_vm() as vm, closing(Mapping(0x10000)) as ram:
        vm.set_user_memory_region_ext(0, 0, 0x4000, ram.address, flags, -1)
        assert list(vm.get_dirty_log(0, 4)) == []
        if vm.has(lib.KVM_CAP_USER_MEMORY2):
            vm.set_user_memory_region2(1, 0x10000, 0x5000, ram.address, flags)
            assert list(vm.get_dirty_log(1, 5)) == []


def test_clear_dirty_log_outside_of_the_slot_is_refused() -> None:
    with BareVm(slot_flags=lib.KVM_MEM_LOG_DIRTY_PAGES) as bare:
        for first, pages in ((PAGES, 64), (0, PAGES + 64), (1 << 63, 64)):
            with pytest.raises(KvmError, match=r"EINVAL|ENOTTY"):
                bare.vm.clear_dirty_log(RAM_SLOT, DirtyBitmap(first, pages, b"\xff"))


def test_clear_dirty_log() -> None:
    def prepare(vm: Vm) -> None:
        if not vm.has(lib.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2):
            pytest.skip("no KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2")
        vm.enable_cap(
            lib.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, lib.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE
        )

    flags = lib.KVM_MEM_LOG_DIRTY_PAGES
    with BareVm(WRITE_PAGES_9_AND_12, prepare=prepare, slot_flags=flags) as bare:
        bare.vm.clear_dirty_log(RAM_SLOT, bare.vm.get_dirty_log(RAM_SLOT, PAGES))
        bare.run_to_hlt()
        dirty = bare.vm.get_dirty_log(RAM_SLOT, PAGES)
        assert set(dirty) - {CODE_PAGE} == {9, 12}
        assert dirty == bare.vm.get_dirty_log(RAM_SLOT, PAGES)
        bare.vm.clear_dirty_log(RAM_SLOT, dirty)
        bare.run_to_hlt()
        assert set(bare.vm.get_dirty_log(RAM_SLOT, PAGES)) - {CODE_PAGE} == {10}
        with pytest.raises(KvmError, match="pages 1 to 3"):
            bare.vm.clear_dirty_log(RAM_SLOT, DirtyBitmap(1, 3, b"\7"))


def ring(entries: int, vm: Vm) -> None:
    if not vm.check_extension(lib.KVM_CAP_DIRTY_LOG_RING):
        pytest.skip("no KVM_CAP_DIRTY_LOG_RING")
    try:
        vm.enable_cap(lib.KVM_CAP_DIRTY_LOG_RING, entries * DirtyRing.ENTRY_SIZE)
    except KvmError as error:
        # Room for what the CPU logs by itself is set aside.
        pytest.skip(f"no dirty ring of {entries} entries here: {error}")


def test_dirty_ring() -> None:
    entries = 1024
    flags = lib.KVM_MEM_LOG_DIRTY_PAGES
    with BareVm(
        WRITE_PAGES_9_AND_12, prepare=lambda vm: ring(entries, vm), slot_flags=flags
    ) as bare:
        dirty = DirtyRing(bare.vcpu, entries)
        bare.run_to_hlt()
        harvest = dirty.harvest()
        pages = [page for page in harvest if page.page != CODE_PAGE]
        assert pages == [DirtyPage(RAM_SLOT, 9), DirtyPage(RAM_SLOT, 12)]
        assert dirty.harvest() == []
        assert bare.vm.reset_dirty_rings() == len(harvest)
        bare.run_to_hlt()
        assert DirtyPage(RAM_SLOT, 10) in dirty.harvest()
        with pytest.raises(KvmError) as caught:
            bare.vm.get_dirty_log(RAM_SLOT, PAGES)
        assert "dirty rings" in caught.value.remedy
        dirty.close()


def test_a_full_dirty_ring_exits() -> None:
    """More pages than the ring takes: exits until it is harvested and reset; none is lost."""
    entries, pages = 256, 224
    code = f"""
        mov $0x2000, %ax
        mov ${pages}, %cx
    next:
        mov %ax, %ds
        movb $1, 0
        out %al, $0x10  # KVM looks at the ring when the guest is entered
        add $0x100, %ax
        loop next
        hlt
    """
    flags = lib.KVM_MEM_LOG_DIRTY_PAGES
    with BareVm(code, prepare=lambda vm: ring(entries, vm)) as bare:
        more = Mapping(pages * 0x1000)
        bare.vm.set_user_memory_region(4, RAM_SIZE, pages * 0x1000, more.address, flags)
        dirty = DirtyRing(bare.vcpu, entries)
        seen: list[DirtyPage] = []
        full = 0
        while (exit := bare.run()) != HltExit():
            if exit == DirtyRingFullExit():
                full += 1
                seen += dirty.harvest()
                bare.vm.reset_dirty_rings()
        seen += dirty.harvest()
        assert full > 0
        assert sorted(set(seen)) == [DirtyPage(4, page) for page in range(pages)]
        dirty.close()
        more.close()


# ---- coalesced writes ----


def test_coalesced_ports() -> None:
    code = """
        mov $1, %al
        out %al, $0x60
        mov $0x302, %ax
        out %ax, $0x60
        mov $9, %al
        out %al, $0x62
        hlt
    """
    with BareVm(code) as bare:
        if not bare.vm.has(lib.KVM_CAP_COALESCED_PIO):
            pytest.skip("no KVM_CAP_COALESCED_PIO")
        writes = CoalescedRing(bare.vcpu)
        bare.vm.register_coalesced_mmio(0x60, 2, is_port=True)
        assert bare.run() == IoExit(0x62, 1, 1, True, b"\x09")
        assert writes.drain() == [
            CoalescedWrite(0x60, b"\1", True),
            CoalescedWrite(0x60, b"\2\3", True),
        ]
        assert writes.drain() == []
        bare.vm.unregister_coalesced_mmio(0x60, 2, is_port=True)
        bare.run_to_hlt()


def test_coalesced_mmio() -> None:
    code = "mov $0x9000, %ax\nmov %ax, %ds\nmovb $5, 0x10\nmovw $6, 0x12\nmovb $7, 0x20\nhlt"
    with BareVm(code) as bare:
        if not bare.vm.has(lib.KVM_CAP_COALESCED_MMIO):
            pytest.skip("no KVM_CAP_COALESCED_MMIO")
        writes = CoalescedRing(bare.vcpu)
        bare.vm.register_coalesced_mmio(0x90010, 0x10)
        assert bare.run() == MmioExit(0x90020, 1, True, b"\7")
        assert writes.drain() == [
            CoalescedWrite(0x90010, b"\5", False),
            CoalescedWrite(0x90012, b"\6\0", False),
        ]


def test_a_full_coalesced_ring_exits() -> None:
    """What does not fit exits; nothing is lost, and the ring goes round."""
    code = "mov $400, %cx\nnext: mov %cl, %al\nout %al, $0x60\nloop next\nhlt"
    with BareVm(code) as bare:
        if not bare.vm.has(lib.KVM_CAP_COALESCED_PIO):
            pytest.skip("no KVM_CAP_COALESCED_PIO")
        writes = CoalescedRing(bare.vcpu)
        bare.vm.register_coalesced_mmio(0x60, 1, is_port=True)
        seen: list[int] = []
        while isinstance(exit := bare.run(), IoExit):
            seen += [write.data[0] for write in writes.drain()]
            seen += exit.data
        seen += [write.data[0] for write in writes.drain()]
        assert seen == [count & 0xFF for count in range(400, 0, -1)]


# ---- statistics ----


def test_vcpu_statistics() -> None:
    with BareVm("mov $10, %cx\nnext: out %al, $0x10\nloop next\nhlt") as bare:
        try:
            stats = bare.vcpu.get_stats_fd()
        except KvmError as error:
            pytest.skip(f"no binary statistics: {error}")
        with stats:
            assert "vcpu" in stats.id
            exits = stats.statistics["exits"]
            assert (exits.kind, exits.unit, exits.count) == ("cumulative", "", 1)
            before = stats.counters()
            for _ in range(10):
                assert isinstance(bare.run(), IoExit)
            bare.run_to_hlt()
            after = stats.counters()
            assert after["exits"] > before["exits"]
            histograms = [each for each in stats.statistics.values() if each.kind == "log_hist"]
            for each in histograms:
                assert len(stats.read()[each.name]) == each.count > 1


def test_vm_statistics() -> None:
    with BareVm() as bare:
        try:
            stats = bare.vm.get_stats_fd()
        except KvmError as error:
            pytest.skip(f"no binary statistics: {error}")
        with stats:
            values = stats.read()
            assert values.keys() == stats.statistics.keys()
            assert "remote_tlb_flush" in values
            assert all(value >= 0 for each in values.values() for value in each)
