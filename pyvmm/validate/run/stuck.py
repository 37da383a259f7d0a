"""Where a process is that does not come to an end: in the kernel, in a guest, in its program."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pyvmm.kvm.ioctls import IOCTLS
from pyvmm.native import lib

_CALLS = {
    lib.SYS_close: "close",
    lib.SYS_exit_group: "exit",
    lib.SYS_fallocate: "fallocate",
    lib.SYS_madvise: "madvise",
    lib.SYS_mmap: "mmap",
    lib.SYS_munmap: "munmap",
}
_FRAMES = 8
# What runs is looked at twice; others may want the CPU meanwhile.
_LOOK_S = 1.0


class _Times(NamedTuple):
    """Where a thread spent its CPU time, in ticks (proc_pid_stat(5))."""

    program: int
    kernel: int
    guest: int


_PLACES = ("its program", "the kernel", "a guest")


def where(process: int) -> tuple[str, str]:
    """What the process's threads are in, and what the kernel does for those that wait.

    System calls by their names; of threads that run, what they run. Both are empty where nothing
    is known: procfs(5) has ``syscall`` for one's own processes and ``stack`` for root.
    """
    calls, stacks = _waiting(process)
    return ", ".join([*calls, *_running(process)]), "; ".join(stacks)


def _waiting(process: int) -> tuple[list[str], list[str]]:
    calls: list[str] = []
    stacks: list[str] = []
    for task in sorted(Path(f"/proc/{process}/task").glob("*"), key=lambda path: int(path.name)):
        call, frames = _call(_text(task / "syscall")), list(_frames(_text(task / "stack")))
        # A thread of the kernel's own, made in KVM_RUN, seems to be in it for ever.
        if call and call not in calls and "vhost_task_fn" not in frames:
            calls.append(call)
            stacks.append(f"{call}: {' < '.join(frames)}")
    return calls, stacks


def _running(process: int) -> list[str]:
    before = _times_of_running(process)
    if not before:
        return []
    time.sleep(_LOOK_S)
    after = _times_of_running(process)
    both = [(times, after[task]) for task, times in before.items() if task in after]
    return sorted({_place(*times) for times in both})


def _times_of_running(process: int) -> dict[str, _Times]:
    found = {}
    for task in Path(f"/proc/{process}/task").glob("*"):
        # The name has brackets, and may have more of them.
        fields = _text(task / "stat").rpartition(") ")[2].split()
        if fields and _text(task / "syscall").strip() == "running":
            # The first is the state, number 3 there; a guest's time is in the program's, too.
            program, kernel, guest = (int(fields[number - 3]) for number in (14, 15, 43))
            found[task.name] = _Times(program - guest, kernel, guest)
    return found


def _place(before: _Times, after: _Times) -> str:
    spent = [now - then for then, now in zip(before, after, strict=True)]
    if not any(spent):  # perhaps the timer of its CPU has stopped
        return "something to which no CPU time was counted"
    return _PLACES[spent.index(max(spent))]


def _call(text: str) -> str:
    """``KVM_RUN`` for ``16 0x7 0xae80 0x0 …``; "" for a call that only waits, or for none."""
    words = text.split()
    if len(words) < 3 or not words[0].isdecimal():
        return ""
    if int(words[0]) == lib.SYS_ioctl:
        request = int(words[2], 16)
        return next((name for name, each in IOCTLS.items() if each.number == request), "ioctl")
    return _CALLS.get(int(words[0]), "")


def _frames(text: str) -> Iterator[str]:
    for line in text.splitlines()[:_FRAMES]:
        # [<0>] mutex_lock+0x2b/0x30
        yield line.rpartition("] ")[2].partition("+")[0]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:  # the thread is gone, or it is not for us to see
        return ""
