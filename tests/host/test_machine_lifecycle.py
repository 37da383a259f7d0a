"""Machines come and go: nothing leaks, a closed one is an error, and none disturbs another."""

from __future__ import annotations

import copy
import errno
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import holdings
from snippets import PAGE, PRIVATE, SHARED, guest, out_loop, passing, spin, touches

from pyvmm import (
    ClosedError,
    ConfigurationError,
    Kvm,
    KvmError,
    Machine,
    PageState,
    Policy,
    Result,
    assemble,
    load_guest,
)
from pyvmm.errors import PyvmmError, WrongTypeError
from pyvmm.guest.boot import START
from pyvmm.guest.image import Image, Segment
from pyvmm.kvm.memfd import Memfd
from pyvmm.loop.vcpu_loop import VcpuLoop
from pyvmm.native import lib


def run_once(**options: Any) -> None:
    with Machine(touches(PRIVATE), **options) as machine:
        assert machine.run(20).passed


# ---- leaks ----


def test_a_hundred_runs_leave_nothing() -> None:
    image = touches(*(view + 5 * PAGE for view in (PRIVATE, SHARED) * 8))

    def once(vcpus: int) -> None:
        with Machine(image, vcpus=vcpus) as machine:
            assert machine.run(60).passed

    once(2)  # what is made once per process
    gc.collect()
    before = holdings()
    for turn in range(100):
        once(1 + turn % 2)
    assert holdings() == before


def test_runs_that_end_badly_leave_nothing() -> None:
    def deny() -> None:
        with Machine(touches(PRIVATE), policy=Policy.DENY) as machine:
            assert machine.run(20).result is Result.FAIL

    def deadline() -> None:
        with Machine(spin(), vcpus=2) as machine:
            assert machine.run(0.01).result is Result.DEADLINE

    def never_run() -> None:
        Machine(passing()).close()

    def half_iterated() -> None:
        with Machine(out_loop()) as machine:
            exits = machine.exits(20)
            next(exits)
            exits.close()

    def refused() -> None:
        with pytest.raises(ConfigurationError):
            Machine(b"\0" * 0x40000)

    for scenario in (deny, deadline, never_run, half_iterated, refused):
        scenario()
        gc.collect()
        before = holdings()
        for _ in range(5):
            scenario()
        assert holdings() == before, scenario.__name__


def test_a_dropped_machine_is_collected(no_leak: None) -> None:
    machine = Machine(passing())
    machine.run(20)
    del machine
    gc.collect()


@pytest.mark.parametrize("limit", range(1, 14))
def test_running_out_of_descriptors_is_one_error_and_leaves_nothing(limit: int) -> None:
    """Every place where a descriptor is made fails once."""
    code = f"""
import gc, os, resource
from pyvmm import Machine, KvmError, PyvmmError
Machine(b"\\xf4").close()
count = lambda: len(os.listdir("/proc/self/fd"))
before = count()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
top = max(int(fd) for fd in os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (before - 1 + {limit}, hard))
try:
    with Machine(b"\\xf4", vcpus=2) as machine:
        machine.run(5)
    print("enough")
except PyvmmError as error:
    assert error.errno == {errno.EMFILE}, error
    print(error)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
gc.collect()
assert count() == before
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "ulimit -n" in result.stdout or limit > 5


# ---- use after close ----


def test_use_after_close_is_an_error() -> None:
    machine = Machine(passing())
    vm, memory, vcpu, loop = machine.vm, machine.memory, machine.vcpus[0], machine.loops[0]
    region, bus = memory.regions[0], machine.bus
    machine.close()
    machine.close()
    uses: list[Callable[[], Any]] = [
        machine.run,
        machine.report,
        machine.console,
        lambda: next(machine.exits()),
        lambda: machine.answer(1),
        lambda: machine.log_exits(lambda index, record: None),
        lambda: bus.add_ports(range(0x10, 0x11), Recorder()),
        lambda: bus.add_mmio(range(0x20_0000, 0x20_1000), Recorder()),
        lambda: vm.create_vcpu(3),
        lambda: memory.convert(PRIVATE, PAGE, PageState.PRIVATE),
        lambda: memory.read(0, 4),
        lambda: memory.write(0, b"x"),
        lambda: memory.read(PRIVATE, 4),
        lambda: memory.add_ram(1 << 24, PAGE),
        region.states,
        region.private_ranges,
        region.conversions,
        region.spurious_exits,
        memory.conversions,
        vcpu.get_regs,
        vcpu.run,
        lambda: vcpu.kvm_run,
        lambda: loop.run(),
        loop.exit_counts,
        loop.memory_error,
        loop.answer_convert,
        lambda: list(loop.drain_log()),
        lambda: loop.last_exits(3),
    ]
    for number, use in enumerate(uses):
        with pytest.raises(ClosedError):
            use()
            pytest.fail(f"use number {number} worked")
    machine.kick()
    loop.kick()
    loop.disarm()


def test_a_loop_is_not_run_on_another_vcpus_descriptor() -> None:
    """A closed vCPU's number may belong to somebody else by now."""
    with Machine(passing()) as machine, Machine(spin()) as other:
        number = machine.vcpus[0].fileno()
        machine.vcpus[0].close()
        os.dup2(other.vcpus[0].fileno(), number)
        try:
            with pytest.raises(ClosedError):
                machine.loops[0].run()
        finally:
            os.close(number)


