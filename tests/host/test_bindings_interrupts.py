"""Interrupts: injected, through the controllers in the kernel, and by eventfd."""

from __future__ import annotations

import select
import threading

import pytest
from bare_vm import BareVm, irqchip, lapics

from pyvmm.errors import KvmError
from pyvmm.kvm.eventfd import EventFd
from pyvmm.kvm.exits import IoExit, IrqWindowExit, MmioExit
from pyvmm.kvm.irq_routing import IrqchipRoute, MsiRoute
from pyvmm.kvm.uapi import MpState
from pyvmm.kvm.vm import Vm
from pyvmm.native import ffi, lib

pytestmark = pytest.mark.usefixtures("no_leak")

# Vector 0x20 leads to `handler`; the main program then goes on.
HANDLER = """
    movw $handler, 0x20 * 4
    movw $0, 0x20 * 4 + 2
"""
# Says "here" at port 0x10.
HERE = "mov $1, %al\nout %al, $0x10\n"
HERE_EXIT = IoExit(0x10, 1, 1, True, b"\1")
REACHED_EXIT = IoExit(0x11, 1, 1, True, b"\1")

# The master PIC at vectors 0x20 and up, all lines open; the local APIC is in virtual-wire
# mode after reset. Lines of the IOAPIC are masked then.
PIC_SETUP = """
    mov $0x11, %al
    out %al, $0x20
    mov $0x20, %al
    out %al, $0x21
    mov $4, %al
    out %al, $0x21
    mov $1, %al
    out %al, $0x21
    mov $0, %al
    out %al, $0x21
"""
# Takes IRQ 0 to 7 at vectors 0x20 to 0x27; the handler ends the interrupt, then writes 0x11.
PIC_GUEST = (
    PIC_SETUP
    + """
    mov $0x20 * 4, %bx
    mov $8, %cx
fill:
    movw $handler, (%bx)
    movw $0, 2(%bx)
    add $4, %bx
    loop fill
"""
    + HERE
    + """
    sti
wait:
    jmp wait
handler:
    mov $0x20, %al
    out %al, $0x20
    mov $1, %al
    out %al, $0x11
    iret
"""
)


def test_interrupt_without_a_controller() -> None:
    """Ask for the window, inject when it opens, and see the handler run."""
    code = HANDLER + HERE + "sti\nwait: jmp wait\nhandler: mov $1, %al\nout %al, $0x11\nhlt"
    with BareVm(code) as bare:
        assert bare.run() == HERE_EXIT
        run = bare.vcpu.kvm_run
        run.request_interrupt_window = 1
        assert bare.run() == IrqWindowExit()
        assert run.ready_for_interrupt_injection
        assert run.if_flag
        run.request_interrupt_window = 0
        bare.vcpu.interrupt(0x20)
        assert bare.run() == REACHED_EXIT


def test_interrupt_needs_our_own_controller() -> None:
    """With a whole irqchip: with a split one KVM_INTERRUPT is how our PIC interrupts."""
    with BareVm(prepare=irqchip) as bare:
        with pytest.raises(KvmError, match="vector 0x20") as caught:
            bare.vcpu.interrupt(0x20)
        assert "irq_line" in caught.value.remedy


def test_nmi() -> None:
    with BareVm("again: jmp again") as bare:
        bare.vcpu.nmi()
        assert bare.run_to_stub() == 2


def test_irq_line() -> None:
    with BareVm(PIC_GUEST, prepare=irqchip) as bare:
        assert bare.run() == HERE_EXIT
        bare.vm.irq_line(3, True)
        assert bare.run() == REACHED_EXIT
        bare.vm.irq_line(3, False)
        assert bare.vm.irq_line_status(5, True) > 0
        assert bare.run() == REACHED_EXIT
        bare.vm.irq_line(5, False)


def test_irqfd() -> None:
    with BareVm(PIC_GUEST, prepare=irqchip) as bare, EventFd() as event:
        assert bare.run() == HERE_EXIT
        bare.vm.irqfd(event, 4)
        event.signal()
        assert bare.run() == REACHED_EXIT
        bare.vm.irqfd(event, 4, deassign=True)
        event.signal()
        assert event.take() == 1  # nobody listens any more
        bare.vm.irqfd(event, 4)
        with pytest.raises(KvmError, match="GSI 5") as caught:
            bare.vm.irqfd(event, 5)
        assert caught.value.remedy


