"""Pages that were written: the dirty ring, which userspace can write to, and the dirty log."""

from __future__ import annotations

import time

from pyvmm.kvm.dirty_ring import DirtyRing
from pyvmm.kvm.mapping import PAGE_SIZE, Mapping
from pyvmm.native import ffi, lib
from pyvmm.validate.kit.beside import CallBeside
from pyvmm.validate.kit.case import GIB, PAGE, case
from pyvmm.validate.kit.check import Missing, errno_name, expect
from pyvmm.validate.kit.guest import Cpu, GuestVm
from pyvmm.validate.kit.known import (
    DIRTY_RING_RESET_KEEPS_THE_CPU,
    DIRTY_RING_RESET_WITHOUT_END,
    Known,
)
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.kit.waiting import Beside, beside

GPA = 4 * GIB
PAGES = 256
_MOST_ENTRIES = 1 << 16
_RINGS = 16
# What takes less than that says nothing; others may wait for such a part of what takes longer.
_RESETS, _SHORT_S, _SHARE = 4, 0.04, 0.3
# Resets that signals came in the middle of and did not end.
_ATTEMPTS, _DEAF = 20, 5


def a_ring(tools: Toolbox, entries: int, cpus: int = 1) -> tuple[GuestVm, int]:
    """A VM with dirty rings and a logged slot of 256 pages, and the number of the slot."""
    vm = tools.vm(cpus=0)
    capability = lib.KVM_CAP_DIRTY_LOG_RING
    if vm.vm.check_extension(capability) < entries * DirtyRing.ENTRY_SIZE:
        raise Missing(f"dirty rings of {entries} entries")
    vm.vm.enable_cap(capability, entries * DirtyRing.ENTRY_SIZE)
    for index in range(cpus):
        vm.add_cpu(index)
    shared = tools.shared_side(GPA, PAGES * PAGE)
    slot = vm.new_slot()
    logged: int = lib.KVM_MEM_LOG_DIRTY_PAGES
    vm.vm.set_user_memory_region(slot, GPA, PAGES * PAGE, shared.address, logged)
    return vm, slot


@case(
    "DR1",
    "a ring names each page that was written, in order, and again after a reset",
    needs=("guests",),
)
def in_order(tools: Toolbox) -> None:
    vm, slot = a_ring(tools, 1024)
    ring = tools.keep(DirtyRing(vm.cpu.vcpu, 1024))
    # Far ones, near ones, forwards and backwards: a reset puts near ones together.
    pages = (0, 1, 2, 70, 69, 68, 3, 255, 192, 191, 64, 63, 128, 65)
    ring.harvest()
    vm.vm.reset_dirty_rings()
    for attempt in range(3):
        for page in pages:
            vm.cpu.write(GPA + page * PAGE, attempt)
            vm.cpu.write(GPA + page * PAGE + 8, attempt)
        # A page may be named again before it is reset.
        seen = dict.fromkeys(each.page for each in ring.harvest() if each.slot == slot)
        expect(list(seen), list(pages), "pages that a ring names")
        vm.vm.reset_dirty_rings()
        vm.cpu.write(GPA + pages[attempt] * PAGE, attempt)
        again = [each.page for each in ring.harvest() if each.slot == slot]
        expect(again, [pages[attempt]], "pages that a ring names after a reset")
        vm.vm.reset_dirty_rings()


class Marked:
    """Rings of several vCPUs whose entries somebody marks as harvested, as many as there are."""

    def __init__(self, tools: Toolbox) -> None:
        self.vm, slot = a_ring(tools, _MOST_ENTRIES, _RINGS)
        size = _MOST_ENTRIES * DirtyRing.ENTRY_SIZE
        offset = lib.KVM_DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE
        self._rings = [
            tools.keep(Mapping(size, fd=cpu.vcpu.fileno(), offset=offset)) for cpu in self.vm.cpus
        ]
        marked = ffi.new("struct kvm_dirty_gfn[]", _MOST_ENTRIES)
        for at in range(_MOST_ENTRIES):
            # No page is beside the one before it, so each entry is a piece of work of its own.
            marked[at].flags, marked[at].slot = lib.KVM_DIRTY_GFN_F_RESET, slot
            marked[at].offset = at % 2 * (PAGES - 1)
        self._marked = bytes(ffi.buffer(marked))

    def mark(self) -> None:
        for ring in self._rings:
            ring.view[:] = self._marked

    def reset(self) -> int:
        return self.vm.vm.reset_dirty_rings()


