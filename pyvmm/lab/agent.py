"""The lab's other end: runs commands inside the booted kernel and tells how they ended.

Host and agent talk over one virtio port in frames: a kind (one byte), the payload's length
(32 bits, big endian), the payload. The frames that the host sends:

    RUN     {argv, cwd, env, terminal ([rows, columns] or None)}
    INPUT   bytes for the command's stdin; none of them means end of file
    RESIZE  [rows, columns]

and those that the agent sends:

    HELLO   {release, kvm, private, blame (see `describe_kernel`), log}; when the kernel is up
    OUTPUT, ERRORS  bytes that the command wrote to stdout and stderr, as they come
    STATUS  {status, log (the kernel's lines since the last frame that had it)}; comes last

One command runs at a time, and its processes end with it. Structures are marshalled, since both
ends are the same Python; they are written as dictionaries here.

The host's own Python runs this file inside the lab, as process 1, so that every orphan is its
child. The emulated CPU is slow, and what most modules import takes longer than the boot: only
what is built in, or nearly so, is imported here.
"""

from __future__ import annotations

import errno
import marshal
import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

PORT_NAME = "pyvmm.agent"
RUN, INPUT, RESIZE = b"R", b"I", b"W"
HELLO, OUTPUT, ERRORS, STATUS = b"H", b"O", b"E", b"S"

_HEADER_SIZE = 5
_SIGKILL = 9  # signal.h
_CHUNK = 65536
_PATIENCE_S = 10
#: Input waiting for a command that does not read; beyond it the port is left alone.
_INPUT_LIMIT = 4 * _CHUNK

_CONFIG = "/proc/config.gz"  # with CONFIG_IKCONFIG_PROC
_KVM_CREATE_VM = 0xAE01  # linux/kvm.h: _IO(KVMIO, 0x01); the agent runs without the compiled module
_KVM_X86_SW_PROTECTED_VM = 1  # asm/kvm.h, Linux 6.8


def pack(kind: bytes, payload: bytes = b"") -> bytes:
    """One frame as bytes."""
    return kind + len(payload).to_bytes(4, "big") + payload


def pack_structure(kind: bytes, structure: dict[str, Any] | list[int]) -> bytes:
    """One frame with a structure in it; `marshal.loads` undoes it."""
    return pack(kind, marshal.dumps(structure))


class Unpacker:
    """Takes bytes as they arrive and gives the frames that are complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Add `data`; yield (kind, payload) for each frame that it completes."""
        self._buffer += data
        while len(self._buffer) >= _HEADER_SIZE:
            end = _HEADER_SIZE + int.from_bytes(self._buffer[1:_HEADER_SIZE], "big")
            if len(self._buffer) < end:
                return
            frame = bytes(self._buffer[:end])
            del self._buffer[:end]
            yield frame[:1], frame[_HEADER_SIZE:]


def find_port() -> str:
    """Path of the virtio port that leads to the host."""
    folder = "/sys/class/virtio-ports"
    for entry in os.listdir(folder):
        with open(f"{folder}/{entry}/name") as name:
            if name.read().strip() == PORT_NAME:
                return f"/dev/{entry}"
    raise FileNotFoundError(errno.ENOENT, "no virtio port named " + PORT_NAME, folder)


def describe_kernel() -> dict[str, Any]:
    """What this kernel can do, found by trying: release, kvm, private (a software-protected VM
    can be created), and for what is missing the option or parameter that is to blame."""
    import fcntl

    facts: dict[str, Any] = {"release": os.uname().release}
    facts |= {"kvm": False, "private": False, "blame": None}
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        options = ("CONFIG_KVM", "CONFIG_KVM_AMD")
        facts["blame"] = (
            _missing_option(*options) or f"/dev/kvm: {error.strerror}{_guess(*options)}"
        )
        return facts
    facts["kvm"] = True
    try:
        os.close(fcntl.ioctl(kvm, _KVM_CREATE_VM, _KVM_X86_SW_PROTECTED_VM))
        facts["private"] = True
    except OSError as error:
        option = "CONFIG_KVM_SW_PROTECTED_VM"
        facts["blame"] = (
            _missing_option(option)
            or _nested_paging_off()
            or f"KVM_CREATE_VM of type 1: {error.strerror}{_guess(option)}"
        )
    os.close(kvm)
    return facts


def _missing_option(*options: str, config: str = _CONFIG) -> str | None:
    """The first of `options` that the kernel's own configuration does not have built in."""
    try:
        import gzip

        with gzip.open(config, "rt") as file:
            lines = set(file.read().splitlines())
    except OSError:
        return None
    for option in options:
        if f"{option}=m" in lines:
            return f"{option}=m is a module, and the lab loads none: build it in"
        if f"{option}=y" not in lines:
            return f"{option} is not set"
    return None


