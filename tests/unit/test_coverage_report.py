"""Coverage by case: counters kept while cases run, and what is made of them."""

from __future__ import annotations

import subprocess
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from pyvmm.cli.lab_coverage import is_missing, shown
from pyvmm.cli.lab_series import _coverage
from pyvmm.errors import UnsupportedError
from pyvmm.lab import build
from pyvmm.lab.coverage import Coverage, Lines
from pyvmm.lab.errors import LabError
from pyvmm.lab.kernels import Kernel
from pyvmm.lab.series import Patch
from pyvmm.validate.kernels import coverage_run
from pyvmm.validate.kernels.changed_code import (
    NO_CODE,
    NOT_COUNTED,
    NOT_SEEN,
    CoveredLine,
    goes_on,
    is_statement,
)
from pyvmm.validate.kernels.coverage_report import (
    changed_lines,
    figures,
    lcov,
    mark_of,
    of_functions,
    page,
)
from pyvmm.validate.kernels.coverage_run import START, CoverageRun, run_with_coverage
from pyvmm.validate.kernels.lab_run import LabMachine, LabRun
from pyvmm.validate.kernels.series import Step
from pyvmm.validate.kit.case import Case
from pyvmm.validate.results.result import CaseResult, State
from pyvmm.validate.run.counters import Counters, Counting
from pyvmm.validate.run.observer import Observer
from pyvmm.validate.run.session import run

FILE = "virt/kvm/guest_memfd.c"


def lines_of_a_patch() -> list[CoveredLine]:
    return [
        CoveredLine(FILE, 10, "\tif (a)", 4, (4, 0), ("PC1.a", "PC2.b")),
        CoveredLine(FILE, 11, "\t\treturn 0;", 0),
        CoveredLine(FILE, 12, "\t\treturn 1;", 0),
        CoveredLine(FILE, 14, "\treturn <2>;", 4, (), tuple(f"X{at}.y" for at in range(9))),
        CoveredLine("arch/x86/kvm/mmu/mmu.c", 7, "\tb();", 0),
    ]


def test_changed_lines_in_words() -> None:
    assert changed_lines(lines_of_a_patch()) == [
        "2 of 5 changed lines executed",
        "  never: guest_memfd.c:11-12 (return 0;), mmu.c:7 (b();)",
        "  guest_memfd.c:10 (if (a)): not every branch executed by PC1.a and 1 more",
        "  guest_memfd.c:14 (return <2>;): executed by X0.y and 8 more",
    ]
    silent = CoveredLine(FILE, 11, "\t\treturn 0;", NO_CODE)
    assert changed_lines([lines_of_a_patch()[0], silent])[:2] == [
        "1 of 1 changed lines executed",
        "  without code of their own, so look around them: guest_memfd.c:11 (return 0;)",
    ]
    assert changed_lines([silent])[0] == "no changed line has a counter"
    hostile = CoveredLine(FILE, 12, "\ta(); /* \x1b[2J \udce9 */", 0)
    assert changed_lines([hostile])[1].endswith(r"guest_memfd.c:12 (a(); /* \x1b[2J \xe9 */)")
    many = [CoveredLine(f"virt/kvm/{at}.c", at, "a();", 0) for at in range(6)]
    assert changed_lines(many)[1].endswith("3.c:3 (a();) and 2 more")
    nothing = "no changed line is code of KVM that this configuration compiles"
    assert changed_lines([]) == [nothing]
    others = [
        CoveredLine("arch/x86/kvm/svm/sev.c", 12, "\ta();", NOT_SEEN),
        CoveredLine("mm/filemap.c", 12, "\tb();", NOT_COUNTED),
    ]
    assert changed_lines(others) == [
        nothing,
        "  unknown to gcov (not compiled here, inlined, or noinstr): sev.c:12 (a();)",
        "  not counted (assembly, or outside KVM's folders): filemap.c:12 (b();)",
    ]
    (removed,) = changed_lines([], are_there=False)
    assert removed.startswith("no line is added or changed; whether what was removed was executed")


def test_what_is_shown_of_them_fits_into_a_mail() -> None:
    many = [CoveredLine(f"virt/kvm/{at}.c", at, "a" * 70 + "();", at % 2) for at in range(30)]
    lines = shown(changed_lines(many))
    assert len(lines) == 12 and all(len(line) <= 78 for line in lines)
    assert lines[0] == "15 of 30 changed lines executed"
    assert lines[-1].startswith("... and ") and lines[-1].endswith(" lines more in check.txt")
    assert shown(["coverage: one"]) == ["coverage: one"]


