"""KVM's own accesses to memory that converts in place.

KVM reads and writes guest memory itself, through the slot's host address: clocks, steal time,
interrupt flags, string I/O. All of it must reach shared pages, and none a page that is private.
"""

from __future__ import annotations

from pyvmm.kvm.mapping import PROT_NONE, Mapping
from pyvmm.native import ffi, lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.case import GIB, PAGE, case
from pyvmm.validate.kit.check import Missing, check, errno_name, expect
from pyvmm.validate.kit.guest import Cpu, Outcome
from pyvmm.validate.kit.in_place import InPlace
from pyvmm.validate.kit.patterns import PRIVATE
from pyvmm.validate.kit.toolbox import Toolbox

NEEDS = ("in_place",)
BACKEND = "in_place"
GPA, PAGES = 4 * GIB, 8
SIZE = PAGES * PAGE
PORT = 0x77
# <asm/kvm_para.h>: the MSR, and the bits beside the address that switch it on.
_MSRS = {
    "clock": (0x4B564D01, 1),
    "wall clock": (0x4B564D00, 0),
    "async page faults": (0x4B564D02, 1),
    "steal time": (0x4B564D03, 1),
    "end of interrupt": (0x4B564D04, 1),
}
# KVM writes these at the latest when the guest is entered.
_WRITTEN_AT_ENTRY = ("clock", "wall clock", "steal time")


def write_msr(cpu: Cpu, msr: int, value: int) -> bool:
    """Let the guest write an MSR; False where it gets an exception (a triple fault)."""
    cpu.prepare(routines.WRMSR, rcx=msr, rax=value & 0xFFFFFFFF, rdx=value >> 32)
    return cpu.enter().reason == lib.KVM_EXIT_HLT


@case(
    "IP60",
    "what KVM writes by itself reaches a shared page, and not one that became private",
    needs=NEEDS,
    backend=BACKEND,
    vary={"what": tuple(_MSRS)},
)
def written_by_kvm(tools: Toolbox, what: str) -> None:
    memory = InPlace(tools, tools.private_vm(), GPA, SIZE)
    vm, cpu = memory.vm, memory.vm.cpu
    msr, on = _MSRS[what]
    cpu.fill(GPA, PAGE, PRIVATE, 8)
    memory.to_private(0, PAGE)
    memory.to_shared(0, PAGE)
    if not write_msr(cpu, msr, GPA | on):
        raise Missing(f"KVM's {what} (MSR {msr:#x})")

    def use() -> None:
        """Make KVM write: by entries, and by a clock that was set."""
        clock = ffi.new("struct kvm_clock_data *")
        vm.vm.ioctl("KVM_GET_CLOCK", clock)
        clock.flags = 0
        clock.clock += 1_000_000
        vm.vm.ioctl("KVM_SET_CLOCK", clock)
        for _ in range(4):
            cpu.read(0x9000)
        write_msr(cpu, msr, GPA | on)

    def use_shared() -> None:
        cpu.fill(GPA, PAGE, PRIVATE, 8)
        before = memory.host.read(0, PAGE)
        use()
        if what in _WRITTEN_AT_ENTRY:
            written = memory.host.read(0, PAGE) != before
            check(written, f"KVM's {what} is not written to a shared page of a guest_memfd")

    use_shared()
    cpu.fill(GPA, PAGE, PRIVATE, 8)
    answer = memory.ask(0, PAGE, True)
    expect(errno_name(answer.error), "success", f"a page that KVM's {what} uses, to private")
    for attempt in range(3):
        if attempt:
            cpu.fill(GPA, PAGE, PRIVATE, 8)
        use()
        cpu.expect_filled(GPA, PAGE, PRIVATE, f"a private page that KVM's {what} is to be in", 8)
    memory.expect_refused(0, PAGE, f"a private page that KVM's {what} is to be in")
    memory.to_shared(0, PAGE)
    use_shared()


@case(
    "IP61",
    "string I/O that KVM emulates reads and writes shared pages, and no private one",
    needs=(*NEEDS, "native_guests"),
    backend=BACKEND,
    vary={"direction": ("outs", "ins"), "address": ("the mapping", "PROT_NONE")},
)
def string_io(tools: Toolbox, direction: str, address: str) -> None:
    hole = tools.keep(Mapping(SIZE, protection=PROT_NONE))
    more = {"address": hole.address} if address == "PROT_NONE" else {}
    memory = InPlace(tools, tools.private_vm(), GPA, SIZE, **more)
    cpu = memory.vm.cpu
    secret, answer = 0xA5, b"\x3c"
    memory.guest_fill(0, SIZE, PRIVATE)
    if address == "the mapping":
        _string_io_with_a_shared_page(memory, direction)
        memory.guest_fill(0, SIZE, PRIVATE)
    cpu.write(GPA, secret, 1)
    memory.to_private(0, 2 * PAGE)
    outcome = _string_io(cpu, direction)
    what = f"{direction} with a private page"
    if outcome.reason == lib.KVM_EXIT_IO:
        run = cpu.vcpu.kvm_run
        data = ffi.cast("char *", run) + run.io.data_offset
        if direction == "outs":
            # Right, if KVM can read the page itself; it must not be what the host has there.
            expect(ffi.buffer(data, 1)[:][0], secret, f"the byte of {what}")
            return
        ffi.memmove(data, answer, 1)
        cpu.keep_answer()
        outcome = cpu.enter()
    if outcome.reason == lib.KVM_EXIT_HLT:
        cpu.expect_read(GPA, answer[0], f"what {what} wrote", 1)
        return
    reasons = (lib.KVM_EXIT_MMIO, lib.KVM_EXIT_MEMORY_FAULT, lib.KVM_EXIT_INTERNAL_ERROR)
    check(outcome.reason in reasons, f"{what}: an exit that says nothing", str(outcome))
    if outcome.reason == lib.KVM_EXIT_MMIO:
        expect(int(cpu.vcpu.kvm_run.mmio.phys_addr), GPA, f"GPA of the exit of {what}")
        cpu.answer(0)
        cpu.enter()
    memory.expect_guest(PAGE, SIZE - PAGE, PRIVATE, f"pages beside {what}")
    cpu.expect_read(GPA, secret, f"the page after {what}", 1)


def _string_io(cpu: Cpu, direction: str) -> Outcome:
    if direction == "outs":
        return cpu.run(routines.OUTSB, rsi=GPA, rdx=PORT)
    return cpu.run(routines.INSB, rdi=GPA, rdx=PORT)


def _string_io_with_a_shared_page(memory: InPlace, direction: str) -> None:
    cpu, what = memory.vm.cpu, f"{direction} with a shared page"
    cpu.write(GPA, 0x71, 1)
    outcome = _string_io(cpu, direction)
    expect(outcome.reason, lib.KVM_EXIT_IO, f"the exit of {what}")
    run = cpu.vcpu.kvm_run
    data = ffi.cast("uint8_t *", run) + run.io.data_offset
    if direction == "outs":
        expect(int(data[0]), 0x71, f"the byte of {what}")
    data[0] = 0x72
    cpu.keep_answer()
    expect(cpu.enter().reason, lib.KVM_EXIT_HLT, f"what follows {what}")
    wanted = b"\x71" if direction == "outs" else b"\x72"
    expect(memory.host.read(0, 1), wanted, f"what the host reads after {what}")