def _guess(*options: str) -> str:
    """For the end of a complaint, where the kernel does not tell its configuration."""
    return "" if os.path.exists(_CONFIG) else f" ({' or '.join(options)} may be off)"


def _nested_paging_off() -> str | None:
    for module, parameter in (("kvm_amd", "npt"), ("kvm", "tdp_mmu")):
        try:
            with open(f"/sys/module/{module}/parameters/{parameter}") as file:
                if file.read().strip() in ("N", "0"):
                    return f"{module}.{parameter}=0"
        except OSError:
            continue
    return None


class KernelLog:
    """The kernel's log: read record by record, written to for the reader's orientation."""

    def __init__(self, path: str = "/dev/kmsg") -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._lines: list[str] = []

    def note(self, text: str) -> None:
        """Add a line of the lab's own."""
        os.write(self.fd, b"<6>pyvmm: " + os.fsencode(text.replace("\n", " "))[:800] + b"\n")

    def news(self) -> list[str]:
        """The lines since the last call, as dmesg prints them."""
        self.collect()
        lines, self._lines = self._lines, []
        return lines

    def collect(self) -> None:
        """Read what is there, before the kernel overwrites it; `fd` is readable when it is."""
        while True:
            try:
                record = os.read(self.fd, 8192)
            except BlockingIOError:
                return
            except BrokenPipeError:  # overwritten before it was read; the next read goes on
                continue
            if not record:
                return
            # Documentation/ABI/testing/dev-kmsg: priority,sequence,microseconds,flags;text
            prefix, _, rest = record.decode(errors="replace").partition(";")
            seconds = int(prefix.split(",")[2]) / 1e6
            self._lines.append(f"[{seconds:12.6f}] {rest.splitlines()[0]}")


class Agent:
    """Serves the host at the other end of `port`."""

    def __init__(self, port: int, log: KernelLog) -> None:
        self._port = port
        self._log = log
        self._unpacker = Unpacker()
        self._frames: list[tuple[bytes, bytes]] = []

    def serve(self) -> None:
        """Run what the host asks for until it is gone."""
        self._send(pack_structure(HELLO, describe_kernel() | {"log": self._log.news()}))
        while True:
            while not self._frames:
                self._receive()
            kind, payload = self._frames.pop(0)
            if kind == RUN:  # input for a command that has already ended is dropped
                self._run(marshal.loads(payload))

    def _receive(self) -> None:
        data = os.read(self._port, _CHUNK)
        if not data:
            raise EOFError("the host closed the port")
        self._frames.extend(self._unpacker.feed(data))

    def _send(self, frame: bytes) -> None:
        left = memoryview(frame)
        while left:
            left = left[os.write(self._port, left) :]

    def _run(self, job: dict[str, Any]) -> None:
        self._log.note("starts: " + " ".join(job["argv"]))
        try:
            command = _Command(job)
        except OSError as error:
            status = 127 if error.errno == errno.ENOENT else 126
            message = f"pyvmm: lab: cannot run {error.filename}: {error.strerror}\n"
            self._send(pack(ERRORS, os.fsencode(message)))
        else:
            status = self._attend(command)
            command.close()
        self._log.note(f"ends with status {status}: " + " ".join(job["argv"]))
        os.sync()  # the machine may be gone before the results folder is written back
        self._send(pack_structure(STATUS, {"status": status, "log": self._log.news()}))

    def _attend(self, command: _Command) -> int:
        """Carry bytes both ways until the command has ended and all that it wrote is sent."""
        status: int | None = None
        self._take_input(command)  # what came together with the request
        while status is None or command.outputs:
            waiting = select.poll()
            waiting.register(self._log.fd, select.POLLIN)
            if len(command.input) < _INPUT_LIMIT:
                waiting.register(self._port, select.POLLIN)
            if command.input and command.stdin is not None:
                waiting.register(command.stdin, select.POLLOUT)
            if status is None:
                waiting.register(command.ended, select.POLLIN)
            for fd in command.outputs:
                waiting.register(fd, select.POLLIN)
            for fd, _ in waiting.poll():
                if fd in command.outputs:
                    if data := _read(fd):
                        self._send(pack(command.outputs[fd], data))
                    else:
                        del command.outputs[fd]
                elif fd == self._log.fd:
                    self._log.collect()
                elif fd == command.ended:
                    status = command.wait()
                    if not kill_children():  # or the pipes that they hold would never end
                        self._send_rest(command)
                        return status
                elif fd == self._port:
                    self._receive()
                    self._take_input(command)
                elif fd == command.stdin:
                    command.write_input()
        return status

    def _send_rest(self, command: _Command) -> None:
        """What the command wrote, where a process that does not end holds the pipes."""
        for fd, kind in command.outputs.items():
            os.set_blocking(fd, False)
            while data := _read(fd):
                self._send(pack(kind, data))

    def _take_input(self, command: _Command) -> None:
        while self._frames and self._frames[0][0] in (INPUT, RESIZE):
            kind, payload = self._frames.pop(0)
            if kind == RESIZE:
                _set_window_size(command.terminal, marshal.loads(payload))
            else:
                command.add_input(payload)


