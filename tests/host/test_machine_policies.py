"""What a policy sees, and what its answer does."""

from __future__ import annotations

import pytest
from snippets import EXIT_0, PAGE, PRIVATE, SHARED, guest, stores, touches

from pyvmm import ConfigurationError, Machine, PageState, Policy, Result
from pyvmm.kvm.exits import MemoryErrorExit

P, S = PageState.PRIVATE, PageState.SHARED


def test_convert_counts_each_wrong_touch_once() -> None:
    image = touches(PRIVATE, PRIVATE + 5, SHARED + 9, SHARED, PRIVATE + PAGE, SHARED + 2 * PAGE)
    with Machine(image) as machine:
        report = machine.run(20)
        assert machine.memory.regions[0].private_ranges() == [(PRIVATE + PAGE, PAGE)]
    assert report.passed
    done = report.conversions
    assert (done.to_private, done.to_shared, done.implicit, done.explicit) == (2, 1, 3, 0)
    assert report.memory[0].private == ((PRIVATE + PAGE, PAGE),)


def test_deny_stops_at_the_first_wrong_touch() -> None:
    with Machine(touches(SHARED, PRIVATE + 0x1234, SHARED), policy=Policy.DENY) as machine:
        report = machine.run(20)
        states = machine.memory.regions[0].states()
    assert report.result is Result.FAIL
    assert report.exit_code is None
    assert "vCPU 0" in report.reason and "denied" in report.reason and "private" in report.reason
    assert f"{PRIVATE + 0x1234:#x}" in report.reason
    assert not any(states)
    assert report.conversions.implicit == 0


def test_deny_lets_the_doorbell_convert() -> None:
    image = guest(
        "movw $0x600, %dx\n movl $0x40000, %eax\n outl %eax, %dx\n"
        "movw $0x604, %dx\n movl $1, %eax\n outl %eax, %dx\n"
        "movw $0x608, %dx\n movl $2, %eax\n outl %eax, %dx\n"
        f"movw $0x4000, %ax\n movw %ax, %es\n movb %es:0, %al\n{EXIT_0}"
    )
    with Machine(image, policy=Policy.DENY) as machine:
        report = machine.run(20)
    assert report.passed, report.reason
    assert report.conversions.explicit == report.conversions.to_private == 1


def test_ask_is_told_what_the_rfcs_kernel_would_send() -> None:
    seen: list[tuple[MemoryErrorExit, int]] = []

    def ask(exit: MemoryErrorExit, vcpu: int) -> bool:
        seen.append((exit, vcpu))
        return True

    image = touches(PRIVATE + 5, PRIVATE + 6, SHARED + 0xFFF, SHARED + PAGE, PRIVATE + 0x3F000)
    with Machine(image, policy=ask) as machine:
        report = machine.run(20)
    assert report.passed, report.reason
    assert seen == [
        (MemoryErrorExit(PRIVATE, PAGE, P), 0),
        (MemoryErrorExit(SHARED, PAGE, S), 0),
        (MemoryErrorExit(PRIVATE + 0x3F000, PAGE, P), 0),
    ]
    assert report.conversions.implicit == len(seen)


def test_ask_may_refuse() -> None:
    answers = iter([True, False])
    image = touches(PRIVATE, PRIVATE + PAGE, PRIVATE + 2 * PAGE)
    with Machine(image, policy=lambda exit, vcpu: next(answers)) as machine:
        report = machine.run(20)
    assert report.result is Result.FAIL
    assert f"{PRIVATE + PAGE:#x}" in report.reason
    assert report.conversions.to_private == 1


def test_a_run_with_nobody_to_ask_is_refused_and_exits_still_ask() -> None:
    with Machine(touches(PRIVATE), policy=Policy.ASK) as machine:
        with pytest.raises(ConfigurationError, match=r"nobody to ask; .*function.*exits\(\)"):
            machine.run(20)
        assert list(machine.exits(20)) == [MemoryErrorExit(PRIVATE, PAGE, P)]
        assert machine.report().passed


def test_an_asked_write_is_not_lost() -> None:
    image = stores({PRIVATE + 3: 7, PRIVATE + PAGE + 4: 9})
    with Machine(image, policy=lambda exit, vcpu: True) as machine:
        assert machine.run(20).passed
        backing = machine.memory.regions[0].backing
        if machine.report().backend == "emulated":
            view = backing.private_host.view
            assert (view[3], view[PAGE + 4]) == (7, 9)
            assert sum(view[: 2 * PAGE]) == 16


def test_each_vcpu_is_asked_for_itself() -> None:
    seen: set[int] = set()

    def ask(exit: MemoryErrorExit, vcpu: int) -> bool:
        assert exit.gpa == PRIVATE + vcpu * PAGE
        seen.add(vcpu)
        return True

    image = guest("shlw $8, %ax\n addw $0x4000, %ax\n movw %ax, %es\n movb %es:0, %al\n" + EXIT_0)
    with Machine(image, vcpus=4, policy=ask) as machine:
        report = machine.run(60)
    assert report.passed, report.reason
    assert seen == {0, 1, 2, 3}
    assert report.conversions.to_private == 4


def test_a_policy_that_converts_itself_is_obeyed_once() -> None:
    """The page already is what the access wants when the answer comes: a spurious exit."""

    def ask(exit: MemoryErrorExit, vcpu: int) -> bool:
        machine.memory.convert(exit.gpa, exit.size, PageState.PRIVATE)
        return True

    with Machine(touches(PRIVATE), policy=ask) as machine:
        report = machine.run(20)
    assert report.passed, report.reason
    assert (report.conversions.implicit, report.conversions.explicit) == (0, 1)
    assert report.spurious_exits == 1


@pytest.mark.parametrize("views", [1, 2])
def test_one_view_asks_for_nothing(views: int) -> None:
    asked = []

    def ask(exit: MemoryErrorExit, vcpu: int) -> bool:
        asked.append(exit)
        return True

    with Machine(touches(PRIVATE), views=views, policy=ask) as machine:
        assert machine.run(20).passed
    assert len(asked) == views - 1