@case(
    "DR2",
    "a long reset of rings ends early when a signal comes, and a second one does the rest",
    needs=("two_cpus",),
    alone=True,
)
def reset_ends(tools: Toolbox) -> None:
    marked = Marked(tools)
    entries, deaf = _RINGS * _MOST_ENTRIES, 0
    for _ in range(_ATTEMPTS):
        times: list[float] = []
        counts: list[int] = []

        def reset(times: list[float] = times, counts: list[int] = counts) -> None:
            times.append(time.monotonic())
            counts.append(marked.reset())
            times.append(time.monotonic())

        marked.mark()
        kicks: list[float] = []
        with CallBeside(reset) as call:
            while not call.ends(0.001):
                call.kick()
                kicks.append(time.monotonic())
        expect(errno_name(call.error), "success", "errno of a reset when signals come")
        if counts[0] < entries:
            tools.provoked(1, "reset that a signal ended")
            while count := marked.reset():
                counts.append(count)
            expect(sum(counts), entries, "entries that a reset and those after it have reset")
            return
        began, ended = times
        # The first and the last of it may not have been inside the call.
        inside = (began + 0.2 * (ended - began), began + 0.8 * (ended - began))
        deaf += any(inside[0] < kick < inside[1] for kick in kicks)
        if deaf == _DEAF:
            tools.provoked(deaf, "resets that no signal ended")
            raise Known(
                DIRTY_RING_RESET_WITHOUT_END,
                "a signal does not end KVM_RESET_DIRTY_RINGS, which goes on for as long as "
                "somebody marks entries",
            )
    raise Missing("a reset that takes long: each had ended before a signal came")


@case(
    "DR3",
    "a long reset of rings lets others run meanwhile",
    needs=("two_cpus",),
    alone=True,
)
def reset_lets_run(tools: Toolbox) -> None:
    marked = Marked(tools)
    entries = _RINGS * _MOST_ENTRIES
    counts: list[int] = []
    seen: list[Beside] = []
    for _ in range(_RESETS):
        marked.mark()
        seen.append(beside(lambda: counts.append(marked.reset())))
        expect(counts[-1], entries, "entries that were reset")
    tools.provoked(len(seen), "long resets had a thread beside them that waits for a CPU")
    took = min(each.took_s for each in seen)
    if took < _SHORT_S:
        raise Missing(
            f"a reset that takes long: of {entries:,} entries it took {took * 1e3:.0f} ms"
        )
    # Other programs may hold up a thread too, but not each time.
    if min(each.on_its_cpu_s / each.took_s for each in seen) > _SHARE:
        raise Known(
            DIRTY_RING_RESET_KEEPS_THE_CPU,
            "a long KVM_RESET_DIRTY_RINGS keeps the threads of its CPU from running",
            f"took, longest wait (s): {seen}",
        )


# Instructions that write 8 bytes of rax or rsi to rdi, once.
_WRITES = {
    "mov": "488907",
    "exchange": "488707",
    "locked exchange": "f0480fb10f",
    "locked addition": "f0480fc107",
    "addition": "480107",
    "increment": "48ff07",
    "bit": "480fab07",
    "locked bit": "f0480fab07",
    "string": "48ab",
    "copy": "48a5",
    "push": "54",
}
_FORCED = bytes.fromhex("0f0b6b766d")
_CODE, _FORCE = 0x6000, "/sys/module/kvm/parameters/force_emulation_prefix"


@case(
    "DL1",
    "each kind of write is in the dirty log, the CPU's and, where it can be had, KVM's",
    needs=("guests",),
    vary={"write": tuple(_WRITES)},
)
def logged(tools: Toolbox, write: str) -> None:
    vm = tools.vm()
    shared = tools.shared_side(GPA, PAGES * PAGE)
    slot = vm.new_slot()
    logged: int = lib.KVM_MEM_LOG_DIRTY_PAGES
    vm.vm.set_user_memory_region(slot, GPA, PAGES * PAGE, shared.address, logged)
    code = bytes.fromhex(_WRITES[write])
    for how, prefix in (("the CPU", b""), ("KVM", _FORCED)):
        if prefix and not _emulates(vm.cpu):
            tools.say("the CPU's writes; KVM's need kvm.force_emulation_prefix=1")
            return
        vm.plain.view[_CODE : _CODE + 16] = (prefix + code).ljust(16, b"\xf4")
        for page in (0, 77, PAGES - 1):
            gpa = GPA + page * PAGE + 0x40
            before = bytes(shared.view[page * PAGE : page * PAGE + PAGE])
            # rax is what is there, so that a comparison finds it.
            word = int.from_bytes(before[0x40:0x48], "little")
            vm.cpu.prepare(_CODE, rdi=gpa, rax=word, rcx=0x1111, rsi=_CODE, rsp=gpa + 8)
            vm.cpu.finish(f"a write ({write}) by {how}")
            seen = set(vm.vm.get_dirty_log(slot, PAGES))
            expect(seen, {page}, f"pages that are logged after a write ({write}) by {how}")
    expect(set(vm.vm.get_dirty_log(slot, PAGES)), set(), "pages that are logged after nothing")


def _emulates(cpu: Cpu) -> bool:
    """Whether KVM emulates an instruction that has the prefix."""
    try:
        with open(_FORCE) as parameter:
            return parameter.read().strip() not in ("0", "N")
    except OSError:
        return False