class _Command:
    """A running command with its stdin, stdout and stderr, or its terminal in place of all three.

    OSError when it cannot be run; the error's filename says what could not be found.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.input = bytearray()  # came, and is not yet written
        self._input_ended = False
        self.terminal = -1
        if job["terminal"]:
            self.terminal, inner = os.openpty()
            _set_window_size(self.terminal, job["terminal"])
            inside = (inner, inner, inner)
            self.stdin: int | None = self.terminal
            self.outputs = {self.terminal: OUTPUT}
        else:
            stdin, self.stdin = os.pipe()
            stdout, inner_stdout = os.pipe()
            stderr, inner_stderr = os.pipe()
            inside = (stdin, inner_stdout, inner_stderr)
            self.outputs = {stdout: OUTPUT, stderr: ERRORS}
        self._open = {self.stdin, *self.outputs}
        try:
            self._pid = _start(job, inside)
        except OSError:
            self.close()
            raise
        finally:
            for fd in set(inside):
                os.close(fd)
        self.ended = os.pidfd_open(self._pid)
        self._open.add(self.ended)
        os.set_blocking(self.stdin, False)

    def close(self) -> None:
        """Close everything that is open on this side."""
        while self._open:
            os.close(self._open.pop())

    def add_input(self, data: bytes) -> None:
        """Input to be written when the command takes it; none means end of file."""
        self.input += data
        self._input_ended = self._input_ended or not data
        self.write_input()

    def write_input(self) -> None:
        if self.stdin is None:
            self.input.clear()
            return
        try:
            while self.input:
                del self.input[: os.write(self.stdin, self.input)]
        except BlockingIOError:
            return
        except OSError:  # nobody reads it any more
            self.input.clear()
            self._input_ended = True
        if self._input_ended and self.terminal < 0:
            self._open.remove(self.stdin)
            os.close(self.stdin)
            self.stdin = None

    def wait(self) -> int:
        """The status as a shell gives it."""
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return code if code >= 0 else 128 - code


def _start(job: dict[str, Any], files: tuple[int, int, int]) -> int:
    """Start a command on these three files, in a session of its own; gives its process id."""
    complaint, inner_complaint = os.pipe()  # closed by a successful exec, or else has the error
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            for number, fd in enumerate(files):
                os.dup2(fd, number)
            if job["terminal"]:
                _take_terminal()
            os.chdir(job["cwd"])
            os.execvpe(job["argv"][0], job["argv"], job["env"])
        except ValueError as error:  # a NUL in a word
            os.write(inner_complaint, marshal.dumps([errno.EINVAL, str(error), job["argv"][0]]))
        except OSError as error:
            # A command that is looked for along PATH has the last place as its file name.
            blamed = job["cwd"] if error.filename == job["cwd"] else job["argv"][0]
            os.write(inner_complaint, marshal.dumps([error.errno, error.strerror, blamed]))
        finally:
            os._exit(127)
    os.close(inner_complaint)
    with open(complaint, "rb") as file:
        trouble = file.read()
    if trouble:
        os.waitpid(pid, 0)
        raise OSError(*marshal.loads(trouble))
    return pid


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _set_window_size(terminal: int, size: list[int]) -> None:
    import termios

    termios.tcsetwinsize(terminal, (size[0], size[1]))


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _CHUNK)
    except BlockingIOError:
        return b""
    except OSError as error:
        if error.errno == errno.EIO:  # a terminal that nobody holds any more
            return b""
        raise


def kill_children() -> bool:
    """End this process's children, and theirs as they become its own.

    False when the kernel does not let one go for _PATIENCE_S.
    """
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return True
        for pid in _children():
            os.kill(pid, _SIGKILL)
        time.sleep(0.01)
    return False


def _children() -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == os.getpid():
                yield int(entry)


def main() -> None:
    try:
        port = os.open(find_port(), os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise SystemExit(f"pyvmm-init: no virtio port: CONFIG_VIRTIO_CONSOLE ({error})") from None
    Agent(port, KernelLog()).serve()


if __name__ == "__main__":
    main()
