"""The runner: every case gets a result, whatever it does, and nothing is left of it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.cli.main import main
from pyvmm.errors import PyvmmError
from pyvmm.kvm.ioctls import IOCTLS
from pyvmm.validate.kit.case import Case
from pyvmm.validate.kit.check import CheckFailed, Missing, expect
from pyvmm.validate.kit.known import Known, KnownBug
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.results.result import State
from pyvmm.validate.run import stuck
from pyvmm.validate.run.runner import Runner

pytestmark = pytest.mark.usefixtures("no_leak")


def a_case(function: Callable[..., None], **fields: object) -> Case:
    given = {"id": "X1", "title": "a title", "subject": "tests", **fields}
    return Case(function=function, **given)  # type: ignore[arg-type]


def passes(tools: Toolbox) -> None:
    pass


def fails(tools: Toolbox) -> None:
    expect(17, 4096, "the size")


def fails_with_detail(tools: Toolbox) -> None:
    raise CheckFailed("a race was lost", "3 of 100")


def skips(tools: Toolbox) -> None:
    raise Missing("hugetlb pages")


def errs(tools: Toolbox) -> None:
    raise ZeroDivisionError("oops")


def misuses(tools: Toolbox) -> None:
    raise PyvmmError("a call", "it failed", "nothing")


def hangs(tools: Toolbox) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True:
        time.sleep(100)


BUG = KnownBug("0123456789ab", "KVM: Do it right", "6.18")


def sees_a_known_bug(tools: Toolbox) -> None:
    raise Known(BUG, "it hangs", "after 3 s")


def crashes(tools: Toolbox) -> None:
    os.kill(os.getpid(), signal.SIGBUS)


def exits(tools: Toolbox) -> None:
    os._exit(3)


def leaves_a_thread(tools: Toolbox) -> None:
    threading.Thread(target=time.sleep, args=(1000,)).start()


def result_of(function: Callable[..., None], **fields: object) -> tuple[State, str, str]:
    (result,) = list(Runner([a_case(function, **fields)]))
    return result.state, result.message, result.detail


def test_each_outcome() -> None:
    assert result_of(passes) == (State.PASS, "", "")
    assert result_of(fails) == (State.FAIL, "the size: seen 0x11, expected 0x1000", "")
    assert result_of(fails_with_detail) == (State.FAIL, "a race was lost", "3 of 100")
    assert result_of(skips) == (State.SKIP, "hugetlb pages", "")
    assert result_of(misuses)[:2] == (
        State.FAIL,
        "a call that must succeed failed: a call: it failed; nothing",
    )
    state, message, detail = result_of(errs)
    assert (state, message) == (State.FAIL, "ZeroDivisionError: oops")
    assert detail.startswith("test_validate_runner.py:")


def test_a_known_bug_is_no_failure_and_names_its_fix() -> None:
    (result,) = list(Runner([a_case(sees_a_known_bug)], patience_s=0.01))
    assert (result.state, result.message, result.detail) == (State.KNOWN, "it hangs", "after 3 s")
    assert result.bug == BUG
    assert result.state.wrong and not result.state.bad


@pytest.mark.parametrize(("strict", "status"), [([], 0), (["--strict"], 1)])
def test_the_command_fails_for_a_known_bug_if_it_is_strict(
    strict: list[str],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    cases = [a_case(passes), a_case(sees_a_known_bug)]
    monkeypatch.setattr("pyvmm.cli.validate._cases", lambda options: cases)
    assert main(["validate", *strict]) == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"known bug of this kernel, {BUG}:"
    assert "it hangs (after 3 s)" in lines[2]
    assert lines[-1].startswith("1 known, 1 pass in")
    assert main(["validate", "--ktap", *strict]) == status
    (line,) = [each for each in capsys.readouterr().out.splitlines() if "XFAIL" in each]
    assert line.startswith("ok ") and line.endswith(f"# XFAIL it hangs; {BUG}")
    assert main(["validate", "--json", *strict]) == status
    file = tmp_path / "before.json"
    file.write_text(capsys.readouterr().out)
    data = json.loads(file.read_text())
    assert data["summary"]["known"] == 1
    assert data["results"][1]["bug"]["commit"] == BUG.commit
    assert main(["validate", "--baseline", str(file), *strict]) == status


def test_a_case_that_hangs_is_killed_at_its_deadline() -> None:
    start = time.monotonic()
    state, message, _ = result_of(hangs, deadline_s=0.5)
    assert (state, message) == (State.HANG, "no end after 0.5 s")
    assert time.monotonic() - start < 10


def gets_on(tools: Toolbox) -> None:
    for _ in range(8):
        time.sleep(0.2)
        tools.beat()


def gets_on_for_ever(tools: Toolbox) -> None:
    while True:
        time.sleep(0.01)
        tools.beat()


def test_a_case_that_gets_on_has_three_times_its_deadline() -> None:
    assert result_of(gets_on, deadline_s=1.0)[0] is State.PASS
    began = time.monotonic()
    state, message, _ = result_of(gets_on_for_ever, deadline_s=0.4)
    assert state is State.HANG
    assert message.startswith("no end after ")
    assert time.monotonic() - began >= 1.2


def test_a_case_that_not_even_a_kill_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvmm.validate.run.runner._END_S", 0.1)
    monkeypatch.setattr("multiprocessing.process.BaseProcess.kill", lambda process: None)
    runner = Runner([a_case(hangs, deadline_s=0.3), a_case(passes, id="X2")])
    first, second = list(runner)
    assert (first.state, second.state) == (State.HANG, State.PASS)
    assert first.message == "no end after 0.3 s; not even SIGKILL ends it"
    assert runner.left_behind
    for process in multiprocessing.active_children():
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()


def slowly_fails(tools: Toolbox) -> None:
    time.sleep(0.2)
    expect(17, 4096, "the size")


def test_a_kernel_on_which_all_hangs_is_given_up() -> None:
    alone = a_case(passes, id="X9", alone=True)
    slow = [a_case(slowly_fails, id=f"X{number}") for number in range(8)]
    runner = Runner([*slow, alone], patience_s=0.5)
    ran = [result.id for result in runner]
    assert 1 <= len(ran) <= 3  # each takes 0.2 s, and on a busy machine more
    assert [*ran, *(each.id for each in runner.not_run)] == [each.id for each in (*slow, alone)]
    # The model looks for the shortest script that fails, which takes its time.
    searching = [a_case(slowly_fails, id=f"X{number}", examples=1) for number in range(4)]
    runner = Runner(searching, patience_s=0.3)
    assert (len(list(runner)), runner.not_run) == (4, ())


def test_a_case_that_hangs_says_in_which_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvmm.validate.run.stuck.where", lambda pid: ("KVM_RUN", "KVM_RUN: f < g"))
    assert result_of(hangs, deadline_s=0.3) == (
        State.HANG,
        "no end after 0.3 s, in KVM_RUN",
        "KVM_RUN: f < g",
    )


def test_the_call_that_a_thread_is_in() -> None:
    number = IOCTLS["KVM_SET_MEMORY_ATTRIBUTES"].number
    assert stuck._call(f"16 0x7 {number:#x} 0x7ffd 0x0 0x0 0x0") == "KVM_SET_MEMORY_ATTRIBUTES"
    assert stuck._call("285 0x7 0x3 0x0 0x1000 0x0 0x0") == "fallocate"
    assert stuck._call("7 0x7ff 0x1 0xffffffff 0x0 0x0 0x0") == ""  # poll
    assert stuck._call("running") == stuck._call("-1 0x7ff 0x40") == stuck._call("") == ""
    assert list(
        stuck._frames("[<0>] mutex_lock+0x2b/0x30\n[<0>] kvm_vm_ioctl+0x1/0x2 [kvm]\n")
    ) == [
        "mutex_lock",
        "kvm_vm_ioctl",
    ]
    assert stuck.where(1 << 30) == ("", "")


def test_where_a_thread_runs_that_is_in_no_call() -> None:
    spins = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    with subprocess.Popen(spins, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            # On a busy machine it may be another's turn when it is looked at.
            assert any(stuck.where(process.pid) == ("its program", "") for _ in range(20))
        finally:
            process.kill()
    times = stuck._Times(10, 10, 10)
    assert stuck._place(times, stuck._Times(12, 11, 99)) == "a guest"
    assert stuck._place(times, stuck._Times(12, 99, 11)) == "the kernel"
    assert stuck._place(times, times) == "something to which no CPU time was counted"


def test_a_case_that_crashes_its_process() -> None:
    assert result_of(crashes)[:2] == (State.CRASH, "its process was ended by SIGBUS")
    assert result_of(exits)[:2] == (State.CRASH, "its process ended with status 3")


def test_the_others_go_on(no_leak: None) -> None:
    functions = [passes, crashes, passes, hangs, leaves_a_thread, fails, exits, passes]
    cases = [
        a_case(function, id=f"X{index}", deadline_s=1.0) for index, function in enumerate(functions)
    ]
    states = {result.id: result.state for result in Runner(cases, workers=3)}
    assert [states[f"X{index}"] for index in range(len(cases))] == [
        State.PASS,
        State.CRASH,
        State.PASS,
        State.HANG,
        State.PASS,
        State.FAIL,
        State.CRASH,
        State.PASS,
    ]


def many(count: int, **fields: object) -> list[Case]:
    return [a_case(passes, id=f"X{index}", **fields) for index in range(count)]


def test_the_order_is_the_seeds() -> None:
    def order(seed: int, shuffle: bool) -> list[str]:
        return [result.id for result in Runner(many(30), seed=seed, shuffle=shuffle)]

    plain = order(1, False)
    assert plain == [f"X{index}" for index in range(30)]
    assert order(1, True) == order(1, True) != order(2, True)
    assert sorted(order(1, True)) == sorted(plain)


def test_cases_that_must_be_alone_come_last_and_one_by_one() -> None:
    running: set[str] = set()
    most = 0

    def started(each: Case) -> None:
        nonlocal most
        if each.alone:
            assert not running
        running.add(each.id)
        most = max(most, len(running))

    cases = [*many(3, alone=True), *(a_case(passes, id=f"Y{index}") for index in range(10))]
    for result in Runner(cases, workers=4, started=started):
        running.discard(result.id)
    assert 1 < most <= 4


def test_closing_early_ends_everything() -> None:
    runner = Runner([a_case(hangs), *many(5)], workers=2)
    results = iter(runner)
    next(results)
    runner.close()