def test_lines_of_two_hunks_are_two_stretches() -> None:
    """Or it looks as if nothing between them were executed."""
    lines = [CoveredLine(FILE, at, "a();", 0) for at in (10, 12, 300)]
    assert changed_lines(lines) == [
        "0 of 3 changed lines executed",
        "  never: guest_memfd.c:10-12 (a();), guest_memfd.c:300 (a();)",
    ]


def test_a_page_is_whole_in_itself() -> None:
    diff = [(FILE, at, f"line <{at}>") for at in range(9, 15)]
    text = page("Executed <or> not", diff, lines_of_a_patch())
    assert "<script" not in text and "http" not in text and "prefers-color-scheme: dark" in text
    assert 'class="half"' in text and text.count('class="no"') == 2 and 'class="yes"' in text
    assert "line &lt;9&gt;" in text and "Executed &lt;or&gt; not" in text
    assert "X4.y and 4 more" in text
    silent = [CoveredLine(FILE, 10, "\ta();", NO_CODE)]
    assert "<td>no code of its own</td><td>line &lt;10&gt;" in page("", diff, silent)
    assert "<p>no line is added or changed; " in page("", [], [])


def some() -> Coverage:
    spans, calls = {"one": (1, 3), "two": (5, 6)}, {"one": 2, "two": 1}
    return {
        FILE: Lines({1: 2, 2: 0, 3: 0, 5: 1}, {1: [2, 0]}, spans, calls),
        "virt/kvm/empty.h": Lines(),
    }


def test_figures_by_file_and_function() -> None:
    assert list(figures(some())) == [f"{FILE}      2 of     4   50.0 %"]
    assert list(of_functions(some()[FILE])) == ["   1 of    3  one: not 2-3", "   1 of    1  two"]
    assert list(of_functions(some()[FILE], "two")) == ["   1 of    1  two"]


def test_lcov() -> None:
    assert lcov({FILE: some()[FILE]}).splitlines() == [
        "TN:", f"SF:{FILE}", "FN:1,one", "FNDA:2,one", "FN:5,two", "FNDA:1,two",
        "BRDA:1,0,0,2", "BRDA:1,0,1,0", "DA:1,2", "DA:2,0", "DA:3,0", "DA:5,1",
        "LH:2", "LF:4", "end_of_record",
    ]  # fmt: skip


def told_to_lcov(lines: Lines) -> list[str]:
    out = lcov({FILE: lines}).splitlines()
    return [line for line in out if line.startswith(("FN", "BRDA"))]


def test_branches_that_were_not_reached_are_not_told_as_not_taken() -> None:
    """geninfo(1); to lcov since 2.0 a file in which it is otherwise is corrupt."""
    lines = Lines({1: 0, 2: 3}, {1: [0, 0], 2: [3, 0]})
    assert told_to_lcov(lines) == ["BRDA:1,0,0,-", "BRDA:1,0,1,-", "BRDA:2,0,0,3", "BRDA:2,0,1,0"]


def test_each_function_of_a_line_has_its_own_number() -> None:
    """A file that is included twice has two functions in a line, and one may never be entered."""
    lines = Lines({4: 7, 5: 7}, {}, {"paging64": (4, 6), "ept": (4, 6)}, {"paging64": 7, "ept": 0})
    assert told_to_lcov(lines) == ["FN:4,paging64", "FNDA:7,paging64", "FN:4,ept", "FNDA:0,ept"]


def test_a_function_reaches_to_the_next_one_for_lcov() -> None:
    """Behind `never` is one that is inlined, of which gcov knows only lines: a file in which such
    lines are executed and the function before them is not is refused."""
    spans = {"first": (1, 2), "never": (4, 6), "small": (8, 9), "nor": (12, 14), "last": (20, 22)}
    calls = {"first": 1, "never": 0, "small": 0, "nor": 0, "last": 1}
    lines = Lines({1: 1, 4: 0, 8: 0, 10: 3, 12: 0, 20: 1, 21: 1}, {}, spans, calls)
    told = [line for line in told_to_lcov(lines) if line.startswith("FN:")]
    assert told == ["FN:1,first", "FN:12,nor", "FN:20,last"]


# ---- counters, where a kernel has them ----


