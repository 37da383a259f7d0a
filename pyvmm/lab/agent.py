"""The lab's other end: runs commands inside the booted kernel and tells how they ended.

Host and agent talk over one virtio port in frames: a kind (one byte), the payload's length
(32 bits, big endian), the payload. The frames that the host sends:

    RUN     JSON: argv, cwd, env, terminal ([rows, columns] or null)
    INPUT   bytes for the command's stdin; none of them means end of file
    RESIZE  JSON: [rows, columns]

and those that the agent sends:

    HELLO   JSON: what the kernel can do (see `describe_kernel`) and its log; when it is up
    OUTPUT, ERRORS  bytes that the command wrote to stdout and stderr, as they come
    STATUS  JSON: status, log (the kernel's since the last frame that had it); comes last

One command runs at a time, and its processes end with it. This file is run by the host's own
Python inside the lab, without site-packages, so it imports the standard library only.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from typing import Any

PORT_NAME = "pyvmm.agent"
RUN, INPUT, RESIZE = b"R", b"I", b"W"
HELLO, OUTPUT, ERRORS, STATUS = b"H", b"O", b"E", b"S"

_HEADER = struct.Struct(">cI")
_CHUNK = 65536
#: Input waiting for a command that does not read; beyond it the port is left alone.
_INPUT_LIMIT = 4 * _CHUNK

_KVM_CREATE_VM = 0xAE01  # linux/kvm.h: _IO(KVMIO, 0x01); the agent runs without the compiled module
_KVM_X86_SW_PROTECTED_VM = 1  # asm/kvm.h, Linux 6.8


def pack(kind: bytes, payload: bytes = b"") -> bytes:
    """One frame as bytes."""
    return _HEADER.pack(kind, len(payload)) + payload


class Unpacker:
    """Takes bytes as they arrive and gives the frames that are complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Add `data`; yield (kind, payload) for each frame that it completes."""
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._buffer)
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield kind, payload


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
    facts: dict[str, Any] = {"release": os.uname().release, "kvm": False, "private": False}
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        facts["blame"] = _missing_option("CONFIG_KVM", "CONFIG_KVM_AMD") or error.strerror
        return facts
    facts["kvm"] = True
    try:
        os.close(fcntl.ioctl(kvm, _KVM_CREATE_VM, _KVM_X86_SW_PROTECTED_VM))
        facts["private"] = True
    except OSError as error:
        facts["blame"] = (
            _missing_option("CONFIG_KVM_SW_PROTECTED_VM") or _nested_paging_off() or error.strerror
        )
    os.close(kvm)
    return facts


def _missing_option(*options: str) -> str | None:
    """The first of `options` that the kernel's own configuration does not have."""
    try:
        import gzip

        with gzip.open("/proc/config.gz", "rt") as config:
            lines = set(config.read().splitlines())
    except OSError:
        return None
    for option in options:
        if f"{option}=y" not in lines and f"{option}=m" not in lines:
            return f"{option} is not set"
    return None


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
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def note(self, text: str) -> None:
        """Add a line of the lab's own."""
        os.write(self._fd, b"<6>pyvmm: " + os.fsencode(text.replace("\n", " "))[:800] + b"\n")

    def news(self) -> list[str]:
        """The lines since the last call, as dmesg prints them."""
        lines: list[str] = []
        while True:
            try:
                record = os.read(self._fd, 8192)
            except BlockingIOError:
                return lines
            except BrokenPipeError:  # overwritten before it was read; the next read goes on
                continue
            if not record:
                return lines
            # Documentation/ABI/testing/dev-kmsg: priority,sequence,microseconds,flags;text
            prefix, _, rest = record.decode(errors="replace").partition(";")
            seconds = int(prefix.split(",")[2]) / 1e6
            lines.append(f"[{seconds:12.6f}] {rest.splitlines()[0]}")