def test_parts_may_be_closed_in_any_order(no_leak: None) -> None:
    def parts(machine: Machine) -> list[Callable[[], None]]:
        return [
            machine.loops[0].close,
            machine.vcpus[0].close,
            machine.vm.close,
            machine.memory.close,
            machine.close,
        ]

    for rotation in range(5):
        for direction in (1, -1):
            machine = Machine(touches(PRIVATE))
            assert machine.run(20).passed
            order = parts(machine)[::direction]
            for close in order[rotation:] + order[:rotation]:
                close()


@pytest.mark.parametrize("vcpus", [1, 2])
def test_closing_a_machine_that_runs_ends_the_run(vcpus: int, no_leak: None) -> None:
    """Nothing is unmapped under a thread that is inside the guest, or inside a conversion."""
    for _ in range(5):
        machine = Machine(load_guest("guests/storm.S", {"ROUNDS": 1 << 30}), vcpus=vcpus)
        outcome: list[Any] = []

        def run(machine: Machine = machine, outcome: list[Any] = outcome) -> None:
            try:
                machine.run(20)
            except ClosedError as error:
                outcome.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        while not machine.memory.conversions().to_private:
            time.sleep(0.001)
        machine.close()
        thread.join(10)
        assert not thread.is_alive() and outcome


@pytest.mark.parametrize("part", ["memory", "vcpu", "loop", "vm", "memory, vcpu and vm"])
def test_closing_a_part_of_a_machine_that_runs(part: str, no_leak: None) -> None:
    """What C works with stays until it comes back from the guest."""
    machine = Machine(load_guest("guests/storm.S", {"ROUNDS": 1 << 30}))
    parts: dict[str, Any] = {
        "memory": machine.memory,
        "vcpu": machine.vcpus[0],
        "loop": machine.loops[0],
        "vm": machine.vm,
    }
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(machine.run(20).result)
        except ClosedError as error:
            outcome.append(str(error))  # its traceback would keep the machine

    thread = threading.Thread(target=run)
    thread.start()
    while not machine.memory.conversions().to_private:
        time.sleep(0.001)
    for name, each in parts.items():
        if name in part:
            each.close()
    if part == "memory":
        held = holdings()
        assert sum("memfd:" in name for name in held.fds) == 2 and held.maps
    machine.kick()
    thread.join(10)
    assert not thread.is_alive() and outcome
    machine.close()


def test_a_loop_that_is_kicked_behind_the_machines_back_is_said_to_be_kicked() -> None:
    class Kicker(Recorder):
        def write(self, address: int, size: int, value: int) -> None:
            machine.loops[0].kick()

    with Machine(out_loop()) as machine:
        machine.bus.add_ports(range(0x10, 0x11), Kicker())
        report = machine.run(20)
    assert (report.result, report.reason) == (Result.INTERRUPTED, "the run was kicked")


