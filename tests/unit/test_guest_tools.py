"""Running an assembler or a compiler: whatever ends it, nothing of it is left running."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import pytest

from pyvmm.guest import tools


class Ended(BaseException):
    pass


def raises(number: int, frame: FrameType | None) -> None:
    raise Ended


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_right_after_the_start_ends_the_program(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            signal.raise_signal(number)  # for this thread, which need not be the only one

    monkeypatch.setattr(subprocess, "Popen", Popen)
    before, mask = signal.signal(number, raises), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        with pytest.raises(Ended):
            tools.call(Path("guest.S"), ["sleep", "1000"], "")
    finally:
        signal.signal(number, before)
    left = psutil.Process().children()
    for child in left:
        child.kill()
    assert not left
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
