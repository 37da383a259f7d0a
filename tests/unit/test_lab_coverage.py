"""Counters of gcov: added up and read, with those that this compiler's own programs write."""

from __future__ import annotations

import struct
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from pyvmm.lab import coverage
from pyvmm.lab.build import check_can_count
from pyvmm.lab.coverage import Lines, add_counters, check_compiler, merge, read_counters
from pyvmm.lab.errors import LabError

SOURCE = """static inline int half(int a)
{
    return a / 2;
}

int pick(int a)
{
    if (a > 10 &&
        a < 20)
        return half(a);
    return a;
}

int never(void)
{
    return 1;
}

int main(int argc, char **argv)
{
    int i, sum = 0;

    for (i = 0; i < argc; i++)
        sum += pick(argc);
    return sum == -1;
}
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the lab keeps one, with notes below virt/kvm, and a program."""
    top = tmp_path_factory.mktemp("built")
    (top / "virt/kvm").mkdir(parents=True)
    (top / "virt/kvm/main.c").write_text(SOURCE)
    command = ["gcc", "-fprofile-arcs", "-ftest-coverage", "-c", "virt/kvm/main.c"]
    subprocess.run([*command, "-o", "virt/kvm/main.o"], cwd=top, check=True)
    command = ["gcc", "-fprofile-arcs", "-o", "program", "virt/kvm/main.o"]
    subprocess.run(command, cwd=top, check=True)
    return top


def counters(built: Path, *words: str) -> bytes:
    found = built / "virt/kvm/main.gcda"
    found.unlink(missing_ok=True)
    subprocess.run(["./program", *words], cwd=built, check=True)
    return found.read_bytes()


NAME = "virt/kvm/main.gcda"


def test_lines_branches_and_functions(built: Path) -> None:
    lines = read_counters(built, {NAME: counters(built, *"abcdefghijk")})["virt/kvm/main.c"]
    assert lines.counts[3] == 12 and lines.counts[10] == 12
    assert lines.counts[16] == 0 and 13 not in lines.counts
    assert lines.functions["never"] == (14, 17)
    assert 0 in lines.branches[8]


def test_counters_are_added_up(built: Path) -> None:
    first, second = counters(built, "a"), counters(built, *"abcdefghijk")
    total = read_counters(built, {NAME: add_counters(first, second)})
    assert total["virt/kvm/main.c"].counts[10] == 12
    assert total["virt/kvm/main.c"].counts[24] == 14
    apart = merge([read_counters(built, {NAME: each}) for each in (first, second)])
    assert apart["virt/kvm/main.c"].counts == total["virt/kvm/main.c"].counts
    assert apart["virt/kvm/main.c"].executed == 11


def test_counters_of_another_object(built: Path) -> None:
    found = counters(built)
    for other in (found[:-8], found[:8] + b"\0\0\0\0" + found[12:], b"abcd" * 8):
        with pytest.raises(LabError, match="different objects"):
            add_counters(found, other)


def test_counters_that_are_cut_short(built: Path) -> None:
    """Never a traceback or much memory, wherever it ends and whatever a length says."""
    found = counters(built)
    (at,) = [at for at in range(16, len(found), 4) if found[at : at + 4] == b"\0\0\xa1\1"][:1]
    for end in range(len(found)):
        with suppress(LabError):
            add_counters(found[:end], found[:end])
    for length in (-(1 << 31), (1 << 31) - 1, 12, 0x1000):
        broken = found[: at + 4] + struct.pack("<i", length) + found[at + 8 :]
        with pytest.raises(LabError, match="cut short, or is none"):
            add_counters(broken, broken)


def test_an_object_that_executed_nothing(built: Path) -> None:
    found = counters(built)
    assert add_counters(b"", found) == add_counters(found, b"") == found
    lines = read_counters(built, {NAME: b""})["virt/kvm/main.c"]
    executed = read_counters(built, {NAME: found})["virt/kvm/main.c"]
    assert lines.executed == 0 and lines.counts.keys() == executed.counts.keys()


def test_what_gcov_refuses(built: Path) -> None:
    with pytest.raises(LabError, match="no notes"):
        read_counters(built, {"virt/kvm/other.gcda": b"x"})
    assert read_counters(built, {}) == {}


def test_copies_of_an_inlined_line_are_one() -> None:
    one, two = Lines({3: 1}, {3: [1, 0]}), Lines({3: 2, 4: 2}, {3: [0, 2]})
    one.add(two)
    assert (one.counts, one.branches) == ({3: 3, 4: 2}, {3: [1, 2]})


@pytest.mark.parametrize("ran", [Lines({3: 4}), Lines({3: 4}, {3: [1, 3]})])
@pytest.mark.parametrize("ran_first", [True, False])
def test_a_copy_that_never_ran_says_nothing_of_one_that_did(ran: Lines, ran_first: bool) -> None:
    """Its branches would make "not every branch executed" of a line with every branch taken."""
    total = Lines()
    for each in (ran, Lines({3: 0}, {3: [0, 0, 0, 0]})) if ran_first else (
        Lines({3: 0}, {3: [0, 0, 0, 0]}), Lines({3: 0}, {3: [0, 0]}), ran,
    ):  # fmt: skip
        total.add(each)
    assert (total.counts, total.branches) == ({3: 4}, ran.branches)


