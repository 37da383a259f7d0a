"""`pyvmm lab explore`: kinds of failures, a corpus that goes on; without a lab."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyvmm.cli.main import main
from pyvmm.lab.coverage import Coverage, Lines
from pyvmm.lab.errors import LabError, LabUsageError
from pyvmm.lab.kernel_log import Splat
from pyvmm.validate.jobs import run as job_run
from pyvmm.validate.jobs.corpus import Corpus
from pyvmm.validate.jobs.executed import Executed
from pyvmm.validate.jobs.job import Job, Named
from pyvmm.validate.jobs.result import JobResult, KernelFacts
from pyvmm.validate.kernels import coverage_run
from pyvmm.validate.kernels.lab_run import LabRun, Trouble
from pyvmm.validate.results.result import CaseResult, State

LOW, SLOTS = "MODEL1.guest_memfd[layout=low]", "MODEL1.guest_memfd[layout=slots]"
OTHER = "MODEL3.memslots[layout=low]"


def case(name: str, state: State, message: str = "", scripts: int = 0) -> CaseResult:
    return CaseResult(name, name.split(".")[0], "", "model", state, message, scripts=scripts)


def result(*cases: CaseResult, files: dict[str, str] | None = None, **more: Any) -> JobResult:
    run = LabRun(tuple(each.name for each in cases), cases, 7, 60.0, **more)
    return JobResult("name", KernelFacts("default", "6.12", "0a"), run, files or {})


def fails(name: str, message: str, script: str) -> JobResult:
    stem = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
    return result(case(name, State.FAIL, message), files={f"pyvmm-replay-{stem}-5.json": script})


def test_one_script_is_kept_of_each_kind_and_it_is_the_shortest(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, 7)
    (first,) = corpus.take(0, fails(LOW, "GPA 0x8000 is wrong", "a long script"))
    assert corpus.take(1, fails(SLOTS, "GPA 0x100000 is wrong", "short")) == []
    assert corpus.take(2, fails(LOW, "GPA 0x9000 is wrong", "a script")) == []
    (other,) = corpus.take(3, fails(OTHER, "GPA 0x8000 is wrong", "another"))
    (more,) = corpus.take(4, fails(LOW, "something else", "third"))
    assert len(corpus.kinds) == 3
    kept = corpus.kinds[first.kind]
    assert (kept.message, kept.case, kept.times) == ("GPA 0x8000 is wrong", LOW, 3)
    assert (tmp_path / kept.files[0]).read_text() == "short"
    texts = {(tmp_path / name).read_text() for each in (other, more) for name in each.files}
    assert texts == {"another", "third"}


def test_passes_and_known_bugs_are_no_failures_and_scripts_are_counted(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, 7)
    done = result(
        case(LOW, State.PASS, scripts=32),
        case(SLOTS, State.PASS, scripts=1000),
        case(OTHER, State.SKIP, "no race happened here", scripts=5),
        case("MODEL2.x", State.KNOWN, "it spins", scripts=1),
    )
    assert corpus.take(0, done) == []
    assert (corpus.scripts, corpus.seconds) == (1038, 60.0)


def test_a_kernel_that_dies_is_a_kind_with_all_that_was_played(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, 7)
    files = {"pyvmm-running-1-MODEL1.json": "one", "pyvmm-running-1-MODEL3.json": "two"}
    splat = Trouble(Splat("BUG: at 0xffff12345678 in x+0x10/0x20", ("BUG",)))
    problem = "the lab's kernel died while the command ran"
    (kind,) = corpus.take(0, result(files=files, trouble=(splat,), problem=problem))
    assert [(tmp_path / name).read_text() for name in kind.files] == ["one", "two"]
    assert corpus.take(1, result(files=files, trouble=(splat, splat), problem=problem)) == []
    (died,) = corpus.take(2, result(problem=problem))
    assert died.message == problem
    assert corpus.take(3, result(problem="timed out after 9 s", out_of_time=True)) == []


def test_a_kernel_that_dies_silently_is_of_one_kind_on_the_same_abis(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, 7)
    for number, running in enumerate(([LOW, OTHER], [OTHER, SLOTS], [SLOTS, LOW], [LOW])):
        died = f"the lab's kernel died; in the middle of {', '.join(running)}"
        corpus.take(number, result(problem=died))
    assert [each.times for each in corpus.kinds.values()] == [2, 2]


def test_a_corpus_goes_on_where_it_was(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, 7)
    numbers = corpus.numbers()
    assert [next(numbers) for _ in range(4)] == [0, 1, 2, 3]
    corpus.take(1, fails(LOW, "wrong", "script"))
    corpus.take(3, result(case(LOW, State.PASS, scripts=32)))
    again = Corpus(tmp_path)
    assert (again.seed, again.scripts, again.kinds) == (7, 32, corpus.kinds)
    numbers = again.numbers()
    assert [next(numbers) for _ in range(4)] == [0, 2, 4, 5]
    again.take(0, result())
    numbers = Corpus(tmp_path).numbers()
    assert [next(numbers) for _ in range(2)] == [2, 4]
    with pytest.raises(LabUsageError, match="it has seed 7; name another folder"):
        Corpus(tmp_path, 8)


@pytest.mark.parametrize("damage", [None, b"", b"\xff"])
def test_a_script_that_is_gone_or_damaged_is_kept_anew(
    damage: bytes | None, tmp_path: Path
) -> None:
    files = {"pyvmm-running-1-MODEL1.json": "one", "pyvmm-running-1-MODEL3.json": "two"}
    corpus = Corpus(tmp_path, 7)
    (kind,) = corpus.take(0, result(files=files, problem="the lab's kernel died"))
    lost = tmp_path / kind.files[1]
    if damage is None:
        lost.unlink()
    else:
        lost.write_bytes(damage)
    longer = {name: text * 2 for name, text in files.items()}
    assert Corpus(tmp_path).take(1, result(files=longer, problem="the lab's kernel died")) == []
    assert [(tmp_path / name).read_text() for name in kind.files] == ["oneone", "twotwo"]


def test_a_full_disk_leaves_no_corpus_that_is_refused_later(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
    try:
        with pytest.raises(LabUsageError, match="File too large"):
            Corpus(tmp_path, 7)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert Corpus(tmp_path, 8).seed == 8


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"pyvmm-corpus": 2}', '{"pyvmm-corpus": 1}', "[" * 100_000]
)
def test_what_is_no_corpus(text: str, tmp_path: Path) -> None:
    (tmp_path / "corpus.json").write_text(text)
    with pytest.raises(LabUsageError, match="it is damaged, or of another pyvmm"):
        Corpus(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("message", None), ("times", "1"), ("seed", 1.5), ("files", [1]), ("files", ["../x"])],
)
def test_a_kind_that_is_none(key: str, value: object, tmp_path: Path) -> None:
    """It is said at once, and not when labs have run for hours."""
    Corpus(tmp_path, 7).take(0, fails(LOW, "wrong", "a script"))
    kept = json.loads((tmp_path / "corpus.json").read_text())
    kept["kinds"][0][key] = value
    (tmp_path / "corpus.json").write_text(json.dumps(kept))
    with pytest.raises(LabUsageError, match="it is damaged, or of another pyvmm"):
        Corpus(tmp_path)


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(LabUsageError, match="there are other files"):
        Corpus(tmp_path)


# ---- what was executed ----


def lines(*executed: int, file: str = "virt/kvm/x.c") -> Coverage:
    return {file: Lines({number: int(number in executed) for number in range(10)})}


def test_lines_that_are_new_are_counted_for_each_kernel(tmp_path: Path) -> None:
    executed = Executed(tmp_path)
    assert executed.take("a", lines(1, 2)) == 2
    assert executed.take("a", lines(2, 3)) == 1 and executed.quiet == 0
    assert executed.take("a", lines(1)) == 0 and executed.quiet == 1
    assert executed.take("b", lines(1)) == 1
    executed.take("b", lines())
    again = Executed(tmp_path)
    assert (again.lines, again.rounds, again.quiet) == (4, 5, 1)
    assert again.take("a", lines(3)) == 0 and again.take("a", lines(1, file="y.c")) == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pyvmm-executed": 2}', "[" * 100_000])
def test_what_says_nothing_of_lines(text: str, tmp_path: Path) -> None:
    (tmp_path / "executed.json").write_text(text)
    with pytest.raises(LabUsageError, match="it is damaged, or of another pyvmm; remove it"):
        Executed(tmp_path)


# ---- the command ----

Answer = Callable[[Job], JobResult]


@pytest.fixture
def explore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(answer: Answer, *words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(job_run, "run_job", lambda job, *_, **__: answer(job))
        place = ["--corpus", str(tmp_path / "corpus"), "--workers", "2"]
        status = main(["lab", "explore", "--hours", "0.0003", *place, *words])
        return status, *capsys.readouterr()

    return run


def test_an_exploration(explore: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    def answer(job: Job) -> JobResult:
        assert LOW in job.cases and job.model_examples == 5
        if job.seed == 9:
            return fails(LOW, "wrong contents", "a script")
        return result(case(LOW, State.PASS, scripts=5))

    status, out, err = explore(answer, "--seed", "7", "--model-examples", "5")
    assert status == 1, err
    assert err.count("new: wrong contents") == 1 and "seed 7, 2 labs at once, 0 kinds" in err
    first, message, where = out.splitlines()
    assert re.match(r"\d+ scripts in 0\.\d min on 2 labs at once, \d+ a minute; \d+ in all", first)
    assert message == "wrong contents" and f"{LOW}, once: {tmp_path}/corpus/" in where
    done = json.loads((tmp_path / "corpus/corpus.json").read_text())
    assert done["next"] > 3
    # Nothing fails any more: what is known is told, and the status is of this call.
    status, out, err = explore(answer, "--model-examples", "5")
    assert status == 0 and "wrong contents" in out and "1 kind known" in err
    assert json.loads((tmp_path / "corpus/corpus.json").read_text())["next"] > done["next"]


def test_kernels_take_turns(explore: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    def answer(job: Job) -> JobResult:
        (tmp_path / f"{job.kernel.name} {job.seed}").touch()  # type: ignore[union-attr]
        return result(case(LOW, State.PASS, scripts=5))

    assert explore(answer, "--seed", "0", "--kernel", "default", "--kernel", "7.3")[0] == 0
    seen = [path.name for path in tmp_path.iterdir() if " " in path.name]
    assert {"default 0", "7.3 1", "default 2", "7.3 3"} <= set(seen)


def test_it_says_when_nothing_new_is_executed(
    explore: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_run, "kernel_of_job", lambda job, announce: None)
    monkeypatch.setattr(coverage_run, "read_packed", lambda kernel, packed: lines(*packed))

    def answer(job: Job) -> JobResult:
        # Two boots; all jobs but the first two execute the same.
        counters = (bytes([1]), bytes([2 if job.seed < 2 else 1]))
        return replace(result(case(LOW, State.PASS, scripts=5)), counters=counters)

    status, out, err = explore(answer, "--seed", "0", "--hours", "0.0006")
    assert status == 0 and "2 lines of KVM executed in " in out
    assert "2 lines of KVM executed for the first time, 2 in all" in err
    assert err.count("nothing new of KVM executed in the last 8 labs") == 1
    assert "in the last 9 labs" not in err


def test_what_cannot_run_ends_it(explore: Callable[..., tuple[int, str, str]]) -> None:
    def refuse(job: Job) -> JobResult:
        raise LabError("kernel x", "it does not boot")

    status, out, err = explore(refuse, "--hours", "1")
    assert (status, out) == (125, "") and err.count("it does not boot") == 1
    assert err.splitlines()[-1] == "pyvmm: lab: explore: 3 labs in a row could not run"
    skip = replace(result(case(LOW, State.SKIP, "private_memory: none")))
    status, out, _ = explore(lambda job: skip, "--hours", "1")
    assert status == 4 and "0 scripts" in out


def test_a_job_that_cannot_run_is_left(
    explore: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """What is kept of those behind it does not grow for hours."""

    def answer(job: Job) -> JobResult:
        if job.seed == 1:
            raise LabError("job x", "its process died; it was the second try")
        return result(case(LOW, State.PASS, scripts=5))

    assert explore(answer, "--seed", "0")[0] == 0
    kept = json.loads((tmp_path / "corpus/corpus.json").read_text())
    assert kept["next"] > 1 and len(kept["beyond"]) < 3


def test_a_kernel_that_cannot_run_is_said_once_and_others_go_on(
    explore: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pyvmm.lab.build.check_known", lambda name: None)
    finds = False

    def answer(job: Job) -> JobResult:
        if job.kernel == Named("7.3"):
            raise LabError("the kernel does not build", "x.c:1:2: error: no")
        if finds:
            return fails(LOW, "wrong contents", "a script")
        return result(case(LOW, State.PASS, scripts=5))

    words = ["--kernel", "default", "--kernel", "7.3"]
    status, out, err = explore(answer, *words)
    kept = json.loads((tmp_path / "corpus/corpus.json").read_text())
    assert kept["next"] > 1 and len(kept["beyond"]) < 3, "it would grow with each lab"
    assert status == 125 and err.count("x.c:1:2: error: no") == 1
    assert err.count("kernel 7.3: 3 labs in a row could not run; it is left out") == 1
    assert int(out.split()[0]) >= 15
    finds = True
    assert explore(answer, *words)[0] == 1


def test_what_was_found_is_told_when_labs_cannot_run_any_more(
    explore: Callable[..., tuple[int, str, str]],
) -> None:
    def answer(job: Job) -> JobResult:
        if job.seed > 8:
            raise LabError("no room in the cache /x", "fewer than 64 MiB are free")
        return fails(LOW, "wrong contents", "a script")

    status, out, err = explore(answer, "--seed", "7", "--hours", "1")
    assert status == 125 and err.splitlines()[-1].endswith("3 labs in a row could not run")
    assert out.splitlines()[1] == "wrong contents"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--hours", "0"], "0 is not a number of hours"),
        (["--hours", "nan"], "nan is not a number of hours"),
        (["--hours", "x"], "x is not a number of hours"),
        (["-k", "MR6"], "it chooses no case of the model"),
        (["-k", "xyzzy"], "there is no such case"),
        (["--kernel", "nonesuch"], "there is none of this name"),
        (["--corpus", "/dev/null"], "corpus /dev/null: File exists"),
        (["--cpus", "0"], "the lab has 1 to"),
        (["--model-examples", "10000"], "--model-examples 10000: a lab with "),
    ],
)
def test_bad_words(words: list[str], said: str, explore: Callable[..., Any], capsys: Any) -> None:
    try:
        status, _, err = explore(lambda job: result(), *words)
    except SystemExit as stopped:
        status, err = stopped.code, capsys.readouterr().err
    assert status == 2 and said in err and err.count("\n") == 1
