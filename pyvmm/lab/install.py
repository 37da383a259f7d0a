"""Gets what the lab needs from the distribution: QEMU, busybox, what builds a kernel, a source."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from pyvmm.lab.build import DEFAULT_VERSION
from pyvmm.lab.errors import LabError, LabUsageError
from pyvmm.lab.programs import PACKAGES
from pyvmm.lab.sources import default_tarball

#: Debian's own backports, for kernel sources newer than the distribution; the mirror is apt's.
_BACKPORTS = """\
Types: deb
URIs: {mirror}
Suites: trixie-backports
Components: {components}
"""
_VERSION = re.compile(r"\d+\.\d+")
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

#: How long apt waits for another one, such as the updates of a machine that has just started.
_LOCK_TIMEOUT_S = 300

Announce = Callable[[str], None]


def install(version: str | None, announce: Announce) -> None:
    """Install with apt what is missing, as root; a LabError with the command to type otherwise.

    `version` is the kernel source to get, such as "7.3"; 6.12 when it is None.
    """
    version = version or DEFAULT_VERSION
    if not _VERSION.fullmatch(version):
        raise LabUsageError(f"kernel source {version!r}", "want a version such as 7.3")
    after = "next: pyvmm lab build" + ("" if version == DEFAULT_VERSION else f" --name {version}")
    source = f"linux-source-{version}"
    if shutil.which("apt-get") is None:
        raise LabError(
            "'pyvmm lab setup'",
            "it knows apt only, and there is none",
            f"install the like of {', '.join(PACKAGES)},"
            " and give 'pyvmm lab build' a kernel source with --source",
        )
    missing = [package for package in PACKAGES if not _installed(package)]
    wanted = missing if default_tarball(version).exists() else [*missing, source]
    if not wanted:
        announce(f"nothing is missing; {after}")
        return
    if os.geteuid() != 0:
        command = ["apt-get", "install", *wanted]
        if source in wanted and not _offered(source, []):
            command = [os.path.abspath(sys.argv[0]), "lab", "setup", "--source", version]
        raise LabError(", ".join(wanted), "not installed", f"type: sudo {shlex.join(command)}")
    announce(f"installing {' '.join(wanted)}")
    try:
        _apt(["update"])
    except LabError as error:  # one suite out of reach need not matter
        announce(str(error))
    if missing:
        _apt(["install", "--yes", "--no-install-recommends", *missing])
    if source in wanted:
        if _offered(source, []):
            _apt(["install", "--yes", "--no-install-recommends", source])
        else:
            _install_from_backports(source, announce)
    announce(f"done; {after}")


def _install_from_backports(source: str, announce: Announce) -> None:
    """Install one package from a suite that apt is told of for this one time only."""
    backports = _backports(source)
    announce(f"{source} is in none of apt's suites: looking in Debian's backports")
    with tempfile.TemporaryDirectory() as place:
        Path(place, "parts").mkdir()
        Path(place, "lists").mkdir()
        Path(place, "parts", "backports.sources").write_text(backports)
        options = [
            "-oDir::Etc::sourcelist=/dev/null",
            f"-oDir::Etc::sourceparts={place}/parts",
            f"-oDir::State::lists={place}/lists",
        ]
        _apt([*options, "update"])
        if not _offered(source, options):
            raise LabError(source, "neither apt's suites nor Debian's backports have it")
        _apt([*options, "install", "--yes", "--no-install-recommends", source])


def _backports(source: str) -> str:
    """What to tell apt of Debian's backports, at the mirror from which it has Debian itself."""
    targets = [line.split() for line in _index_targets() if len(line.split()) == 2]
    if not targets:
        raise LabError(
            source,
            "none of apt's suites has it, and none is Debian's",
            "add a Debian mirror to /etc/apt/sources.list.d and type 'apt-get update'",
        )
    mirror = targets[0][0]
    components = dict.fromkeys(component for site, component in targets if site == mirror)
    signed = f"Signed-By: {_KEYRING}\n" if _KEYRING.exists() else ""
    return _BACKPORTS.format(mirror=mirror, components=" ".join(components)) + signed


def _index_targets() -> list[str]:
    """A line "URI component" for each index of Debian's own suites that apt has."""
    command = ["apt-get", "indextargets", "--format", "$(SITE) $(COMPONENT)"]
    command += ["Created-By: Packages", "Origin: Debian", "Label: Debian"]
    return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()


def _installed(package: str) -> bool:
    query = ["dpkg-query", "-W", "-f", "${db:Status-Status}", package]
    return subprocess.run(query, capture_output=True, text=True).stdout == "installed"


def _offered(package: str, options: Sequence[str]) -> bool:
    command = ["apt-cache", *options, "show", "--no-all-versions", package]
    return subprocess.run(command, capture_output=True).returncode == 0


def _apt(arguments: Sequence[str]) -> None:
    command = ["apt-get", "-q", *arguments]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    waiting = [*command, f"-oDPkg::Lock::Timeout={_LOCK_TIMEOUT_S}"]
    done = subprocess.run(waiting, env=environment, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("E: ")]
        reason = errors[0] if errors else f"status {done.returncode}"
        raise LabError(shlex.join(command), reason)
