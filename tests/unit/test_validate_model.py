"""Scripts of the model: files that are right and wrong, and failures that shrink."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_kvm import BUGS, FakeKvm

from pyvmm.errors import ConfigurationError
from pyvmm.validate.kit.check import CheckFailed
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.model import explore as explore_module
from pyvmm.validate.model.abis import rules_of
from pyvmm.validate.model.abis.guest_memfd import RULES, GuestMemfdState
from pyvmm.validate.model.explore import explore
from pyvmm.validate.model.play import Play
from pyvmm.validate.model.script import STEPS, Layout, Script, load, to_text

LAYOUT = Layout(0x80000, 16, slots=2, file_pages=24, file_offset=3)
SCRIPT = Script(
    "guest_memfd",
    LAYOUT,
    (("to_private", 3, 2), ("guest_write", 1, 15, 4088, 8, (1 << 64) - 1), ("unwatch",)),
    seed=7,
    failure="it was wrong",
    kernel="6.12",
)


def data(**changes: Any) -> dict[str, Any]:
    return {**json.loads(to_text(SCRIPT)), **changes}


def test_a_script_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "script.json"
    file.write_text(to_text(SCRIPT))
    assert load(str(file), rules_of) == SCRIPT
    assert len(to_text(SCRIPT).splitlines()) < 16


def memory(**changes: Any) -> dict[str, Any]:
    return {**data()["memory"], **changes}


WRONG: list[tuple[object, str]] = [
    ("", "not JSON"),
    ("[1, 2", "not JSON"),
    ("[" * 100_000, "not JSON"),
    ("1" * 10_000, "not JSON"),
    ("\x00\xff", "not JSON"),
    ([], "no script"),
    ({"schema": 1, "results": []}, "no script"),
    (data(**{"pyvmm-replay": 2}), "version 2, not 1"),
    (data(**{"pyvmm-replay": "x" * 1000}), "version xxxx"),
    (data(**{"pyvmm-replay": True}), "version True"),
    (data(**{"pyvmm-replay": None}), "version None"),
    (data(abi="sev"), 'abi "sev"'),
    (data(abi=["guest_memfd"]), "abi"),
    (data(memory=None), "memory"),
    (data(memory=memory(more=1)), "memory"),
    (data(memory={"gpa": 0x80000}), "memory"),
    (data(memory=memory(gpa=0x1000)), "gpa"),
    (data(memory=memory(gpa=0x80001)), "gpa"),
    (data(memory=memory(gpa=1 << 80)), "gpa"),
    (data(memory=memory(gpa="0x80000")), "gpa"),
    (data(memory=memory(pages=0)), "pages"),
    (data(memory=memory(pages=10**12)), "pages"),
    (data(memory=memory(pages=16.0)), "pages"),
    (data(memory=memory(slots=17)), "slots"),
    (data(memory=memory(slots=10**9)), "slots"),
    (data(memory=memory(files=1000)), "files"),
    (data(memory=memory(cpus=True)), "cpus"),
    (data(memory=memory(cpus=5000)), "cpus"),
    (data(memory=memory(file_pages=4)), "file"),
    (data(memory=memory(backing="/dev/mem")), "backing"),
    (data(memory=memory(backing=["shmem"])), "backing"),
    (data(steps=None), "steps"),
    (data(steps=[["unwatch"]] * 100_001), "steps"),
    (data(steps=["unwatch"]), "step 1"),
    (data(steps=[["unwatch"], []]), "step 2"),
    (data(steps=[[3, 4]]), "step 1"),
    (data(steps=[["format_disk"]]), "no such step"),
    (data(steps=[["__init__"]]), "no such step"),
    (data(steps=[["to_private", 3]]), "takes 2 numbers"),
    (data(steps=[["to_private", 3, 14]]), "count is no number from 1 to 13"),
    (data(steps=[["to_private", -1, 2]]), "page"),
    (data(steps=[["to_private", 3, True]]), "count"),
    (data(steps=[["to_private", 3, 2.0]]), "count"),
    (data(steps=[["to_private", "3", 2]]), "page"),
    (data(steps=[["guest_read", 0, 15, 4089, 1]]), "offset"),
    (data(steps=[["guest_read", 0, 15, 0, 3]]), "of 1, 2, 4, 8"),
    (data(steps=[["guest_read", 2, 15, 0, 4]]), "cpu"),
    (data(steps=[["guest_write", 0, 0, 0, 8, 1 << 64]]), "value"),
    (data(steps=[["hypercall", 0, -1, 0, 8]]), "u64"),
    (data(abi="memslots", memory=memory(backing="shmem"), steps=[["to_private", 3, 2]]), "no such"),
    (data(seed="x"), "seed"),
    (data(failure=3), "failure"),
]


@pytest.mark.parametrize(("content", "said"), WRONG, ids=range(len(WRONG)))
def test_a_file_that_is_no_script_is_one_line(content: object, said: str, tmp_path: Path) -> None:
    file = tmp_path / "script.json"
    text = content if isinstance(content, str) else json.dumps(content)
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigurationError) as caught:
        load(str(file), rules_of)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        load("/nowhere/at/all", rules_of)


def wrong_after_two_conversions(script: Script, tools: Toolbox) -> None:
    """A system that forgets page 5 when it is converted after a slot came back."""
    came_back = False
    for number, (name, *numbers) in enumerate(script.steps, 1):
        came_back |= name == "create_slot"
        if came_back and name == "to_private" and 5 in range(numbers[0], sum(numbers)):
            raise CheckFailed("a page is wrong", f"step {number}")


def explored(running: Path, layout: Layout = LAYOUT, **options: Any) -> Script | None:
    given = {"seed": 1, "examples": 200, "seconds": 60, "shrink_seconds": 60, **options}
    found = explore("guest_memfd", layout, running=running, **given)
    return found and found.script


def test_a_failure_shrinks_to_the_steps_that_it_needs(tmp_path: Path) -> None:
    running = tmp_path / "running.json"
    script = explored(running, player=wrong_after_two_conversions)
    assert script is not None
    assert script.steps == (("create_slot", 0, 0, 0), ("to_private", 5, 1))
    assert script.failure == "a page is wrong (step 2)"
    assert script == explored(running, player=wrong_after_two_conversions)
    assert not running.exists()


def test_the_same_seed_makes_the_same_scripts(tmp_path: Path) -> None:
    def played(seed: int) -> list[Script]:
        scripts: list[Script] = []
        explored(
            tmp_path / "running.json",
            seed=seed,
            examples=10,
            player=lambda script, tools: scripts.append(script),
        )
        return scripts

    assert played(3) == played(3) != played(4)


def test_the_script_is_in_a_file_while_it_is_played(tmp_path: Path) -> None:
    running = tmp_path / "running.json"

    def player(script: Script, tools: Toolbox) -> None:
        assert load(str(running), rules_of).steps == script.steps

    assert explored(running, examples=5, player=player) is None


def test_a_failure_that_does_not_come_again_is_one(tmp_path: Path) -> None:
    played = 0

    def player(script: Script, tools: Toolbox) -> None:
        nonlocal played
        played += 1
        if played == 7:
            raise CheckFailed("once")

    script = explored(tmp_path / "running.json", player=player)
    assert script is not None and script.failure == "once"


@pytest.fixture
def all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that this machine's KVM has nothing for."""
    monkeypatch.setattr(explore_module, "missing", lambda name: "")


