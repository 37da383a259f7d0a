"""Kicks and deadlines: none is lost, and none comes late.

PYVMM_KICKS=100000 asks for as many kicks as the promise is about.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest
from bare_vm import BareVm
from snippets import PRIVATE, guest, out_loop, passing, spin, touches

from pyvmm import Image, Machine, Result
from pyvmm.loop.bare import NoExitError
from pyvmm.native import lib

KICKS = int(os.environ.get("PYVMM_KICKS", "3000"))
# A lost kick would wait for ever; a slow machine must not look like one.
LOST_S = 30.0


def kick_at_random(image: Image, count: int, rng: random.Random, longest_pause: float) -> float:
    """Kick a loop that is run again and again; returns the longest wait in seconds."""
    with Machine(image) as machine:
        loop = machine.loops[0]
        answered = threading.Event()
        finished = False
        failures: list[str] = []

        def run() -> None:
            while not finished:
                loop.limit(time.monotonic_ns() + int(2 * LOST_S * 1e9))
                stop = loop.run()
                if stop == lib.STOP_KICK:
                    answered.set()
                elif stop != lib.STOP_SIGNAL:
                    failures.append(f"stop {stop}")
                    return

        thread = threading.Thread(target=run)
        thread.start()
        longest = 0.0
        try:
            for number in range(count):
                # From nothing to longer than the way back into the guest: every moment has
                # its turn, also those between the look at the flag and KVM_RUN.
                end = time.perf_counter() + rng.random() ** 3 * longest_pause
                while time.perf_counter() < end:
                    pass
                answered.clear()
                start = time.perf_counter()
                loop.kick()
                assert answered.wait(LOST_S), f"kick {number} of {count} was lost"
                longest = max(longest, time.perf_counter() - start)
        finally:
            finished = True
            loop.kick()
            thread.join(LOST_S)
        assert not failures and not thread.is_alive()
        assert loop.raw.kicks >= count
    return longest


def test_no_kick_is_lost_between_exits(rng: random.Random) -> None:
    longest = kick_at_random(out_loop(), KICKS, rng, 200e-6)
    print(f"{KICKS} kicks of an OUT loop, longest wait {longest * 1000:.2f} ms")


def test_no_kick_is_lost_inside_the_guest(rng: random.Random) -> None:
    count = max(KICKS // 30, 30)
    longest = kick_at_random(spin(), count, rng, 5e-3)
    print(f"{count} kicks of a spinning guest, longest wait {longest * 1000:.2f} ms")


def test_kicks_of_a_guest_that_converts(rng: random.Random) -> None:
    image = guest(
        "movw $0x4000, %ax\n movw %ax, %es\n movw $0xC000, %ax\n movw %ax, %fs\n"
        "1: movb %es:0, %al\n movb %fs:0, %al\n jmp 1b"
    )
    kick_at_random(image, max(KICKS // 30, 30), rng, 1e-3)


def test_a_kick_before_the_run_ends_it() -> None:
    with Machine(spin()) as machine:
        loop = machine.loops[0]
        loop.limit(time.monotonic_ns() + 10**10)
        for _ in range(20):
            loop.kick()
            assert loop.run() == lib.STOP_KICK
        # Two kicks that nobody answered are one.
        loop.kick()
        loop.kick()
        assert loop.run() == lib.STOP_KICK
        loop.limit(time.monotonic_ns() + 10**7)
        assert loop.run() in (lib.STOP_SIGNAL, lib.STOP_DEADLINE)


def test_a_machine_kicked_before_its_run_is_interrupted() -> None:
    with Machine(spin(), vcpus=2) as machine:
        machine.kick()
        assert machine.run(20).result is Result.INTERRUPTED


def test_kick_while_python_answers() -> None:
    """The kick comes while no thread is in the loop; the next run must see it."""

    class Kicker:
        def read(self, address: int, size: int) -> int:
            return 0

        def write(self, address: int, size: int, value: int) -> None:
            machine.kick()

    with Machine(out_loop()) as machine:
        machine.bus.add_ports(range(0x10, 0x11), Kicker())
        start = time.monotonic()
        assert machine.run(30).result is Result.INTERRUPTED
        assert time.monotonic() - start < 15


# ---- deadlines ----


@pytest.mark.parametrize("vcpus", [1, 2])
@pytest.mark.parametrize("image", [spin(), out_loop()], ids=["spin", "out"])
@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.1, 0.25])
def test_a_deadline_is_neither_early_nor_late(image: Image, vcpus: int, seconds: float) -> None:
    with Machine(image, vcpus=vcpus) as machine:
        start = time.monotonic()
        report = machine.run(seconds)
        took = time.monotonic() - start
    assert report.result is Result.DEADLINE
    assert took >= seconds
    print(f"{seconds} s took {(took - seconds) * 1000:.1f} ms longer")
    assert took < seconds + 5


def test_a_deadline_in_the_past_is_one() -> None:
    with Machine(passing()) as machine:
        assert machine.run(-1).result is Result.DEADLINE


def test_a_deadline_holds_with_all_signals_blocked() -> None:
    results: list[Result] = []

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        with Machine(spin()) as machine:
            timer = threading.Timer(20, machine.kick)
            timer.start()
            results.append(machine.run(0.1).result)
            timer.cancel()
            timer.join()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(40)
    assert results == [Result.DEADLINE]


def test_a_deadline_holds_while_a_device_takes_its_time() -> None:
    class Slow:
        def read(self, address: int, size: int) -> int:
            return 0

        def write(self, address: int, size: int, value: int) -> None:
            time.sleep(0.01)

    with Machine(out_loop()) as machine:
        machine.bus.add_ports(range(0x10, 0x11), Slow())
        start = time.monotonic()
        assert machine.run(0.1).result is Result.DEADLINE
        assert time.monotonic() - start < 5


def test_a_deadline_holds_while_exits_are_iterated() -> None:
    with Machine(out_loop()) as machine:
        start = time.monotonic()
        for _ in machine.exits(0.1):
            time.sleep(0.005)
        assert machine.report().result is Result.DEADLINE
        assert time.monotonic() - start < 5


def test_a_vcpu_can_go_on_after_its_deadline() -> None:
    with Machine(out_loop()) as machine:
        loop, exits = machine.loops[0], [0]
        for _ in range(2):
            # On a busy host the time may be up before the guest has had any of it.
            while (count := loop.exit_counts().get("io", 0)) == exits[-1]:
                loop.limit(time.monotonic_ns() + 50_000_000)
                while (stop := loop.run()) == lib.STOP_SIGNAL:
                    pass
                assert stop == lib.STOP_DEADLINE
            exits.append(count)
        loop.disarm()


def test_after_an_exit_of_a_bare_vcpu_no_tick_comes() -> None:
    """A tick would end another call of the thread's with EINTR, KVM_PRE_FAULT_MEMORY for one."""
    with BareVm("hlt\n1: jmp 1b") as bare:
        bare.run_to_hlt()
        ticks = {lib.loop_kick_signal()}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ticks)
        try:
            assert signal.sigtimedwait(ticks, 2.5 * lib.LOOP_TICK_NS / 1e9) is None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        with pytest.raises(NoExitError):  # and the next one has its deadline
            bare.bare.run(0.25)


def test_signals_of_others_do_not_disturb_a_run() -> None:
    """A handler runs while the guest does, and the run goes on, until a handler ends it."""
    seen: list[int] = []

    def count(number: int, frame: object) -> None:
        seen.append(number)
        if len(seen) == 10:
            machine.kick()

    with Machine(spin()) as machine:
        before = signal.signal(signal.SIGALRM, count)
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        try:
            assert machine.run(30).result is Result.INTERRUPTED
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    assert len(seen) >= 10


def test_the_kick_signal_does_nothing_outside_a_run() -> None:
    os.kill(os.getpid(), lib.loop_kick_signal())
    with Machine(touches(PRIVATE)) as machine:
        os.kill(os.getpid(), lib.loop_kick_signal())
        assert machine.run(20).passed
