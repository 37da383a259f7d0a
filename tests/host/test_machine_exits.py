"""Machine.exits(): whatever the machine was given is used, and an end is the end of run()."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from snippets import EXIT_0, PAGE, PRIVATE, SHARED, guest, out_loop, passing, spin, stores, touches

from pyvmm import ClosedError, ConfigurationError, Machine, PageState, Policy, Result, load_guest
from pyvmm.errors import WrongTypeError
from pyvmm.kvm.exits import IoExit, MemoryErrorExit
from pyvmm.loop.vcpu_loop import ExitRecord
from pyvmm.native import lib

F_SEAL_FUTURE_WRITE = 0x10


class Constant:
    """Reads 0x2A; remembers what is written."""

    def __init__(self) -> None:
        self.written: list[int] = []

    def read(self, address: int, size: int) -> int:
        return 0x2A

    def write(self, address: int, size: int, value: int) -> None:
        self.written.append(value)


# ---- devices and policies ----


def test_a_device_answers_and_only_the_rest_is_yielded() -> None:
    device = Constant()
    image = guest(f"inb $0x60, %al\n outb %al, $0x61\n inb $0x70, %al\n outb %al, $0x61\n{EXIT_0}")
    with Machine(image) as machine:
        machine.bus.add_ports(range(0x60, 0x62), device)
        for exit in machine.exits(20):
            assert isinstance(exit, IoExit) and exit.port == 0x70
            machine.answer(7)
        assert machine.report().passed
    assert device.written == [0x2A, 7]


def test_a_device_that_is_added_meanwhile_answers_from_then_on() -> None:
    device = Constant()
    with Machine(guest(f"outb %al, $0x60\n outb %al, $0x60\n{EXIT_0}")) as machine:
        for _ in machine.exits(20):
            machine.bus.add_ports(range(0x60, 0x61), device)
        assert machine.report().passed
    assert device.written == [0]


@pytest.mark.parametrize("converts", [True, False])
def test_a_policy_function_is_asked_and_obeyed(converts: bool) -> None:
    asked: list[tuple[MemoryErrorExit, int]] = []

    def policy(error: MemoryErrorExit, vcpu: int) -> bool:
        asked.append((error, vcpu))
        return converts

    with Machine(stores({PRIVATE: 7, PRIVATE + PAGE: 8}), policy=policy) as machine:
        assert list(machine.exits(20)) == []
        report = machine.report()
    assert asked[0] == (MemoryErrorExit(PRIVATE, PAGE, PageState.PRIVATE), 0)
    if converts:
        assert report.passed and report.conversions.to_private == len(asked) == 2
    else:
        assert report.result is Result.FAIL and len(asked) == 1
        assert f"GPA {PRIVATE:#x} as private and the policy denied it" in report.reason
        assert report.conversions.to_private == 0


@pytest.mark.parametrize("way", ["run", "exits"])
def test_a_policy_that_forgets_to_answer(way: str) -> None:
    with Machine(touches(PRIVATE), policy=lambda error, vcpu: None) as machine:  # type: ignore[arg-type, return-value]
        with pytest.raises(ConfigurationError, match=r"GPA 0x40000: it returned None; return True"):
            machine.run(20) if way == "run" else list(machine.exits(20))
        assert machine.report().result is Result.ERROR


def test_what_a_policy_raises_is_noted() -> None:
    def policy(error: MemoryErrorExit, vcpu: int) -> bool:
        raise ValueError("no")

    with Machine(touches(SHARED, PRIVATE), policy=policy) as machine:
        with pytest.raises(ValueError, match="no") as caught:
            list(machine.exits(20))
        report = machine.report()
    assert caught.value.__notes__ == ["policy, asked for GPA 0x40000"]
    assert report.reason == "vCPU 0: policy, asked for GPA 0x40000: ValueError: no"


# ---- saying no ----


def test_deny_ends_the_run_and_converts_nothing() -> None:
    image = stores({PRIVATE: 7, PRIVATE + PAGE: 8, SHARED: 9})
    with Machine(image, policy=Policy.ASK) as machine:
        seen = []
        for exit in machine.exits(20):
            seen.append(exit)
            if exit == MemoryErrorExit(PRIVATE + PAGE, PAGE, PageState.PRIVATE):
                machine.deny()
        report = machine.report()
        assert len(seen) == 2
        assert machine.memory.regions[0].private_ranges() == [(PRIVATE, PAGE)]
    assert report.result is Result.FAIL
    assert "GPA 0x41000 as private and deny() denied it" in report.reason


def test_there_is_nothing_to_deny() -> None:
    image = guest(f"inb $0x70, %al\n movw $0x4000, %ax\n movw %ax, %es\n movb %es:0, %al\n{EXIT_0}")
    with Machine(image, policy=Policy.ASK) as machine:
        with pytest.raises(ConfigurationError, match="has not asked for a conversion"):
            machine.deny()
        exits = machine.exits(20)
        next(exits)
        with pytest.raises(ConfigurationError, match="has not asked for a conversion"):
            machine.deny()
        assert isinstance(next(exits), MemoryErrorExit)
        with pytest.raises(ConfigurationError, match=r"waits for a conversion.*call deny\(\)"):
            machine.answer(1)
        assert list(exits) == []
        assert machine.report().passed
        with pytest.raises(ConfigurationError, match="has not asked for a conversion"):
            machine.deny()


# ---- an end is an end ----


def sealed(machine: Machine) -> None:
    machine.memory.regions[0].backing.shared_file.seal(F_SEAL_FUTURE_WRITE)


ENDS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "pass": (passing, {}),
    "code": (lambda: guest("movw $0x142, %ax\n outw %ax, $0xf4"), {}),
    "vector": (lambda: guest("int $3"), {}),
    "hlt": (lambda: guest("hlt"), {}),
    "triple fault": (lambda: load_guest("guests/triplefault.S"), {}),
    "deny": (lambda: touches(PRIVATE), {"policy": Policy.DENY}),
    "conversion failure": (lambda: touches(PRIVATE), {"backend": "emulated"}),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_end_is_that_of_run(name: str) -> None:
    make, options = ENDS[name]
    reports = []
    for way in ("run", "exits"):
        with Machine(make(), **options) as machine:
            if name == "conversion failure":
                sealed(machine)
            if way == "run":
                machine.run(20)
            else:
                assert list(machine.exits(20)) == []
            reports.append(machine.report())
    first, second = reports
    for field in ("result", "exit_code", "reason", "exits", "conversions", "console"):
        assert getattr(first, field) == getattr(second, field)
    assert (first.where is None) == (second.where is None)
    if first.where is not None and second.where is not None:
        assert first.where.registers == second.where.registers


def test_a_deadline_and_a_kick() -> None:
    with Machine(spin()) as machine:
        assert list(machine.exits(0.01)) == []
        assert machine.report().result is Result.DEADLINE
    with Machine(out_loop()) as machine:
        for number, _ in enumerate(machine.exits(20)):
            assert number < 3
            if number == 2:
                machine.kick()
        report = machine.report()
    assert (report.result, report.reason) == (Result.INTERRUPTED, "the run was kicked")


# ---- the log, ticks, and leaving in the middle ----


def test_every_exit_reaches_the_log_however_it_ends() -> None:
    def leave(machine: Machine) -> None:
        for number, _ in enumerate(machine.exits(20)):
            if number == 2999:
                break

    def close(machine: Machine) -> None:
        exits = machine.exits(20)
        for _ in range(3000):
            next(exits)
        exits.close()

    def fail(machine: Machine) -> None:
        with pytest.raises(ZeroDivisionError):
            for number, _ in enumerate(machine.exits(20)):
                1 / (2999 - number)

    def forget(machine: Machine) -> None:
        kept.append(machine.exits(20))
        for _ in range(3000):
            next(kept[-1])

    kept: list[Any] = []
    for way in (leave, close, fail, forget):
        records: list[ExitRecord] = []
        with Machine(out_loop()) as machine:
            machine.log_exits(lambda vcpu, record: records.append(record))  # noqa: B023
            way(machine)
            assert machine.report().result is Result.INTERRUPTED
        assert len(records) == 3000, way.__name__


def test_ticks_come_while_exits_are_iterated() -> None:
    with Machine(spin()) as machine:
        machine.on_tick = machine.kick
        assert list(machine.exits(20)) == []
        assert machine.report().result is Result.INTERRUPTED


def test_ticks_come_some_times_a_second_however_many_signals_do() -> None:
    ticks: list[float] = []
    thread, signals, ended = threading.get_ident(), 0, threading.Event()

    def send() -> None:
        nonlocal signals
        while not ended.wait(0.001):  # more would wait in a queue that has an end
            signal.pthread_kill(thread, lib.loop_kick_signal())
            signals += 1

    with Machine(spin()) as machine:
        machine.on_tick = lambda: ticks.append(time.monotonic())
        sender = threading.Thread(target=send)
        sender.start()
        began = time.monotonic()
        try:
            assert machine.run(0.5).result is Result.DEADLINE
        finally:
            took = time.monotonic() - began
            ended.set()
            sender.join()
    assert 1 <= len(ticks) <= took / 0.05 + 1
    assert signals > 2 * len(ticks)


def test_a_device_that_closes_the_machine(no_leak: None) -> None:
    class Closer(Constant):
        def write(self, address: int, size: int, value: int) -> None:
            machine.close()

    machine = Machine(out_loop())
    machine.bus.add_ports(range(0x10, 0x11), Closer())
    with pytest.raises(ClosedError):
        list(machine.exits(20))


def test_wrong_calls_are_refused_at_once() -> None:
    with Machine(passing()) as machine:
        with pytest.raises(ConfigurationError, match="a deadline of"):
            machine.exits(float("nan"))
        first = machine.exits(20)
        with pytest.raises(ConfigurationError, match="it runs already"):
            machine.exits(20)
        first.close()
    with pytest.raises(ClosedError):
        machine.exits(20)


# ---- left where a conversion is asked for ----


KEEPS = (
    "movw $0x4000, %ax\n movw %ax, %es\n movb $0x5A, %es:0\n cmpb $0x5A, %es:0\n jne 1f\n"
    f"{EXIT_0}1: movb $1, %al\n outb %al, $0xf4"
)


@pytest.mark.parametrize("left_after", ["", "deny"])
def test_a_question_that_was_left_is_asked_again(left_after: str) -> None:
    """The access is not lost, nor completed with what was not converted."""
    with Machine(guest(KEEPS), policy=Policy.ASK) as machine:
        exits = machine.exits(20)
        first = next(exits)
        if left_after == "deny":
            machine.deny()
        exits.close()
        with pytest.raises(ConfigurationError, match="has not asked for a conversion"):
            machine.deny()
        assert machine.report().result is Result.INTERRUPTED
        assert list(machine.exits(20)) == [first]
        report = machine.report()
    assert report.passed, report.reason
    assert report.conversions.to_private == 1


def test_a_policy_that_is_interrupted_is_asked_again() -> None:
    asked = []

    def policy(error: MemoryErrorExit, vcpu: int) -> bool:
        asked.append(error)
        if len(asked) == 1:
            raise KeyboardInterrupt
        return True

    with Machine(guest(KEEPS), policy=policy) as machine:
        with pytest.raises(KeyboardInterrupt):
            machine.run(20)
        assert machine.report().result is Result.INTERRUPTED
        report = machine.run(20)
    assert report.passed, report.reason
    assert len(asked) == 2 and asked[0] == asked[1]


# ---- wrong arguments ----


@pytest.mark.parametrize("value", [-1, 0x100, 1 << 100], ids=hex)
def test_an_answer_that_does_not_fit(value: int) -> None:
    with Machine(guest(f"inb $0x70, %al\n{EXIT_0}")) as machine:
        for _ in machine.exits(20):
            with pytest.raises(ConfigurationError, match="it must be 0 to 0xff"):
                machine.answer(value)
            machine.answer(0xFF)


@pytest.mark.parametrize("wrong", ["5", None, object(), 1j], ids=lambda each: type(each).__name__)
def test_what_is_no_number(wrong: Any) -> None:
    with Machine(guest(f"inb $0x70, %al\n{EXIT_0}")) as machine:
        calls: list[Callable[[], Any]] = [
            lambda: machine.run(wrong),
            lambda: machine.exits(wrong),
            lambda: machine.answer(1, wrong),
            lambda: machine.log_exits(wrong),
            lambda: Machine(passing(), vcpus=wrong),
        ]
        if wrong is not None:  # which is two of them
            calls.append(lambda: Machine(passing(), views=wrong))
        for number, call in enumerate(calls):
            with pytest.raises(WrongTypeError):
                call()
                pytest.fail(f"call number {number} worked")
        for _ in machine.exits(20):
            with pytest.raises(WrongTypeError):
                machine.answer(wrong)


@pytest.mark.parametrize("index", [-1, 1, 1 << 70])
def test_an_answer_for_no_vcpu(index: int) -> None:
    with Machine(passing()) as machine, pytest.raises(ConfigurationError, match="vCPU"):
        machine.answer(1, index)


@pytest.mark.parametrize("deadline", [10**9, 10**5000, -(10**5000)], ids=["long", "huge", "past"])
def test_a_deadline_of_more_than_a_run_may_last(deadline: int) -> None:
    with Machine(passing()) as machine:
        with pytest.raises(ConfigurationError, match=r"a deadline of -?0x") as caught:
            machine.run(deadline)
        assert len(str(caught.value)) < 100
        assert machine.run(20).passed


@pytest.mark.parametrize("kvm", [5, "kvm"])
def test_what_is_no_kvm(kvm: Any) -> None:
    with pytest.raises(WrongTypeError, match="kvm: wants Kvm"):
        Machine(passing(), kvm=kvm)
