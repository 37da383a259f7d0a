"""Two calls at once, on purpose: a long one that holds what a short one wants.

Whoever holds a lock of the kernel's for long makes sure that others meet it: a pre-fault of much
memory holds SRCU, an attribute change of many pages slots_lock, a punch and an allocation of much
memory the file's invalidation lock, and all of them mmu_lock now and then. While one goes on the
other is made again and again. Both must come to an end, with the right answers; memory must work
afterwards, and nothing may be left.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from pyvmm.errors import KvmError
from pyvmm.kvm.exits import HltExit
from pyvmm.native import lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.accounts import meminfo
from pyvmm.validate.kit.beside import CallBeside
from pyvmm.validate.kit.calls import pre_fault
from pyvmm.validate.kit.case import GIB, MIB, PAGE, case
from pyvmm.validate.kit.check import CheckFailed, check, errno_name
from pyvmm.validate.kit.guest import GuestVm
from pyvmm.validate.kit.known import pre_fault_deadlock
from pyvmm.validate.kit.memory import Memory
from pyvmm.validate.kit.patterns import PRIVATE
from pyvmm.validate.kit.toolbox import Toolbox

SMALL = 16 * PAGE
# The large memory is so large that a pre-fault takes so long: a kernel that watches itself is slow.
_MOST, _LEAST, _LONG_CALL_S = 32 * MIB, 4 * MIB, 0.25
CALLS = (
    "pre-fault",
    "set attributes",
    "delete a slot",
    "punch",
    "allocate",
    "close",
    "KVM_RUN",
    "dirty log",
)
# What a call may give, besides 0, when the other takes its slot or its file away.
_GONE = {
    "pre-fault": {errno.ENOENT, errno.EAGAIN, errno.EFAULT},
    "KVM_RUN": {errno.EFAULT},
}
# No call takes so long, on a busy machine that emulates its CPUs either.
_LONG_S = 20.0
# Of a guest that touches many pages.
_STRIDE = 4 * PAGE
_ATTEMPTS, _RACES, _REPEAT_S = 6, 3, 0.2


class Scene:
    """A VM with a large and a small private memory, a slot whose dirty pages are logged, and one
    that a third party can pre-fault."""

    def __init__(self, tools: Toolbox) -> None:
        self.tools = tools
        self.vm: GuestVm = tools.private_vm(4)
        self.size = size = self._size()
        self.large, self.small = self.new(4 * GIB, size), self.new(5 * GIB, SMALL)
        self.held = tools.shared_side(6 * GIB, size)
        self.logged = tools.shared_side(7 * GIB, size)
        self.logged_slot = self.vm.new_slot()
        region = self.vm.vm.set_user_memory_region
        region(self.vm.new_slot(), 6 * GIB, size, self.held.address)
        region(self.logged_slot, 7 * GIB, size, self.logged.address, lib.KVM_MEM_LOG_DIRTY_PAGES)
        for cpu in self.vm.cpus:
            cpu.prepare(routines.HALT)
            cpu.finish("a new vCPU")
            cpu.prepare(routines.HALT)

    def _size(self) -> int:
        """Bytes that this kernel takes a quarter of a second to pre-fault, or what is allowed."""
        probe = self.new(4 * GIB, 2 * MIB)
        began = time.monotonic()
        pre_fault(self.vm.cpus[0], probe.gpa, probe.size)
        took_s = time.monotonic() - began
        probe.delete()
        probe.close()
        blocks = int(_LONG_CALL_S / took_s)
        return max(_LEAST, min(blocks * probe.size, _MOST))

    def new(self, gpa: int, size: int) -> Memory:
        memory = self.tools.memory(self.vm, gpa, size)
        memory.set_private(0, size)
        return memory

    def call(self, name: str, memory: Memory, cpu: int) -> Callable[[], int]:
        """A call on ``memory``, by vCPU ``cpu`` if by any: it returns an errno."""
        size, vcpu = memory.size, self.vm.cpus[cpu]
        tell: dict[str, Callable[[], int]] = {
            "pre-fault": lambda: pre_fault(vcpu, memory.gpa, size)[1],
            "KVM_RUN": lambda: self._fill(memory, cpu),
        }
        succeed: dict[str, Callable[[], object]] = {
            "set attributes": lambda: self._set_attributes(memory),
            "delete a slot": memory.delete,
            "punch": lambda: memory.punch(0, size),
            "allocate": lambda: memory.allocate(0, size),
            "close": lambda: memory.file.close(),
            "dirty log": lambda: self._get_dirty_log(memory),
        }
        if name in tell:
            return tell[name]

        def make() -> int:
            succeed[name]()
            return 0

        return make

    def _set_attributes(self, memory: Memory) -> None:
        # So many that it takes long; the last is what it was.
        length = 4 * self.size if memory is self.large else memory.size
        for each in (0, lib.KVM_MEMORY_ATTRIBUTE_PRIVATE):
            self.vm.vm.set_memory_attributes(memory.gpa, length, each)

    def _get_dirty_log(self, memory: Memory) -> None:
        for _ in range(64 if memory is self.large else 1):
            self.vm.vm.get_dirty_log(self.logged_slot, self.size // PAGE)

    def _fill(self, memory: Memory, cpu: int) -> int:
        """Write to all of it by a guest; the errno of an exit for a memory fault."""
        size, vcpu = memory.size, self.vm.cpus[cpu]
        for offset in range(0, size, self.size // 16):
            part = min(size, self.size // 16)
            vcpu.prepare(
                routines.FILL,
                rdi=memory.gpa + offset,
                rax=PRIVATE,
                rsi=_STRIDE,
                rcx=part // _STRIDE,
                r8=(1 << 64) - 1,
            )
            outcome = vcpu.enter(_LONG_S)
            if not isinstance(outcome.exit, HltExit):
                if outcome.reason != lib.KVM_EXIT_MEMORY_FAULT:
                    raise CheckFailed("a guest beside another call got another exit", str(outcome))
                return outcome.error
        return 0

    def put_back(self, name: str, memory: Memory) -> None:
        """Put back what a call took away, so that it can be made once more."""
        if name == "close":
            memory.delete()
            memory.file = self.tools.keep(self.vm.vm.create_guest_memfd(memory.size))
        if name in ("close", "delete a slot"):
            memory.create()

    def prepare(self, long: str) -> None:
        """Make the large memory such that this call on it takes long."""
        if long in ("punch", "close"):
            self.large.allocate(0, self.size)
        elif long in ("pre-fault", "allocate", "KVM_RUN"):
            self.large.punch(0, self.size)
        else:
            pre_fault(self.vm.cpus[0], self.large.gpa, self.size)

    def hold(self, stack: ExitStack) -> None:
        """Let a third party pre-fault: a deletion waits for it."""
        self.held.discard(0, self.size)
        before, cpu = self.vm.mapped_pages(), self.vm.cpus[2]
        holder = stack.enter_context(CallBeside(lambda: pre_fault(cpu, 6 * GIB, self.size)))
        while self.vm.mapped_pages() == before and not holder.ends(0):
            pass

    def close(self) -> None:
        self.large.close()
        self.small.close()
        self.vm.close()

    def expect_sound(self, memory: Memory, what: str) -> None:
        """Private pages can be used, are gone after a punch, and are shared when they are to be."""
        vm, cpu = self.vm.vm, self.vm.cpus[3]
        # The first page and the last, at once: each entry takes its time.
        gpa, stride = memory.gpa, memory.size - PAGE
        for state, tag in (("private", PRIVATE), ("shared", 2 * PRIVATE)):
            attribute = lib.KVM_MEMORY_ATTRIBUTE_PRIVATE if state == "private" else 0
            vm.set_memory_attributes(gpa, memory.size, attribute)
            cpu.fill(gpa, 2 * stride, tag, stride)
            cpu.expect_filled(gpa, 2 * stride, tag, f"{state} memory after {what}", stride)
        vm.set_memory_attributes(gpa, memory.size, lib.KVM_MEMORY_ATTRIBUTE_PRIVATE)
        cpu.expect_filled(gpa, 2 * stride, PRIVATE, f"private memory after {what}", stride)
        memory.punch(0, memory.size)
        cpu.expect_zero(gpa, 2 * stride, f"punched memory after {what}", stride)


# What takes the slot or the file of a memory away: the other call then fails in a known way.
_TAKES_AWAY = ("delete a slot", "close")
_OF_THE_FILE = ("punch", "allocate", "close")


def possible(long: str, short: str) -> bool:
    """Whether both calls can be about one memory: a file that is closed can be given to no call,
    and a slot is deleted once."""
    both = {long, short}
    if "dirty log" in both or both <= set(_TAKES_AWAY):
        return False
    return not ("close" in both and both <= set(_OF_THE_FILE))


def allowed(name: str, other: str) -> set[int]:
    """The errnos that a call may end with while the other is made on the same memory."""
    if other in _TAKES_AWAY or other == "set attributes":
        return {0, *_GONE.get(name, ())}
    return {0}


@case(
    "PA1",
    "while a long call goes on another one is made: both end, and memory is right",
    needs=("private_memory", "pre_fault", "two_cpus", "statistics"),
    backend="guest_memfd",
    vary={"long": CALLS, "short": CALLS},
    alone=True,
    deadline_s=150.0,
)
def pairs(tools: Toolbox, long: str, short: str) -> None:
    before = meminfo()["Unevictable"]
    scene = Scene(tools)
    _beside(scene, long, short, scene.small)
    if possible(long, short):
        _beside(scene, long, short, scene.large)
    scene.close()
    left = meminfo()["Unevictable"] - before
    check(left < scene.size // 2, f"{long} and {short} at once leave pages behind", f"{left} bytes")


def _beside(scene: Scene, long: str, short: str, memory: Memory) -> None:
    """Make the long call, and until it ends the short one on ``memory``."""
    same = memory is scene.large
    what = f"{long} and {short} at once, {'of the same memory' if same else 'of two memories'}"
    may = [allowed(long, short), allowed(short, long)] if same else [{0}, {0}]
    # What takes the other's memory away does so once; and nothing is repeated for ever, as a
    # fault starts again with each punch and each change of attributes.
    repeat_s = 0.0 if same and short in _TAKES_AWAY else _REPEAT_S
    races = 0
    for _ in range(_ATTEMPTS):
        times = _Times()
        scene.prepare(long)
        long_call = scene.call(long, scene.large, 0)
        short_call = scene.call(short, memory, 1)

        def again(times: _Times = times, call: Callable[[], int] = short_call) -> None:
            times.begun.wait(_LONG_S)
            until = time.monotonic() + repeat_s
            times.short(call)
            while not times.ended and time.monotonic() < until:
                scene.put_back(short, memory)
                times.short(call)

        with ExitStack() as stack:
            if long == "delete a slot":
                scene.hold(stack)
            second = stack.enter_context(CallBeside(again))
            first = stack.enter_context(CallBeside(partial(times.long, long_call)))
            _wait_for_both(scene, what, [(long, first), (short, second)], same, times)
        scene.put_back(short, memory)
        scene.put_back(long, scene.large)
        scene.tools.tried(times.overlapped > 0, "long calls overlapped a short one")
        for seen, right in zip((times.long_errors, times.short_errors), may, strict=True):
            wrong = seen - right
            check(not wrong, f"{what}: {', '.join(sorted(errno_name(each) for each in wrong))}")
        scene.expect_sound(scene.large, what)
        scene.expect_sound(scene.small, what)
        races += times.overlapped > 0
        if races == (_RACES if same else 1):
            break


def _wait_for_both(
    scene: Scene, what: str, calls: list[tuple[str, CallBeside]], same: bool, times: _Times
) -> None:
    by_name = dict(calls)
    # These two wait for each other, before Linux 6.18 as a rule and after it rarely.
    known = same and set(by_name) == {"pre-fault", "delete a slot"}
    if known and by_name["pre-fault"].spins(lambda: scene.vm.mapped_pages()):
        check(
            by_name["pre-fault"].interrupt() and by_name["delete a slot"].ends(),
            f"{what}: KVM_PRE_FAULT_MEMORY spins, and no signal ends both",
        )
        refused = errno.EAGAIN in times.long_errors | times.short_errors
        raise pre_fault_deadlock(was_refused=refused)
    stuck = [name for name, call in calls if not call.ends(_LONG_S)]
    if stuck:
        ended = [call.interrupt() for _, call in calls]
        how = "only by a signal" if all(ended) else "not even by a signal"
        raise CheckFailed(f"{what}: {' and '.join(stuck)} does not end, {how}")


class _Times:
    """When the long call began and ended, and the short ones that were made."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.ended = 0
        self.long_errors: set[int] = set()
        self.short_errors: set[int] = set()
        self._began = 0
        self._short: list[tuple[int, int]] = []

    def long(self, call: Callable[[], int]) -> None:
        self._began = time.monotonic_ns()
        self.begun.set()
        try:
            self.long_errors.add(_errno(call))
        finally:
            self.ended = time.monotonic_ns()

    def short(self, call: Callable[[], int]) -> None:
        began = time.monotonic_ns()
        self.short_errors.add(_errno(call))
        self._short.append((began, time.monotonic_ns()))

    @property
    def overlapped(self) -> int:
        """How many short calls there were during the long one."""
        return sum(began < self.ended and ended > self._began > 0 for began, ended in self._short)


def _errno(call: Callable[[], int]) -> int:
    try:
        return call()
    except KvmError as error:
        return error.errno or 0
