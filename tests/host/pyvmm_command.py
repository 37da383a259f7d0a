"""Runs the real command in a process of its own."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

COMMAND = [sys.executable, "-m", "pyvmm"]
ROOT = Path(__file__).resolve().parents[2]
GUESTS = ROOT / "guests"
_TIMEOUT_S = 60


class Outcome(NamedTuple):
    """How the command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object that it printed."""
        assert self.stdout.count("\n") == 1, self
        result: dict[str, Any] = json.loads(self.stdout)
        return result

    def error(self, status: int, *words: str) -> str:
        """Its one line of error, which has all of ``words``, after this exit status."""
        assert self.status == status, self
        lines = self.stderr.splitlines()
        assert len(lines) == 1 and lines[0].startswith("pyvmm: "), self
        assert "Traceback" not in self.stderr
        for word in words:
            assert word in lines[0], self
        return lines[0]


def pyvmm(
    *words: object,
    prefix: list[str] | None = None,
    before: Callable[[], None] | None = None,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = _TIMEOUT_S,
) -> Outcome:
    """``pyvmm`` with these words; ``prefix`` is a command that starts it."""
    result = subprocess.run(
        [*(prefix or []), *COMMAND, *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=timeout_s,
        preexec_fn=before,
        env={**os.environ, **(environment or {})},
        cwd=cwd or ROOT,
        check=False,
    )
    return Outcome(result.returncode, result.stdout, result.stderr)


def with_mounts(*commands: str, capabilities: bool = True) -> list[str]:
    """A prefix that runs what follows after mounts of its own, or skips the test.

    Without ``capabilities`` it has no more rights to files than their modes give.
    """
    unshare = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]
    for tool in ("unshare", "setpriv"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing (apt install util-linux)")
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make mount namespaces")
    drop = "" if capabilities else "setpriv --bounding-set=-all --inh-caps=-all "
    script = " && ".join([*commands, f'exec {drop}"$@"'])
    return [*unshare, "sh", "-c", script, "sh"]


def quoted(path: Path) -> str:
    return shlex.quote(str(path))
