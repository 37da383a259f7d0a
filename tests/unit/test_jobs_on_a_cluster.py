"""Jobs on a Dask cluster: the tests of cluster_tests.py, in a process of their own.

Dask leaves threads and connections to the garbage, where somebody else's test would find them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def test_jobs_on_a_cluster() -> None:
    pytest.importorskip("distributed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=60"]
    command += ["-p", "no:unraisableexception", "-p", "no:threadexception"]
    tests = Path(__file__).with_name("cluster_tests.py")
    done = subprocess.run([*command, tests], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "27 passed" in done.stdout
