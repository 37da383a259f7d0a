"""A booted kernel that commands can be run in.

    with Lab(kernel="memory-error") as lab:
        result = lab.run(["pyvmm", "run", "guests/convert.S", "--json"])

One boot serves any number of commands, one after the other. What they write is thrown away
with the lab, but for the results folder.
"""

from __future__ import annotations

import marshal
import os
import select
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, get_args

from pyvmm.lab import agent
from pyvmm.lab.build import find_or_build
from pyvmm.lab.debug_options import debug_parameters
from pyvmm.lab.errors import KernelFailed, LabError, LabUsageError
from pyvmm.lab.initramfs import build_initramfs, find_busybox
from pyvmm.lab.kernel_log import Splat, find_splats
from pyvmm.lab.kernels import Kernel, save_last_log
from pyvmm.lab.make import Progress
from pyvmm.lab.qemu import Qemu, QemuMachine, Tcg, find_qemu
from pyvmm.lab.results_folder import Room, results_folder

#: Seconds that a kernel may take to come up, but for those in which others have the CPUs; it
#: needs two to five.
BOOT_SECONDS = 90.0
# So many times as long at most.
_MOST_STARVED = 5
#: Seconds that a command may take unless it is said otherwise.
RUN_SECONDS = 600.0
#: MiB that the results folder may grow to unless it is said otherwise.
RESULTS_MIB = 1024
#: The status for trouble with the kernel rather than with the command, as git bisect wants it.
KERNEL_TROUBLE = 125
TIMED_OUT = 124
#: What tells pyvmm in the lab on which CPU alone guests may run: see csrc/guest_cpu.h.
GUEST_CPU = "PYVMM_GUEST_CPU"
#: What tells pyvmm in the lab where to say which case begins: the kernel's log.
KERNEL_LOG = "PYVMM_KERNEL_LOG"

_MAX_CPUS = 32  # CONFIG_NR_CPUS in kernel.config
_MIN_MEMORY_MIB = 256
_CHUNK = 65536
#: What poll(2) can count in milliseconds is less than for ever.
_LONGEST_WAIT = 3600.0
#: Trouble stops the machine rather than leaving it half alive. An emulated CPU can wait long for
#: a busy host: lockups and stalls have a minute, and that timer interrupts come late while the
#: kernel tests them is no reason to panic. No line that says which case runs is too many.
_COMMAND_LINE = (
    "console=ttyS0 earlyprintk=ttyS0 loglevel=7 printk.time=1 panic=-1 oops=panic"
    " watchdog_thresh=30 sysctl.kernel.hung_task_timeout_secs=60"
    " rcupdate.rcu_cpu_stall_timeout=60 no_timer_check printk.devkmsg=on"
)
_LONGEST_COMMAND_LINE = 2047  # COMMAND_LINE_SIZE of asm/setup.h, less its NUL

Output = Callable[[bytes], None]


class Terminal(Protocol):
    """A person's terminal; `resized` is a file descriptor that is readable after a change."""

    resized: int

    def size(self) -> list[int]:
        """Rows and columns now."""

    def take_note(self) -> None:
        """Make `resized` unreadable until the next change."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a command in the lab ended.

    `status` is the command's own, as a shell gives it, or None when it did not come to its
    end; then `problem` says why in one line and `timed_out` whether it was the time limit.
    `output` and `errors` are what it wrote, empty when that went to a callable. `kernel_log`
    has the kernel's lines from its time, and the boot's for the first command of a lab;
    `splats` has the trouble in them.
    """

    status: int | None
    output: bytes
    errors: bytes
    kernel_log: tuple[str, ...]
    splats: tuple[Splat, ...]
    problem: str | None
    timed_out: bool
    seconds: float

    def exit_status(self, *, allow_warnings: bool = False) -> int:
        """125 for trouble in the kernel, 124 for a time-out, otherwise the command's own.

        `allow_warnings` lets a command that came to its end have its own status whatever the
        kernel's log says.
        """
        if self.splats and not (allow_warnings and self.status is not None):
            return KERNEL_TROUBLE
        if self.timed_out:
            return TIMED_OUT
        return KERNEL_TROUBLE if self.status is None else self.status


def _command_line(params: Sequence[str]) -> str:
    return " ".join([_COMMAND_LINE, *params])


def _check_host(memory_mib: int) -> None:
    """A LabUsageError for more memory than this machine has; QEMU would say so much later."""
    mib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    if memory_mib > mib:
        raise LabUsageError(f"{memory_mib} MiB of memory", f"this machine has {mib}", "use less")