class Agent:
    """Serves the host at the other end of `port`."""

    def __init__(self, port: int, log: KernelLog) -> None:
        self._port = port
        self._log = log
        self._unpacker = Unpacker()
        self._frames: list[tuple[bytes, bytes]] = []

    def serve(self) -> None:
        """Run what the host asks for until it is gone."""
        hello = describe_kernel()
        self._send(HELLO, json.dumps(hello | {"log": self._log.news()}).encode())
        while True:
            while not self._frames:
                self._receive()
            kind, payload = self._frames.pop(0)
            if kind == RUN:  # input for a command that has already ended is dropped
                self._run(json.loads(payload))

    def _receive(self) -> None:
        data = os.read(self._port, _CHUNK)
        if not data:
            raise EOFError("the host closed the port")
        self._frames.extend(self._unpacker.feed(data))

    def _send(self, kind: bytes, payload: bytes) -> None:
        data = memoryview(pack(kind, payload))
        while data:
            data = data[os.write(self._port, data) :]

    def _run(self, job: dict[str, Any]) -> None:
        self._log.note("starts: " + " ".join(job["argv"]))
        try:
            command = _Command(job)
        except OSError as error:
            status = 127 if error.errno == errno.ENOENT else 126
            message = f"pyvmm: lab: cannot run {error.filename}: {error.strerror}\n"
            self._send(ERRORS, os.fsencode(message))
        else:
            with command:
                status = self._attend(command)
        self._log.note(f"ends with status {status}: " + " ".join(job["argv"]))
        os.sync()  # the machine may be gone before the results folder is written back
        self._send(STATUS, json.dumps({"status": status, "log": self._log.news()}).encode())

    def _attend(self, command: _Command) -> int:
        """Carry bytes both ways until the command has ended and all that it wrote is sent."""
        status: int | None = None
        self._take_input(command)  # what came together with the request
        while status is None or command.outputs:
            waiting = select.poll()
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
                        self._send(command.outputs[fd], data)
                    else:
                        del command.outputs[fd]
                elif fd == command.ended:
                    status = command.wait()
                    kill_children()  # or the pipes that they hold would never end
                elif fd == self._port:
                    self._receive()
                    self._take_input(command)
                elif fd == command.stdin:
                    command.write_input()
        return status

    def _take_input(self, command: _Command) -> None:
        while self._frames and self._frames[0][0] in (INPUT, RESIZE):
            kind, payload = self._frames.pop(0)
            if kind == RESIZE:
                _set_window_size(command.terminal, json.loads(payload))
            else:
                command.add_input(payload)


class _Command:
    """A command with its stdin, stdout and stderr, or its terminal in place of all three."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.input = bytearray()  # came, and is not yet written
        self.terminal = -1
        self._input_ended = False
        self._open: list[int] = []
        if job["terminal"]:
            self.terminal, inner = os.openpty()
            self._open += [self.terminal, inner]
            _set_window_size(self.terminal, job["terminal"])
            files = (inner, inner, inner)
            self.stdin: int | None = self.terminal
            self.outputs = {self.terminal: OUTPUT}
        else:
            stdin, self.stdin = os.pipe()
            stdout, inner_stdout = os.pipe()
            stderr, inner_stderr = os.pipe()
            self._open += [stdin, self.stdin, stdout, inner_stdout, stderr, inner_stderr]
            files = (stdin, inner_stdout, inner_stderr)
            self.outputs = {stdout: OUTPUT, stderr: ERRORS}
        try:
            self._process = subprocess.Popen(
                job["argv"],
                cwd=job["cwd"],
                env=job["env"],
                stdin=files[0],
                stdout=files[1],
                stderr=files[2],
                start_new_session=True,
                preexec_fn=_take_terminal if job["terminal"] else None,
            )
            self.ended = os.pidfd_open(self._process.pid)
        except OSError:
            self._close(*self._open)
            raise
        self._open.append(self.ended)
        self._close(*set(files))
        os.set_blocking(self.stdin, False)

    def __enter__(self) -> _Command:
        return self

    def __exit__(self, *_: object) -> None:
        self._close(*self._open)

    def _close(self, *fds: int) -> None:
        for fd in fds:
            os.close(fd)
            self._open.remove(fd)

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
            self._close(self.stdin)
            self.stdin = None

    def wait(self) -> int:
        """The status as a shell gives it."""
        status = self._process.wait()
        return status if status >= 0 else 128 - status


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _set_window_size(terminal: int, size: list[int]) -> None:
    rows, columns = size
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _CHUNK)
    except OSError as error:
        if error.errno == errno.EIO:  # a terminal that nobody holds any more
            return b""
        raise


def adopt_orphans() -> None:
    """Make this process the parent of its descendants' orphans, so that it can end them."""
    import ctypes

    pr_set_child_subreaper = 36  # linux/prctl.h
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)


def kill_children() -> None:
    """End this process's children, and theirs as they become its own."""
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for pid in _children():
            os.kill(pid, signal.SIGKILL)
        os.waitpid(-1, 0)


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
    adopt_orphans()
    Agent(port, KernelLog()).serve()


if __name__ == "__main__":
    main()
