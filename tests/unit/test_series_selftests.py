"""The selftests that a series touches, before and after it; without building or booting."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from pyvmm.cli.lab_series_text import summary
from pyvmm.lab.errors import KernelFailed, LabUsageError
from pyvmm.lab.kernel_log import Splat
from pyvmm.lab.kernels import Kernel
from pyvmm.lab.lab import RunResult
from pyvmm.lab.selftests import (
    DOES_NOT_BUILD,
    NOT_THERE,
    PRIVATE_MEMORY,
    SelftestResult,
    Selftests,
    run_selftests,
)
from pyvmm.lab.series import Patch
from pyvmm.validate.kernels import series_selftests
from pyvmm.validate.kernels.series import Step
from pyvmm.validate.kernels.series_selftests import Pair, before_and_now, commands_of
from pyvmm.validate.kernels.series_verdict import SeriesFacts, is_broken, is_worse, to_json, verdict

if TYPE_CHECKING:
    from pyvmm.lab.lab import Lab

FOLDER = "tools/testing/selftests/kvm"


def change(name: str, sign: str = "+") -> str:
    hunk = "@@ -1,0 +2 @@" if sign == "+" else "@@ -2 +1,0 @@"
    return f"--- a/{FOLDER}/{name}\n+++ b/{FOLDER}/{name}\n{hunk}\n{sign}x\n"


def moved(old: str, new: str) -> str:
    names = f"rename from {FOLDER}/{old}\nrename to {FOLDER}/{new}\n"
    return f"diff --git a/{FOLDER}/{old} b/{FOLDER}/{new}\n{names}"


@pytest.mark.parametrize(
    ("patches", "names"),
    [
        (
            [change("b_test.c"), change("x86/a_test.c", "-"), change("lib/x.c")],
            ["b_test", "a_test"],
        ),
        ([change("a_test.c"), moved("a_test.c", "x86_64/b_test.c")], ["b_test"]),
        ([change("arm64/a_test.c"), change("lib/s390/x.c")], []),
        (["--- a/virt/kvm/x.c\n+++ b/virt/kvm/x.c\n@@ -1,0 +2 @@\n+x\n"], []),
        ([change("include/kvm_util.h")], [command[0] for command in PRIVATE_MEMORY]),
    ],
)
def test_which_are_touched(patches: list[str], names: list[str]) -> None:
    assert [command[0] for command in commands_of(patches)] == names


class Machine:
    """A lab on which all pass but b_test, which the kernel "mortal" does not survive."""

    boots: list[str]

    def __init__(self, kernel: Kernel, **_: Any) -> None:
        self.kernel = kernel

    def __enter__(self) -> Machine:
        self.boots.append(self.kernel.name)
        if self.kernel.name == "panics":
            raise KernelFailed("kernel panics did not boot", "it panics")
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, argv: Sequence[str], timeout: float) -> RunResult:
        if self.kernel.name == "mortal" and argv[0].endswith("b_test"):
            return RunResult(None, b"", b"", (), (), "the lab's kernel died", False, 1.0)
        return RunResult(0, b"", b"", (), (), None, False, 1.0)


Run = Callable[..., list[Pair]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a_test, b_test and c_test; those that do not build or are not there are told."""

    def run(
        before: str,
        now: str,
        broken: dict[str, Sequence[str]] | None = None,
        missing: dict[str, Sequence[str]] | None = None,
    ) -> list[Pair]:
        def build(kernel: Kernel, names: Sequence[str], *_: object) -> Selftests:
            wrong = (broken or {}).get(kernel.name, ())
            gone = (missing or {}).get(kernel.name, ())
            return Selftests(
                {name: tmp_path / name for name in names if name not in [*wrong, *gone]},
                {name: "x.c:1:1: error: no" for name in names if name in wrong},
                tuple(name for name in names if name in gone),
            )

        Machine.boots = []
        monkeypatch.setattr(series_selftests, "Lab", Machine)
        monkeypatch.setattr(series_selftests, "build_those_that_do", build)
        commands = [("a_test",), ("b_test",), ("c_test",)]
        first, last = (Kernel(name, tmp_path / name, "6.12") for name in (before, now))
        return before_and_now(commands, first, last, 2, 2048, lambda line: None)

    return run


def outcomes(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(before.outcome, now.outcome) for before, now in pairs]


def test_a_kernel_that_does_not_survive_one(run: Run) -> None:
    """What a series mends kills the kernel without it: the rest runs in another boot."""
    passed = ("passed", "passed")
    assert outcomes(run("mortal", "good")) == [passed, ("failed", "passed"), passed]
    assert Machine.boots == ["mortal", "mortal", "good"]
    assert outcomes(run("good", "panics")) == [("passed", "failed")] * 3


