"""The thread of a vCPU: it runs, or its starter hears that it cannot."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pyvmm.errors import ConfigurationError
from pyvmm.loop.vcpu_thread import VcpuThread


def test_it_has_a_name_and_ends() -> None:
    seen: list[str] = []

    def work(index: int) -> None:
        name = Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_text()
        seen.append(f"{index} {name}")

    thread = VcpuThread(27, work)
    assert thread.is_over  # not started: nobody waits for it
    thread.join()
    thread.start()
    thread.join()
    thread.join()
    assert seen == ["27 vcpu27\n"]
    assert thread.is_over and thread.error is None


def test_debuggers_and_coverage_see_it() -> None:
    seen: set[str] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        seen.add(f"{event} {frame.f_code.co_name}")

    def work(index: int) -> None:
        pass

    before = threading.gettrace(), threading.getprofile()
    for watch, event in ((threading.settrace, "call work"), (threading.setprofile, "return work")):
        seen.clear()
        watch(note)
        try:
            thread = VcpuThread(1, work)
            thread.start()
            thread.join()
        finally:
            threading.settrace(before[0])
            threading.setprofile(before[1])
        assert event in seen


def test_what_it_raises_is_kept() -> None:
    thread = VcpuThread(1, lambda index: [][index])
    thread.start()
    thread.join()
    assert isinstance(thread.error, IndexError)


@pytest.mark.parametrize("error", [MemoryError, RuntimeError("can't start new thread")])
def test_one_that_the_host_refuses(
    error: type[Exception] | Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*call: object) -> int:
        raise error

    monkeypatch.setattr("pyvmm.loop.vcpu_thread.start_new_thread", refuse)
    thread = VcpuThread(3, lambda index: None)
    with pytest.raises(ConfigurationError, match=r"vCPU 3: its thread cannot start \(.+\); use"):
        thread.start()
    thread.join()


def test_one_that_ends_before_its_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: VcpuThread) -> None:
        raise MemoryError

    monkeypatch.setattr(VcpuThread, "_run", fail)
    thread = VcpuThread(3, lambda index: None)
    with pytest.raises(ConfigurationError, match=r"vCPU 3: .*not enough memory"):
        thread.start()
    thread.join()
    assert isinstance(thread.error, MemoryError)


class Interrupted(Exception):
    pass


def test_signals_that_raise_at_any_time_lose_no_thread() -> None:
    """Whatever they interrupt, a thread that runs is waited for."""

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    running: set[int] = set()

    def work(index: int) -> None:
        running.add(index)
        os.sched_yield()
        running.discard(index)

    before = signal.signal(signal.SIGALRM, interrupt)
    # What is raised in a callback of the collector is dropped, and pytest makes a failure of it.
    gc.disable()
    try:
        for index in range(300):
            thread = VcpuThread(index, work)
            with pytest.raises(Interrupted):
                signal.setitimer(signal.ITIMER_REAL, 5e-6 + index * 0.5e-6)
                thread.start()
                thread.join()
                for naps in itertools.count(1):
                    time.sleep(0.001)  # the other thread may have had it, and told this one later
                    if naps % 1000 == 0:  # Python drops what is raised in a destructor
                        signal.setitimer(signal.ITIMER_REAL, 0.001)
            thread.join()
            assert index not in running
    finally:
        gc.enable()
        signal.signal(signal.SIGALRM, before)