@pytest.mark.usefixtures("all_steps")
@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_is_found_and_shrinks_to_a_few_steps(bug: str, tmp_path: Path) -> None:
    layout = Layout((4 << 30) + 0x5000, 24, slots=3, file_pages=40, file_offset=7)

    def player(script: Script, tools: Toolbox) -> None:
        fake: Any = FakeKvm(layout, bug)
        Play(RULES, GuestMemfdState(layout), fake).all(script.steps)

    script = explored(tmp_path / "running.json", layout=layout, player=player)
    assert script is not None
    assert len(script.steps) <= 6, script.steps


@pytest.mark.usefixtures("all_steps")
def test_every_step_can_be_taken() -> None:
    fake: Any = FakeKvm(LAYOUT)
    assert list(Play(RULES, GuestMemfdState(LAYOUT), fake).steps) == list(STEPS)


def test_nothing_is_found_where_nothing_is_wrong(tmp_path: Path) -> None:
    def player(script: Script, tools: Toolbox) -> None:
        fake: Any = FakeKvm(LAYOUT)
        Play(RULES, GuestMemfdState(LAYOUT), fake).all(script.steps)

    assert explored(tmp_path / "running.json", examples=60, player=player) is None


def test_it_ends_when_its_time_is_over(tmp_path: Path) -> None:
    assert explored(tmp_path / "running.json", seconds=0, player=lambda script, tools: None) is None