STEPS = [Step(0), Step(1, Patch("KVM: x", 1, 1, 1, "", "x.mbox"), Kernel("k", Path("k"), "6.12"))]


@pytest.mark.parametrize(
    ("broken", "missing", "before", "worse"),
    [
        ({"new": ["b_test"]}, {}, "passed", True),
        ({"new": ["b_test"], "old": ["b_test"]}, {}, DOES_NOT_BUILD, False),
        ({"new": ["b_test"]}, {"old": ["b_test"]}, NOT_THERE, True),
    ],
)
def test_one_that_does_not_build(
    run: Run, broken: dict[str, list[str]], missing: dict[str, list[str]], before: str, worse: bool
) -> None:
    """The others run, and it is told; it is the series' doing if it did build, or is new."""
    pairs = run("old", "new", broken, missing)
    assert outcomes(pairs) == [
        ("passed", "passed"),
        (before, DOES_NOT_BUILD),
        ("passed", "passed"),
    ]
    facts = SeriesFacts("linux", 1, 7, 2, 2048, selftests=tuple(pairs))
    assert (is_worse(STEPS, facts), is_broken(STEPS)) == (worse, False)
    assert verdict(STEPS, facts) == (
        "WORSE: selftests not built now: b_test" if worse else "no difference"
    )
    told = f"{before}, now {DOES_NOT_BUILD}" if worse else DOES_NOT_BUILD
    assert f"selftest b_test: {told}: x.c:1:1: error: no" in summary(STEPS, facts)
    assert json.loads(json.dumps(to_json(STEPS, facts)))["selftests"][1] == {
        "name": "b_test",
        "before": before,
        "now": DOES_NOT_BUILD,
        "said": "x.c:1:1: error: no",
        "worse": worse,
    }


def test_one_that_the_end_does_not_have(run: Run) -> None:
    """Of those of private memory an old source has not all."""
    assert len(run("old", "new", {}, {"new": ["b_test"]})) == 2


def test_one_that_fails_now() -> None:
    passed, failed = (
        SelftestResult(("guest_memfd_test",), outcome, "fd != -1", 1.0)
        for outcome in ("passed", "failed")
    )
    facts = SeriesFacts("linux", 5, 7, 2, 2048, selftests=((passed, failed),))
    assert verdict(STEPS, facts) == "WORSE: selftests failing now: guest_memfd_test"
    assert summary(STEPS, facts)[-1] == "selftest guest_memfd_test: passed, now failed: fd != -1"
    assert is_worse(STEPS, facts)


PLACE = "guest_memfd_test.c:45: fd != -1"
ASSERTION = (
    f"==== Test Assertion Failure ====\n  {PLACE}\n".encode()
    + b"  pid=57 tid=57 errno=22 - Invalid argument\n     1\t0x0000000000402a5e: main at x.c:9\n"
)


@pytest.mark.parametrize(
    ("status", "output", "errors", "splats", "said"),
    [
        (254, b"Random seed: 0x6b8b4567\n", ASSERTION, (), PLACE),
        (254, b"", ASSERTION + b"  mmap() of it failed\n", (), f"{PLACE}: mmap() of it failed"),
        (1, b"TAP version 13\nok 1 a\nnot ok 2 b\nok 3 c\n# Totals: x\n", b"", (), "not ok 2 b"),
        (4, b"1..0 # SKIP Requirement not met: kvm_has_cap(x)\n", b"", (), None),
        (0, b"ok 1 a\n", b"", (Splat("WARNING: x", ("WARNING: x",)),), "WARNING: x"),
        (1, b"", b"", (), ""),
    ],
)
def test_what_is_said_of_one(
    tmp_path: Path,
    status: int,
    output: bytes,
    errors: bytes,
    splats: tuple[Splat, ...],
    said: str | None,
) -> None:
    """What failed, and not what was printed last."""

    class Ran:
        def run(self, argv: Sequence[str], timeout: float) -> RunResult:
            return RunResult(status, output, errors, (), splats, None, False, 1.0)

    lab = cast("Lab", Ran())
    (result,) = run_selftests(lab, {"a_test": tmp_path / "a_test"}, [("a_test",)])
    assert result.outcome == ("skipped" if status == 4 else "failed")
    assert result.said == (output.decode().strip() if said is None else said)


def test_a_source_that_is_unknown(tmp_path: Path) -> None:
    kernel = Kernel("k", tmp_path / "k", "6.12")
    with pytest.raises(LabUsageError, match="its source is unknown"):
        before_and_now([("a_test",)], kernel, kernel, 2, 2048, lambda line: None)
