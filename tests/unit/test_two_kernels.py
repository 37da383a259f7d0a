"""Two kernels compared: verdicts, the text for a mail, exit status; without booting anything."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyvmm.cli import lab_check_text as text
from pyvmm.cli.main import main
from pyvmm.errors import ConfigurationError, PyvmmError
from pyvmm.lab.errors import LabError, LabUsageError
from pyvmm.lab.kernel_log import Splat
from pyvmm.lab.kernels import Kernel
from pyvmm.validate.kernels import two_kernels
from pyvmm.validate.kernels.lab_run import LabRun, Machine, Trouble
from pyvmm.validate.kernels.side_by_side import Run, run_side_by_side
from pyvmm.validate.kernels.two_kernels import TwoKernels, Variant, compare, judge
from pyvmm.validate.kernels.verdict import Facts, to_json, verdict
from pyvmm.validate.kit.known import KnownBug
from pyvmm.validate.results import report
from pyvmm.validate.results.baseline import Change
from pyvmm.validate.results.result import CaseResult, State

PASS, FAIL, SKIP = State.PASS, State.FAIL, State.SKIP
BEFORE = Kernel("default", Path("/k/1/bzImage"), "6.12.1", "/usr/src/linux-source-6.12.tar.xz")
NOW = Kernel(
    "6.12-ab", Path("/k/2/bzImage"), "6.12.1", "/usr/src/linux.tar.xz", ("0001-fix.patch",)
)


def result(name: str, state: State = PASS, message: str = "") -> CaseResult:
    return CaseResult(name, name.split(".")[0], "a title", "tests", state, message)


def run(*results: CaseResult, planned: Sequence[str] = (), **other: Any) -> LabRun:
    names = tuple(planned or [each.name for each in results])
    return LabRun(names, results, 7, 1.5, other.pop("machine", {"kernel": "6.12"}), **other)


def splat(title: str, *cases: str) -> Trouble:
    return Trouble(Splat(title, (title, "a line")), cases)


def facts() -> Facts:
    return Facts(BEFORE, NOW, 7, 2, 2048)


# ---- what a case's results say ----


@pytest.mark.parametrize(
    ("before", "now", "change"),
    [
        ("p", "p", Change.SAME),
        ("p", "f", Change.BROKEN),
        ("f", "p", Change.FIXED),
        ("f", "f", Change.SAME_FAILURE),
        ("f", "g", Change.DIFFERENT),
        ("p", "s", Change.NEWLY_SKIPPED),
        ("s", "p", Change.NO_LONGER_SKIPPED),
        ("p", "", Change.DID_NOT_RUN),
        ("", "", Change.SAME),
        ("", "p", Change.NO_LONGER_SKIPPED),
        ("", "f", Change.BROKEN),
        # A failure that does not come again on the same kernel proves nothing.
        ("ppp", "fpp", Change.UNSTEADY),
        ("fpp", "ppp", Change.UNSTEADY),
        ("fpf", "pfp", Change.UNSTEADY),
        ("pp", "sp", Change.UNSTEADY),
        # One that comes again, and never on the other kernel, does.
        ("pp", "ff", Change.BROKEN),
        ("ppp", "fpf", Change.BROKEN),
        ("ppp", "fgp", Change.BROKEN),
        ("ppp", "fgh", Change.BROKEN),
        ("fpf", "ppp", Change.FIXED),
        # What fails in several ways on both is the same if they have one in common.
        ("fg", "gf", Change.SAME_FAILURE),
        ("ff", "gh", Change.UNSTEADY),
        # A known bug is wrong too, and no failure that counts against the kernel with it.
        ("k", "k", Change.SAME_KNOWN),
        ("kk", "kk", Change.SAME_KNOWN),
        ("k", "p", Change.FIXED),
        ("kkp", "ppp", Change.FIXED),
        ("pp", "kk", Change.BROKEN),
        ("k", "f", Change.DIFFERENT),
        ("k", "s", Change.NEWLY_SKIPPED),
        ("", "k", Change.BROKEN),
    ],
)
def test_what_results_say(before: str, now: str, change: Change) -> None:
    def results(letters: str) -> list[CaseResult]:
        states = {"p": PASS, "s": SKIP, "k": State.KNOWN}
        return [
            result("X1.a", states.get(each, FAIL), each if each not in "p" else "")
            for each in letters
        ]

    assert judge(results(before), results(now)) is change


@pytest.mark.parametrize(
    ("before", "now", "worse"),
    [
        ([PASS], [FAIL], True),
        ([PASS], [SKIP], True),
        ([PASS], [], True),
        ([FAIL], [], True),
        ([SKIP], [], False),
        ([FAIL], [SKIP], False),
        ([State.KNOWN], [FAIL], True),
        ([State.KNOWN], [PASS], False),
        ([State.KNOWN], [State.KNOWN], False),
        ([PASS], [State.KNOWN], True),
        ([FAIL], [PASS], False),
        ([SKIP], [PASS], False),
        ([PASS, PASS, PASS], [FAIL, PASS, PASS], False),
    ],
)
def test_what_is_worse(before: list[State], now: list[State], worse: bool) -> None:
    earlier = [run(result("X1.a", each)) for each in before] or [run(planned=["X1.a"])]
    later = [run(result("X1.a", each)) for each in now] or [run(planned=["X1.a"])]
    (compared,) = compare(earlier, later)
    assert compared.worse is worse


def variant(before: LabRun, now: LabRun, *parameters: str) -> Variant:
    return Variant(parameters, (before,), (now,), compare([before], [now]))


def test_a_splat_only_now_is_worse_whatever_its_numbers() -> None:
    one = "WARNING: CPU: 0 PID: 58 at arch/x86/kvm/mmu/mmu.c:112 f+0xa/0x10"
    same = "WARNING: CPU: 1 PID: 70 at arch/x86/kvm/mmu/mmu.c:113 f+0xb/0x12"
    other = "WARNING: CPU: 1 PID: 70 at arch/x86/kvm/mmu/mmu.c:113 g+0xb/0x12"
    fine = result("X1.a")
    both = variant(run(fine, trouble=(splat(one),)), run(fine, trouble=(splat(same),)))
    assert not both.worse and "before too" in "\n".join(text.summary(facts(), [both]))
    new = variant(run(fine, trouble=(splat(one),)), run(fine, trouble=(splat(other, "X1.a"),)))
    assert new.worse
    said = "\n".join(text.summary(facts(), [new]))
    assert "only now (1):\n  WARNING: CPU: 1" in said
    gone = variant(run(fine, trouble=(splat(one),)), run(fine))
    assert not gone.worse


def test_a_kernel_that_dies_in_the_middle() -> None:
    names = ["X1.a", "X2.b", "X3.c"]
    before = run(*map(result, names))
    now = run(
        result("X1.a"),
        planned=names,
        problem="the lab's kernel died; in the middle of X2.b",
        trouble=(splat("Oops: 0000 [#1]", "X2.b"),),
    )
    died = variant(before, now)
    assert died.worse
    assert [each.name for each in died.of(Change.DID_NOT_RUN)] == ["X2.b", "X3.c"]
    said = "\n".join(text.summary(facts(), [died]))
    assert said.startswith("WORSE: 2 did not run, 1 new splat, kernel died")
    assert "in the middle of X2.b" in said and "Oops: 0000 [#1] (while X2.b ran)" in said
    # The same on both kernels is no difference, though not much of a proof.
    both = variant(now, now)
    assert not both.worse
    said = "\n".join(text.summary(facts(), [both]))
    assert said.startswith("nothing got worse: the kernel before did not come to the end")
    assert "did not come to its end now" in said and "did not come to its end before" in said


# ---- what is said ----


def test_no_difference() -> None:
    both = run(result("X1.a"), result("X2.b", SKIP, "memory_error: it is not there"))
    lines = text.summary(facts(), [variant(both, both)])
    assert lines[0] == "no difference"
    assert "1 skipped: memory_error: it is not there" in lines
    assert not any("WORSE" in line for line in lines)


def test_known_bugs_are_said_with_their_fix() -> None:
    bug = KnownBug("0123456789ab", "KVM: Do it right", "6.18")
    seen = replace(result("X1.a", State.KNOWN, "it hangs"), bug=bug)
    lines = text.summary(facts(), [variant(run(seen), run(seen))])
    assert lines[0] == "no difference: 1 cases see known bugs on both kernels"
    said = "\n".join(lines)
    assert 'same known bug (1):\n  X1.a\n      it hangs; fixed by 0123456789ab ("KVM' in said
    counts = to_json(facts(), [variant(run(seen), run(seen))])["variants"][0]["counts"]
    assert counts["known"] == 1 and counts["same failure"] == 0
    mended = variant(run(seen), run(result("X1.a")))
    assert not mended.worse
    assert text.summary(facts(), [mended])[0] == "nothing got worse: 1 fixed"
    assert variant(run(result("X1.a")), run(seen)).worse


def test_nothing_that_ran_is_said() -> None:
    both = run(result("X1.a", SKIP, "no KVM"))
    lines = text.summary(facts(), [variant(both, both)])
    assert lines[0] == "NOTHING COULD RUN on either kernel"
    partly = variant(run(result("X1.a")), both)
    assert partly.worse and not partly.nothing_ran
    assert text.summary(facts(), [partly])[0] == "WORSE: 1 newly skipped"


def many(count: int, state: State, message: str, first: str = "X") -> list[CaseResult]:
    return [
        result(f"{first}{at % 50}.a[way={'long ' * 12}{at}]", state, f"{message} {at % 70}")
        for at in range(count)
    ]


@pytest.mark.parametrize("variants", [1, 20])
def test_hundreds_of_differences_fit_into_a_mail(variants: int) -> None:
    before = [
        *many(200, PASS, "", "B"),
        *many(200, FAIL, "old", "D"),
        *many(100, FAIL, "old", "F"),
        *many(100, PASS, "", "S"),
        *many(50, FAIL, "same", "A"),
    ]
    now = [
        *many(200, FAIL, "seen 0x11 where 0x22 was written, " * 5, "B"),
        *many(200, State.HANG, "new", "D"),
        *many(100, PASS, "", "F"),
        *many(100, SKIP, "gone", "S"),
        *many(50, FAIL, "same", "A"),
    ]
    trouble = tuple(splat(f"WARNING: at f{chr(97 + at)}", "B1.a") for at in range(20))
    all_variants = [
        variant(run(*before), run(*now, trouble=trouble), f"kvm_amd.npt={at}")
        for at in range(variants)
    ]
    lines = text.summary(facts(), all_variants)
    assert len(lines) < 40
    assert max(map(len, lines)) <= 78
    said = "\n".join(lines)
    for heading in ("broken (", "different failure (", "fixed (", "newly skipped (", "only now"):
        assert heading in said, said
    assert "... and" in said and "more like these" in said
    whole = "\n".join(text.everything(facts(), all_variants))
    for each in now:
        assert each.state is PASS or each.name in whole


def test_cases_with_which_the_same_is_wrong_are_one_group() -> None:
    names = [f"PC3.a[gpa={at}]" for at in range(5)]
    broken = variant(
        run(*(result(name) for name in names)), run(*(result(name, FAIL, "bad") for name in names))
    )
    said = "\n".join(text.summary(facts(), [broken]))
    assert "broken (5):\n  PC3.a[gpa=0], and 4 more of PC3\n      bad" in said
    more = variant(
        run(result("Q1.a", SKIP), result("Q1.b", SKIP)), run(*map(result, ["Q1.a", "Q1.b"]))
    )
    assert "no longer skipped (2):\n  Q1 (2)" in "\n".join(text.summary(facts(), [more]))


def test_text_of_a_kernel_cannot_act_on_the_terminal() -> None:
    odd = variant(run(result("X1.a")), run(result("X1.a", FAIL, "\x1b[2J\nno difference")))
    for lines in (text.summary(facts(), [odd]), text.everything(facts(), [odd])):
        assert not any("\x1b" in line or "\n" in line for line in lines)


def test_a_parameter_that_does_not_take_is_noted() -> None:
    machine = {"kernel": "6.12", "parameters": {"kvm.tdp_mmu": "N", "kvm_amd.npt": "0"}}
    both = run(result("X1.a"), machine=machine)
    asked = ("kvm.tdp_mmu=1", "kvm_amd.npt=off", "kvm.none=1", "quiet", "other.thing=3")
    notes = variant(both, both, *asked).notes
    assert notes == [
        "kvm.tdp_mmu=1 was asked for, the kernel before has N",
        "kvm.tdp_mmu=1 was asked for, the kernel now has N",
        "kvm.none is unknown to the kernel before",
        "kvm.none is unknown to the kernel now",
    ]


def test_json_has_all_of_it() -> None:
    broken = variant(
        run(result("X1.a"), result("X2.b")),
        run(result("X1.a", FAIL, "bad"), result("X2.b"), trouble=(splat("BUG: x", "X1.a"),)),
    )
    data = json.loads(json.dumps(to_json(facts(), [broken])))
    assert (data["schema"], data["worse"], data["seed"]) == (1, True, 7)
    (found,) = data["variants"]
    assert [each["name"] for each in found["changes"]["broken"]] == ["X1.a"]
    assert found["changes"]["broken"][0]["now"][0]["message"] == "bad"
    assert found["kernel_log"][0]["title"] == "BUG: x" and found["kernel_log"][0]["new"]


# ---- what is run, and how often ----


class Kernels:
    """Stands for the lab: gives each kernel's results by turns, and notes what it ran."""

    def __init__(self, before: Sequence[str], now: Sequence[str], folder: Path) -> None:
        self.folder = folder
        self.letters = {BEFORE.name: list(before), NOW.name: list(now)}
        self.ran: list[tuple[str, tuple[str, ...], list[str]]] = []

    def __call__(
        self, kernel: Kernel, machine: Machine, words: Sequence[str], folder: Path, *_: object
    ) -> LabRun:
        assert folder.is_relative_to(self.folder)
        self.ran.append((kernel.name, tuple(machine.parameters), list(words)))
        letters = self.letters[kernel.name].pop(0)
        names = [f"X{at}.a" for at in range(len(letters))]
        if "-k" in words:
            names = words[words.index("-k") + 1].split(" or ")
        states = {"p": PASS, "s": SKIP}
        return run(
            *(
                result(name, states.get(letter, FAIL), "" if letter == "p" else letter)
                for name, letter in zip(names, letters, strict=True)
            )
        )


