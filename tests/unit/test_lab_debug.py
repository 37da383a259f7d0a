"""Kernels that watch themselves: what can be asked for, and what is made of lockdep's silence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyvmm.lab.build import Recipe
from pyvmm.lab.config import parse_config
from pyvmm.lab.debug_options import (
    TOGETHER,
    debug_fragment,
    debug_names,
    debug_parameters,
    expected_time,
    parse_debug,
)
from pyvmm.lab.errors import KernelFailed, LabUsageError
from pyvmm.lab.kernel_log import Splat
from pyvmm.lab.kernels import Kernel
from pyvmm.validate.kernels import lab_run
from pyvmm.validate.kernels.lab_run import LabMachine, LabRun, Trouble, run_in_lab
from pyvmm.validate.kit.case import Case
from pyvmm.validate.results.lines import Transcript
from pyvmm.validate.run.marks import Marking
from pyvmm.validate.run.observer import Observer
from pyvmm.validate.run.session import run


def test_what_can_be_asked_for() -> None:
    assert debug_names() == sorted(
        ["lockdep", "kasan", "kmemleak", "ubsan", "kcsan", "vm", "rcu", "list", "faults"]
    )
    assert parse_debug("light") == TOGETHER["light"]
    assert parse_debug("list,light,kasan") == ("list", "lockdep", "rcu", "vm", "kasan")
    for wrong in ("nonsense", "light,nonsense", "", ",", "kasan,kcsan", "heavy,kcsan"):
        with pytest.raises(LabUsageError):
            parse_debug(wrong)


@pytest.mark.parametrize("name", [*debug_names(), *TOGETHER])
def test_each_is_a_fragment(name: str) -> None:
    names = parse_debug(name)
    options = parse_config(debug_fragment(names))
    assert options and set(options.values()) <= {"y", "n", "40000"}
    assert "minutes" in expected_time(names)
    assert ("kasan_multi_shot" in debug_parameters(names)) == ("kasan" in names)


def test_a_recipe_without_them_is_as_it_was() -> None:
    assert Recipe(Path("x"), config="CONFIG_A=y\n").fragment == "CONFIG_A=y\n"
    assert Recipe(Path("x"), debug=("list",)).fragment == debug_fragment(["list"])


def test_cases_are_told_to_the_kernels_log(tmp_path: Path) -> None:
    def passes(tools: Any) -> None:
        pass

    log = tmp_path / "kmsg"
    log.touch()
    cases = [Case("A1", "a title", passes, "tests"), Case("A2", "another", passes, "tests")]
    run(cases, Marking(Observer(), str(log)), workers=1)
    names = [each.name for each in cases]
    told = [f"<6>pyvmm: {word}: {name}" for name in names for word in ("begins", "ended")]
    assert log.read_text().splitlines() == told


def test_cases_after_lockdeps_report_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boots: list[list[str]] = []

    def one_boot(
        kernel: Kernel, machine: LabMachine, words: list[str], *_: object
    ) -> tuple[LabRun, list[str]]:
        boots.append(list(words))
        trouble = (Trouble(Splat(f"WARNING: number {len(boots)}", ("x",))),)
        run = LabRun(("A", "B", "C"), (), 1, 2.0, trouble=trouble, kernel_log=(str(len(boots)),))
        return run, {1: ["B", "C"], 2: ["C"]}.get(len(boots), [])

    monkeypatch.setattr(lab_run, "_one_boot", one_boot)
    kernel = Kernel("light", tmp_path / "bzImage", "6.12", debug=("lockdep",))
    said: list[str] = []
    whole = run_in_lab(kernel, LabMachine(), ["--seed", "1"], tmp_path, said.append)
    assert boots == [["--seed", "1"], ["--seed", "1", "-k", "B or C"], ["--seed", "1", "-k", "C"]]
    assert [each.splat.title[-1] for each in whole.trouble] == ["1", "2", "3"]
    assert (whole.duration_s, whole.kernel_log) == (6.0, ("1", "2", "3"))
    assert len(said) == 2 and "2 cases" in said[0]


@pytest.mark.parametrize(
    ("ending", "problem"),
    [
        ({"problem": "the kernel died"}, "the kernel died"),
        ({"problem": "timed out after 5 s", "out_of_time": True}, "timed out after 5 s"),
        (KernelFailed("kernel light did not boot", "panic"), "kernel light did not boot: panic"),
    ],
)
def test_a_kernel_that_dies_silently_in_another_boot_has_died(
    ending: dict[str, Any] | KernelFailed,
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = LabRun(("A", "B"), (), 1, 2.0, kernel_log=("1",))
    boots: list[int] = []

    def one_boot(*_: object) -> tuple[LabRun, list[str]]:
        boots.append(1)
        if len(boots) == 1:
            return first, ["B"]
        if isinstance(ending, KernelFailed):
            raise ending
        return replace(first, **ending), []

    monkeypatch.setattr(lab_run, "_one_boot", one_boot)
    kernel = Kernel("light", tmp_path / "bzImage", "6.12", debug=("lockdep",))
    run = run_in_lab(kernel, LabMachine(), [], tmp_path, lambda line: None)
    assert run.problem == f"in another boot, as lockdep was silent: {problem}"
    assert run.planned == first.planned and run.out_of_time == ("timed out" in problem)


def test_of_two_problems_the_first_is_told_unless_it_was_the_time() -> None:
    first = LabRun((), (), 1, 2.0, problem="status 3")
    died = replace(first, problem="it died")
    assert lab_run._with_another_boot(first, died).problem == "status 3"
    late = replace(first, problem="timed out", out_of_time=True)
    run = lab_run._with_another_boot(late, died)
    assert run.problem.endswith(": it died") and not run.out_of_time


def test_what_began_after_lockdeps_report() -> None:
    transcript = Transcript()
    transcript.times = {"A": (1.0, 2.0), "B": (2.0, 4.0), "C": (4.0, 5.0)}
    lockdep = Splat("WARNING: possible circular locking dependency detected", ("[    3.0] x",))
    other = Splat("BUG: KASAN: slab-use-after-free in x", ("[    1.5] x",))
    assert lab_run._begun_after_lockdep([other, lockdep], [], transcript) == ["C"]
    assert lab_run._begun_after_lockdep([other], [], transcript) == []


@pytest.mark.parametrize(
    "line",
    [
        "Disabling lock debugging due to kernel taint",  # after KASAN's, SLUB's, bad pages
        "turning off the locking correctness validator.",
        "INFO: lockdep is turned off.",
    ],
)
def test_lockdep_ends_after_reports_of_others_too(line: str) -> None:
    transcript = Transcript()
    transcript.times = {"A": (1.0, 2.0), "B": (2.0, 4.0)}
    assert lab_run._begun_after_lockdep([], [f"[    1.500000] {line}"], transcript) == ["B"]
    # Another boot would tell no more where it is so from the boot on.
    assert lab_run._begun_after_lockdep([], [f"[    0.500000] {line}"], transcript) == []


@pytest.mark.parametrize(
    "title",
    [
        "WARNING: Nested lock was not taken",
        "WARNING: bad contention detected!",
        "WARNING: kernel/locking/lockdep.c:1 at lock_release+0x1/0x2, CPU#0: sh/60",
        "BUG: MAX_LOCKDEP_ENTRIES too low!",
    ],
)
def test_reports_with_which_lockdep_ends(title: str) -> None:
    transcript = Transcript()
    transcript.times = {"A": (1.0, 2.0), "B": (2.0, 4.0)}
    splat = Splat(title, ("[    1.500000] x",))
    assert lab_run._begun_after_lockdep([splat], [], transcript) == ["B"]