def test_irqfd_with_resample() -> None:
    """The line stays up until the guest acknowledges, and that is signalled."""
    with BareVm(PIC_GUEST, prepare=irqchip) as bare, EventFd() as event, EventFd() as resample:
        if not bare.vm.has(lib.KVM_CAP_IRQFD_RESAMPLE):
            pytest.skip("no KVM_CAP_IRQFD_RESAMPLE")
        assert bare.run() == HERE_EXIT
        bare.vm.irqfd(event, 4, resample=resample)
        for _ in range(3):
            assert resample.take() == 0
            event.signal()
            assert bare.run() == REACHED_EXIT
            assert resample.take() == 1
        bare.vm.irqfd(event, 4, deassign=True)


def test_gsi_routing() -> None:
    """GSI 17 leads to the master PIC's line 6."""
    with BareVm(PIC_GUEST, prepare=irqchip) as bare:
        bare.vm.set_gsi_routing([IrqchipRoute(17, lib.KVM_IRQCHIP_PIC_MASTER, 6)])
        assert bare.run() == HERE_EXIT
        bare.vm.irq_line(17, True)
        assert bare.run() == REACHED_EXIT
        with pytest.raises(KvmError, match="1 routes"):
            bare.vm.set_gsi_routing([IrqchipRoute(1, 77, 0)])


MSI_ADDRESS = 0xFEE0_0000
MSI_GUEST = HANDLER + HERE + "sti\nwait: jmp wait\nhandler: mov $1, %al\nout %al, $0x11\nhlt"


