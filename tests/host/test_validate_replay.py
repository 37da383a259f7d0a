"""The model on this machine's KVM: what is right passes, what is wrong shrinks and is replayed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from pyvmm_command import Outcome, pyvmm

from pyvmm.validate.cases.model import SHARED_LAYOUTS
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.model.abis import rules_of
from pyvmm.validate.model.abis.memslots import RULES, MemslotsState, MemslotsSystem
from pyvmm.validate.model.explore import explore
from pyvmm.validate.model.play import Play
from pyvmm.validate.model.script import Layout, Script, to_text
from pyvmm.validate.model.state import Place

pytestmark = pytest.mark.usefixtures("no_leak")

LAYOUT = Layout(0x80000, 8, slots=2, file_pages=16, file_offset=3, backing="shmem")


def test_random_scripts_pass(request: pytest.FixtureRequest) -> None:
    seed = request.config.option.hypothesis_seed
    outcome = pyvmm("validate", "-k", "MODEL3", "--seed", seed or 1, "--model-examples", 8)
    assert outcome.status == 0, outcome


def test_the_same_seed_gives_the_same_run() -> None:
    def results(seed: int) -> list[tuple[str, str]]:
        words = ("-k", "MODEL3 and low", "--model-examples", 3, "--seed", seed, "--json")
        report = pyvmm("validate", *words).json
        assert report["seed"] == seed
        return [(each["name"], each["state"]) for each in report["results"]]

    assert results(7) == results(7) == [("MODEL3.memslots[layout=low]", "pass")]


class ForgetsThePunch(MemslotsState):
    """A model that is wrong: a punch leaves the last of several pages as it was."""

    def punch(self, file: int, page: int, count: int) -> None:
        inode = self.files[file]
        assert inode is not None
        last = Place(inode, page + count - 1)
        kept = self.contents.get(last)
        super().punch(file, page, count)
        if kept is not None and count > 1:
            self.contents[last] = kept


def test_a_wrong_model_shrinks_to_a_short_script(tmp_path: Path) -> None:
    def player(script: Script, tools: Toolbox) -> None:
        system = MemslotsSystem(tools, script.layout)
        Play(RULES, ForgetsThePunch(script.layout), system).all(script.steps)

    found = explore(
        "memslots",
        LAYOUT,
        seed=3,
        examples=100,
        running=tmp_path / "running.json",
        seconds=60,
        shrink_seconds=60,
        player=player,
    )
    assert found is not None
    names = [step[0] for step in found.script.steps]
    assert len(names) == 2 and names[1] == "punch", found.script.steps
    assert found.script.steps[1][3] == 2
    assert "other contents in a shared page than it must" in str(found.failure)
    # The real model takes the same steps, and nothing is wrong.
    file = tmp_path / "script.json"
    file.write_text(to_text(found.script))
    outcome = replay(file)
    assert (outcome.status, "1 pass" in outcome.stdout) == (0, True), outcome


def replay(file: Path, *words: object) -> Outcome:
    return pyvmm("validate", "--replay", file, *words)


def written(tmp_path: Path, **changes: Any) -> Path:
    script = Script("memslots", LAYOUT, (("guest_fill", 0, 0, 8, 5), ("look", 1)))
    file = tmp_path / "script.json"
    file.write_text(json.dumps({**json.loads(to_text(script)), **changes}))
    return file


def test_replay_passes_in_every_form(tmp_path: Path) -> None:
    file = written(tmp_path)
    assert replay(file).status == 0
    assert "ok 1 REPLAY.replay" in replay(file, "--ktap").stdout
    (result,) = replay(file, "--json").json["results"]
    assert (result["state"], str(file) in result["title"]) == ("pass", True)


def test_no_package_is_needed(tmp_path: Path) -> None:
    (tmp_path / "hypothesis.py").write_text("raise ImportError")
    words = ("-k", "MODEL3 and low", "--model-examples", 1)
    outcome = pyvmm("validate", *words, environment={"PYTHONPATH": str(tmp_path)})
    assert (outcome.status, "1 pass" in outcome.stdout) == (0, True), outcome


def test_replay_of_a_failure_names_the_step(tmp_path: Path) -> None:
    """Memory that the kernel cannot have lost: the file was punched behind the model's back."""
    file = written(tmp_path)
    code = (
        "import sys; from pyvmm.validate.model.abis import memslots\n"
        "memslots.MemslotsState.fill = lambda *given: None\n"
        "from pyvmm.cli.main import main\n"
        f"sys.argv = ['pyvmm', 'validate', '--replay', {str(file)!r}]\n"
        "sys.exit(main())"
    )
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1, done
    assert "fail  REPLAY.replay: a guest reads other contents in a shared page" in done.stdout
    assert "step 2 ['look', 1]" in done.stdout


def test_replay_on_a_kernel_without_the_abi(tmp_path: Path) -> None:
    memory = {"gpa": 0x80000, "pages": 4, "file_pages": 4}
    for abi in ("guest_memfd", "memory_error"):
        outcome = replay(written(tmp_path, abi=abi, memory=memory, steps=[["look", 0]]))
        if outcome.status != 0:
            assert outcome.status == 4, outcome
            assert "1 skipped: " in outcome.stdout


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pyvmm-replay": 2}, "it has version 2, not 1"),
        ({"abi": "sev"}, 'abi "sev" is not known'),
        ({"steps": [["guest_read", 0, 10**30, 0, 8]]}, "step 1"),
        ({"steps": [["rm", "-rf"]]}, "there is no such step"),
        ({"memory": {"gpa": 1 << 62, "pages": 1 << 62}}, "gpa"),
    ],
)
def test_a_replay_file_that_is_wrong_is_one_line(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    replay(written(tmp_path, **changes)).error(2, said)


def test_bad_words() -> None:
    pyvmm("validate", "--replay", "/nowhere/at/all").error(2, "No such file")
    pyvmm("validate", "--replay", "x", "-k", "MR1").error(2, "a script is run alone")
    pyvmm("validate", "--model-examples", 0).error(2, "0 is not a number from 1 to 1000000")


def test_every_layout_is_one_that_a_file_may_have() -> None:
    for layout in SHARED_LAYOUTS.values():
        script = Script("memslots", layout, ())
        data = json.loads(to_text(script))
        assert rules_of("memslots") is RULES
        from pyvmm.validate.model.script import parse

        assert parse(data, rules_of) == script
