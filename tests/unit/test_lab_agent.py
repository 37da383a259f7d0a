"""The lab's agent, run here: what it hands over, how commands end, what it leaves behind."""

from __future__ import annotations

import gzip
import marshal
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pyvmm.lab import agent

_SERVE = """
import ctypes, os, sys
from pyvmm.lab import agent

class Log:
    def __init__(self):
        self.lines = []
        self.fd = os.eventfd(0)  # never readable
    def note(self, text):
        self.lines.append(text)
    def news(self):
        news, self.lines = self.lines, []
        return news

ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: as process 1 would have it
try:
    agent.Agent(int(sys.argv[1]), Log()).serve()
except EOFError:
    pass
"""


class Host:
    """The host's side of an agent that runs in a process of its own."""

    def __init__(self, port: socket.socket) -> None:
        self.port = port
        self.port.settimeout(30)
        self._unpacker = agent.Unpacker()
        self._frames: list[tuple[bytes, bytes]] = []

    def receive(self) -> tuple[bytes, bytes]:
        while not self._frames:
            data = self.port.recv(65536)
            assert data, "the agent is gone"
            self._frames += self._unpacker.feed(data)
        return self._frames.pop(0)

    def run(
        self, argv: Sequence[str], data: bytes = b"", **other: Any
    ) -> tuple[dict[str, Any], bytes, bytes]:
        job = {"argv": list(argv), "cwd": "/", "env": dict(os.environ), "terminal": None} | other
        request = agent.pack_structure(agent.RUN, job)
        if data:
            request += agent.pack(agent.INPUT, data)
        self.port.sendall(request + agent.pack(agent.INPUT))
        return self.finish()

    def finish(self) -> tuple[dict[str, Any], bytes, bytes]:
        written = {agent.OUTPUT: b"", agent.ERRORS: b""}
        while True:
            kind, payload = self.receive()
            if kind == agent.STATUS:
                return marshal.loads(payload), written[agent.OUTPUT], written[agent.ERRORS]
            written[kind] += payload


@pytest.fixture
def host() -> Iterator[Host]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(theirs.fileno())], pass_fds=[theirs.fileno()]
        )
        theirs.close()
        host = Host(ours)
        kind, payload = host.receive()
        assert kind == agent.HELLO
        assert marshal.loads(payload)["release"] == os.uname().release
        yield host
        ours.close()
        assert process.wait(30) == 0


def test_frames_survive_any_fragmentation(rng: random.Random) -> None:
    frames = [(b"O", rng.randbytes(rng.choice([0, 1, 5, 1000]))) for _ in range(50)]
    stream = b"".join(agent.pack(kind, payload) for kind, payload in frames)
    unpacker = agent.Unpacker()
    got: list[tuple[bytes, bytes]] = []
    while stream:
        size = rng.randint(1, 40)
        got += unpacker.feed(stream[:size])
        stream = stream[size:]
    assert got == frames


def test_the_missing_option_is_named(tmp_path: Path) -> None:
    config = tmp_path / "config.gz"
    config.write_bytes(gzip.compress(b"CONFIG_KVM=y\n# CONFIG_KVM_AMD is not set\n"))
    missing = agent._missing_option
    assert missing("CONFIG_KVM", config=str(config)) is None
    assert (
        missing("CONFIG_KVM", "CONFIG_KVM_AMD", config=str(config)) == "CONFIG_KVM_AMD is not set"
    )
    assert missing("CONFIG_KVM_SW", config=str(config)) == "CONFIG_KVM_SW is not set"
    assert missing("CONFIG_KVM", config=str(tmp_path / "none")) is None
    config.write_bytes(gzip.compress(b"CONFIG_KVM=m\n"))
    said = missing("CONFIG_KVM", config=str(config))
    assert said is not None and said.startswith("CONFIG_KVM=m is a module")


def test_status_and_both_outputs(host: Host) -> None:
    answer, output, errors = host.run(["sh", "-c", "printf out; printf err >&2; exit 7"])
    assert (answer["status"], output, errors) == (7, b"out", b"err")
    assert len(answer["log"]) == 2


@pytest.mark.parametrize(
    ("argv", "status"),
    [(["true"], 0), (["/nowhere/to/be/found"], 127), (["no-such-command"], 127), (["/"], 126)],
)
def test_commands_that_cannot_be_run(host: Host, argv: list[str], status: int) -> None:
    answer, _, errors = host.run(argv)
    assert answer["status"] == status
    wanted = f"pyvmm: lab: cannot run {argv[0]}: ".encode()
    assert errors.startswith(wanted) if status > 125 else not errors


