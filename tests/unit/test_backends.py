"""A kernel ABI is one line in a list, and whoever asks for backends asks that list."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.memory.backends import BACKENDS

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "pyvmm"
NEW = "next_abi"
ONE_MORE = f"""
import json
from pyvmm.memory import backends
from pyvmm.memory.backing import Support

class NextAbi:
    name, title, vm_type, hypercall, views = {NEW!r}, "what comes next", 0, True, (2,)

    def probe(self, kvm):
        return Support(None, "this KVM has nothing of it", "wait")

    def back(self, vm, size, views, mechanism):
        raise NotImplementedError

    def slots(self, pages, views):
        return 2

backends.BACKENDS[{NEW!r}] = NextAbi()
"""
COMMAND = "from pyvmm.cli.main import main\nmain({words})"


def python(code: str) -> str:
    command = [sys.executable, "-c", ONE_MORE + code]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize("words", [["run", "--help"], ["validate", "--help"]], ids=" ".join)
def test_the_command_line_offers_one_more(words: list[str]) -> None:
    assert NEW in python(COMMAND.format(words=words))


def test_validate_has_the_cases_of_every_backend_for_one_more() -> None:
    def cases(backend: str) -> set[str]:
        listed = python(COMMAND.format(words=["validate", "--list", "-k", backend]))
        return {line.split()[0].replace(backend, "") for line in listed.splitlines()}

    of_new = cases(NEW)
    assert of_new and of_new <= cases("memory_error")


def test_capabilities_doctor_and_bench_know_one_more() -> None:
    found = json.loads(
        python(
            "from pyvmm import doctor\n"
            "from pyvmm.bench import conversions\n"
            "from pyvmm.validate.kit.capabilities import CAPABILITIES\n"
            "print(json.dumps({\n"
            "    'capabilities': {name: words for name, (_, words) in CAPABILITIES.items()},\n"
            "    'doctor': list(doctor.examine('/dev/null').backends),\n"
            "    'bench': [each.name for bench in conversions.benches() for each in bench.cases],\n"
            "}))"
        )
    )
    assert found["capabilities"][NEW] == "what comes next"
    assert NEW in found["doctor"]
    assert f"{NEW}_touch" in found["bench"]


def test_the_list_is_not_typed_again() -> None:
    """No display outside pyvmm/memory/backends/ names two of them."""
    again = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "backends"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Tuple, ast.List, ast.Set))
        and len(
            BACKENDS.keys() & {each.value for each in node.elts if isinstance(each, ast.Constant)}
        )
        > 1
    ]
    assert not again


def test_each_has_a_file_of_its_name_in_python_and_in_c() -> None:
    in_python = {path.stem for path in (PACKAGE / "memory/backends").glob("*.py")} - {"__init__"}
    in_c = {
        path.stem
        for path in (ROOT / "csrc/backends").iterdir()
        if path.suffix == ".c" or path.is_dir()
    }
    assert in_python == in_c == set(BACKENDS)
