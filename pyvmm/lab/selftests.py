"""The kernel's own selftests of private memory, as a second opinion.

They are built from the source that a kernel in the lab was built from, and run on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyvmm.lab.cache import cache_folder, locked, make_folder
from pyvmm.lab.errors import LabError, LabUsageError
from pyvmm.lab.kernels import Kernel
from pyvmm.lab.lab import Lab
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
_FOLDER = "tools/testing/selftests/kvm"
_SKIPPED = 4  # KSFT_SKIP of tools/testing/selftests/kselftest.h
_SECONDS_EACH = 900.0  # the slowest takes three minutes on two idle cores


@dataclass(frozen=True, slots=True)
class SelftestResult:
    """How one selftest ended: "passed", "skipped" or "failed", and the last line it printed."""

    command: tuple[str, ...]
    outcome: str
    said: str
    seconds: float


def build_selftests(
    kernel: Kernel, names: Sequence[str], announce: Callable[[str], None]
) -> dict[str, Path]:
    """Build selftests by name from a kernel's source; gives their programs.

    A LabError when they do not build, a LabUsageError when the source has none of that name or
    is not known because the lab did not build the kernel.
    """
    if not kernel.source:
        raise LabUsageError(
            f"kernel {kernel.name}", "its source is unknown: the lab did not build it"
        )
    require(*OF_SELFTESTS)
    tree = Tree(open_source(Path(kernel.source)))
    programs = make_folder(cache_folder() / "selftests" / kernel.image.parent.name)
    log = programs / "build.log"
    make_folder(tree.folder)
    with locked(tree.folder, announce) as lock:
        tree.bring_up_to_date(announce, lock)
        tree.patch(sorted(kernel.image.parent.glob("patches/*")), log)
        paths = {name: _find(tree, name) for name in names}
        announce(f"building selftests of {tree.source.name}; log: {log}")
        headers = make_folder(programs / "headers")
        Make(tree.files, headers, log, lock).run(["headers_install"])
        goals = [str(programs / path) for path in paths.values()]
        words = [f"OUTPUT={programs}", f"KHDR_INCLUDES=-isystem {headers}/usr/include", *goals]
        try:
            Make(tree.files / _FOLDER, programs, log, lock).run(words)
        except LabError as error:
            raise LabError("the selftests do not build", error.cause, error.remedy) from None
    return {name: programs / path for name, path in paths.items()}


def _find(tree: Tree, name: str) -> Path:
    """Where below the KVM selftests' folder a test's program is built."""
    folder = tree.files / _FOLDER
    for found in [*folder.glob(f"{name}.c"), *folder.glob(f"x86*/{name}.c")]:
        return found.relative_to(folder).with_suffix("")
    raise LabUsageError(f"selftest {name!r}", f"{tree.source.name} has none of this name")


def run_selftests(
    lab: Lab, programs: dict[str, Path], commands: Sequence[Sequence[str]]
) -> Iterator[SelftestResult]:
    """Run selftests in a lab, one after the other."""
    for command in commands:
        result = lab.run([str(programs[command[0]]), *command[1:]], timeout=_SECONDS_EACH)
        lines = (result.errors + result.output).decode(errors="replace").strip().splitlines()
        outcomes = {0: "passed", _SKIPPED: "skipped"}
        outcome = "failed" if result.splats else outcomes.get(result.exit_status(), "failed")
        said = result.problem or (lines[-1].strip() if lines else "")
        yield SelftestResult(tuple(command), outcome, said, result.seconds)
        if result.status is None:
            raise LabError(" ".join(command), "the lab's machine did not survive it")