def a_kernel(top: Path) -> dict[str, Path]:
    """A folder as debugfs has it for a kernel that counts."""
    (top / "reset").parent.mkdir(parents=True, exist_ok=True)
    (top / "reset").write_text("")
    files = {}
    for name in ("virt/kvm/guest_memfd.gcda", "arch/x86/kvm/mmu/mmu.gcda", "mm/shmem.gcda"):
        path = top / "cache/build" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"nothing")
        files[name] = path
    return files


def test_only_what_was_executed_of_kvm_is_kept(tmp_path: Path) -> None:
    files = a_kernel(tmp_path)
    counters = Counters(tmp_path)
    assert set(counters.executed()) == {"virt/kvm/guest_memfd.gcda", "arch/x86/kvm/mmu/mmu.gcda"}
    counters.reset()
    assert counters.executed() == {}
    for path in files.values():
        path.write_bytes(b"something")
    files["arch/x86/kvm/mmu/mmu.gcda"].write_bytes(b"nothing")
    assert counters.executed() == {"virt/kvm/guest_memfd.gcda": b"something"}
    assert (tmp_path / "reset").read_text() == "0"


def test_a_kernel_that_does_not_count(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="does not count"):
        Counters(tmp_path)


def test_each_case_leaves_its_counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = a_kernel(tmp_path / "gcov")
    target = files["virt/kvm/guest_memfd.gcda"]
    really_reset = Counters.reset

    def reset(self: Counters) -> None:
        target.write_bytes(b"nothing")
        really_reset(self)

    monkeypatch.setattr(Counters, "reset", reset)
    counters = Counters(tmp_path / "gcov")

    def a_case(name: str, content: bytes) -> Case:
        def function(tools: Any) -> None:
            target.write_bytes(content)

        return Case(name, "a title", function, "tests")

    kept = tmp_path / "kept"
    kept.mkdir()
    cases = [a_case("A1", b"one"), a_case("A2", b"nothing"), a_case("A3", b"three")]
    run(cases, Counting(Observer(), kept, counters), workers=1)
    found = {}
    for path in sorted(kept.iterdir()):
        with zipfile.ZipFile(path) as opened:
            found[path.name] = {name: opened.read(name) for name in opened.namelist()}
    nothing = {"virt/kvm/guest_memfd.gcda": b"", "arch/x86/kvm/mmu/mmu.gcda": b""}
    executed = {f"{number}.zip": nothing.copy() for number in range(3)}
    executed["0.zip"]["virt/kvm/guest_memfd.gcda"] = b"one"
    executed["2.zip"]["virt/kvm/guest_memfd.gcda"] = b"three"
    # Nothing was reset yet: what ran before the first case is kept, too.
    executed["before.zip"] = dict.fromkeys(nothing, b"nothing")
    assert found == executed


# ---- a run of them ----


def test_lines_are_told_with_their_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(notes: Path, counters: dict[str, bytes], *_: object) -> Coverage:
        count = sum(content[0] for content in counters.values())
        once = {12: 1} if count >= 7 else {12: 0}  # as KVM begins
        return {FILE: Lines({10: count, 11: 0} | once, {10: [count, 0]})} if counters else {}

    monkeypatch.setattr(coverage_run, "read_counters", read)
    monkeypatch.setattr(coverage_run, "add_counters", lambda one, other: bytes([one[0] + other[0]]))
    for number, content in enumerate((b"\2", b"", b"\3")):
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as kept:
            if content:
                kept.writestr("virt/kvm/guest_memfd.gcda", content)
    (tmp_path / "3.zip").write_bytes(b"half a fi")
    with zipfile.ZipFile(tmp_path / "before.zip", "w") as kept:
        kept.writestr("virt/kvm/guest_memfd.gcda", b"\7")
    names = ("A.a", "B.b", "C.c", "D.d", "E.e")
    results = tuple(CaseResult(n, n[0], "t", "s", State.PASS) for n in names)
    kernel = Kernel("cov", tmp_path / "bzImage", "6.12", counts=True)
    found = CoverageRun(kernel, LabRun(names, results, 1, 1.0), tmp_path)
    assert found.cases == ("A.a", "B.b", "C.c", "D.d")
    assert found.lines(
        {FILE: {9: "/* no code */", 10: "if (a)", 11: "b();", 12: "c();", 13: "\treturn 0;"}}
    ) == [
        CoveredLine(FILE, 10, "if (a)", 12, (12, 0), ("A.a", "C.c", START)),
        CoveredLine(FILE, 11, "b();", 0),
        CoveredLine(FILE, 12, "c();", 1, (), (START,)),
        CoveredLine(FILE, 13, "\treturn 0;", NO_CODE),
    ]
    assert found.total()[FILE].executed == 1, "the figures are those of the cases"
    with pytest.raises(LabError, match="no case left counters"):
        CoverageRun(kernel, LabRun(names, results, 1, 1.0), tmp_path / "none")


