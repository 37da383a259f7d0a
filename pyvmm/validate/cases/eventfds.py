"""eventfds: what a guest's write signals (KVM_IOEVENTFD), what raises interrupts (KVM_IRQFD)."""

from __future__ import annotations

import errno

from pyvmm.kvm.eventfd import EventFd
from pyvmm.kvm.memfd import Memfd
from pyvmm.kvm.vm import Vm
from pyvmm.native import ffi, lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.case import GIB, PAGE, case
from pyvmm.validate.kit.check import errno_name, errno_of, expect, expect_errno
from pyvmm.validate.kit.known import EVENTFD_OF_TWO_VMS, Known
from pyvmm.validate.kit.toolbox import Toolbox

GPA = 5 * GIB
GSI = 5
EINVAL, EBUSY, EEXIST = errno.EINVAL, errno.EBUSY, errno.EEXIST


def with_irqchip(tools: Toolbox) -> Vm:
    vm = tools.keep(tools.kvm.create_vm(0))
    vm.create_irqchip()
    return vm


@case("EV1", "KVM_IRQFD: what is wrong is refused; an eventfd raises one interrupt in its VM")
def irqfd(tools: Toolbox) -> None:
    bare = tools.keep(tools.kvm.create_vm(0))
    event = tools.keep(EventFd())
    expect_errno(
        lambda: bare.irqfd(event, GSI), EINVAL, "KVM_IRQFD without an interrupt controller"
    )
    vm = with_irqchip(tools)
    file = tools.keep(Memfd("no eventfd", PAGE))
    for what, fd, flags, wanted in (
        ("a descriptor that is none", 0xFFFF_FFFF, 0, errno.EBADF),
        ("a file that is no eventfd", file.fileno(), 0, EINVAL),
        ("unknown flags", event.fileno(), 1 << 2, EINVAL),
        ("unknown flags", event.fileno(), 1 << 31, EINVAL),
        ("a resample descriptor that is none", event.fileno(), lib.KVM_IRQFD_FLAG_RESAMPLE, None),
    ):
        request = ffi.new("struct kvm_irqfd *", {"fd": fd, "gsi": GSI, "flags": flags})
        request.resamplefd = file.fileno()
        expect_errno(
            lambda request=request: vm.ioctl("KVM_IRQFD", request),  # type: ignore[misc]
            EINVAL if wanted is None else wanted,
            f"KVM_IRQFD with {what}",
        )
    vm.irqfd(event, GSI)
    for gsi in (GSI, GSI + 1):
        expect_errno(lambda gsi=gsi: vm.irqfd(event, gsi), EBUSY, f"GSI {gsi} for the same eventfd")  # type: ignore[misc]
    event.signal()
    expect(event.take(), 0, "what is left of a signal that KVM took")
    vm.irqfd(event, GSI, deassign=True)
    event.signal()
    expect(event.take(), 1, "what is left of a signal that nobody takes any more")
    vm.irqfd(event, GSI + 1)


@case("EV2", "an eventfd that raises interrupts in one VM does so in no other VM")
def of_another_vm(tools: Toolbox) -> None:
    one, other = with_irqchip(tools), with_irqchip(tools)
    event = tools.keep(EventFd())
    one.irqfd(event, GSI)
    seen = errno_of(lambda: other.irqfd(event, GSI))
    if seen == 0:
        raise Known(
            EVENTFD_OF_TWO_VMS,
            "KVM_IRQFD takes an eventfd that raises interrupts in another VM, and that VM alone "
            "will hear of it",
        )
    expect(errno_name(seen), "EBUSY", "KVM_IRQFD with an eventfd of another VM")
    one.irqfd(event, GSI, deassign=True)
    expect_errno(lambda: other.irqfd(event, GSI), 0, "KVM_IRQFD when the other VM has let it go")
    other.close()
    expect_errno(lambda: one.irqfd(event, GSI), 0, "KVM_IRQFD when the other VM is closed")


@case("EV3", "KVM_IOEVENTFD: what is wrong is refused, and changes nothing")
def wrong_ioeventfds(tools: Toolbox) -> None:
    vm = tools.keep(tools.kvm.create_vm(0))
    event = tools.keep(EventFd())
    match = lib.KVM_IOEVENTFD_FLAG_DATAMATCH
    for what, address, size, flags, wanted in (
        ("3 bytes", GPA, 3, 0, EINVAL),
        ("16 bytes", GPA, 16, 0, EINVAL),
        ("2^31 bytes", GPA, 1 << 31, 0, EINVAL),
        ("a range that wraps", (1 << 64) - 4, 8, 0, EINVAL),
        ("an unknown flag", GPA, 4, 1 << 5, EINVAL),
        ("a value for any size", GPA, 0, match, EINVAL),
        ("nothing there to take away", GPA, 4, lib.KVM_IOEVENTFD_FLAG_DEASSIGN, errno.ENOENT),
    ):
        request = ffi.new("struct kvm_ioeventfd *", {"addr": address, "len": size, "flags": flags})
        request.fd = event.fileno()
        expect_errno(
            lambda request=request: vm.ioctl("KVM_IOEVENTFD", request),  # type: ignore[misc]
            wanted,
            f"KVM_IOEVENTFD with {what}",
        )
    for size in (0, 1, 2, 4, 8):
        at = GPA + size * PAGE
        vm.ioeventfd(event, at, size)
        expect_errno(
            lambda at=at, size=size: vm.ioeventfd(event, at, size),  # type: ignore[misc]
            EEXIST,
            f"the same {size} bytes again",
        )
        vm.ioeventfd(event, at, size, deassign=True)
        vm.ioeventfd(event, at, size)


@case("EV4", "a write of the right size and value signals, and any other exits", needs=("guests",))
def signalled(tools: Toolbox) -> None:
    vm = tools.vm()
    one, any_size = tools.keep(EventFd()), tools.keep(EventFd())
    vm.vm.ioeventfd(one, GPA, 4, value=0x55)
    vm.vm.ioeventfd(any_size, GPA + PAGE, 0)
    for what, gpa, size, value, event in (
        ("the right write", GPA, 4, 0x55, one),
        ("another value", GPA, 4, 0x56, None),
        ("another size", GPA, 8, 0x55, None),
        ("another size", GPA, 2, 0x55, None),
        ("another address", GPA + 4, 4, 0x55, None),
        ("8 bytes where any size does", GPA + PAGE, 8, 0x99, any_size),
        ("a byte where any size does", GPA + PAGE, 1, 0, any_size),
    ):
        outcome = vm.cpu.run(routines.WRITE[size], rdi=gpa, rax=value)
        reason = lib.KVM_EXIT_HLT if event else lib.KVM_EXIT_MMIO
        expect(outcome.reason, reason, f"exit reason of {what}")
        if event is None:
            vm.cpu.finish(f"after {what}")
        expect(one.take(), int(event is one), f"the first counter after {what}")
        expect(any_size.take(), int(event is any_size), f"the second counter after {what}")
    vm.vm.ioeventfd(one, GPA, 4, value=0x55, deassign=True)
    outcome = vm.cpu.run(routines.WRITE[4], rdi=GPA, rax=0x55)
    expect(outcome.reason, lib.KVM_EXIT_MMIO, "exit reason when the eventfd was taken away")