def enable_lapic(bare: BareVm) -> None:
    lapic = bare.vcpu.get_lapic()
    # Spurious interrupt vector register, bit 8: the APIC is enabled.
    ffi.cast("uint32_t *", lapic.regs)[0xF0 // 4] |= 0x100
    bare.vcpu.set_lapic(lapic)


def test_msi() -> None:
    with BareVm(MSI_GUEST, prepare=lapics) as bare:
        enable_lapic(bare)
        assert bare.run() == HERE_EXIT
        assert bare.vm.signal_msi(MSI_ADDRESS, 0x20)
        assert bare.run() == REACHED_EXIT


def test_msi_behind_an_irqfd() -> None:
    with BareVm(MSI_GUEST, prepare=lapics) as bare, EventFd() as event:
        enable_lapic(bare)
        bare.vm.set_gsi_routing([MsiRoute(24, MSI_ADDRESS, 0x20)])
        bare.vm.irqfd(event, 24)
        assert bare.run() == HERE_EXIT
        event.signal()
        assert bare.run() == REACHED_EXIT


def test_split_irqchip() -> None:
    """LAPICs in the kernel, PIC and IOAPIC are not: their ports exit."""

    with BareVm("mov $1, %al\nout %al, $0x20\n" + MSI_GUEST, prepare=lapics) as bare:
        assert bare.run() == IoExit(0x20, 1, 1, True, b"\1")
        enable_lapic(bare)
        assert bare.run() == HERE_EXIT
        assert bare.vm.signal_msi(MSI_ADDRESS, 0x20)
        assert bare.run() == REACHED_EXIT
        with pytest.raises(KvmError):
            bare.vm.create_irqchip()


def test_irqchip_state() -> None:
    with BareVm(PIC_GUEST, prepare=irqchip) as bare:
        assert bare.run() == HERE_EXIT
        master = bare.vm.get_irqchip(lib.KVM_IRQCHIP_PIC_MASTER)
        assert (master.chip.pic.irq_base, master.chip.pic.imr) == (0x20, 0)
        master.chip.pic.imr = 0xFE
        bare.vm.set_irqchip(master)
        assert bare.vm.get_irqchip(lib.KVM_IRQCHIP_PIC_MASTER).chip.pic.imr == 0xFE
        ioapic = bare.vm.get_irqchip(lib.KVM_IRQCHIP_IOAPIC).chip.ioapic
        assert ioapic.base_address == 0xFEC0_0000
        assert ioapic.redirtbl[0].bits >> 16 & 1  # masked
        with pytest.raises(KvmError, match="chip 9"):
            bare.vm.get_irqchip(9)


def test_pit() -> None:
    def prepare(vm: Vm) -> None:
        irqchip(vm)
        vm.create_pit2()

    # Channel 0, mode 2, a count of 0x1000: about 290 Hz.
    program = """
        mov $0x34, %al
        out %al, $0x43
        mov $0, %al
        out %al, $0x40
        mov $0x10, %al
        out %al, $0x40
    """
    with BareVm(program + PIC_GUEST, prepare=prepare) as bare:
        bare.vm.reinject_control(False)
        assert bare.run() == HERE_EXIT
        state = bare.vm.get_pit2()
        assert (state.channels[0].count, state.channels[0].mode) == (0x1000, 2)
        assert bare.run() == REACHED_EXIT
        assert bare.run() == REACHED_EXIT
        state.channels[0].count = 0x2000
        bare.vm.set_pit2(state)
        assert bare.vm.get_pit2().channels[0].count == 0x2000


def test_what_needs_the_irqchip_says_so() -> None:
    with BareVm(prepare=irqchip):
        pass  # skips where there is none to need
    with BareVm() as bare:
        for call in (
            bare.vm.create_pit2,
            lambda: bare.vm.get_irqchip(0),
            lambda: bare.vm.irq_line(1, True),
            bare.vcpu.get_lapic,
        ):
            with pytest.raises(KvmError) as caught:
                call()
            assert "create_irqchip()" in caught.value.remedy


def test_a_halted_vcpu_is_woken() -> None:
    """With a controller in the kernel HLT waits there for an interrupt."""
    code = (
        HANDLER
        + HERE
        + "sti\nhlt\nmov $1, %al\nout %al, $0x12\nhandler: mov $1, %al\nout %al, $0x11\nhlt"
    )
    with BareVm(code, prepare=lapics) as bare, EventFd() as event:
        enable_lapic(bare)
        bare.vm.set_gsi_routing([MsiRoute(24, MSI_ADDRESS, 0x20)])
        bare.vm.irqfd(event, 24)
        assert bare.run() == HERE_EXIT
        timer = threading.Timer(0.02, event.signal)
        timer.start()
        assert bare.run() == REACHED_EXIT
        timer.join()
        assert bare.vcpu.get_mp_state() == MpState.RUNNABLE


# ---- ioeventfd ----


def readable(event: EventFd) -> bool:
    return bool(select.select([event], [], [], 0)[0])


def test_ioeventfd_on_a_port() -> None:
    code = "mov $7, %al\nout %al, $0x50\nmov $8, %al\nout %al, $0x50\nout %ax, $0x50\nhlt"
    with BareVm(code) as bare, EventFd() as event:
        bare.vm.ioeventfd(event, 0x50, 1, is_port=True, value=7)
        assert not readable(event)
        # The first write signals and does not exit; another value or width exits.
        assert bare.run() == IoExit(0x50, 1, 1, True, b"\x08")
        assert readable(event)
        assert event.take() == 1
        assert bare.run() == IoExit(0x50, 2, 1, True, b"\x08\x00")
        bare.run_to_hlt()
        with pytest.raises(KvmError, match="port 0x50"):
            bare.vm.ioeventfd(event, 0x50, 1, is_port=True, value=7)
        bare.vm.ioeventfd(event, 0x50, 1, is_port=True, value=7, deassign=True)


def test_ioeventfd_on_an_address() -> None:
    code = "mov $0x9000, %ax\nmov %ax, %ds\nmovb $1, 0x10\nmovb $1, 0x10\nmovb $2, 0x11\nhlt"
    with BareVm(code) as bare, EventFd() as event:
        bare.vm.ioeventfd(event, 0x90010, 1)
        assert bare.run() == MmioExit(0x90011, 1, True, b"\2")
        assert event.take() == 2
        bare.vm.ioeventfd(event, 0x90010, 1, deassign=True)


def test_lapic_registers() -> None:
    with BareVm(prepare=lapics) as bare:
        lapic = bare.vcpu.get_lapic()
        registers = ffi.cast("uint32_t *", lapic.regs)
        assert registers[0x20 // 4] >> 24 == 0  # the APIC's id
        registers[0x80 // 4] = 0x30  # task priority
        bare.vcpu.set_lapic(lapic)
        assert ffi.cast("uint32_t *", bare.vcpu.get_lapic().regs)[0x80 // 4] == 0x30
        bare.vcpu.tpr_access_reporting(True)
        bare.vcpu.tpr_access_reporting(False)
