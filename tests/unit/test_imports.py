"""The house: imports point downward only, and what is slow is imported where it is used."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "pyvmm"

# From the ground up, by folder; a module may import from its own row, where no cycle comes of it,
# and from rows above it in this list.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "pyvmm._native",
        "pyvmm.moved",
        "pyvmm.errors",
        "pyvmm.closing",
        "pyvmm.host",
        "pyvmm.json_file",
        "pyvmm.printable",
        "pyvmm.native",
    ),
    ("pyvmm.page_states",),
    ("pyvmm.kvm",),
    ("pyvmm.loop", "pyvmm.guest", "pyvmm.devices"),
    ("pyvmm.memory",),
    ("pyvmm.unclaimed", "pyvmm.where", "pyvmm.report", "pyvmm.diagnosis", "pyvmm.verdict"),
    ("pyvmm.running",),
    ("pyvmm.machine",),
    ("pyvmm.trace",),
    ("pyvmm.bench", "pyvmm.validate", "pyvmm.doctor"),
    ("pyvmm.pytest_plugin", "pyvmm.cli"),
    ("pyvmm.__main__",),
)
# Beside the house: needs neither KVM nor the compiled module.
LAB_MAY_IMPORT = (
    "pyvmm.lab",
    "pyvmm.errors",
    "pyvmm.closing",
    "pyvmm.json_file",
    "pyvmm.printable",
)
# Anybody above the ground floor may ask what the package itself offers, but nobody does.
SLOW = ("argparse", "json", "psutil", "capstone", "matplotlib", "subprocess")
QUICK_PARTS = ("cli", "lab", "bench", "validate", "pytest_plugin", "guest", "trace")


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def is_type_checking(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def imports_of(nodes: list[ast.stmt], at_import_time: bool) -> Iterator[str]:
    """The modules that statements import, those for the type checker alone left out."""
    for node in nodes:
        if isinstance(node, ast.If) and is_type_checking(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they point"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)
        elif not (at_import_time and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            children = [child for child in ast.walk(node) if child is not node]
            yield from imports_of(
                [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)],
                at_import_time,
            )
            handlers = [child for child in children if isinstance(child, ast.ExceptHandler)]
            for handler in handlers:
                yield from imports_of(handler.body, at_import_time)


def layer_of(module: str) -> int:
    fitting = [
        (len(name), row)
        for row, names in enumerate(LAYERS)
        for name in names
        if module == name or module.startswith(name + ".")
    ]
    assert fitting, f"{module} has no place in the house: give it one in LAYERS"
    return max(fitting)[1]


def own_imports(name: str) -> list[str]:
    tree = ast.parse(MODULES[name].read_text())
    return [found for found in imports_of(tree.body, False) if found.split(".")[0] == "pyvmm"]


IN_THE_HOUSE = [name for name in MODULES if name != "pyvmm" and "pyvmm.lab" not in name]


@pytest.mark.parametrize("name", IN_THE_HOUSE)
def test_imports_point_downward(name: str) -> None:
    for imported in own_imports(name):
        if imported.startswith("pyvmm.lab"):
            assert layer_of(name) >= layer_of("pyvmm.bench"), f"{name} imports {imported}"
        elif imported != "pyvmm":
            assert layer_of(imported) <= layer_of(name), f"{name} imports {imported}"


CASES = "pyvmm.validate.cases"


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith(f"{CASES}.")])
def test_cases_share_by_the_kit_alone(name: str) -> None:
    for imported in own_imports(name):
        assert not imported.startswith(CASES), f"{name} imports {imported}: put it into the kit"


def test_no_cycles() -> None:
    edges = {name: [each for each in own_imports(name) if each in MODULES] for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name in done:
            return
        for imported in edges[name]:
            visit(imported, (*path, name))
        done.add(name)

    for name in edges:
        if name != "pyvmm":  # imports names lazily, when they are asked for
            visit(name, ())


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("pyvmm.lab")])
def test_the_lab_stands_beside_the_house(name: str) -> None:
    for imported in own_imports(name):
        assert imported.startswith(LAB_MAY_IMPORT), f"{name} imports {imported}"


@pytest.mark.parametrize("name", IN_THE_HOUSE)
def test_what_is_slow_is_imported_where_it_is_used(name: str) -> None:
    if name.split(".")[1] in QUICK_PARTS:
        return
    tree = ast.parse(MODULES[name].read_text())
    for imported in imports_of(tree.body, True):
        assert imported.split(".")[0] not in SLOW, f"{name} imports {imported}"


def python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_importing_pyvmm_loads_nothing_slow() -> None:
    loaded = python("import pyvmm, sys; print(' '.join(sys.modules))").split()
    assert not {name for name in loaded if name.split(".")[0] in SLOW}
    assert "pyvmm._native" not in loaded


def test_the_lab_needs_no_compiled_module() -> None:
    code = (
        "import sys; sys.modules['pyvmm._native'] = None\n"
        "import pyvmm.lab.lab, pyvmm.lab.build, pyvmm.lab.sources, pyvmm.lab.agent"
    )
    python(code)


def test_every_public_name_is_there() -> None:
    python("import pyvmm\nfor name in pyvmm.__all__: getattr(pyvmm, name)")


def test_an_unknown_name_is_an_attribute_error() -> None:
    import pyvmm

    with pytest.raises(AttributeError, match="nonsense"):
        _ = pyvmm.nonsense


def test_old_names_work_and_say_so() -> None:
    from pyvmm.moved import MOVED

    for old, targets in MOVED.items():
        new = importlib.import_module(f"pyvmm.{targets[0]}")
        with pytest.warns(DeprecationWarning, match=f"pyvmm.{old} is pyvmm.{targets[0]} now"):
            alias = importlib.import_module(f"pyvmm.{old}")
        for name in (each for each in vars(new) if not each.startswith("_")):
            assert getattr(alias, name) is getattr(new, name)
        with pytest.raises(AttributeError, match="nonsense"):
            _ = alias.nonsense


def test_pyvmms_own_words_are_found_where_they_were() -> None:
    python(
        "import warnings; warnings.simplefilter('ignore')\n"
        "from pyvmm.uapi import ExitReason, PageState, Policy\n"
        "from pyvmm import mapping\n"
        "import pyvmm; assert Policy is pyvmm.Policy and mapping.Mapping"
    )
