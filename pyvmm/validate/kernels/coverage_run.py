"""What of KVM the catalogue executes, case by case, on a kernel that counts it."""

from __future__ import annotations

import shutil
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import IO

from pyvmm.lab.coverage import Coverage, add_counters, read_counters
from pyvmm.lab.errors import LabError
from pyvmm.lab.kernels import Kernel
from pyvmm.lab.lab import Lab
from pyvmm.validate.kernels.changed_code import CoveredLine, without_counter
from pyvmm.validate.kernels.lab_run import PACKAGES, LabMachine, LabRun, run_in_lab
from pyvmm.validate.run.counters import BEFORE

#: Who executed what ran before the first case, from the boot on.
START = "the start of KVM"
_WORKERS = 2
_COUNTERS = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from pyvmm.validate.run.counters import Counters"
)


class CoverageRun:
    """A run of the catalogue whose counters were kept for each case.

    Raises :class:`LabError` when the kernel does not count or no counters came.
    """

    def __init__(self, kernel: Kernel, run: LabRun, folder: Path) -> None:
        self.kernel = kernel
        self.run = run
        self._zips = {
            name: path
            for number, name in enumerate(run.planned)
            if (path := folder / f"{number}.zip").exists()
        }
        if not self._zips:
            raise LabError("coverage", run.problem or "no case left counters")
        self._sum = _added_up(self._zips.values())
        before = folder / BEFORE
        self._before = {START: before} if before.exists() else {}

    @property
    def cases(self) -> tuple[str, ...]:
        """The cases whose counters are there."""
        return tuple(self._zips)

    def total(self) -> Coverage:
        """What all cases together executed."""
        return read_counters(self.kernel.notes, self._sum)

    def lines(self, wanted: Mapping[str, Mapping[int, str]]) -> list[CoveredLine]:
        """Of these lines, by file, number and text, those that are code, counted or not.

        What was executed before the first case, such as all that is ``__init``, counts, too.
        """
        everything = _added_up([*self._zips.values(), *self._before.values()])
        objects = {
            name: covered
            for name, counters in everything.items()
            if (covered := read_counters(self.kernel.notes, {name: counters}, wanted)).keys()
            & wanted.keys()
        }
        by_case = self._by_case(objects, wanted)
        found: list[CoveredLine] = []
        for file, lines in wanted.items():
            for number, text in lines.items():
                parts = [each[file] for each in objects.values() if file in each]
                counts = [part.counts[number] for part in parts if number in part.counts]
                if not counts:
                    found += filter(None, [without_counter(file, number, lines, parts)])
                    continue
                # A header's line is in many objects; those that never get there say nothing of it.
                there = [part for part in parts if part.counts.get(number)] or parts
                taken = [part.branches[number] for part in there if number in part.branches]
                # Where half of a condition is known at compile time there are fewer of them.
                most = max(map(len, taken), default=0)
                whole = [each for each in taken if len(each) == most]
                branches = tuple(map(sum, zip(*whole, strict=True)))
                cases = tuple(by_case.get((file, number), ()))
                found.append(CoveredLine(file, number, text, sum(counts), branches, cases))
        return found

    def _by_case(
        self, objects: Iterable[str], wanted: Mapping[str, Mapping[int, str]]
    ) -> dict[tuple[str, int], list[str]]:
        chosen = set(objects)

        def executed(item: tuple[str, Path]) -> tuple[str, set[tuple[str, int]]]:
            case, path = item
            counters = {name: each for name, each in _contents(path) if each and name in chosen}
            covered = read_counters(self.kernel.notes, counters, wanted)
            return case, {
                (file, number)
                for file, lines in wanted.items()
                if file in covered
                for number in lines
                if covered[file].counts.get(number)
            }

        found: dict[tuple[str, int], list[str]] = {}
        with ThreadPoolExecutor(_WORKERS) as pool:  # gcov is a process: threads wait for it
            for case, places in pool.map(executed, {**self._zips, **self._before}.items()):
                for place in places:
                    found.setdefault(place, []).append(case)
        return found


def _added_up(paths: Iterable[Path]) -> dict[str, bytes]:
    total: dict[str, bytes] = {}
    for path in paths:
        for name, counters in _contents(path):
            known = total.get(name)
            total[name] = counters if known is None else add_counters(known, counters)
    return total


def reset_counters(lab: Lab) -> None:
    """Begin anew with counting in a lab. A :class:`LabError` when its kernel does not count."""
    check_counts(lab.kernel)
    _ask(lab, "Counters().reset()")


def executed_in(lab: Lab) -> Coverage:
    """What of KVM was executed in a lab since its counters were reset."""
    return read_packed(lab.kernel, packed_counters(lab))


def packed_counters(lab: Lab) -> bytes:
    """The counters of a lab since it booted, or since they were reset."""
    return _ask(lab, "sys.stdout.buffer.write(Counters().packed())")


def read_packed(kernel: Kernel, packed: bytes) -> Coverage:
    """What such counters of this kernel say. Raises :class:`LabError` for what gcov refuses."""
    return read_counters(kernel.notes, dict(_contents(BytesIO(packed))))


def _ask(lab: Lab, words: str) -> bytes:
    done = lab.run([sys.executable, "-P", "-c", f"{_COUNTERS}; {words}", PACKAGES], timeout=60)
    if done.status != 0:
        said = done.errors.decode(errors="replace").strip().splitlines()
        raise LabError("coverage", done.problem or (said[-1] if said else str(done.status)))
    return done.output


def check_counts(kernel: Kernel) -> None:
    if not kernel.counts:
        raise LabError(
            f"kernel {kernel.name}",
            "it does not count what KVM executes",
            "pyvmm lab build --coverage makes one",
        )


def _contents(path: Path | IO[bytes]) -> list[tuple[str, bytes]]:
    """A case's counters. One that the kernel died in left none, or half a file."""
    try:
        with zipfile.ZipFile(path) as kept:
            return [(name, kept.read(name)) for name in kept.namelist()]
    except zipfile.BadZipFile:
        return []


def run_with_coverage(
    kernel: Kernel,
    machine: LabMachine,
    words: Sequence[str],
    folder: Path,
    announce: Callable[[str], None],
    tell: Callable[[str], None] = lambda line: None,
) -> CoverageRun:
    """The catalogue once, one case after the other, with the counters of each in ``folder``."""
    check_counts(kernel)
    counters = folder / "counters"
    shutil.rmtree(counters, ignore_errors=True)  # of a run that was interrupted
    counters.mkdir(parents=True)
    run = run_in_lab(kernel, machine, [*words, "--coverage", str(counters)], folder, announce, tell)
    return CoverageRun(kernel, run, counters)
