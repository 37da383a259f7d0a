"""A call that the kernel refuses: the error names the one rule that was broken, or none.

Each row is a mistake that somebody could make. What a kernel accepts is no mistake there: the
row is then left out, and counted.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from pyvmm.errors import KvmError, PyvmmError, UnsupportedError
from pyvmm.kvm import Kvm
from pyvmm.kvm.cpuid import cpuid_entries, cpuid_table
from pyvmm.kvm.dirty_log import DirtyBitmap
from pyvmm.kvm.eventfd import EventFd
from pyvmm.kvm.fd import Fd
from pyvmm.kvm.irq_routing import IrqchipRoute, MsiRoute
from pyvmm.kvm.mapping import Mapping
from pyvmm.kvm.memfd import Memfd
from pyvmm.loop.vcpu_loop import VcpuLoop
from pyvmm.native import ffi, lib

pytestmark = pytest.mark.usefixtures("no_leak")

PAGE = 0x1000
CR0_PE, CR0_NW, CR0_PG = 1 << 0, 1 << 29, 1 << 31
CR4_PAE, OSXSAVE = 1 << 5, 1 << 18
LME, LMA, SVME = 1 << 8, 1 << 10, 1 << 12


class Scene:
    """What rows may use: a VM with slot 0 at 0-0x3fff, memory, and descriptors."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.kvm = stack.enter_context(Kvm())
        self.memory = Mapping(0x20000)
        stack.callback(self.memory.close)
        self.vm = stack.enter_context(self.kvm.create_vm())
        self.at = self.memory.address
        self.vm.set_user_memory_region(0, 0, 4 * PAGE, self.at)
        self.event = stack.enter_context(EventFd())
        self.file = stack.enter_context(Memfd("plain", PAGE))
        self.null = stack.enter_context(Fd(os.open("/dev/null", os.O_RDWR), "null"))

    def vcpu(self, index: int = 0) -> Any:
        vcpu = self.stack.enter_context(self.vm.create_vcpu(index))
        vcpu.set_cpuid2(self.kvm.get_supported_cpuid())
        return vcpu

    def need(self, capability: str) -> None:
        if not self.vm.has(getattr(lib, capability)):
            pytest.skip(f"no {capability}")

    def sregs(self, **changes: int) -> None:
        vcpu = self.vcpu()
        sregs = vcpu.get_sregs()
        for name, value in changes.items():
            if name == "l":
                sregs.cs.l = value
            else:
                setattr(sregs, name, value)
        vcpu.set_sregs(sregs)


@pytest.fixture
def scene() -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(stack)


def slot(*arguments: int) -> Callable[[Scene], object]:
    """The arguments of set_user_memory_region(); the address is counted from our memory."""

    def call(scene: Scene) -> None:
        number, gpa, size, at, *flags = arguments
        scene.vm.set_user_memory_region(number, gpa, size, scene.at + at, *flags)

    return call


def slot2(*arguments: int) -> Callable[[Scene], object]:
    def call(scene: Scene) -> None:
        scene.need("KVM_CAP_USER_MEMORY2")
        number, gpa, size, at, *rest = arguments
        scene.vm.set_user_memory_region2(number, gpa, size, scene.at + at, *rest)

    return call


def twice(*what: Callable[[Scene], object]) -> Callable[[Scene], object]:
    def call(scene: Scene) -> None:
        for each in what:
            each(scene)

    return call


FILE = lib.KVM_MEM_GUEST_MEMFD
TOP = (1 << 64) - PAGE


def chip(scene: Scene) -> None:
    try:
        scene.vm.create_irqchip()
    except KvmError as error:
        if error.errno != errno.ENOTTY:
            raise
        pytest.skip("no KVM_CREATE_IRQCHIP")


def split(scene: Scene) -> None:
    scene.need("KVM_CAP_SPLIT_IRQCHIP")
    scene.vm.split_irqchip()


def lacks_cpuid(**changes: int) -> Callable[[Scene], object]:
    def call(scene: Scene) -> None:
        vcpu = scene.stack.enter_context(scene.vm.create_vcpu(0))
        sregs = vcpu.get_sregs()
        for name, value in changes.items():
            setattr(sregs, name, value)
        vcpu.set_sregs(sregs)

    return call


