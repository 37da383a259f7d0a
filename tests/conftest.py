"""What all tests share: lanes, one seed per run, and a look at what a test leaves behind."""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import hypothesis
import pytest

pytest_plugins = ("lanes",)

hypothesis.settings.register_profile(
    "pyvmm",
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("pyvmm")


def pytest_configure(config: pytest.Config) -> None:
    # A shell's background job, as CI may be one, ignores Ctrl-C, and so would what tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # A leaked descriptor or an error in a destructor is a failure like any other.
    config.addinivalue_line("filterwarnings", "error")
    # Old names of modules work for a release; whoever's test has one is told, and goes on.
    config.addinivalue_line("filterwarnings", r"default:pyvmm\..* is pyvmm\..* now")


def pytest_collection_finish() -> None:
    # Thousands of collected tests stay to the end: no collection need walk over them again.
    gc.collect()
    gc.freeze()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers of this test alone, from the run's seed."""
    return random.Random(f"{request.config.option.hypothesis_seed} {request.node.nodeid}")


class Holdings(NamedTuple):
    """What a process holds that a leak would make more of."""

    fds: tuple[str, ...]
    maps: int
    mapped_kib: int
    threads: int
    children: tuple[int, ...]


def holdings() -> Holdings:
    """What this process holds now. Python's own heap grows, so its mappings do not count."""
    fds = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            fds.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue  # the listing's own
    maps = mapped = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, _, _, _, *name = line.split(maxsplit=5)
        if name and ("memfd:" in name[0] or "kvm" in name[0] or "guest_memfd" in name[0]):
            low, high = (int(address, 16) for address in addresses.split("-"))
            maps += 1
            mapped += high - low >> 10
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    pids = tuple(int(pid) for pid in children.read_text().split()) if children.exists() else ()
    return Holdings(tuple(sorted(fds)), maps, mapped, threading.active_count(), pids)


@pytest.fixture
def no_leak() -> Iterator[None]:
    """The test leaves as many descriptors, mappings, threads and children as it found."""
    gc.collect()  # what earlier tests dropped must not vanish from under this one
    before = holdings()
    yield
    assert holdings() == before
