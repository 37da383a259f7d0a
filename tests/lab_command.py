"""`pyvmm lab …` in a process of its own, and how it is ended in the middle of a lab's boot."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_CLI = "import sys; from pyvmm.cli.main import main; sys.exit(main(sys.argv[1:]))"
#: What comes before a command of pyvmm's, "lab" included.
LAB = (sys.executable, "-c", _CLI, "lab")


def end_while_it_boots(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> int:
    """SIGTERM to a command whose labs have their consoles in ``folder``, its TMPDIR; its pid.

    It must end by that, and must have said nothing.
    """
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        while not (consoles := list(folder.glob("pyvmm-lab-*/console"))):
            assert process.poll() is None
            time.sleep(0.01)
        while b"Run /init" not in consoles[0].read_bytes():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        assert process.stdout.read() == b""
    return process.pid