def too_many_zones(scene: Scene) -> None:
    for at in range(4096):
        scene.vm.register_coalesced_mmio(0x1000_0000 + 8 * at, 4)


def run_once(scene: Scene) -> Any:
    vcpu = scene.vcpu()
    loop = VcpuLoop(vcpu)
    loop.kick()
    loop.run()
    vcpu.kvm_run.immediate_exit = 1
    with pytest.raises(KvmError):
        vcpu.run()
    loop.close()
    return vcpu


def cpuid_after_a_run(scene: Scene) -> None:
    vcpu = run_once(scene)
    vcpu.set_cpuid2(cpuid_table(list(cpuid_entries(scene.kvm.get_supported_cpuid()))[:2]))


def odd_addresses(scene: Scene) -> None:
    vcpu = scene.stack.enter_context(scene.vm.create_vcpu(0))
    entries = list(cpuid_entries(scene.kvm.get_supported_cpuid()))
    odd = type(entries[0])(0x8000_0008, 0, 0, 0x2F2F, 0, 0, 0)
    vcpu.set_cpuid2(
        cpuid_table([each for each in entries if each.function != odd.function] + [odd])
    )


def dirty(scene: Scene, first: int, pages: int) -> None:
    scene.vm.set_user_memory_region(1, 0x10000, 0x8000, scene.at, lib.KVM_MEM_LOG_DIRTY_PAGES)
    scene.need("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2")
    scene.vm.clear_dirty_log(1, DirtyBitmap(first, pages, b""))


def raw_log(scene: Scene, number: int) -> None:
    bits = ffi.new("char[4096]")
    scene.vm.ioctl(
        "KVM_GET_DIRTY_LOG",
        ffi.new("struct kvm_dirty_log *", {"slot": number, "dirty_bitmap": bits}),
    )


def io(*arguments: Any, **options: Any) -> Callable[[Scene], object]:
    return lambda scene: scene.vm.ioeventfd(scene.event, *arguments, **options)


def routes(*table: Any) -> Callable[[Scene], object]:
    return lambda scene: scene.vm.set_gsi_routing(table)


def attributes(*arguments: int) -> Callable[[Scene], object]:
    return lambda scene: scene.vm.set_memory_attributes(*arguments)


def create_file(size: int, flags: int = 0) -> Callable[[Scene], object]:
    def call(scene: Scene) -> None:
        scene.stack.enter_context(scene.vm.create_guest_memfd(size, flags))

    return call


def pre_fault(gpa: int, size: int, flags: int = 0) -> Callable[[Scene], object]:
    return lambda scene: scene.vcpu().pre_fault_memory(gpa, size, flags)


def bind(descriptor: str) -> Callable[[Scene], object]:
    def call(scene: Scene) -> None:
        scene.need("KVM_CAP_GUEST_MEMFD")
        fd = 1_000_000 if descriptor == "closed" else getattr(scene, descriptor).fileno()
        scene.vm.set_user_memory_region2(5, 0x40000, PAGE, scene.at, FILE, fd)

    return call


def cap(capability: str, *arguments: int, flags: int = 0) -> Callable[[Scene], object]:
    return lambda scene: scene.vm.enable_cap(getattr(lib, capability), *arguments, flags=flags)