@pytest.mark.parametrize("vcpus", [1, 2])
def test_a_device_that_closes_the_machine_ends_the_run(vcpus: int, no_leak: None) -> None:
    class Closer(Recorder):
        def write(self, address: int, size: int, value: int) -> None:
            machine.close()

    # vCPU 0 spins when there is another one; the last one writes the port.
    image = guest("incw %ax\n cmpw %ax, %bx\n 1: jne 1b\n outb %al, $0x10\n 2: jmp 2b")
    machine = Machine(image, vcpus=vcpus)
    machine.bus.add_ports(range(0x10, 0x11), Closer())
    with pytest.raises(ClosedError):
        machine.run(20)


def test_kicking_while_machines_come_and_go() -> None:
    machines: list[Machine] = []
    done = False

    def kick() -> None:
        while not done:
            for machine in machines[-1:]:
                machine.kick()

    thread = threading.Thread(target=kick)
    thread.start()
    try:
        for _ in range(20):
            with Machine(out_loop(), vcpus=2) as machine:
                machines.append(machine)
                assert machine.run(20).result is Result.INTERRUPTED
    finally:
        done = True
        thread.join()


# ---- several at once ----


def test_two_machines_in_one_process() -> None:
    with Machine(touches(PRIVATE)) as first, Machine(touches(PRIVATE, PRIVATE + PAGE)) as second:
        assert second.run(20).conversions.to_private == 2
        assert first.run(20).conversions.to_private == 1
        assert second.report().conversions.to_private == 2


def test_machines_in_threads() -> None:
    image = load_guest("guests/doorbell.S")
    results: list[Any] = []

    def run() -> None:
        for _ in range(3):
            with Machine(image) as machine:
                results.append(machine.run(60).conversions)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 12
    assert len(set(results)) == 1


def test_a_machine_run_inside_another_ones_policy() -> None:
    def ask(exit: Any, index: int) -> bool:
        with Machine(touches(PRIVATE)) as inner:
            return inner.run(20).passed

    with Machine(touches(PRIVATE, PRIVATE + PAGE), policy=ask) as machine:
        report = machine.run(20)
    assert report.passed
    assert report.conversions.to_private == 2


def test_made_in_one_thread_and_run_in_another() -> None:
    with Machine(out_loop()) as machine:
        reports: list[Any] = []

        def run() -> None:
            # On a busy host the time may be up before the guest has had any of it.
            while not reports or not reports[-1].exits.get("io"):
                reports.append(machine.run(0.05))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        assert {report.result for report in reports} == {Result.DEADLINE}


def run_until_stop(loop: VcpuLoop, stops: list[int]) -> None:
    while (stop := loop.run()) == lib.STOP_SIGNAL:
        pass
    stops.append(stop)