def test_the_same_cases_are_run_for_coverage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a series, too: with the seed and the examples that were asked for."""
    options = Namespace(
        series=tmp_path, commits=None, source=None, config=None, coverage=True, coverage_of=[],
        seed=7, model_examples=3, expression="MODEL",
    )  # fmt: skip
    kernel = Kernel("cov", tmp_path / "bzImage", "6.12", counts=True)
    monkeypatch.setattr(build, "build", lambda *_: kernel)
    monkeypatch.setattr(build, "placed_patches", lambda *_: [])
    asked: list[str] = []

    def run_with_coverage(kernel: Kernel, machine: LabMachine, words: list[str], *_: Any) -> None:
        asked.extend(words)
        raise LabError("coverage", "that is all")

    monkeypatch.setattr(coverage_run, "run_with_coverage", run_with_coverage)
    patch = Patch("a", 1, 1, 1, "", "")
    steps = [Step(0, kernel=kernel), Step(1, patch, kernel)]
    told, coverage = _coverage(options, tmp_path, [patch], [], steps, LabMachine(), tmp_path)
    assert told == ["coverage: not measured: coverage: that is all"]
    assert coverage is not None and coverage["problem"] == told[0].removeprefix("coverage: ")
    assert is_missing(coverage) and not is_missing(None)
    assert asked == ["--seed", "7", "--model-examples", "3", "-k", "MODEL"]


def test_counters_of_an_interrupted_run_are_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "counters").mkdir()
    (tmp_path / "counters/1.zip").write_bytes(b"of another kernel")
    run = LabRun(("A.a", "B.b"), (), 1, 1.0, problem="the lab's kernel died")
    monkeypatch.setattr(coverage_run, "run_in_lab", lambda *_: run)
    kernel = Kernel("cov", tmp_path / "bzImage", "6.12", counts=True)
    with pytest.raises(LabError, match="the lab's kernel died"):
        run_with_coverage(kernel, LabMachine(), [], tmp_path, print)


def test_a_kernel_without_counters_is_refused(tmp_path: Path) -> None:
    kernel = Kernel("default", tmp_path / "bzImage", "6.12")
    with pytest.raises(LabError, match="it does not count"):
        run_with_coverage(kernel, LabMachine(), [], tmp_path, print)


def test_branches_are_those_of_objects_that_get_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = "virt/kvm/kvm_mm.h"

    def read(notes: Path, counters: dict[str, bytes], *_: object) -> Coverage:
        here = Lines({3: 2}, {3: [2, 0]}) if "virt/kvm/a.gcda" in counters else Lines()
        if (
            "virt/kvm/b.gcda" in counters
        ):  # inlined there, where half of it is known at compile time
            here.add(Lines({3: 0}, {3: [0]}))
        return {header: here}

    monkeypatch.setattr(coverage_run, "read_counters", read)
    with zipfile.ZipFile(tmp_path / "0.zip", "w") as kept:
        kept.writestr("virt/kvm/a.gcda", b"executed")
        kept.writestr("virt/kvm/b.gcda", b"")
    kernel = Kernel("cov", tmp_path / "bzImage", "6.12", counts=True)
    found = CoverageRun(kernel, LabRun(("A.a",), (), 1, 1.0), tmp_path)
    assert found.lines({header: {3: "if (a)"}}) == [
        CoveredLine(header, 3, "if (a)", 2, (2, 0), ("A.a",))
    ]


def test_branches_are_those_of_objects_that_have_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of an object in which there are fewer is not taken for one that was never taken."""
    header = "virt/kvm/kvm_mm.h"

    def read(notes: Path, counters: dict[str, bytes], *_: object) -> Coverage:
        whole = Lines({3: 4}, {3: [3, 1, 1, 0]})
        known = Lines({3: 5}, {3: [2, 3]})
        return {header: whole if "virt/kvm/a.gcda" in counters else known}

    monkeypatch.setattr(coverage_run, "read_counters", read)
    with zipfile.ZipFile(tmp_path / "0.zip", "w") as kept:
        for name in "ab":
            kept.writestr(f"virt/kvm/{name}.gcda", b"executed")
    kernel = Kernel("cov", tmp_path / "bzImage", "6.12", counts=True)
    found = CoverageRun(kernel, LabRun(("A.a",), (), 1, 1.0), tmp_path)
    (line,) = found.lines({header: {3: "if (a && b)"}})
    assert (line.count, line.branches, mark_of(line)) == (9, (3, 1, 1, 0), "half")