# What is done, and the words that name the rule.
ROWS: dict[str, tuple[Callable[[Scene], object], str]] = {
    # KVM_SET_USER_MEMORY_REGION
    "it grows": (slot(0, 0, 8 * PAGE, 0), "slot 0 exists.*size cannot change: delete it first"),
    "it shrinks": (slot(0, 0, PAGE, 0), "slot 0 exists.*size cannot change"),
    "its address": (slot(0, 0, 4 * PAGE, PAGE), "slot 0 exists.*userspace_addr cannot change"),
    "both": (slot(0, 0, PAGE, PAGE), "its size and its userspace_addr cannot change"),
    "read-only": (slot(0, 0, 4 * PAGE, 0, lib.KVM_MEM_READONLY), "KVM_MEM_READONLY cannot change"),
    "40000": (slot(40000, 0x10000, PAGE, 0), "slots are numbered below 32764"),
    "space": (slot(9 << 16, 0x10000, PAGE, 0), "address space 9, and this VM has"),
    "no slot": (slot(9, 0, 0, 0), "there is no slot 9 to delete"),
    "wraps": (slot(3, TOP, 2 * PAGE, 0), "wraps past 64 bits"),
    "overlap": (
        slot(7, 0x1000, 2 * PAGE, 0),
        "slot 7: GPA 0x1000-0x2fff overlaps slot 0 at 0x0-0x3fff",
    ),
    "moved onto": (
        twice(slot(1, 0x10000, PAGE, 0), slot(1, 0x3000, PAGE, 0)),
        "slot 1: GPA 0x3000-0x3fff overlaps slot 0",
    ),
    "gpa": (slot(3, 0x10001, PAGE, 0), "guest_phys_addr 0x10001 is not page aligned"),
    "size": (slot(3, 0x10000, 0x123, 0), "memory_size 0x123 is not page aligned"),
    "address": (slot(3, 0x10000, PAGE, 5), r"userspace_addr 0x\w+005 is not page aligned"),
    "kernel's": (
        lambda scene: scene.vm.set_user_memory_region(3, 0x10000, PAGE, 1 << 63),
        "userspace_addr 0x8000000000000000 and what follows is no user memory",
    ),
    "flags": (slot(3, 0x10000, PAGE, 0, 1 << 9), "does not know flags 0x200"),
    "file": (slot(3, 0x10000, PAGE, 0, FILE), "bound by KVM_SET_USER_MEMORY_REGION2"),
    "beyond": (slot(3, 1 << 52, PAGE, 0), "beyond the .* bits of this CPU"),
    # KVM_SET_USER_MEMORY_REGION2
    "2: grows": (slot2(0, 0, 8 * PAGE, 0), "slot 0 exists.*size cannot change"),
    "2: overlap": (slot2(7, 0x1000, PAGE, 0), "overlaps slot 0 at 0x0-0x3fff"),
    "2: flags": (slot2(7, 0x10000, PAGE, 0, 1 << 30), "does not know flags 0x40000000"),
    "2: logged": (
        slot2(7, 0x10000, PAGE, 0, FILE | lib.KVM_MEM_LOG_DIRTY_PAGES, -1),
        "KVM_MEM_LOG_DIRTY_PAGES cannot be had together|have no guest_memfd here",
    ),
    "2: not open": (bind("closed"), "guest_memfd descriptor 1000000 is not open"),
    "2: null": (bind("null"), r"\(/dev/null\) is no guest_memfd"),
    "2: memfd": (bind("file"), r"memfd:plain.*is no guest_memfd"),
    # KVM_SET_MEMORY_ATTRIBUTES, KVM_CREATE_GUEST_MEMFD
    "attributes": (
        attributes(0, PAGE, lib.KVM_MEMORY_ATTRIBUTE_PRIVATE),
        "no memory attributes|needs a VM of type 1.*this one is of type 0",
    ),
    "file's size": (create_file(PAGE + 1), "size 0x1001 is not page aligned|no guest_memfd"),
    "no size": (create_file(0), "size is 0|no guest_memfd"),
    "negative": (create_file(1 << 63), "negative to the kernel|no guest_memfd"),
    "file's flags": (
        create_file(PAGE, 1 << 40),
        "flags 0x10000000000 are not known|no guest_memfd",
    ),
    # KVM_CREATE_VCPU and what must come before
    "same id": (
        twice(lambda scene: scene.vcpu().close(), lambda scene: scene.vcpu()),
        "vCPU id 0 exists already, and stays until the VM is closed",
    ),
    "large id": (lambda scene: scene.vm.create_vcpu(1 << 20), r"vCPU ids are below \d+"),
    "identity map": (
        twice(lambda scene: scene.vcpu(), lambda scene: scene.vm.set_identity_map_addr(0)),
        "must come before the first vCPU",
    ),
    "boot cpu": (
        twice(lambda scene: scene.vcpu(), lambda scene: scene.vm.set_boot_cpu_id(0)),
        "must come before the first vCPU",
    ),
    "tss": (lambda scene: scene.vm.set_tss_addr(0xFFFFF000), "do not end below 4 GiB"),
    # KVM_SET_SREGS, KVM_SET_CPUID2
    "pg": (lambda scene: scene.sregs(cr0=CR0_PG), "CR0.PG is set without CR0.PE"),
    "nw": (lambda scene: scene.sregs(cr0=CR0_PE | CR0_NW), "CR0.NW is set without CR0.CD"),
    "cr0": (lambda scene: scene.sregs(cr0=1 << 32), "CR0 0x100000000 has bits above 31"),
    "pae": (
        lambda scene: scene.sregs(cr0=CR0_PE | CR0_PG, efer=LME | LMA),
        "EFER.LME and CR0.PG are set without CR4.PAE",
    ),
    "lma": (
        lambda scene: scene.sregs(cr0=CR0_PE | CR0_PG, cr4=CR4_PAE, efer=LME),
        "EFER.LME and CR0.PG are set without EFER.LMA",
    ),
    "no lme": (lambda scene: scene.sregs(efer=LMA), "EFER.LMA is set without EFER.LME"),
    "cs.l": (lambda scene: scene.sregs(l=1), "CS.L is set outside of long mode"),
    "cr3": (
        lambda scene: scene.sregs(cr0=CR0_PE | CR0_PG, cr3=1 << 62, cr4=CR4_PAE, efer=LME | LMA),
        "CR3 0x4000000000000000 is beyond the vCPU's .* bits",
    ),
    "cr4": (lambda scene: scene.sregs(cr4=1 << 63), "CR4 0x8000000000000000 has bits"),
    "long mode without CPUID": (
        lacks_cpuid(cr0=CR0_PE | CR0_PG, cr4=CR4_PAE, efer=LME | LMA),
        "EFER.LME needs bit 29 of EDX of CPUID leaf 0x80000001.*call set_cpuid2.* first",
    ),
    "apic, and a bit that a vCPU without CPUID may have": (
        lacks_cpuid(efer=SVME, apic_base=0xFEE00400),
        "x2APIC .*without the APIC's enable",
    ),
    "apic": (lambda scene: scene.sregs(apic_base=0xFEE00400), "x2APIC .*without the APIC's enable"),
    "cpuid": (cpuid_after_a_run, "vCPU 0 has run: its CPUID cannot change"),
    "cpuid's addresses": (odd_addresses, "leaf 0x80000008 says 47 bits"),
    "too much": (
        lambda scene: scene.vcpu().set_cpuid2(
            cpuid_table(list(cpuid_entries(scene.kvm.get_supported_cpuid()))[:1] * 2000)
        ),
        "2000 entries are more than this KVM takes",
    ),
    # KVM_IOEVENTFD, KVM_IRQFD, KVM_SIGNAL_MSI, KVM_REGISTER_COALESCED_MMIO
    "msi": (lambda scene: scene.vm.signal_msi(0xFEE00000, 0), "needs an interrupt controller"),
    "zones": (too_many_zones, "as many zones and devices as KVM takes: unregister some"),
    "three bytes": (io(0x50, 3, is_port=True), "size 3 is none of 0"),
    "io wraps": (io((1 << 64) - 1, 4), "4 bytes from 0xffffffffffffffff wrap"),
    "io value": (io(0x50, 0, is_port=True, value=1), "a value needs a size"),
    "io again": (
        twice(io(0x50, 1, is_port=True, value=7), io(0x50, 1, is_port=True)),
        "signalled for port 0x50, 1 bytes, value 0x7 already",
    ),
    "io none": (io(0x50, 1, is_port=True, deassign=True), "no ioeventfd for port 0x50, 1 bytes"),
    "io other": (
        twice(io(0x50, 1, is_port=True), io(0x50, 2, is_port=True, deassign=True)),
        "none for port 0x50, 2 bytes, but one for port 0x50, 1 bytes",
    ),
    "io null": (
        lambda scene: scene.vm.ioeventfd(scene.null, 0x50, 1),
        r"\(/dev/null\) is no eventfd",
    ),
    "irqfd alone": (
        lambda scene: scene.vm.irqfd(scene.event, 1),
        "needs an interrupt controller in the kernel",
    ),
    "irqfd null": (
        twice(split, lambda scene: scene.vm.irqfd(scene.null, 1)),
        r"\(/dev/null\) is no eventfd",
    ),
    "irqfd again": (
        twice(split, *[lambda scene: scene.vm.irqfd(scene.event, 1)] * 2),
        "raises an interrupt already",
    ),
    "irqfd resample": (
        twice(split, lambda scene: scene.vm.irqfd(scene.event, 1, resample=scene.event)),
        "resampling needs the IOAPIC",
    ),
    # interrupt controllers
    "chip twice": (twice(chip, chip), "has an interrupt controller already"),
    "chip after split": (twice(split, chip), "already by split_irqchip|CONFIG_KVM_IOAPIC"),
    "chip after vCPU": (twice(lambda scene: scene.vcpu(), chip), "before the first vCPU"),
    "split twice": (twice(split, split), r"controller in the kernel already \(split\)"),
    "split late": (twice(lambda scene: scene.vcpu(), split), "before the first vCPU"),
    "split pins": (cap("KVM_CAP_SPLIT_IRQCHIP", 1 << 20), "at most .* pins"),
    "pit alone": (lambda scene: scene.vm.create_pit2(), "create_irqchip"),
    "pit split": (twice(split, lambda scene: scene.vm.create_pit2()), "has no PIC in the kernel"),
    "pit twice": (
        twice(chip, *[lambda scene: scene.vm.create_pit2()] * 2),
        "has a PIT already",
    ),
    "chip 9": (twice(chip, lambda scene: scene.vm.get_irqchip(9)), "chip 9 is none of"),
    "chip of split": (twice(split, lambda scene: scene.vm.get_irqchip(0)), "split_irqchip"),
    "routes alone": (routes(MsiRoute(1, 0, 0)), "needs an interrupt controller"),
    "gsi": (twice(split, routes(MsiRoute(1 << 16, 0, 0))), "route 0: GSIs are below"),
    "double": (
        twice(split, routes(MsiRoute(1, 0, 0), MsiRoute(1, 0, 0))),
        "route 1: GSI 1 has route 0 already",
    ),
    "pin of split": (twice(split, routes(IrqchipRoute(1, 0, 1))), "leads to a pin"),
    "pin": (
        twice(chip, routes(MsiRoute(5, 0, 0), IrqchipRoute(1, 0, 8))),
        "route 1: irqchip 0 has 8 pins, and no pin 8",
    ),
    "irqchip": (twice(chip, routes(IrqchipRoute(1, 7, 1))), "route 0: there is no irqchip 7"),
    "lapic alone": (lambda scene: scene.vcpu().get_lapic(), "create_irqchip.*split_irqchip"),
    "vector": (lambda scene: scene.vcpu().interrupt(256), "vector 0x100 is not from 0 to 0xff"),
    # capabilities
    "no such capability": (
        lambda scene: scene.vm.enable_cap(0x7FFF_FFFF),
        "this VM does not have capability 2147483647",
    ),
    "flags of a capability": (cap("KVM_CAP_SPLIT_IRQCHIP", 24, flags=1), "flags 0x1 must be 0"),
    "bits": (cap("KVM_CAP_DISABLE_QUIRKS2", 1 << 50), "has bits 0x4000000000000"),
    "ring": (cap("KVM_CAP_DIRTY_LOG_RING", 4097), "4097 bytes is no power of two"),
    "small ring": (cap("KVM_CAP_DIRTY_LOG_RING", 512), "less than a page"),
    "late ring": (
        twice(lambda scene: scene.vcpu(), cap("KVM_CAP_DIRTY_LOG_RING", 1 << 16)),
        "before the first vCPU",
    ),
    "ring twice": (
        twice(*[cap("KVM_CAP_DIRTY_LOG_RING", 1 << 16)] * 2),
        "has its size already",
    ),
    # dirty logs, pre-faulting
    "no flag": (
        lambda scene: scene.vm.get_dirty_log(0, 4),
        "slot 0 was made without KVM_MEM_LOG_DIRTY_PAGES",
    ),
    "log of 40000": (lambda scene: raw_log(scene, 40000), "numbered below 32764"),
    "first page": (lambda scene: dirty(scene, 3, 1), "first page 3 is no multiple of 64"),
    "past": (lambda scene: dirty(scene, 0, 64), "pages 0 to 63 reach past the slot's 8"),
    "few": (lambda scene: dirty(scene, 0, 3), "3 pages, no multiple of 64"),
    "no slot there": (pre_fault(1 << 30, PAGE), "no memslot at GPA 0x40000000|two-dimensional"),
    "pre-fault 0": (pre_fault(0, 0), "size is 0|two-dimensional"),
    "pre-fault odd": (pre_fault(1, PAGE), "GPA 0x1 is not page aligned|two-dimensional"),
    "pre-fault flags": (pre_fault(0, PAGE, 1), "flags 0x1 must be 0|two-dimensional"),
    # the wrong descriptor
    "run a VM": (lambda scene: scene.vm.ioctl("KVM_RUN"), "is an ioctl of a vCPU, not of a VM"),
    "slot of a vCPU": (
        lambda scene: scene.vcpu().ioctl("KVM_CREATE_IRQCHIP"),
        "is an ioctl of a VM, not of a vCPU",
    ),
    "regs of /dev/kvm": (
        lambda scene: scene.kvm.ioctl("KVM_CREATE_VCPU", 0),
        "is an ioctl of a VM, not of /dev/kvm",
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_the_rule_is_named(scene: Scene, row: str) -> None:
    call, words = ROWS[row]
    try:
        call(scene)
    except KvmError as error:
        assert re.search(words, error.remedy), str(error)
    else:
        pytest.skip("this KVM accepts it")


def test_what_cannot_be_told_has_no_advice(scene: Scene) -> None:
    # A raw slot is not known here: what is wrong with a change of it is not either.
    made = ffi.new("struct kvm_userspace_memory_region *", (5, 0, 0x100000, PAGE, scene.at))
    scene.vm.ioctl("KVM_SET_USER_MEMORY_REGION", made)
    with pytest.raises(KvmError) as caught:
        scene.vm.set_user_memory_region(5, 0x100000, 2 * PAGE, scene.at)
    assert caught.value.remedy == ""
    with pytest.raises(KvmError) as caught:
        scene.vm.set_user_memory_region(6, 0x100000, PAGE, scene.at)
    assert "that this Vm's methods did not make" in caught.value.remedy
    # Bytes are not looked into.
    with pytest.raises(KvmError) as caught:
        scene.vm.ioctl("KVM_SET_USER_MEMORY_REGION", bytes([9] + [0] * 31))
    assert (caught.value.errno, caught.value.remedy) == (errno.EINVAL, "")


def test_a_slot_that_was_deleted_is_forgotten(scene: Scene) -> None:
    scene.vm.set_user_memory_region(0, 0, 0, 0)
    scene.vm.set_user_memory_region(0, 0, 8 * PAGE, scene.at)
    with pytest.raises(KvmError, match="there is no slot 4 to delete"):
        scene.vm.set_user_memory_region(4, 0, 0, 0)


def test_a_bit_that_the_vcpu_has_is_not_to_blame(scene: Scene) -> None:
    vcpu = scene.stack.enter_context(scene.vm.create_vcpu(0))
    sregs = vcpu.get_sregs()
    sregs.cr4 |= OSXSAVE
    try:
        vcpu.set_sregs(sregs)
    except KvmError:
        pytest.skip("this KVM looks at CPUID")
    sregs.cr4 |= 1 << 19  # which KVM lets nobody have, for another reason
    with pytest.raises(KvmError) as caught:
        vcpu.set_sregs(sregs)
    assert "OSXSAVE" not in caught.value.remedy


def test_a_list_of_msrs_that_stops_says_where(scene: Scene) -> None:
    vcpu = scene.vcpu()
    with pytest.raises(UnsupportedError, match="MSR 0xdead0000: KVM_GET_MSRS refused") as caught:
        vcpu.get_msrs([0x174, 0xDEAD0000, 0x175])
    assert "number 1 of the list" in str(caught.value)
    with pytest.raises(UnsupportedError, match="MSR 0xdead0000: KVM_SET_MSRS refused") as caught:
        vcpu.set_msrs({0x174: 5, 0xDEAD0000: 0xAB, 0x175: 9})
    for part in ("value 0xab", "number 1 of the list", "1 are written, 2 are not"):
        assert part in str(caught.value)
    assert vcpu.get_msrs([0x174, 0x175]) == {0x174: 5, 0x175: 0}
    many = dict.fromkeys(range(0x400), 0)
    with pytest.raises(PyvmmError, match="MSR 0x"):
        vcpu.set_msrs(many)
