"""A call beside the case: whether it ends, spins, or ends only by a signal."""

from __future__ import annotations

import ctypes
import threading
import time
from pathlib import Path

import pytest

from pyvmm.validate.kit import beside
from pyvmm.validate.kit.beside import CallBeside, machine_time
from pyvmm.validate.kit.check import CheckFailed

_libc = ctypes.CDLL(None, use_errno=True)


def pause() -> None:
    """Until a signal comes."""
    _libc.pause()
    raise OSError(ctypes.get_errno(), "pause")


def test_a_call_that_ends_and_its_errno() -> None:
    with CallBeside(lambda: None) as call:
        assert call.ends()
    assert call.error == 0
    with CallBeside(pause) as call:
        assert not call.ends(0.05)
        assert call.interrupt()
    assert call.error == 4


def test_while_the_machine_stands_still_no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    def looks(each_s: float) -> int:
        now = 0.0

        def clock() -> float:
            return now

        monkeypatch.setattr("pyvmm.validate.kit.beside.time.monotonic", clock)
        count = 0
        for _ in machine_time(1.0):
            count += 1
            now += each_s
        return count

    assert looks(0.02) in (50, 51)
    # Others had the CPUs for two seconds at each look.
    assert looks(2.0) == 25
    assert len(list(machine_time(0.0))) == 1


def test_a_call_that_only_a_signal_ends_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "_END_S", 0.2)
    monkeypatch.setattr(CallBeside.ends, "__defaults__", (0.2,))
    with pytest.raises(CheckFailed, match="does not end, only by a signal"), CallBeside(pause):
        pass


def test_a_call_that_uses_the_cpu_and_does_nothing_spins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "_SPIN_S", 0.2)
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            pass

    with CallBeside(spin) as call:
        assert call.spins(lambda: 0)
        stop.set()


def test_a_call_that_goes_on_or_sleeps_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "_SPIN_S", 0.1)
    steps = 0

    def work() -> None:
        nonlocal steps
        for _ in range(3_000_000):
            steps += 1

    with CallBeside(work) as call:
        assert not call.spins(lambda: steps)
    with CallBeside(pause) as call:
        assert not call.spins(lambda: 0, limit_s=0.5)
        assert call.interrupt()


def test_what_a_call_raises_is_raised() -> None:
    def fails() -> None:
        raise CheckFailed("it is wrong")

    with pytest.raises(CheckFailed, match="it is wrong"), CallBeside(fails):
        pass


def test_the_cpu_time_of_a_thread_that_ends_as_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Python takes it for alive still."""
    with CallBeside(lambda: None) as call:
        assert call.ends()
        task = Path(f"/proc/self/task/{call._thread.native_id}")
        for _ in machine_time(10.0):  # the kernel's thread ends after Python's
            if not task.exists():
                break
            time.sleep(0.001)
        monkeypatch.setattr(threading.Thread, "is_alive", lambda self: True)
        assert call.cpu_s == 0.0
        monkeypatch.undo()