def test_lines_that_no_case_executed_are_code(tmp_path: Path) -> None:
    """Neither case executed anything of the object: that is said, and not that it is no code."""
    notes = tmp_path / "gcno/virt/kvm"
    notes.mkdir(parents=True)
    (tmp_path / "virt/kvm").mkdir(parents=True)
    source = tmp_path / "virt/kvm/dirty_ring.c"
    source.write_text("int f(int a)\n{\n\tif (a)\n\t\treturn 1;\n\treturn a - 2;\n}\n")
    command = ["gcc", "-fprofile-arcs", "-ftest-coverage", "-c", "virt/kvm/dirty_ring.c"]
    subprocess.run([*command, "-o", notes / "dirty_ring.o"], cwd=tmp_path, check=True)
    for number in range(2):
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as kept:
            kept.writestr("virt/kvm/dirty_ring.gcda", b"")
    kernel = Kernel("cov", tmp_path / "bzImage", "6.12", counts=True)
    found = CoverageRun(kernel, LabRun(("A.a", "B.b"), (), 1, 1.0), tmp_path)
    lines = found.lines({"virt/kvm/dirty_ring.c": {3: "\tif (a)", 5: "\treturn a - 2;"}})
    assert changed_lines(lines) == [
        "0 of 2 changed lines executed",
        "  never: dirty_ring.c:3-5 (if (a))",
    ]
    assert "DA:5,0" in lcov(found.total())


@pytest.mark.parametrize(
    "text",
    [
        "return 0;", "goto out;", "f(x);", "kvm->ops->f(x, y);", "(void)f(x);", "f(x)(y);",
        "r = -EINTR;", "int r = 0;", "struct kvm *kvm = vcpu->kvm;", "*p = 3;", "*(u64 *)p = 3;",
        "x |= y;", "x <<= 2;", "i++;", "--i;", "a[i].b = c; \\", "if (a)", "} else if (a &&",
        "for (;;)", "f(a,", "int a = f(b,", "x = a ?", "f(x); /* why */",
        "return f(a,", "return a &&", "return f(a)", "kvm_for_each_vcpu(i, vcpu, kvm)",
    ],
)  # fmt: skip
def test_statements(text: str) -> None:
    assert is_statement(f"\t{text}")


@pytest.mark.parametrize(
    "text",
    [
        "", "int a;", "long a[4];", "struct x *a, *b;", "u32 x : 1;", "int x __aligned(8);",
        "int f(int a);", "int (*f)(void);", "DECLARE_BITMAP(x, 8);", ".fault = f,", "A = 1,",
        "}", "{", "} while (0);", "do {", "out:", "case 3:", "b, c);", "b(c) || d);", "|| f(x);",
        "/* x = f(y); */", "// f(x);", "* f(x);", "* Do it = so;",
        "return to where it was",
    ],
)  # fmt: skip
def test_what_is_no_statement(text: str) -> None:
    assert not is_statement(f"\t{text}")


@pytest.mark.parametrize(
    "text",
    [
        "b, c);", "b(c) || d);", "|| f(x);", "a->b &&", "A | B |", "(a & ~B))", "f(x))", "B;",
        "!is_x(a->b)) {", "a->b, c->d,", '"a text %d\\n", a);', ".a = 1,", "F(A) | F(B)",
    ],
)  # fmt: skip
def test_later_lines_of_a_statement(text: str) -> None:
    assert goes_on(f"\t\t{text}")


@pytest.mark.parametrize(
    "text",
    [
        "", "int a;", "long a[4];", "struct x *a, *b;", "u32 x : 1;", "DECLARE_BITMAP(x, 8);", "}",
        "{", "} while (0);", "do {", "else", "out:", "case 3:", "default:", "struct x *a,", ");",
        "int *b, int c)", "gfn_t gfn)", "/* a, */", "* a &&", "#if A ||", "fallthrough;",
    ],
)  # fmt: skip
def test_what_is_no_later_line_of_a_statement(text: str) -> None:
    assert not goes_on(f"\t\t{text}")