INLINED = """\
volatile int sink;

int small(int a)
{
    if (a > 10)
        sink = a;
    return a;
}

int main(int argc, char **argv)
{
    for (int i = 0; i < argc; i++)
        sink = small(argc);
    return 0;
}
"""


def test_a_function_whose_copy_was_executed_was_entered(tmp_path: Path) -> None:
    """gcov has its first line for the function alone, which nobody called."""
    (tmp_path / "virt/kvm").mkdir(parents=True)
    (tmp_path / "virt/kvm/main.c").write_text(INLINED)
    command = ["gcc", "-O2", "-fprofile-arcs", "-ftest-coverage", "-c", "virt/kvm/main.c"]
    subprocess.run([*command, "-o", "virt/kvm/main.o"], cwd=tmp_path, check=True)
    command = ["gcc", "-fprofile-arcs", "-o", "program", "virt/kvm/main.o"]
    subprocess.run(command, cwd=tmp_path, check=True)
    subprocess.run([tmp_path / "program"], cwd=tmp_path, check=True)
    name = "virt/kvm/main.gcda"
    read = read_counters(tmp_path, {name: (tmp_path / name).read_bytes()})["virt/kvm/main.c"]
    assert read.counts[5] == 1 and read.counts[6] == 0
    assert read.counts[3] == read.calls["small"] == 1 and 3 not in read.branches
    assert read.calls["main"] == 1
    nothing = read_counters(tmp_path, {name: b""})["virt/kvm/main.c"]
    assert not any(nothing.counts.values()) and not any(nothing.calls.values())


def test_lines_of_headers_elsewhere_are_counted_for_who_wants_them(tmp_path: Path) -> None:
    """Much of KVM is in include/linux/kvm_host.h. The source may be below a folder virt/kvm."""
    top = tmp_path / "virt/kvm/linux"
    body = "{\n\tif (a > 3)\n\t\ta += 5;\n\treturn 2 * a;\n}\n"
    for name, text in (
        ("include/linux/kvm_host.h", f"static inline int two(int a)\n{body}"),
        ("include/linux/mm.h", f"static inline int one(int a)\n{body}"),
        (
            "arch/x86/kvm/x86.c",
            # gcc forgets a line behind one of another file that has the same number.
            "#include <linux/kvm_host.h>\n#include <linux/mm.h>\n\n\n\n\n"
            "int main(int argc, char **argv)\n{\n\treturn one(two(argc)) < 0;\n}\n",
        ),
    ):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    build = tmp_path / "build"
    (build / "arch/x86/kvm").mkdir(parents=True)
    source = "arch/x86/kvm/x86"
    command = ["gcc", "-O2", f"-I{top}/include", "-fprofile-arcs", "-ftest-coverage"]
    command += [f"{top}/arch/x86/kvm/../../../{source}.c", "-c", "-o", f"{source}.o"]
    subprocess.run(command, cwd=build, check=True)
    subprocess.run(["gcc", "-fprofile-arcs", f"{source}.o", "-o", "program"], cwd=build, check=True)
    subprocess.run(["./program"], cwd=build, check=True)
    counters = {f"{source}.gcda": (build / f"{source}.gcda").read_bytes()}
    assert read_counters(build, counters).keys() == {f"{source}.c"}
    found = read_counters(build, counters, {"include/linux/kvm_host.h"})
    assert found.keys() == {f"{source}.c", "include/linux/kvm_host.h"}
    assert found["include/linux/kvm_host.h"].counts[3] == 1


def a_source(folder: Path, number: str) -> Path:
    (folder / "kernel/gcov").mkdir(parents=True)
    (folder / "kernel/gcov/gcc_4_7.c").write_text(
        f"#if (__GNUC__ >= 5)\n#define GCOV_COUNTERS\t{number}\n#else\n"
        "#define GCOV_COUNTERS 3\n#endif\n"
    )
    return folder


def test_a_kernel_and_a_compiler_of_one_format(tmp_path: Path) -> None:
    made = coverage._OBJECT.search(
        coverage._gcc("-S", "-fprofile-arcs", "-ftest-coverage", text="int f(void) { return 1; }\n")
    )
    assert made is not None
    number = (int(made[1]) - 48) // 8
    check_compiler(a_source(tmp_path / "right", str(number)))
    with pytest.raises(LabError, match="kinds of counters"):
        check_compiler(a_source(tmp_path / "wrong", str(number + 1)))
    with pytest.raises(LabError, match="no kernel/gcov"):
        check_compiler(tmp_path / "none")


def test_it_is_said_before_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = a_source(tmp_path / "linux", "77")
    (source / "Kbuild").touch()
    (source / "arch/x86/kvm").mkdir(parents=True)
    with pytest.raises(LabError, match="writes 77"):
        check_can_count(source)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="gcov: not found"):
        check_can_count(source)