def check_machine(cpus: int, memory_mib: int, params: Sequence[str]) -> None:
    """A LabUsageError for a machine or a kernel command line that cannot be."""
    if not 1 <= cpus <= _MAX_CPUS:
        raise LabUsageError(f"{cpus} CPUs", f"the lab has 1 to {_MAX_CPUS}")
    if memory_mib < _MIN_MEMORY_MIB:
        raise LabUsageError(f"{memory_mib} MiB of memory", f"the lab needs {_MIN_MEMORY_MIB}")
    for param in params:
        if not param.isprintable() or not param or " " in param or '"' in param:
            raise LabUsageError(f"kernel parameter {param!r}", "want NAME or NAME=VALUE")
    command_line = _command_line(params)
    if len(command_line.encode()) > _LONGEST_COMMAND_LINE:
        raise LabUsageError(
            f"kernel parameters of {len(command_line)} characters",
            f"a kernel reads {_LONGEST_COMMAND_LINE} and drops the rest",
        )


class Lab:
    """A kernel booted in QEMU, from `with` to the end of its block.

    `kernel` is a name, a path of a bzImage or a Kernel; `cpus` and `memory_mib` the machine's
    size; `params` go to the kernel's command line (``kvm_amd.npt=0``). `results` is a folder
    of the host that is writable inside, at the same path and as $PYVMM_RESULTS, and may grow
    to `results_mib`. `tcg` is how QEMU emulates several CPUs. With "single" they take turns of a
    tenth of a second, which is safe for whatever runs and hides races. With "multi" each has a
    thread; QEMU then fails when two of them run guests at once, so each command is told by
    $PYVMM_GUEST_CPU of one CPU for all guests, and pyvmm does as it is told.

    `announce` is given one line for each thing that a person would want to know, such as a
    second attempt to boot; `progress` is told how far a build is.

    Raises LabError when the kernel cannot be had or does not boot, LabUsageError for
    arguments that cannot be right.

    Synchronization: one thread, the one that entered the block.
    """

    def __init__(
        self,
        kernel: str | Path | Kernel = "default",
        *,
        cpus: int = 2,
        memory_mib: int = 2048,
        params: Sequence[str] = (),
        results: Path | str | None = None,
        results_mib: int = RESULTS_MIB,
        tcg: Tcg = "single",
        boot_timeout: float = BOOT_SECONDS,
        announce: Callable[[str], None] | None = None,
        progress: Progress | None = None,
    ) -> None:
        check_machine(cpus, memory_mib, params)
        _check_host(memory_mib)
        if tcg not in get_args(Tcg):
            raise LabUsageError(f"tcg {tcg!r}", f"want {' or '.join(get_args(Tcg))}")
        if results_mib < 1:
            raise LabUsageError(f"limit of {results_mib} MiB for results", "want at least 1")
        self._announce = announce if announce is not None else lambda line: None
        self._results = results_folder(results)
        self._results_bytes = results_mib << 20
        find_qemu()  # before a build that takes minutes
        find_busybox()
        if not isinstance(kernel, Kernel):
            kernel = find_or_build(str(kernel), self._announce, progress)
        self.kernel = kernel
        self._machine = QemuMachine(
            kernel=self.kernel.image,
            cpus=cpus,
            memory_mib=memory_mib,
            command_line=_command_line([*debug_parameters(self.kernel.debug), *params]),
            results=self._results,
            tcg=tcg,
        )
        self._boot_timeout = boot_timeout
        self._qemu: Qemu | None = None
        self._unpacker = agent.Unpacker()
        self._log: list[str] = []  # the kernel's lines that no result has had yet
        self._console_seen = 0
        self.release = ""
        self.lacks_private_memory: str | None = None

    def __enter__(self) -> Lab:
        try:
            try:
                self._boot()
            except _BootFailed as failure:
                if not failure.may_be_chance:
                    raise
                self._announce(f"{failure.thing}: {failure.cause}; booting once more")
                self._boot()
        except _BootFailed as failure:
            raise failure from None  # the first attempt was announced
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        timeout: float = RUN_SECONDS,
        silence: float = float("inf"),
        cwd: Path | str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | int = b"",
        stdout: Output | None = None,
        stderr: Output | None = None,
        terminal: Terminal | None = None,
    ) -> RunResult:
        """Run a command as it would run on the host: same folder, same environment.

        `timeout` is in seconds; after `silence` seconds without a word it counts as timed out
        too. `stdin` is its input, as bytes or as a file descriptor to read
        from; `stdout` and `stderr` are called with bytes as they come, or else the result has
        them. `terminal` gives the command a terminal of its own. After a time-out, a panic or
        a full results folder the machine is gone, and further calls raise LabError.
        """
        if self._qemu is None:
            raise LabError("the lab", "its machine is gone", "open another Lab")
        if not argv:
            raise LabUsageError("the lab's command", "it is empty")
        if not timeout > 0:
            raise LabUsageError(f"time limit of {timeout:g} s", "want more than 0")
        output, errors = bytearray(), bytearray()
        sinks: dict[bytes, Output] = {
            agent.OUTPUT: stdout or output.extend,
            agent.ERRORS: stderr or errors.extend,
        }
        request = self._request(argv, cwd, env, stdin, terminal)
        started = time.monotonic()
        self._console_seen = self._qemu.console.stat().st_size
        source = stdin if isinstance(stdin, int) else None
        try:
            ending = self._attend(self._qemu, request, source, sinks, timeout, silence, terminal)
        except BaseException:
            self._end()  # the command goes on in there: nothing else can be asked of this agent
            raise
        if ending.status is None:
            self._log += self._console_lines(self._console_seen)
            self._end()
        log, self._log = tuple(self._log), []
        return RunResult(
            status=ending.status,
            output=bytes(output),
            errors=bytes(errors),
            kernel_log=log,
            splats=find_splats(log),
            problem=ending.problem,
            timed_out=ending.timed_out,
            seconds=time.monotonic() - started,
        )

    def _request(
        self,
        argv: Sequence[str | os.PathLike[str]],
        cwd: Path | str | None,
        env: Mapping[str, str] | None,
        stdin: bytes | int,
        terminal: Terminal | None,
    ) -> bytearray:
        """What the agent is told at the start of a command."""
        environment = dict(os.environ if env is None else env)
        if self._results is not None:
            environment["PYVMM_RESULTS"] = str(self._results)
        environment[KERNEL_LOG] = "/dev/kmsg"
        if self._machine.tcg == "multi" and self._machine.cpus > 1:
            environment[GUEST_CPU] = str(self._machine.cpus - 1)
        job = {
            "argv": [os.fspath(word) for word in argv],
            "cwd": str(cwd) if cwd is not None else _working_folder(),
            "env": environment,
            "terminal": terminal.size() if terminal is not None else None,
        }
        request = bytearray(agent.pack_structure(agent.RUN, job))
        if isinstance(stdin, bytes):
            request += agent.pack(agent.INPUT, stdin) if stdin else b""
            request += agent.pack(agent.INPUT)
        return request

    def _attend(
        self,
        qemu: Qemu,
        request: bytearray,
        source: int | None,
        sinks: Mapping[bytes, Output],
        timeout: float,
        silence: float,
        terminal: Terminal | None,
    ) -> _Ending:
        """Send the request and the input, hand on what comes back, until the command ends."""
        deadline = time.monotonic() + timeout
        heard = time.monotonic()
        room = Room(self._results, self._results_bytes)
        while (left := min(deadline, heard + silence) - time.monotonic()) > 0:
            if room.used_up():
                return _Ending(
                    problem=f"the results folder {self._results} grew by more than"
                    f" {self._results_bytes >> 20} MiB, its limit (--results-limit)"
                )
            waiting = select.poll()
            waiting.register(qemu.from_agent, select.POLLIN)
            if request:
                waiting.register(qemu.to_agent, select.POLLOUT)
            elif source is not None:
                waiting.register(source, select.POLLIN)
            if terminal is not None:
                waiting.register(terminal.resized, select.POLLIN)
            for fd, _ in waiting.poll(1000 * min(left, room.seconds_to_next_look(), _LONGEST_WAIT)):
                if fd == qemu.from_agent:
                    data = os.read(fd, _CHUNK)
                    heard = time.monotonic()
                    if not data:
                        _check_not_killed(qemu)
                        return _Ending(problem="the lab's kernel died while the command ran")
                    for kind, payload in self._unpacker.feed(data):
                        if kind == agent.STATUS:
                            answer = marshal.loads(payload)
                            self._log += answer["log"]
                            return _Ending(status=answer["status"])
                        sinks[kind](payload)
                elif fd == qemu.to_agent:
                    del request[: _write(fd, request)]
                elif fd == source:
                    data = os.read(fd, _CHUNK)
                    request += agent.pack(agent.INPUT, data)
                    source = source if data else None
                elif terminal is not None:
                    terminal.take_note()
                    request += agent.pack_structure(agent.RESIZE, terminal.size())
        if time.monotonic() < deadline:
            return _Ending(problem=f"not a word in {silence:g} s", timed_out=True)
        return _Ending(problem=f"timed out after {timeout:g} s", timed_out=True)

    def _boot(self) -> None:
        """Start QEMU and wait for the agent's greeting."""
        results = str(self._results) if self._results is not None else None
        initramfs = build_initramfs(sys.executable, results)
        self._unpacker = agent.Unpacker()
        self._qemu = Qemu(self._machine, initramfs)
        try:
            hello = self._wait_for_hello(self._qemu)
        except BaseException:
            self._end()
            raise
        self.release = hello["release"]
        self._log = hello["log"]
        if not hello["kvm"]:
            self._end()
            raise KernelFailed(self.kernel.name, f"no KVM in this kernel: {hello['blame']}")
        if not hello["private"]:
            self.lacks_private_memory = hello["blame"]
            self._announce(f"kernel {self.kernel.name} has no private memory: {hello['blame']}")

    def _wait_for_hello(self, qemu: Qemu) -> dict[str, Any]:
        began = time.monotonic()
        most = _MOST_STARVED * self._boot_timeout
        waiting = select.poll()
        waiting.register(qemu.from_agent, select.POLLIN)
        while True:
            limit = min(self._boot_timeout + qemu.waited_s(), most)
            if (left := began + limit - time.monotonic()) <= 0:
                raise self._boot_failure(qemu, limit)
            if waiting.poll(1000 * left):
                data = os.read(qemu.from_agent, _CHUNK)
                if not data:
                    _check_not_killed(qemu)
                    raise self._boot_failure(qemu, None)
                for _, payload in self._unpacker.feed(data):
                    hello: dict[str, Any] = marshal.loads(payload)
                    return hello

    def _boot_failure(self, qemu: Qemu, timeout: float | None) -> _BootFailed:
        """What to say about a kernel that did not come up, from what it left behind."""
        name = self.kernel.name
        lines = self._console_lines(0)
        splats = find_splats(lines)
        refusals = [line for line in lines if line.startswith("pyvmm-init: ")]
        if refusals:
            return _BootFailed(name, refusals[0], may_be_chance=False)
        if splats:
            return _BootFailed(name, splats[0].title, may_be_chance=True)
        if timeout is not None:
            silent = "not a word on its serial console (CONFIG_SERIAL_8250_CONSOLE?)"
            said = lines[-1] if lines else silent
            return _BootFailed(name, f"not in {timeout:.0f} s: {said}", may_be_chance=True)
        if not lines:
            return _BootFailed(name, qemu.complaint(), may_be_chance=False)
        return _BootFailed(name, lines[-1], may_be_chance=True)

    def _console_lines(self, start: int) -> list[str]:
        if self._qemu is None:
            return []
        with open(self._qemu.console, "rb") as console:
            console.seek(start)
            return console.read().decode(errors="replace").replace("\r", "").splitlines()

    def _end(self) -> None:
        """End the machine; its kernel log is kept for `pyvmm lab kernel-log`."""
        if self._qemu is not None:
            save_last_log(self._qemu.console)
            self._qemu.close()
            self._qemu = None


@dataclass(frozen=True, slots=True)
class _Ending:
    status: int | None = None
    problem: str | None = None
    timed_out: bool = False


class _BootFailed(KernelFailed):
    def __init__(self, kernel: str, cause: str, *, may_be_chance: bool) -> None:
        super().__init__(
            f"kernel {kernel} did not boot", cause, "'pyvmm lab kernel-log' has what it said"
        )
        self.may_be_chance = may_be_chance


def _check_not_killed(qemu: Qemu) -> None:
    """A LabError where QEMU was killed: that is nothing that the kernel in it can do."""
    if qemu.was_killed():
        raise LabError(
            "QEMU", "it was killed (no memory?)", "use less memory, or fewer labs at once"
        )


def _write(fd: int, data: bytearray) -> int:
    try:
        return os.write(fd, data[:_CHUNK])
    except BlockingIOError:
        return 0
    except BrokenPipeError:  # QEMU is gone: the reading side says so too
        return len(data)


def _working_folder() -> str:
    try:
        return os.getcwd()
    except OSError as error:
        raise LabUsageError("the working folder", str(error.strerror), "cd to one") from None