CONDITION = """\
static int sink;

static inline int is_large(int a)
{
\treturn a > 10;
}

int f(int a, int b)
{
\tif (a == b ||
\t    a != 3 ||
\t    is_large(
\t\tb))
\t\tsink = 1;
\treturn sink;
}
"""


def run_of(folder: Path, source: str) -> CoverageRun:
    """A run of a kernel whose virt/kvm/x.c is ``source``, of which nothing was executed."""
    notes = folder / "gcno/virt/kvm"
    notes.mkdir(parents=True)
    (folder / "virt/kvm").mkdir(parents=True)
    (folder / "virt/kvm/x.c").write_text(source)
    command = ["gcc", "-O2", "-fprofile-arcs", "-ftest-coverage", "-c", "virt/kvm/x.c"]
    subprocess.run([*command, "-o", notes / "x.o"], cwd=folder, check=True)
    with zipfile.ZipFile(folder / "0.zip", "w") as kept:
        kept.writestr("virt/kvm/x.gcda", b"")
    kernel = Kernel("cov", folder / "bzImage", "6.12", counts=True)
    return CoverageRun(kernel, LabRun(("A.a",), (), 1, 1.0), folder)


def test_a_change_in_the_middle_of_a_statement_is_told(tmp_path: Path) -> None:
    """gcov counts what is inlined where it is written. It was as if the line had not changed."""
    run = run_of(tmp_path, CONDITION)
    text = dict(enumerate(CONDITION.splitlines(), 1))

    def told(file: str, *numbers: int) -> dict[int, int]:
        lines = run.lines({file: {number: text[number] for number in numbers}})
        return {line.number: line.count for line in lines}

    assert told("virt/kvm/x.c", 13) == {13: NO_CODE}
    assert told("virt/kvm/x.c", 12, 13).keys() == {12}  # once for a statement
    assert told("arch/x86/kvm/svm/sev.c", 11) == {11: NOT_SEEN}
    assert told("arch/x86/kvm/svm/sev.c", 13) == {}  # in a file without counters it may be a list


CODE = """\
#define BODY(a) \\
\tdo { \\
\t\tsink = (a); \\
\t} while (0)

static int sink;

static inline void once(int a)
{
\tBODY(a);
}

static inline int never_called(int a)
{
\treturn a + 1;
}

int f(int a)
{
\tint r = 0;

\tonce(a);
#ifdef CONFIG_OF_ANOTHER
\tr = never_called(a);
#endif
\tif (a)
\t\tr = 1;
\treturn r;
}
"""


def test_changed_code_without_counters_is_told(tmp_path: Path) -> None:
    """Nothing of this has one, and all of it was changed: a call that is inlined, a macro, code
    that is left out, and what is no C of KVM's folders."""
    run = run_of(tmp_path, CODE)
    call = {4: "\tx = f(y);"}
    lines = run.lines(
        {
            "virt/kvm/x.c": dict(enumerate(CODE.splitlines(), 1)),
            "arch/x86/kvm/svm/sev.c": call,
            "arch/x86/kvm/svm/vmenter.S": {4: "\tpush %rbp", 5: "/* x */", 6: "#include <x>"},
            "mm/filemap.c": call,
            "include/linux/kvm_host.h": {
                4: "\tint a;",
                5: "\tstruct kvm *f(void);",
                6: "#define A BIT(8)",
                7: "#define a(b) (b)->c",
            },
            "tools/testing/selftests/kvm/x.c": call,
            "Documentation/virt/kvm/api.rst": call,
        }
    )
    why = {(each.file.rpartition("/")[2], each.number): each.count for each in lines}
    without = {at: count for (file, at), count in why.items() if file == "x.c" and count < 0}
    assert without.pop(3) == without.pop(24) == NO_CODE and without.pop(15) == NOT_SEEN
    # What the compiler made nothing of is its own affair.
    assert without.keys() <= {11, 20, 22, 27} and set(without.values()) <= {NO_CODE}
    assert why["x.c", 26] == 0
    others = {name: count for name, count in why.items() if name[0] != "x.c"}
    assert others == {
        ("sev.c", 4): NOT_SEEN,
        ("vmenter.S", 4): NOT_COUNTED,
        ("filemap.c", 4): NOT_COUNTED,
        ("kvm_host.h", 7): NOT_COUNTED,
    }
