"""The builder's answers to what a build host may lack."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

BUILDER = Path(__file__).resolve().parents[2] / "csrc" / "build_native.py"

pytestmark = pytest.mark.skipif(not BUILDER.exists(), reason="csrc/ is not here")


@pytest.fixture
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_native", BUILDER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one_line(error: pytest.ExceptionInfo[SystemExit]) -> str:
    text = str(error.value.code)
    assert "\n" not in text
    return text


def test_a_missing_compiler(builder: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-cc -O2")
    with pytest.raises(SystemExit) as error:
        builder.make_builder()
    assert "no C compiler (no-such-cc -O2)" in one_line(error)
    assert "apt install gcc" in one_line(error)


def test_missing_headers_of_python(
    builder: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(SystemExit) as error:
        builder.make_builder()
    assert f"no Python.h in {tmp_path}" in one_line(error)
    assert "apt install python3-dev" in one_line(error)


def test_a_folder_without_headers(
    builder: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYVMM_KERNEL_HEADERS", str(tmp_path))
    with pytest.raises(SystemExit) as error:
        builder.make_builder()
    assert f"PYVMM_KERNEL_HEADERS={tmp_path}: no linux/kvm.h" in one_line(error)
    assert "headers_install" in one_line(error)


def test_headers_that_do_not_compile(
    builder: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "linux").mkdir()
    (tmp_path / "linux" / "kvm.h").write_text("#include <linux/not-there.h>\n")
    monkeypatch.setenv("PYVMM_KERNEL_HEADERS", str(tmp_path))
    with pytest.raises(SystemExit) as error:
        builder.make_builder()
    assert "not-there.h" in one_line(error)
    assert "PYVMM_KERNEL_HEADERS=DIR" in one_line(error)