def test_a_second_thread_in_a_loop_is_turned_away_and_the_first_keeps_its_deadline() -> None:
    stops: list[int] = []
    with Machine(spin()) as machine:
        loop = machine.loops[0]
        # On a busy host one's time may be up before the other has begun.
        while lib.STOP_BUSY not in stops:
            stops.clear()
            loop.limit(time.monotonic_ns() + 500_000_000)
            threads = [
                threading.Thread(target=run_until_stop, args=(loop, stops), daemon=True)
                for _ in range(2)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
        assert stops == [lib.STOP_BUSY, lib.STOP_DEADLINE]
        loop.limit(time.monotonic_ns() + 1_000_000)
        assert loop.run() == lib.STOP_DEADLINE


def test_a_machine_whose_loop_another_thread_runs_says_so_and_that_thread_ends(
    no_leak: None,
) -> None:
    stops: list[int] = []
    with Machine(touches(PRIVATE, then="jmp .")) as machine:
        loop = machine.loops[0]
        loop.limit(0)  # without a deadline nothing brings it back to Python in between
        thread = threading.Thread(target=run_until_stop, args=(loop, stops), daemon=True)
        thread.start()
        while not machine.memory.conversions().to_private:
            time.sleep(0.001)
        report = machine.run(1)
        thread.join(20)
        assert stops == [lib.STOP_KICK]
    assert report.result is Result.ERROR
    assert report.reason == "vCPU 0: another thread is in its run loop"


@pytest.mark.parametrize("deadline", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_every_run_has_a_deadline(deadline: float) -> None:
    with Machine(out_loop()) as machine, pytest.raises(ConfigurationError, match="a deadline of"):
        machine.run(deadline)


@pytest.mark.parametrize("deadline", [0, -1, -1e6])
def test_a_deadline_that_is_past_ends_the_run(deadline: float) -> None:
    with Machine(spin()) as machine:
        assert machine.run(deadline).result is Result.DEADLINE


@pytest.mark.parametrize("copy_of", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_owns_a_descriptor_is_not_copied(copy_of: Callable[[Any], Any], no_leak: None) -> None:
    with Kvm() as kvm, Memfd("m", 4096) as memfd, Machine(passing(), kvm=kvm) as machine:
        for owner in (kvm, memfd, machine, machine.vm, machine.vcpus[0]):
            with pytest.raises(TypeError, match="cannot be copied or pickled"):
                copy_of(owner)
        gc.collect()
        os.fstat(kvm.fileno())
        assert machine.run(20).passed


@pytest.mark.parametrize("wrong", ["guests/hello.S", bytearray(b"\xf4"), None, 5], ids=repr)
def test_a_machine_of_what_is_no_guest(wrong: Any) -> None:
    with pytest.raises(WrongTypeError, match=r"neither Image nor bytes.*load_guest"):
        Machine(wrong)


def test_a_backend_is_told_by_name() -> None:
    with pytest.raises(WrongTypeError, match="backend: wants str, was given list"):
        Machine(b"\xf4", backend=[])  # type: ignore[arg-type]


@pytest.mark.parametrize("source", [None, b".code16", 5], ids=repr)
def test_only_text_is_assembled(source: Any) -> None:
    with pytest.raises(WrongTypeError, match="no str of assembly"):
        assemble(source)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (5, "parameters: wants Mapping, was given int"),
        ([("A", 1)], "parameters: wants Mapping, was given list"),
        ({1: 2}, "parameter's name: wants str, was given int"),
        ({"A B": 1}, "parameter 'A B': its name is no symbol"),
        ({"A": 1.5}, "parameter A: wants an integer, was given 1.5"),
        ({"A": 1 << 32}, "parameter A 0x100000000: it must be"),
        ({"A": 10**40}, "parameter A: a number of 133 bits"),
    ],
    ids=repr,
)
def test_parameters_that_no_assembler_could_take(parameters: Any, words: str) -> None:
    with pytest.raises(PyvmmError, match=words):
        assemble(".code16\nhlt", parameters)


@pytest.mark.parametrize("name", [None, 5, object()], ids=["None", "number", "object"])
def test_a_guest_file_is_told_by_its_name(name: Any) -> None:
    with pytest.raises(WrongTypeError, match="guest: wants str or bytes or PathLike, was given"):
        load_guest(name)


@pytest.mark.parametrize(
    "image",
    [
        Image("x", (Segment(-2, b"\xf4"),)),
        Image("x", (Segment(START, b"\xf4"),), entry=-1),
        Image("x", (Segment(START, b"\xf4"),), entry=0x10000),
    ],
    ids=["gpa", "negative entry", "entry beyond CS 0"],
)
def test_an_image_of_ones_own_is_checked(image: Image) -> None:
    with pytest.raises(ConfigurationError, match="x: "):
        Machine(image)


@pytest.mark.parametrize("capacity", [-1, 3, 1 << 64])
def test_a_log_of_no_possible_size(capacity: int) -> None:
    with pytest.raises(ConfigurationError, match="no power of two"):
        Machine(passing(), log_capacity=capacity)


WAITS = """
    testl %eax, %eax
    jnz end
wait: cmpb $0, flag
    je wait
end: xorl %eax, %eax
    outl %eax, $0xf4
flag: .byte 0
"""


def set_flag(machine: Machine) -> None:
    """Lets the guest go on; it waits for its last byte."""
    image = guest(WAITS)
    machine.memory.write(image.segments[0].gpa + len(image.segments[0].data) - 1, b"\1")


@pytest.mark.parametrize("vcpus", [1, 2])
def test_a_machine_goes_on_after_a_deadline(vcpus: int) -> None:
    with Machine(guest(WAITS), vcpus=vcpus) as machine:
        assert machine.run(0.05).result is Result.DEADLINE
        assert machine.run(0.05).result is Result.DEADLINE
        set_flag(machine)
        report = machine.run(20)
        assert report.passed and report.exit_code == 0
        assert report.exits["io"] == vcpus  # each has ended once
        with pytest.raises(ConfigurationError, match=r"its run has ended \(pass\)"):
            machine.run(20)


def test_a_machine_goes_on_after_a_kick() -> None:
    with Machine(guest(WAITS), vcpus=2) as machine:
        machine.kick()
        assert machine.run(20).result is Result.INTERRUPTED
        set_flag(machine)
        assert machine.run(20).passed


def test_a_machine_goes_on_where_an_iteration_was_left() -> None:
    with Machine(guest("inb $0x70, %al\n xorl %eax, %eax\n outl %eax, $0xf4")) as machine:
        exits = machine.exits(20)
        next(exits)
        with pytest.raises(ConfigurationError, match="it runs already"):
            machine.run(20)
        exits.close()
        assert machine.report().result is Result.INTERRUPTED
        assert machine.run(20).passed


def test_a_guest_that_failed_does_not_go_on() -> None:
    with Machine(guest("movb $3, %al\n outb %al, $0xf4")) as machine:
        assert machine.run(20).result is Result.FAIL
        with pytest.raises(ConfigurationError, match=r"its run has ended \(fail\)"):
            machine.run(20)


def test_another_guest_can_be_loaded_before_the_run() -> None:
    with Machine(out_loop()) as machine:
        machine.load(passing())
        assert machine.run(20).passed
        with pytest.raises(ConfigurationError, match="has run already"):
            machine.load(passing())


def test_a_shared_kvm_is_not_closed() -> None:
    with Kvm() as kvm:
        run_once(kvm=kvm)
        run_once(kvm=kvm)
        assert not kvm.closed


def test_28_vcpus() -> None:
    with Machine(load_guest("guests/hello.S"), vcpus=28) as machine:
        report = machine.run(60)
        assert report.passed, report.reason
        assert report.exits["io"] >= 28
    for count in (0, 29, -1):
        with pytest.raises(ConfigurationError, match="28"):
            Machine(passing(), vcpus=count)


# ---- fork ----


def in_child(act: Callable[[], object]) -> int:
    """The exit status of a forked child that does this; 0 when nothing was raised."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            act()
            status = 0
        except KvmError as error:
            status = error.errno or 98
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_fork_cannot_use_a_machine_and_the_parent_goes_on() -> None:
    with Machine(touches(PRIVATE, PRIVATE + PAGE)) as machine:
        assert in_child(lambda: machine.vm.create_vcpu(1) and None) == errno.EIO
        assert in_child(lambda: machine.vcpus[0].get_regs()) == errno.EIO
        assert in_child(lambda: machine.run(1) and None) in (0, errno.EIO)
        assert machine.run(20).passed
        assert in_child(machine.close) == 0
        assert machine.report().passed


def test_a_run_in_a_fork_says_why_it_failed() -> None:
    with Machine(passing()) as machine:

        def run() -> None:
            report = machine.run(1)
            assert report.result is Result.FAIL
            assert "EIO" in report.reason and "fork" in report.reason

        assert in_child(run) in (0, errno.EIO)


def test_a_fork_cannot_use_the_parents_pages() -> None:
    """A lock of theirs may be held for ever, by a thread that the child does not have."""
    with Machine(passing()) as machine:
        memory = machine.memory
        memory.write(PRIVATE, b"the parent's")
        assert in_child(lambda: memory.convert(PRIVATE, PAGE, PageState.PRIVATE)) == errno.EIO
        assert in_child(lambda: memory.read(PRIVATE, 12)) == errno.EIO
        assert in_child(lambda: memory.write(PRIVATE, b"the child's!")) == errno.EIO
        assert memory.read(PRIVATE, 12) == b"the parent's"


def test_a_fork_beside_conversions_comes_to_its_end() -> None:
    """In some of them a lock is held by a thread that stays behind."""

    def convert() -> None:
        while not over:
            memory.convert(PRIVATE, 64 * PAGE, PageState.PRIVATE)
            memory.convert(PRIVATE, 64 * PAGE, PageState.SHARED)

    def close() -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        machine.close()

    over: list[bool] = []
    with Machine(passing()) as machine:
        memory = machine.memory
        thread = threading.Thread(target=convert)
        thread.start()
        try:
            for _ in range(20):
                assert in_child(close) == 0
        finally:
            over.append(True)
            thread.join()


def test_a_fork_makes_its_own_machine() -> None:
    with Machine(spin()) as machine:
        machine.run(0.01)
        assert in_child(run_once) == 0


# ---- interruptions ----


@contextmanager
def signalled(machine: Machine, number: signal.Signals) -> Iterator[None]:
    """The process is sent a signal once the guest has touched its first page."""

    def send() -> None:
        while not machine.memory.conversions().to_private:
            time.sleep(0.001)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_ctrl_c_ends_a_run_and_the_report_is_there() -> None:
    for vcpus in (1, 2):
        with Machine(touches(PRIVATE, then="jmp ."), vcpus=vcpus) as machine:
            start = time.monotonic()
            with pytest.raises(KeyboardInterrupt), signalled(machine, signal.SIGINT):
                machine.run(20)
            assert time.monotonic() - start < 10
            assert machine.report().result is Result.INTERRUPTED


def test_ctrl_c_while_exits_are_iterated() -> None:
    with (
        Machine(touches(PRIVATE, then="jmp .")) as machine,
        pytest.raises(KeyboardInterrupt),
        signalled(machine, signal.SIGINT),
    ):
        next(machine.exits(20))


def test_a_signal_handler_that_kicks() -> None:
    with Machine(touches(PRIVATE, then="jmp .")) as machine:
        before = signal.signal(signal.SIGUSR1, lambda number, frame: machine.kick())
        try:
            with signalled(machine, signal.SIGUSR1):
                assert machine.run(20).result is Result.INTERRUPTED
        finally:
            signal.signal(signal.SIGUSR1, before)


class Recorder:
    """A device that reads 0x5A everywhere."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int, int]] = []

    def read(self, address: int, size: int) -> int:
        self.seen.append(("read", address, size, 0))
        return 0x5A

    def write(self, address: int, size: int, value: int) -> None:
        self.seen.append(("write", address, size, value))


class Refusal(Exception):
    pass


@pytest.mark.parametrize("vcpus", [1, 2])
def test_an_exception_of_a_device_ends_the_run_and_comes_out(vcpus: int) -> None:
    class Broken(Recorder):
        def write(self, address: int, size: int, value: int) -> None:
            raise Refusal

    # The last vCPU does it, so that with two it happens in a thread of its own.
    image = guest("incw %ax\n cmpw %ax, %bx\n 1: jne 1b\n outb %al, $0x10")
    with Machine(image, vcpus=vcpus) as machine:
        machine.bus.add_ports(range(0x10, 0x11), Broken())
        with pytest.raises(Refusal):
            machine.run(20)
        report = machine.report()
    assert report.result is Result.ERROR
    assert report.reason == (
        f"vCPU {vcpus - 1}: device Broken at port 0x10, write of 1 byte: Refusal"
    )


def test_an_exception_of_a_policy_comes_out() -> None:
    def ask(exit: Any, index: int) -> bool:
        raise Refusal

    with Machine(touches(PRIVATE), policy=ask) as machine, pytest.raises(Refusal):
        machine.run(20)


def test_an_exception_of_a_log_comes_out() -> None:
    def take(index: int, record: Any) -> None:
        raise Refusal

    with Machine(out_loop()) as machine:
        machine.log_exits(take)
        with pytest.raises(Refusal):
            machine.run(20)
