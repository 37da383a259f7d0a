"""The kernel's own selftests of private memory, as a second opinion.

They are built from the source that a kernel in the lab was built from, and run on it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pyvmm.lab.cache import cache_folder, locked, make_folder
from pyvmm.lab.errors import LabError, LabUsageError
from pyvmm.lab.kernels import Kernel
from pyvmm.lab.lab import Lab, RunResult
from pyvmm.lab.make import Make
from pyvmm.lab.programs import OF_SELFTESTS, require
from pyvmm.lab.sources import Tree, open_source

#: The selftests that are about private memory, with their arguments.
PRIVATE_MEMORY = (
    ("guest_memfd_test",),
    ("set_memory_region_test",),
    ("pre_fault_memory_test",),
    ("private_mem_kvm_exits_test",),
    ("private_mem_conversions_test",),
    ("private_mem_conversions_test", "-n", "2"),
    ("private_mem_conversions_test", "-n", "2", "-m", "2"),
)
#: How selftests end that do not begin.
DOES_NOT_BUILD, NOT_THERE = "does not build", "not there"
_FOLDER = "tools/testing/selftests/kvm"
_SKIPPED = 4  # KSFT_SKIP of tools/testing/selftests/kselftest.h
#: What lib/assert.c says of an assertion that failed: below this line it stands, and then the
#: process, the stack and, at the end, why.
_ASSERTION = re.compile(r"^==== Test Assertion Failure ====\s*\n +(.+)", re.M)
_REASON = re.compile(r"  (?!pid=)\w")
#: What failed, in TAP.
_NOT_OK = re.compile(r"^\s*(not ok .+)", re.M)
_SECONDS_EACH = 900.0  # the slowest takes three minutes on two idle cores


@dataclass(frozen=True, slots=True)
class SelftestResult:
    """How one selftest ended: "passed", "skipped" or "failed", and a line that tells of it.

    Of one that could not run ``outcome`` is DOES_NOT_BUILD or NOT_THERE.
    """

    command: tuple[str, ...]
    outcome: str
    said: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Selftests:
    """Programs by name; why others do not build; and which the source does not have."""

    programs: Mapping[str, Path]
    problems: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


def build_selftests(
    kernel: Kernel, names: Sequence[str], announce: Callable[[str], None]
) -> dict[str, Path]:
    """Build selftests by name from a kernel's source; gives their programs.

    A LabError when they do not build, a LabUsageError when the source has none of that name or
    is not known because the lab did not build the kernel.
    """
    with _builder(kernel, announce) as builder:
        for name in names:
            if builder.path(name) is None:
                cause = f"{builder.tree.source.name} has none of this name"
                raise LabUsageError(f"selftest {name!r}", cause)
        try:
            return builder.make(names)
        except LabError as error:
            raise LabError("the selftests do not build", error.cause, error.remedy) from None


def build_those_that_do(
    kernel: Kernel, names: Sequence[str], announce: Callable[[str], None]
) -> Selftests:
    """As many of these selftests as build from a kernel's source."""
    with _builder(kernel, announce) as builder:
        there = [name for name in names if builder.path(name) is not None]
        missing = tuple(name for name in names if name not in there)
        try:
            return Selftests(builder.make(there) if there else {}, {}, missing)
        except LabError:
            announce("not all of them build: one after the other")
        programs: dict[str, Path] = {}
        problems = {}
        for name in there:
            try:
                programs |= builder.make([name], f"build-{name}.log")
            except LabError as error:
                problems[name] = f"{error.cause}; {error.remedy}"
        return Selftests(programs, problems, missing)


@dataclass(frozen=True, slots=True)
class _Builder:
    """Builds selftests in a tree that is locked and has the patches of a kernel."""

    tree: Tree
    programs: Path
    lock: int
    announce: Callable[[str], None]

    def path(self, name: str) -> Path | None:
        """Where below the KVM selftests' folder a test's program is built; None if it has none."""
        folder = self.tree.files / _FOLDER
        for found in [*folder.glob(f"{name}.c"), *folder.glob(f"x86*/{name}.c")]:
            return found.relative_to(folder).with_suffix("")
        return None

    def make(self, names: Sequence[str], log_name: str = "build.log") -> dict[str, Path]:
        """Build these; a LabError when one of them does not."""
        log = self.programs / log_name
        log.unlink(missing_ok=True)  # the reason is looked for in all of it
        self.announce(f"building selftests of {self.tree.source.name}; log: {log}")
        headers = make_folder(self.programs / "headers")
        Make(self.tree.files, headers, log, self.lock).run(["headers_install"])
        made = {name: self.programs / path for name in names if (path := self.path(name))}
        words = [f"OUTPUT={self.programs}", f"KHDR_INCLUDES=-isystem {headers}/usr/include"]
        build = Make(self.tree.files / _FOLDER, self.programs, log, self.lock)
        build.run([*words, *map(str, made.values())])
        return made


@contextmanager
def _builder(kernel: Kernel, announce: Callable[[str], None]) -> Iterator[_Builder]:
    if not kernel.source:
        raise LabUsageError(
            f"kernel {kernel.name}", "its source is unknown: the lab did not build it"
        )
    require(*OF_SELFTESTS)
    tree = Tree(open_source(Path(kernel.source)))
    programs = make_folder(cache_folder() / "selftests" / kernel.image.parent.name)
    make_folder(tree.folder)
    with locked(tree.folder, announce) as lock:
        tree.bring_up_to_date(announce, lock)
        tree.patch(sorted(kernel.image.parent.glob("patches/*")), programs / "patch.log")
        yield _Builder(tree, programs, lock, announce)


def run_selftests(
    lab: Lab, programs: Mapping[str, Path], commands: Sequence[Sequence[str]]
) -> Iterator[SelftestResult]:
    """Run selftests in a lab, one after the other."""
    for command in commands:
        result = lab.run([str(programs[command[0]]), *command[1:]], timeout=_SECONDS_EACH)
        outcomes = {0: "passed", _SKIPPED: "skipped"}
        outcome = "failed" if result.splats else outcomes.get(result.exit_status(), "failed")
        yield SelftestResult(tuple(command), outcome, _said(result), result.seconds)
        if result.status is None:
            raise LabError(" ".join(command), "the lab's machine did not survive it")


def _said(result: RunResult) -> str:
    """The line of all that was said that tells most of how it ended."""
    if result.problem or result.splats:
        return result.problem or result.splats[0].title
    errors = result.errors.decode(errors="replace").rstrip()
    output = result.output.decode(errors="replace").rstrip()
    if told := _ASSERTION.search(errors):
        return ": ".join(filter(None, (told[1], _reason(errors))))
    told = _NOT_OK.search(output)
    return told[1] if told else (output or errors).rpartition("\n")[2].strip()


def _reason(errors: str) -> str:
    """What an assertion says last, behind the process and the stack; "" if it says nothing."""
    last = errors.rpartition("\n")[2]
    return last.strip() if _REASON.match(last) else ""