def test_folder_that_is_not_there(host: Host) -> None:
    answer, _, errors = host.run(["true"], cwd="/nowhere")
    assert answer["status"] == 127
    assert b"/nowhere" in errors


def test_a_word_that_no_command_can_have(host: Host) -> None:
    answer, _, errors = host.run(["true", "a\0b"])
    assert answer["status"] == 126
    assert errors == b"pyvmm: lab: cannot run true: embedded null byte\n"


def test_killed_by_a_signal_is_what_a_shell_says(host: Host) -> None:
    answer, _, _ = host.run(["sh", "-c", "kill -SEGV $$"])
    assert answer["status"] == 128 + signal.SIGSEGV


def test_bytes_pass_unchanged_in_both_directions(host: Host, rng: random.Random) -> None:
    data = rng.randbytes(3_000_000)
    answer, output, errors = host.run(["cat"], data)
    assert (answer["status"], errors) == (0, b"")
    assert output == data


def test_input_that_nobody_reads_is_no_obstacle(host: Host) -> None:
    answer, output, _ = host.run(["sh", "-c", "exec 0<&-; echo done"], b"x" * 200_000)
    assert (answer["status"], output) == (0, b"done\n")
    assert host.run(["echo", "next"])[1] == b"next\n"


def test_arguments_and_environment_need_not_be_utf8(host: Host) -> None:
    odd = os.fsdecode(b"\xff\xfe\n\x01")
    _, output, _ = host.run(
        ["sh", "-c", 'printf %s "$1$ODD"', "sh", odd], env=dict(os.environ, ODD=odd)
    )
    assert output == b"\xff\xfe\n\x01" * 2


def test_processes_end_with_their_command(host: Host, tmp_path: Path) -> None:
    inner = 'trap "" TERM; echo $$; echo up >$UP; while :; do sleep 100; done'
    script = f"mkfifo $UP; (setsid sh -c '{inner}' &) ; read word <$UP"
    up = dict(os.environ, UP=str(tmp_path / "up"))
    answer, output, _ = host.run(["sh", "-c", script], env=up)
    assert answer["status"] == 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(output), 0)


def test_outputs_may_close_before_the_command_ends(host: Host) -> None:
    answer, _, _ = host.run(["sh", "-c", "exec >&- 2>&-; sleep 0.2; exit 4"])
    assert answer["status"] == 4


def test_terminal(host: Host) -> None:
    answer, output, _ = host.run(
        ["sh", "-c", "test -t 0 && test -t 2 && stty size && tty"], terminal=[40, 100]
    )
    assert answer["status"] == 0
    assert output.startswith(b"40 100\r\n/dev/pts/")


def test_terminal_is_resized_while_it_runs(host: Host) -> None:
    job = {"argv": ["sh", "-c", "read x; stty size"], "cwd": "/", "env": {}, "terminal": [1, 1]}
    job["env"] = dict(os.environ)
    host.port.sendall(agent.pack_structure(agent.RUN, job))
    host.port.sendall(
        agent.pack_structure(agent.RESIZE, [50, 132]) + agent.pack(agent.INPUT, b"\n")
    )
    answer, output, _ = host.finish()
    assert answer["status"] == 0
    assert output.endswith(b"50 132\r\n")


def test_output_comes_while_the_command_runs(host: Host) -> None:
    job = {"argv": ["sh", "-c", "echo first; read x; echo $x"], "cwd": "/", "terminal": None}
    host.port.sendall(agent.pack_structure(agent.RUN, job | {"env": dict(os.environ)}))
    assert host.receive() == (agent.OUTPUT, b"first\n")
    host.port.sendall(agent.pack(agent.INPUT, b"second\n"))
    assert host.receive() == (agent.OUTPUT, b"second\n")
    assert host.finish()[0]["status"] == 0


def test_agent_ends_with_its_host_and_takes_the_command_along() -> None:
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(theirs.fileno())], pass_fds=[theirs.fileno()]
    )
    theirs.close()
    host = Host(ours)
    host.receive()
    job = {"argv": ["sleep", "1000"], "cwd": "/", "env": dict(os.environ), "terminal": None}
    ours.sendall(agent.pack_structure(agent.RUN, job))
    started = time.monotonic()
    ours.close()
    assert process.wait(30) == 0
    assert time.monotonic() - started < 30
