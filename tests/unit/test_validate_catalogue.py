"""The catalogue: names, choosing, and that the guests' bytes are what their source says."""

from __future__ import annotations

import inspect
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyvmm.errors import ConfigurationError
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.capabilities import CAPABILITIES
from pyvmm.validate.kit.case import GIB, HUGE, KIB, PAGE, size_word
from pyvmm.validate.run.catalogue import all_cases, select

# What the kernel's own tests and the posted ones cover, and this ABI generation has.
IDS = (
    *(f"PC{n}" for n in range(1, 11)),
    *("PE1", "PE2"),
    *(f"GM{n}" for n in range(1, 17)),
    *(f"MR{n}" for n in range(1, 9)),
    *(f"PF{n}" for n in range(1, 5)),
    *("PMPAT", "PMSAT", "SMSAT", "SMPAT", "PSAT", "SPAT", "PSPAHCT"),
)


def names(expression: str) -> list[str]:
    return [each.name for each in select(expression)]


def test_every_id_of_the_kernels_own_tests_is_there() -> None:
    known = {each.id for each in all_cases()}
    assert not set(IDS) - known


def test_names_are_unique_and_safe_for_ktap() -> None:
    all_names = [each.name for each in all_cases()]
    assert len(set(all_names)) == len(all_names)
    assert not [name for name in all_names if "#" in name or not name.isprintable()]


def test_one_id_means_one_function_and_title() -> None:
    seen: dict[str, tuple[str, str]] = {}
    for each in all_cases():
        told = (each.title, each.function.__name__)
        assert seen.setdefault(each.id, told) == told


def test_every_case_says_what_it_needs_and_takes_its_parameters() -> None:
    for each in all_cases():
        assert set(each.needs) <= set(CAPABILITIES), each.name
        assert "kvm" in each.needs, each.name
        parameters = list(inspect.signature(each.function).parameters)
        assert parameters == ["tools", *each.parameters], each.name


def test_a_whole_name_chooses_that_case_alone() -> None:
    for each in all_cases():
        assert names(each.name) == [each.name]
    some = [each.name for each in all_cases()][::40]
    assert names(" or ".join(some)) == some
    assert names("(MU1.region2[wrong=size unaligned])") == ["MU1.region2[wrong=size unaligned]"]
    assert names("not MU1.region2[wrong=size unaligned] and MU1.region2[wrong=size")


def test_choosing() -> None:
    assert all(name.startswith("PC1.") for name in names("PC1"))
    assert all(name.startswith("PC1.") for name in names("pc1"))
    assert len(names("PC1 or PC2")) == len(names("PC1")) + len(names("PC2"))
    both = names("conversions and gpa=4G")
    assert both and all("gpa=4G" in name for name in both)
    assert set(names("not PC1")) == set(names("")) - set(names("PC1"))
    assert names("(PC1 or PC2) and not PC2") == names("PC1")
    assert {each.backend for each in select(backend="emulated")} == {"emulated"}


def test_a_long_expression_is_as_quick_as_a_short_one() -> None:
    assert names("not " * 5001 + "PC1") == names("not PC1")
    assert names("(" * 100 + "PC1" + ")" * 100) == names("PC1")
    everything = names("")
    started = time.process_time()
    assert names(" or ".join(everything)) == everything
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("PC99", "did you mean PC"),
        ("conversion_s", "conversions"),
        ("xyzzy", "--list"),
        ("PC1 and", "a word is missing"),
        ("(PC1", "bracket is not closed"),
        ("PC1)", "not expected"),
        ("PC1 PC2", "not expected"),
        ("PC1 and PC2", "-k 'PC1 and PC2': no case is chosen"),
        ("()", "a word is missing"),
        ("(" * 5000 + "PC1" + ")" * 5000, "more than 100 brackets"),
        ("PC1 " * 1000, "not expected"),
        ("x" * 10000, "no such case"),
    ],
)
def test_a_wrong_choice_is_one_line_with_a_remedy(expression: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        select(expression)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_sizes_in_words() -> None:
    words = {0: "0", 1: "1", PAGE: "4K", HUGE: "2M", HUGE + PAGE: "2M+4K", 4 * GIB: "4G"}
    words |= {512 * KIB: "512K", PAGE + 1: "0x1001"}
    assert {size: size_word(size) for size in words} == words


@pytest.mark.parametrize("routine", routines.ALL, ids=lambda routine: routine.source[:20])
def test_a_routines_bytes_are_its_source(routine: routines.Routine, tmp_path: Path) -> None:
    source = routine.source.replace(";", "\n") + "\n"
    unlinked, flat = tmp_path / "a.o", tmp_path / "a.bin"
    subprocess.run(["as", "--64", "-o", unlinked, "-"], input=source, text=True, check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", unlinked, flat], check=True)
    assert flat.read_bytes() == routine.code


def test_each_routine_is_where_the_layout_says() -> None:
    code, entries = routines.layout(0x1000)
    for routine, at in entries.items():
        assert code[at - 0x1000 :].startswith(routine.code)


def test_loading_the_plugin_imports_no_compiled_module() -> None:
    code = (
        "import sys; import pyvmm.pytest_plugin\n"
        "assert 'pyvmm._native' not in sys.modules\n"
        "assert 'pyvmm.validate' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
