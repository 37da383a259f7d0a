"""QEMU as the lab uses it: one process in a folder of its own, dead when its parent is.

The CPU is emulated (TCG) with AMD's SVM and nested paging, so /dev/kvm inside is real
whatever the host has. The host's root goes in read-only over 9p.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyvmm.closing import Closing
from pyvmm.lab.agent import PORT_NAME
from pyvmm.lab.errors import LabError
from pyvmm.lab.processes import die_with_parent
from pyvmm.lab.programs import QEMU, remedy

#: How QEMU emulates several CPUs: in turns on one thread, or on a thread for each.
Tcg = Literal["single", "multi"]
_FOLDER_PREFIX = "pyvmm-lab-"
#: A process that has closed its pipes ends at once.
_END_SECONDS = 5.0
#: A folder this new may not have been locked yet by its owner.
_NEW_SECONDS = 60


@dataclass(frozen=True, slots=True)
class QemuMachine:
    """What is booted: files on the host, CPUs, memory in MiB, the kernel's command line, and
    the host folder that is writable inside, and how CPUs are emulated."""

    kernel: Path
    cpus: int
    memory_mib: int
    command_line: str
    results: Path | None
    tcg: Tcg = "single"


def find_qemu() -> str:
    """Path of QEMU's x86-64 system emulator; a LabError when there is none."""
    found = shutil.which(QEMU)
    if found is None:
        raise LabError(QEMU, "not found", remedy(QEMU))
    return found


class Qemu(Closing):
    """A running QEMU; the pipes `to_agent` (non-blocking) and `from_agent` lead to the agent.

    Synchronization: it dies with the thread that made it.
    """

    def __init__(self, machine: QemuMachine, initramfs: bytes) -> None:
        program = find_qemu()
        remove_stale_folders()
        self.folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX))
        # Held while the folder is in use; whoever gets it later may remove the folder.
        self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            (self.folder / "initramfs").write_bytes(initramfs)
            self.console.touch()
            self._messages = open(self.folder / "qemu.log", "wb")  # noqa: SIM115
            self.process = subprocess.Popen(
                [program, *_arguments(machine)],
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._messages,
                bufsize=0,
                start_new_session=True,  # a terminal's Ctrl-C is for the lab, which then ends it
                preexec_fn=die_with_parent(signal.SIGKILL),
            )
        except BaseException:
            self._remove_folder()
            raise
        assert self.process.stdin is not None and self.process.stdout is not None
        self.to_agent = self.process.stdin.fileno()
        self.from_agent = self.process.stdout.fileno()
        os.set_blocking(self.to_agent, False)

    @property
    def console(self) -> Path:
        """The file that the kernel's log goes to as it is written."""
        return self.folder / "console"

    def complaint(self) -> str:
        """The last line that QEMU itself wrote, or how it ended; QEMU has closed its pipes."""
        lines = (self.folder / "qemu.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"QEMU ended with status {self.process.wait()}"

    def was_killed(self) -> bool:
        """Whether somebody else killed QEMU, which has closed its pipes."""
        try:
            return self.process.wait(_END_SECONDS) == -signal.SIGKILL
        except subprocess.TimeoutExpired:
            return False

    def waited_s(self) -> float:
        """For how long it was ready to run and others had the CPUs, by its thread that waited
        longest (Documentation/scheduler/sched-stats.rst); 0 where the kernel does not count."""
        longest = 0
        for path in Path(f"/proc/{self.process.pid}/task").glob("*/schedstat"):
            with suppress(OSError, IndexError):  # a thread that has ended meanwhile
                longest = max(longest, int(path.read_text(encoding="ascii").split()[1]))
        return longest / 1e9

    def close(self) -> None:
        """End QEMU and remove its folder."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self._messages.close()
        self._remove_folder()

    def _remove_folder(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def remove_stale_folders() -> None:
    """Remove what labs left behind that were killed outright."""
    for folder in Path(tempfile.gettempdir()).glob(_FOLDER_PREFIX + "*"):
        try:
            if time.time() - folder.stat().st_mtime < _NEW_SECONDS:
                continue
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass  # in use
        finally:
            os.close(lock)


def _arguments(machine: QemuMachine) -> list[str]:
    arguments = ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    arguments += ["-machine", "q35", "-accel", f"tcg,thread={machine.tcg}", "-cpu", "max"]
    arguments += ["-smp", str(machine.cpus), "-m", str(machine.memory_mib)]
    arguments += ["-kernel", str(machine.kernel), "-initrd", "initramfs"]
    arguments += ["-append", machine.command_line, "-serial", "file:console"]
    arguments += ["-chardev", "stdio,id=agent,signal=off", "-device", "virtio-serial-pci"]
    arguments += ["-device", f"virtserialport,chardev=agent,name={PORT_NAME}"]
    arguments += _shared_folder("pyvmm-root", Path("/"), ["readonly=on", "multidevs=remap"])
    if machine.results is not None:
        arguments += _shared_folder("pyvmm-results", machine.results, [])
    return arguments


def _shared_folder(tag: str, path: Path, options: Sequence[str]) -> list[str]:
    escaped = str(path).replace(",", ",,")
    return [
        "-fsdev",
        ",".join(["local", f"id={tag}", f"path={escaped}", "security_model=none", *options]),
        "-device",
        f"virtio-9p-pci,fsdev={tag},mount_tag={tag}",
    ]