def one_by_one(runs: Sequence[Run], watch: object) -> list[LabRun]:
    """In this process, whose objects remember what they were asked."""
    return [run(lambda line: None) for run in runs]


def variants_of(kernels: Kernels, monkeypatch: pytest.MonkeyPatch, **other: Any) -> list[Variant]:
    monkeypatch.setattr(two_kernels, "run_in_lab", kernels)
    monkeypatch.setattr(two_kernels, "run_side_by_side", one_by_one)
    check = TwoKernels(BEFORE, NOW, Machine(), kernels.folder, seed=7, **other)
    return list(check.variants())


def test_the_same_is_run_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernels = Kernels(["ppf"], ["ppf"], tmp_path)
    (only,) = variants_of(kernels, monkeypatch, words=["-j", "3"])
    assert not only.worse
    assert kernels.ran == [
        (BEFORE.name, (), ["--seed", "7", "-j", "3"]),
        (NOW.name, (), ["--seed", "7", "-j", "3"]),
    ]


def test_what_differs_is_run_again_until_it_is_clear(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[str] = []
    kernels = Kernels(["ppp", "pp", "p"], ["fpf", "fp", "p"], tmp_path)
    (only,) = variants_of(kernels, monkeypatch, announce=said.append)
    chosen = [words[words.index("-k") + 1] for _, _, words in kernels.ran[2:]]
    assert chosen == ["X0.a or X2.a"] * 2 + ["X2.a"] * 2
    assert [each.change for each in only.cases] == [Change.BROKEN, Change.SAME, Change.UNSTEADY]
    assert only.worse
    assert len(said) == 2 and "running 2 cases that differ again" in said[0]
    words = "\n".join(text.summary(facts(), [only]))
    assert "failed 0 of 3 times before, 1 of 3 now" in words


def test_two_different_failures_are_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernels = Kernels(["p", "p"], ["f", "g"], tmp_path)
    (only,) = variants_of(kernels, monkeypatch)
    assert only.worse and len(kernels.ran) == 4


def test_no_time_to_run_again_is_nothing_that_the_kernel_did(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernels = Kernels(["pf"], ["pp"], tmp_path)

    def lab(kernel: Kernel, machine: Machine, words: Sequence[str], *others: Any) -> LabRun:
        if "-k" not in words:
            return kernels(kernel, machine, words, *others)
        return run(planned=["X1.a"], problem="timed out", out_of_time=True)

    monkeypatch.setattr(two_kernels, "run_in_lab", lab)
    monkeypatch.setattr(two_kernels, "run_side_by_side", one_by_one)
    (only,) = TwoKernels(BEFORE, NOW, Machine(), tmp_path, seed=7).variants()
    assert [each.change for each in only.cases] == [Change.SAME, Change.FIXED]
    assert not only.worse and not only.problem("before")


def test_unsteady_alone_is_not_worse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (only,) = variants_of(Kernels(["p", "p", "p"], ["f", "p", "p"], tmp_path), monkeypatch)
    assert not only.worse
    assert verdict([only]) == "nothing got worse: 1 unsteady"


def test_hundreds_that_differ_are_not_all_run_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernels = Kernels(["p" * 300, "p" * 50], ["f" * 300, "f" * 50], tmp_path)
    (only,) = variants_of(kernels, monkeypatch)
    assert len(only.of(Change.BROKEN)) == 300


def test_all_combinations_on_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernels = Kernels(["p"] * 4, ["p"] * 4, tmp_path)
    vary = [["a.x=0", "a.x=1"], ["b.y=0", "b.y=1"]]
    found = variants_of(kernels, monkeypatch, vary=vary)
    assert [each.label for each in found] == [
        "a.x=0 b.y=0",
        "a.x=0 b.y=1",
        "a.x=1 b.y=0",
        "a.x=1 b.y=1",
    ]
    assert [parameters for _, parameters, _ in kernels.ran][::2] == [
        each.parameters for each in found
    ]
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("validate.json"))
    assert files[:2] == ["a.x=0_b.y=0/before/validate.json", "a.x=0_b.y=0/now/validate.json"]
    assert len(files) == 8
    assert report.load(str(tmp_path / files[0])).results == found[0].before[0].results


# ---- side by side ----


def test_runs_side_by_side_come_back_in_their_order(tmp_path: Path) -> None:
    told: list[tuple[int, str]] = []
    heard = tmp_path / "heard"

    def hear(index: int, name: str) -> None:
        told.append((index, name))
        heard.touch()

    def named(name: str, is_second: bool) -> Run:
        def work(tell: Callable[[str], None]) -> LabRun:
            while is_second and not heard.exists():
                time.sleep(0.01)
            tell(name)
            return run(result(name), trouble=(splat("BUG: x", name),))

        return work

    both = run_side_by_side([named("X1.a", True), named("X2.b", False)], hear)
    assert [each.planned for each in both] == [("X1.a",), ("X2.b",)]
    assert told == [(1, "X2.b"), (0, "X1.a")]


@pytest.mark.parametrize("kind", [LabError, LabUsageError, ConfigurationError])
def test_an_error_in_one_run_ends_the_other(kind: type[PyvmmError], tmp_path: Path) -> None:
    def fails(tell: Callable[[str], None]) -> LabRun:
        while not (tmp_path / "began").exists():
            time.sleep(0.01)
        raise kind("kernel x", "it does not boot", "look at it")

    def waits(tell: Callable[[str], None]) -> LabRun:
        (tmp_path / "began").touch()
        time.sleep(1000)
        raise AssertionError

    start = time.monotonic()
    with pytest.raises(kind, match="kernel x: it does not boot; look at it"):
        run_side_by_side([waits, fails], lambda *at: None)
    assert time.monotonic() - start < 20
    assert not multiprocessing.active_children()


def test_a_process_that_dies_is_an_error() -> None:
    with pytest.raises(LabError, match="died"):
        run_side_by_side([lambda tell: os._exit(3)], lambda *at: None)


# ---- the command ----


@pytest.fixture
def no_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels called a and b, which need neither QEMU nor building."""
    from pyvmm.lab import build, initramfs, qemu

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(qemu, "find_qemu", lambda: "qemu")
    monkeypatch.setattr(initramfs, "find_busybox", lambda: Path("busybox"))
    monkeypatch.setattr(build, "check_known", lambda name: None)
    monkeypatch.setattr(build, "find_or_build", lambda name, *_: {"a": BEFORE, "b": NOW}[name])


@pytest.mark.usefixtures("no_lab")
@pytest.mark.parametrize(
    ("before", "now", "status", "verdict"),
    [
        ("pp", "pp", 0, "no difference"),
        ("fp", "fp", 0, "no difference: 1 cases fail on both kernels"),
        ("fp", "pp", 0, "nothing got worse: 1 fixed"),
        ("pp", "pf", 1, "WORSE: 1 broken"),
        ("ps", "ss", 1, "WORSE: 1 newly skipped"),
        ("ss", "ss", 4, "NOTHING COULD RUN on either kernel"),
    ],
)
def test_exit_status(
    before: str,
    now: str,
    status: int,
    verdict: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What differs is run again, with the same result.
    again = [
        "".join(pair[at] for pair in zip(before, now, strict=True) if pair[0] != pair[1])
        for at in (0, 1)
    ]
    kernels = Kernels([before, again[0]], [now, again[1]], tmp_path)
    monkeypatch.setattr(two_kernels, "run_in_lab", kernels)
    monkeypatch.setattr(two_kernels, "run_side_by_side", one_by_one)
    words = ["lab", "check", "--kernel", "a", "--kernel", "b", "--seed", "8"]
    assert main(words) == status
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert lines[0] == verdict
    whole = tmp_path / "pyvmm/last-check/check.txt"
    assert lines[-1] == f"all of it: {whole}"
    assert whole.read_text().startswith(f"{verdict}\n")
    assert "seed 8" in told.out and "seed 8" in told.err
    kernels.letters = {BEFORE.name: [before, again[0]], NOW.name: [now, again[1]]}
    assert main(words) == status
    kernels.letters = {BEFORE.name: [before, again[0]], NOW.name: [now, again[1]]}
    capsys.readouterr()
    assert main([*words, "--json", "--results", str(tmp_path / "mine")]) == status
    data = json.loads(capsys.readouterr().out)
    assert data["verdict"] == verdict
    assert json.loads((tmp_path / "mine/check.json").read_text()) == data
    assert (tmp_path / "mine/now/kernel.log").exists()
    # What the one before left is gone.
    assert len(list((tmp_path / "pyvmm").iterdir())) == 2


@pytest.mark.usefixtures("no_lab")
def test_a_kernel_that_does_not_boot_is_125(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_in_lab(kernel: Kernel, *_: object) -> LabRun:
        if kernel is NOW:
            raise LabError(f"kernel {kernel.name} did not boot", "it has no console")
        return run(result("X1.a"))

    monkeypatch.setattr(two_kernels, "run_in_lab", run_in_lab)
    monkeypatch.setattr(two_kernels, "run_side_by_side", one_by_one)
    assert main(["lab", "check", "--kernel", "a", "--kernel", "b"]) == 125
    told = capsys.readouterr()
    assert "kernel 6.12-ab did not boot: it has no console" in told.err
    assert not told.out
    assert not list((tmp_path / "pyvmm").iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "nothing to compare: want --patch FILE, --series FILE, or --kernel BEFORE"),
        (("--source", "."), "nothing to compare"),
        (("--kernel", "default"), "1 --kernel: want two"),
        (("--kernel", "a", "--kernel", "b", "--patch", "c"), "it stands instead of"),
        (("--kernel", "default", "--kernel", "b"), "kernel 'b': there is none of this name"),
        (("--kernel", "default", "--kernel", "./b"), "kernel b: No such file"),
        (("--patch", __file__, "--cpus", "99"), "99 CPUs: the lab has 1 to 32"),
        (("--patch", __file__, "--memory", "1"), "1 MiB of memory"),
        (("--patch", __file__, "--param", "a b"), "kernel parameter 'a b'"),
        (("--patch", "/nowhere/p"), "patch /nowhere/p: want a file"),
        (("--source", "/nowhere", "--patch", __file__), "/nowhere"),
        (("--patch", __file__, "-k", "MR99"), "did you mean MR"),
        (("--patch", __file__, "--vary", "npt"), "'npt' is not NAME=VALUE,VALUE"),
        (("--patch", __file__, "--vary", "a.b=1", "--vary", "a.b=2"), "given twice"),
        (("--patch", __file__, "--vary", "a.b=" + ",".join("abcdefghi" * 1), "--vary",
          "c.d=" + ",".join("abcdefghi")), "81 combinations: at most 64"),
        (("--patch", __file__, "-j", "0"), "0 is not a number from 1 to 256"),
        (("--patch", __file__, "--timeout", "nan"), "nan is not a number of seconds"),
        (("--patch", __file__, "--results", "/dev/null/x"), "results folder /dev/null/x"),
    ],
)  # fmt: skip
def test_bad_words_are_one_line(
    words: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")  # nothing must come so far as to build
    try:
        status = main(["lab", "check", *words])
    except SystemExit as stopped:
        status = int(str(stopped.code))
    told = capsys.readouterr()
    assert status == 2, told.err
    assert said in told.err
    assert len(told.err.splitlines()) == 1 and not told.out
    assert not list(tmp_path.rglob("check.*"))
