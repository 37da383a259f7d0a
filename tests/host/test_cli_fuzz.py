"""Guests that nobody wrote: each run ends in time with one of the results, and leaves nothing."""

from __future__ import annotations

import json
import os
import random
import struct
import time
from functools import cache
from pathlib import Path

from conftest import holdings
from pyvmm_command import pyvmm

from pyvmm import Kvm, Machine, Result
from pyvmm.memory.backends import BACKENDS, probe
from pyvmm.report import RunReport, to_json

# More is run by hand: PYVMM_FUZZ_GUESTS=5000 pytest tests/host/test_cli_fuzz.py
GUESTS = int(os.environ.get("PYVMM_FUZZ_GUESTS", "60"))
DEADLINE_S = 0.1
ENDED = {Result.PASS, Result.FAIL, Result.DEADLINE}

_PORTS = (0xE9, 0xF4, 0x600, 0x604, 0x608, 0x60C, 0x610, 0x614, 0x618, 0x20, 0x40, 0x60B, 0xFFFF)
_VALUES = (0, 1, 2, 3, 0x20, 0x40, 0x1000, 0x3FFFF, 0x40000, 0x7F000, 0x80000, 0xC0000, 0xFF000,
           0x100000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)  # fmt: skip


def noise(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(1, 600))


def plausible(rng: random.Random) -> bytes:
    """Port and memory accesses that get further than noise does, and some noise between."""
    return b"".join(_piece(rng) for _ in range(rng.randrange(5, 80)))


def _piece(rng: random.Random) -> bytes:
    value = rng.choice(_VALUES) if rng.random() < 0.7 else rng.getrandbits(32)
    port = rng.choice(_PORTS) if rng.random() < 0.8 else rng.getrandbits(16)
    load = struct.pack("<BBIBH", 0x66, 0xB8, value, 0xBA, port)  # mov to eax, mov to dx
    segment = rng.choice((0x3FFF, 0x4000, 0x7FFF, 0x8000, 0xC000, 0xFFFF, rng.getrandbits(16)))
    offset = rng.choice((0, 0xFFF, 0x1FFE, 0xF000, 0xFFFF, rng.getrandbits(16)))
    kind = rng.randrange(12)
    if kind < 3:  # out in three widths
        return load + rng.choice((b"\xee", b"\xef", b"\x66\xef"))
    if kind < 4:
        return load + rng.choice((b"\xec", b"\xed", b"\x66\xed"))
    if kind < 6:  # the doorbell, rung as it should be
        numbers = (rng.choice(_VALUES), rng.choice((0, 1, 2, 64, 65)), rng.choice((1, 2, 3)))
        return b"".join(
            struct.pack("<BBIBH", 0x66, 0xB8, number, 0xBA, 0x600 + 4 * at) + b"\x66\xef"
            for at, number in enumerate(numbers)
        )
    if kind < 10:  # mov to ds, then an access at an offset
        access = rng.choice((b"\xa0", b"\xa1", b"\xa2", b"\xa3", b"\x66\xa1", b"\x66\xa3"))
        set_segment = struct.pack("<BHBB", 0xB8, segment, 0x8E, 0xD8)
        return set_segment + access + struct.pack("<H", offset)
    if kind < 11:  # string instructions and stack
        return rng.choice((b"\xf3\xa4", b"\xf3\xab", b"\x66\x50", b"\x58", b"\x60", b"\xcd\x21"))
    return rng.randbytes(rng.randrange(1, 5))


@cache
def usable_backends() -> list[str]:
    with Kvm() as kvm:
        return [name for name in BACKENDS if probe(kvm, BACKENDS[name]).mechanism is not None]


def run_one(rng: random.Random, guest: bytes) -> Result:
    backend = rng.choice(usable_backends())
    started = time.monotonic()
    with Machine(
        guest,
        backend=backend,
        vcpus=rng.choice((1, 1, 1, 2, 3)),
        views=rng.choice(BACKENDS[backend].views),
        irqchip=rng.random() < 0.3,
    ) as machine:
        report = machine.run(DEADLINE_S)
    assert time.monotonic() - started < 30
    assert report.result in ENDED
    check_report(report)
    return report.result


def check_report(report: RunReport) -> None:
    """What holds for every run that has ended."""
    assert bool(report.reason) == (report.result is not Result.PASS)
    assert "\n" not in report.reason and report.reason.isprintable()
    conversions = report.conversions
    assert conversions.to_private + conversions.to_shared == (
        conversions.implicit + conversions.explicit
    )
    assert json.loads(json.dumps(to_json(report)))["result"] == report.result.value


def test_random_guests(rng: random.Random) -> None:
    run_one(rng, b"\xf4")  # what is made once per process is no leak
    before = holdings()
    for index in range(GUESTS):
        guest = plausible(rng) if index % 3 else noise(rng)
        try:
            run_one(rng, guest)
        except BaseException:
            print(f"guest {index}: {guest.hex()}")
            raise
    assert holdings() == before


def test_random_guests_through_the_command(rng: random.Random, tmp_path: Path) -> None:
    path = tmp_path / "guest.bin"
    for _ in range(6):
        guest = plausible(rng)
        path.write_bytes(guest)
        outcome = pyvmm("run", path, "--deadline", "0.3", "--json")
        statuses = {"pass": 0, "fail": 1, "deadline": 3}
        assert outcome.status == statuses[outcome.json["result"]], guest.hex()
        assert outcome.stderr == "", guest.hex()
