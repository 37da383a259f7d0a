"""The selftests that a series touches, on the kernel without it and on the kernel with it.

They are the series' own versions. One that does not build as the series leaves it is built as it
was before, so that it is known whether the series broke it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from pyvmm.lab.diffs import diffs_in
from pyvmm.lab.errors import KernelFailed, LabError
from pyvmm.lab.kernels import Kernel
from pyvmm.lab.lab import Lab
from pyvmm.lab.selftests import (
    DOES_NOT_BUILD,
    NOT_THERE,
    PRIVATE_MEMORY,
    SelftestResult,
    Selftests,
    build_those_that_do,
    run_selftests,
)

_FOLDER = "tools/testing/selftests/kvm/"
_TEST = re.compile(rf"{_FOLDER}(?:x86(?:_64)?/)?([\w-]+)\.c")
_OTHER_ARCHITECTURE = re.compile(
    rf"{_FOLDER}(?:lib/|include/)?(?:aarch64|arm64|loongarch|riscv|s390x?)/"
)

Command = Sequence[str]
Pair = tuple[SelftestResult, SelftestResult]


def commands_of(patches: Iterable[str]) -> list[Command]:
    """The selftests of x86 that patches touch; those of private memory for what tests share."""
    touched: dict[str, None] = {}
    for text in patches:
        for diff in diffs_in(text):
            if diff.new != diff.old:
                touched.pop(diff.old, None)
            if diff.new.startswith(_FOLDER) and not _OTHER_ARCHITECTURE.match(diff.new):
                touched[diff.new] = None
    tests: list[Command] = [
        (match[1],) for name in sorted(touched) if (match := _TEST.fullmatch(name))
    ]
    return tests or (list(PRIVATE_MEMORY) if touched else [])


def before_and_now(
    commands: Sequence[Command],
    first: Kernel,
    last: Kernel,
    cpus: int,
    memory_mib: int,
    announce: Callable[[str], None],
) -> list[Pair]:
    """How each ended on the kernels without and with the series."""
    names = list(dict.fromkeys(command[0] for command in commands))
    now = build_those_that_do(last, names, announce)
    commands = [command for command in commands if command[0] not in now.missing]
    before = now
    if now.problems:
        was = build_those_that_do(first, list(now.problems), announce)
        before = Selftests({**now.programs, **was.programs}, was.problems, was.missing)
    ended = [
        _ended(commands, selftests, kernel, cpus, memory_mib, announce)
        for selftests, kernel in ((before, first), (now, last))
    ]
    return list(zip(*ended, strict=True))


def got_worse(before: SelftestResult, now: SelftestResult) -> bool:
    """Whether a selftest fails now and did not, or does not build now and did."""
    if now.outcome == DOES_NOT_BUILD:
        return before.outcome != DOES_NOT_BUILD
    return now.outcome == "failed" and before.outcome != "failed"


def _ended(
    commands: Sequence[Command],
    selftests: Selftests,
    kernel: Kernel,
    cpus: int,
    memory_mib: int,
    announce: Callable[[str], None],
) -> list[SelftestResult]:
    """The results of all, in their order."""
    runnable = [command for command in commands if command[0] in selftests.programs]
    ran = iter(run_on(kernel, selftests.programs, runnable, cpus, memory_mib, announce))
    found = []
    for command in commands:
        name = command[0]
        if name in selftests.programs:
            found.append(next(ran))
        elif name in selftests.problems:
            why = selftests.problems[name]
            found.append(SelftestResult(tuple(command), DOES_NOT_BUILD, why, 0.0))
        else:
            found.append(SelftestResult(tuple(command), NOT_THERE, "", 0.0))
    return found


def run_on(
    kernel: Kernel,
    programs: Mapping[str, Path],
    commands: Sequence[Command],
    cpus: int,
    memory_mib: int,
    announce: Callable[[str], None],
) -> list[SelftestResult]:
    """How each selftest ended; after one that the kernel did not survive it is booted again."""
    done: list[SelftestResult] = []
    while left := commands[len(done) :]:
        try:
            with Lab(kernel, cpus=cpus, memory_mib=memory_mib, announce=announce) as lab:
                for result in run_selftests(lab, programs, left):
                    done.append(result)
        except KernelFailed as error:
            done += [SelftestResult(tuple(each), "failed", str(error), 0.0) for each in left]
        except LabError:
            if len(done) + len(left) == len(commands):
                raise
    return done
