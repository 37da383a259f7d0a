"""What the kernel's own parser makes of `pyvmm validate --ktap`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.lab.build import DEFAULT_VERSION
from pyvmm.lab.lab import Lab
from pyvmm.lab.sources import default_tarball
from pyvmm.validate.results import ktap

pytestmark = pytest.mark.boots

_PARSER = "tools/testing/kunit"


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """kunit.py, from the source of the lab's kernel."""
    place = tmp_path_factory.mktemp("kunit")
    source = str(default_tarball(DEFAULT_VERSION))
    command = ["tar", "-C", str(place), "--strip-components=1", "--wildcards", "-xf", source]
    subprocess.run([*command, f"*/{_PARSER}/*"], check=True)
    return place / _PARSER / "kunit.py"


def _texts() -> Iterator[str]:
    command = [sys.executable, "-m", "pyvmm", "validate", "-k", "memory_regions or misuse"]
    with Lab() as lab:
        yield lab.run([*command, "--ktap"]).output.decode()
    known = ktap.verdict(1, "X1.a a title", "known", ['it hangs; fixed by 0 ("Mend")'])
    yield "\n".join([*ktap.heading(1), *known, ""])


def test_the_kernels_parser_accepts_the_ktap(parser: Path, tmp_path: Path) -> None:
    for text in _texts():
        file = tmp_path / "ktap"
        file.write_text(text)
        command = [sys.executable, str(parser), "parse", str(file)]
        parsed = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert parsed.returncode == 0, parsed.stdout[-2000:]
        count = sum(line.startswith(("ok", "not ok")) for line in text.splitlines())
        assert count > 0 and f"Ran {count} tests" in parsed.stdout
        assert "[ERROR]" not in parsed.stdout
