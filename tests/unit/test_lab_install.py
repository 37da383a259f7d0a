"""`pyvmm lab setup` without touching the machine: what is asked of apt, and of whom."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pyvmm.lab import install as install_module
from pyvmm.lab.errors import LabError, LabUsageError
from pyvmm.lab.install import install
from pyvmm.lab.programs import PACKAGES

Machine = Callable[..., list[list[str]]]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """A machine that has some packages; gives the list of what apt-get is then told to do."""

    def make(
        *,
        installed: Sequence[str] = (),
        offered: Sequence[str] = (),
        root: bool = True,
        suites: Sequence[str] = ("http://mirror.invalid/debian main",),
    ) -> list[list[str]]:
        told: list[list[str]] = []

        def tell(words: Sequence[str]) -> None:
            """What apt is told, and with a source of its own what is in that."""
            told.append(list(words))
            for word in words:
                if word.startswith("-oDir::Etc::sourceparts="):
                    (told_source,) = Path(word.partition("=")[2]).iterdir()
                    told[-1].append(told_source.read_text())

        def is_offered(package: str, options: Sequence[str]) -> bool:
            return package in offered or (bool(options) and f"backports:{package}" in offered)

        monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
        monkeypatch.setattr("os.geteuid", lambda: 0 if root else 1000)
        monkeypatch.setattr(install_module, "_installed", lambda package: package in installed)
        monkeypatch.setattr(install_module, "_offered", is_offered)
        monkeypatch.setattr(install_module, "_apt", tell)
        monkeypatch.setattr(install_module, "_index_targets", lambda: [*suites])
        monkeypatch.setattr(install_module, "default_tarball", lambda version: tmp_path / version)
        return told

    return make


_ALL = PACKAGES


def test_nothing_to_do_needs_no_root(machine: Machine, tmp_path: Path) -> None:
    told = machine(installed=_ALL, root=False)
    (tmp_path / "6.12").touch()
    said: list[str] = []
    install(None, said.append)
    assert told == []
    assert said == ["nothing is missing; next: pyvmm lab build"]


def test_who_is_not_root_gets_the_command_to_type(machine: Machine) -> None:
    told = machine(installed=set(_ALL) - {"bc"}, offered=["linux-source-6.12"], root=False)
    with pytest.raises(LabError, match=r"type: sudo apt-get install bc linux-source-6\.12$"):
        install(None, lambda line: None)
    assert told == []


def test_what_apt_alone_does_not_find_is_for_root_to_set_up(machine: Machine) -> None:
    machine(installed=_ALL, root=False)
    with pytest.raises(LabError, match=r"type: sudo /.* lab setup --source 7\.3$"):
        install("7.3", lambda line: None)


def test_what_comes_next_names_the_version(machine: Machine, tmp_path: Path) -> None:
    machine(installed=_ALL)
    (tmp_path / "7.3").touch()
    said: list[str] = []
    install("7.3", said.append)
    assert said == ["nothing is missing; next: pyvmm lab build --name 7.3"]


@pytest.mark.parametrize("version", ["foo", "6.12; rm", "../x", "6.12.1"])
def test_a_version_that_is_none(machine: Machine, version: str) -> None:
    told = machine(installed=_ALL)
    with pytest.raises(LabUsageError, match="such as 7"):
        install(version, lambda line: None)
    assert told == []


def test_root_gets_what_is_missing(machine: Machine) -> None:
    told = machine(installed=set(_ALL) - {"bc", "lz4"}, offered=["linux-source-6.12"])
    install(None, lambda line: None)
    assert told[0] == ["update"]
    assert {"bc", "lz4"} < set(told[1])
    assert told[2][-1] == "linux-source-6.12"


def test_a_newer_source_comes_from_backports(machine: Machine) -> None:
    told = machine(installed=_ALL, offered=["backports:linux-source-7.3"])
    install("7.3", lambda line: None)
    assert "linux-source-7.3" in told[-1]
    assert "Suites: trixie-backports\n" in told[-1][-1]


def test_backports_come_from_the_mirror_that_apt_has_debian_from(machine: Machine) -> None:
    suites = [
        "http://one.invalid/debian main",
        "http://one.invalid/debian contrib",
        "http://two.invalid/debian non-free",
    ]
    told = machine(installed=_ALL, offered=["backports:linux-source-7.3"], suites=suites)
    install("7.3", lambda line: None)
    assert "URIs: http://one.invalid/debian\n" in told[-1][-1]
    assert "Components: main contrib\n" in told[-1][-1]


def test_without_a_debian_mirror_there_are_no_backports(machine: Machine) -> None:
    machine(installed=_ALL, suites=[])
    with pytest.raises(LabError, match=r"7\.3: none of apt's suites.*; add a Debian mirror"):
        install("7.3", lambda line: None)


def test_a_source_that_nobody_has(machine: Machine) -> None:
    machine(installed=_ALL)
    with pytest.raises(LabError, match=r"linux-source-9\.9: "):
        install("9.9", lambda line: None)


def test_a_machine_without_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(LabError, match=r"apt only.*install the like of qemu"):
        install(None, lambda line: None)


def test_what_apt_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 100, "", "W: hm\nE: no network\n")

    monkeypatch.setattr("subprocess.run", refuse)
    with pytest.raises(LabError, match=r"^apt-get -q update: E: no network$"):
        install_module._apt(["update"])


def test_another_apt_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Sequence[str]] = []

    def run(command: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
        told.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("subprocess.run", run)
    install_module._apt(["install", "bc"])
    assert told == [["apt-get", "-q", "install", "bc", "-oDPkg::Lock::Timeout=300"]]
