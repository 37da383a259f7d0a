"""Where in the kernel a process is that does not come to an end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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


def where(process: int) -> tuple[str, str]:
    """The system calls that the process's threads are in, and what the kernel does for them.

    Both are empty where nothing is known: procfs(5) has ``syscall`` for one's own processes
    and ``stack`` for root.
    """
    calls: list[str] = []
    stacks: list[str] = []
    for task in sorted(Path(f"/proc/{process}/task").glob("*"), key=lambda path: int(path.name)):
        call, frames = _call(_text(task / "syscall")), list(_frames(_text(task / "stack")))
        # A thread of the kernel's own, made in KVM_RUN, seems to be in it for ever.
        if call and call not in calls and "vhost_task_fn" not in frames:
            calls.append(call)
            stacks.append(f"{call}: {' < '.join(frames)}")
    return ", ".join(calls), "; ".join(stacks)


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
