"""Words that are wrong, whatever the command: one line with a remedy, status 2; without KVM."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.cli.main import main

DIGITS = "9" * 5000


def complaint(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one line that the command says of these words."""
    try:
        status = main(words)
    except SystemExit as stopped:
        status = int(str(stopped.code))
    out, err = capsys.readouterr()
    assert status == 2 and not out, (status, out, err)
    assert err.startswith("pyvmm: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    "words",
    [
        ["validate", "-j", DIGITS],
        ["validate", "--seed", DIGITS],
        ["validate", "--model-examples", DIGITS],
        ["validate", "-k", DIGITS],
        ["run", "x.S", "--vcpus", DIGITS],
        ["run", "x.S", "--deadline", DIGITS],
        ["run", "x.S", "--memory", DIGITS],
        ["run", "x.S", "--set", f"rax={DIGITS}"],
        ["bench", "exits", "--seconds", DIGITS],
        ["bench", "ab", "--env", "A=1", "--repeat", DIGITS],
        ["lab", "check", "--workers", DIGITS],
    ],
    ids=lambda words: " ".join(words[:-1]),
)
def test_a_very_long_word_is_shown_by_its_beginning(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = complaint(capsys, words)
    assert "9" * 50 in line and len(line) < 300
    assert "invalid parse value" not in line and "invalid seed value" not in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bench", "compare", "/nowhere", "/nowhere"], "name a file that `pyvmm bench"),
        (["bench", "compare", "/", "/"], "name a file that `pyvmm bench"),
        (["lab", "job", "/"], "Is a directory; name a file that `pyvmm lab cut` wrote"),
        (["lab", "job", "/dev/null"], "it is not JSON; name a file"),
        (["lab", "cut", "--into", "/dev/null"], "name a folder that can be written"),
        (["lab", "explore", "--hours", "1", "--corpus", "/dev/null"], "name a folder that can be"),
        (["lab", "explore", "--hours", "1", "--corpus", "x", "--dask", "foo"], "tcp://HOST:PORT"),
        (["lab", "build", "--config", "/nowhere"], "/nowhere: No such file or directory; name a"),
        (["lab", "cut", "--into", "x", "--kernel", "/nowhere/x"], "name a bzImage that can be"),
        (["lab", "cut", "--into", "x", "--kernel", "/dev/null"], "arch/x86/boot/bzImage"),
        (["lab", "cut", "--into", "x", "--kernel", "x" * 300], "want letters, digits"),
        (["lab", "build", "--name", "x" * 300], "want letters, digits"),
        (["lab", "check", "--kernel", "a", "--kernel", "b", "--coverage"], "instead of --kernel"),
        (["run", "/dev/null"], "name an assembly file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_file_or_folder_that_cannot_be_it_has_a_remedy(
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")  # no QEMU and no compiler is wanted for this
    assert said in complaint(capsys, words)
