"""What bad input gets: one line that names thing, cause and remedy, and the right status."""

from __future__ import annotations

import os
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pyvmm_command import GUESTS, Outcome, pyvmm, quoted, with_mounts

CANNOT_START, SKIPPED = 2, 4

PASS = bytes.fromhex("30c0 e6f4 f4")  # xor %al, %al; out %al, $0xf4; hlt


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    """A flat guest that passes."""
    path = tmp_path / "pass.bin"
    path.write_bytes(PASS)
    return path


def both_ways(*words: object, **options: object) -> Outcome:
    """Run it as text, which must print nothing on stdout, and then with --json."""
    text = pyvmm("run", *words, **options)  # type: ignore[arg-type]
    assert text.stdout == ""
    outcome = pyvmm("run", *words, "--json", **options)  # type: ignore[arg-type]
    assert (outcome.status, outcome.stderr) == (text.status, text.stderr)
    expected = {CANNOT_START: "error", SKIPPED: "skip"}[outcome.status]
    assert outcome.json["result"] == expected
    assert outcome.stderr == f"pyvmm: {outcome.json['reason']}\n"
    return outcome


# ---- /dev/kvm ----


def test_no_dev_kvm(guest: Path, tmp_path: Path) -> None:
    empty = tmp_path / "dev"
    empty.mkdir()
    prefix = with_mounts(f"mount --bind {quoted(empty)} /dev")
    both_ways(guest, prefix=prefix).error(CANNOT_START, "/dev/kvm", "ENOENT", "modprobe")


def test_dev_kvm_without_permission(guest: Path, tmp_path: Path) -> None:
    closed = tmp_path / "kvm"
    closed.touch(mode=0)
    prefix = with_mounts(f"mount --bind {quoted(closed)} /dev/kvm", capabilities=False)
    both_ways(guest, prefix=prefix).error(CANNOT_START, "/dev/kvm", "EACCES", "usermod -aG kvm")


def test_dev_kvm_that_is_something_else(guest: Path) -> None:
    prefix = with_mounts("mount --bind /dev/null /dev/kvm")
    both_ways(guest, prefix=prefix).error(CANNOT_START, "/dev/kvm", "not KVM", "mknod")


# ---- guests that are none ----


def test_missing_guest(tmp_path: Path) -> None:
    both_ways(tmp_path / "none.S").error(CANNOT_START, "none.S", "no such file", "name an")


@pytest.mark.parametrize("name", ["empty.S", "empty.bin"])
def test_empty_guest(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    both_ways(tmp_path / name).error(CANNOT_START, name, "empty")


def test_folder_and_device_as_guest(tmp_path: Path) -> None:
    both_ways(tmp_path).error(CANNOT_START, "folder")
    both_ways("/dev/zero").error(CANNOT_START, "/dev/zero", "no regular file")


@pytest.mark.parametrize("name", ["", "a" * 300])
def test_a_name_that_no_file_can_have(name: str) -> None:
    both_ways(name).error(CANNOT_START, name or "name is empty")


def test_guest_in_a_folder_that_cannot_be_searched(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    try:
        prefix = with_mounts(capabilities=False)
        both_ways(closed / "x.S", prefix=prefix).error(CANNOT_START, "x.S", "Permission denied")
    finally:
        closed.chmod(0o700)


def test_a_patch_in_a_folder_that_cannot_be_searched(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    try:
        prefix = with_mounts(capabilities=False)
        outcome = pyvmm("lab", "check", "--patch", closed / "x.patch", prefix=prefix)
        outcome.error(CANNOT_START, "x.patch: want a file that can be read")
    finally:
        closed.chmod(0o700)


def test_guest_that_fills_ram_to_the_last_byte_and_one_that_does_not_fit(tmp_path: Path) -> None:
    room = 0x40000 - 0x7C00
    path = tmp_path / "large.bin"
    path.write_bytes(PASS.ljust(room, b"\0"))
    assert pyvmm("run", path).status == 0
    path.write_bytes(PASS.ljust(room + 1, b"\0"))
    both_ways(path).error(CANNOT_START, "large.bin", "past the end of RAM", str(room))
    with path.open("wb") as file:
        file.truncate(1 << 40)
    both_ways(path).error(CANNOT_START, "large.bin", "too many")


def test_guest_that_does_not_assemble(tmp_path: Path) -> None:
    path = tmp_path / "bad.S"
    path.write_text(".code16\n\n  frobnicate %ax\n  hlt\n  bar\n")
    both_ways(path).error(CANNOT_START, "not assembling", f"{path}:3: Error: ", "(and 1 more)")


@pytest.mark.parametrize(
    "line",
    [".fill 0x7fffffff", ".space 0x3000000", ".rept 100000000\n nop\n .endr"],
    ids=["fill", "space", "rept"],
)
def test_a_line_of_assembly_that_asks_for_gigabytes(tmp_path: Path, line: str) -> None:
    path = tmp_path / "huge.S"
    path.write_text(f".code16\n {line}\n")
    started = time.monotonic()
    outcome = both_ways(path)
    outcome.error(CANNOT_START, "huge.S")
    assert "too large" in outcome.stderr or "out of memory" in outcome.stderr
    assert time.monotonic() - started < 30  # with the files written it is more than that


def test_guest_that_does_not_link(tmp_path: Path) -> None:
    path = tmp_path / "bad.S"
    path.write_text(".code16\n  call nowhere\n")
    both_ways(path).error(CANNOT_START, "not linking", "nowhere")


def test_an_assembler_message_cannot_write_escapes_to_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "red\x1b[31m.S"
    path.write_text('.error "\x1b[31mred\x07"\n')
    line = pyvmm("run", path).error(CANNOT_START, "not assembling")
    assert line.isprintable() and "\\x1b[31m" in line


def test_without_an_assembler(tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path)}
    both_ways(GUESTS / "hello.S", environment=environment).error(
        CANNOT_START, "as is not installed", "binutils"
    )


def elf(
    *,
    kind: int = 2,
    machine: int = 3,
    segments: int = 1,
    gpa: int = 0x7C00,
    size: int = len(PASS),
    bss: int = 0,
) -> bytes:
    """A 32-bit ELF file with ``segments`` equal program headers."""
    headers = 52 + 32 * segments
    ident = b"\x7fELF\1\1\1".ljust(16, b"\0")
    head = struct.pack(
        "<HHIIIIIHHHHHH", kind, machine, 1, gpa & 0xFFFF, 52, 0, 0, 52, 32, segments, 0, 0, 0
    )
    program = struct.pack("<IIIIIIII", 1, headers, gpa, gpa, size, size + bss, 7, 4096)
    return ident + head + program * segments + PASS


def test_elf_files(tmp_path: Path) -> None:
    path = tmp_path / "guest.elf"
    path.write_bytes(elf())
    assert pyvmm("run", path).status == 0
    path.write_bytes(elf(bss=0x383F0))
    assert pyvmm("run", path).status == 0
    for data, word in (
        (elf()[:5], "cut short; link or copy it again"),
        (elf()[:40], "cut short"),
        (elf()[:60], "cut short"),
        (elf()[:-1], "cut short"),
        (elf(machine=183), "ELF file for AArch64"),
        (elf()[:4] + b"\3" + elf()[5:], "class 3"),
        (elf(kind=1), "32-bit ELF object (.o)"),
        (elf(segments=0), "no code and no data"),
        (elf(gpa=0x3FFFE), "0xfffe lies in none of its segments"),
        (elf(gpa=0xFFFFF000), "0xf000 lies in none of its segments"),
        (elf(bss=0x38400), "past the end of RAM"),
        (elf(bss=-1), "larger than its memory"),
        (elf(bss=0x7FFFFFFF), "past the end of RAM"),
    ):
        path.write_bytes(data)
        both_ways(path).error(CANNOT_START, "guest.elf", word)


def test_elf_whose_headers_name_the_same_bytes_again_and_again(tmp_path: Path) -> None:
    path = tmp_path / "guest.elf"
    path.write_bytes(elf(segments=65535, size=4096) + bytes(4096))
    both_ways(path).error(CANNOT_START, "guest.elf", "again and again")


# ---- options ----


@pytest.mark.parametrize("count", ["0", "29", "-1", "1000", "99999999999999999999"])
def test_too_many_vcpus(guest: Path, count: str) -> None:
    both_ways(guest, f"--vcpus={count}").error(CANNOT_START, count, "1 to 28")


@pytest.mark.parametrize(
    "words",
    [
        ["--deadline", "nan"],
        ["--deadline", "inf"],
        ["--deadline=-1"],
        ["--deadline", "0"],
        ["--deadline", "1e400"],
        ["--deadline", "soon"],
        ["--param", "N"],
        ["--param", "=5"],
        ["--param", "N="],
        ["--param", "N=x"],
        ["--param", "a b=1"],
        ["--param=-N=1"],
        ["--param", "N=4294967296"],
        ["--vcpus", "two"],
        ["--views", "3"],
        ["--backend", "tdx"],
        ["--frobnicate"],
        ["another-guest"],
    ],
    ids=" ".join,
)
def test_usage_errors(guest: Path, words: list[str]) -> None:
    outcome = pyvmm("run", guest, *words, "--json")
    outcome.error(CANNOT_START, words[0].split("=")[0], "see pyvmm", "--help")
    assert outcome.stdout == ""


def test_usage_errors_without_a_guest() -> None:
    pyvmm("run").error(CANNOT_START, "GUEST")
    pyvmm().error(CANNOT_START, "COMMAND")
    pyvmm("frobnicate").error(CANNOT_START, "frobnicate", "run")


def test_parameters_for_what_is_not_assembled(guest: Path) -> None:
    both_ways(guest, "--param", "N=1").error(CANNOT_START, "--param")


def test_a_backend_that_this_host_lacks(guest: Path) -> None:
    for backend in ("memory_error", "in_place", "guest_memfd"):
        outcome = pyvmm("run", guest, "--backend", backend, "--json")
        if outcome.status == 0:
            continue  # a host that has it
        both_ways(guest, "--backend", backend).error(SKIPPED, backend)


def test_memory_error_has_no_regions_of_one_view(guest: Path) -> None:
    both_ways(guest, "--backend", "memory_error", "--views", "1").error(SKIPPED)


def test_contents_are_kept_only_where_the_kernel_can(guest: Path) -> None:
    kept = both_ways(guest, "--backend", "emulated", "--contents", "keep")
    kept.error(SKIPPED, "reads zero after a conversion", "in_place")


# ---- --log ----


def test_a_log_that_cannot_be_opened(guest: Path, tmp_path: Path) -> None:
    for name in ("", tmp_path, tmp_path / "no" / "log"):
        both_ways(guest, "--log", name).error(CANNOT_START, f"--log {name}", "name a file")


def test_an_output_overwrites_no_other_file_of_the_run(guest: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(guest)
    both_ways(guest, "--log", link).error(CANNOT_START, f"--log {link}", "GUEST's file")
    assert guest.read_bytes() == PASS
    words = (guest, "--log", tmp_path / "new", "--timeline", tmp_path / "new")
    both_ways(*words).error(CANNOT_START, "--timeline", "--log's file")
    assert not (tmp_path / "new").exists()
    assert pyvmm("run", guest, "--log", "/dev/null", "--timeline", "/dev/null").status == 0


@pytest.mark.parametrize("option", ["--log", "--timeline"])
def test_an_output_overwrites_no_module_of_the_guest(option: str, tmp_path: Path) -> None:
    kernel, module = tmp_path / "kernel", tmp_path / "module"
    header = struct.pack("<III", 0x1BADB002, 1 << 16, -(0x1BADB002 + (1 << 16)) & 0xFFFFFFFF)
    kernel.write_bytes(header + struct.pack("<5I", 1 << 20, 1 << 20, 0, 0, (1 << 20) + 32) + PASS)
    module.write_bytes(b"mine")
    words = (kernel, "--initrd", f"{kernel} a,{module} b,{module}", option, module)
    both_ways(*words).error(CANNOT_START, f"{option} {module}", "--initrd's file")
    assert module.read_bytes() == b"mine"


def test_no_log_is_made_for_a_guest_that_does_not_start(tmp_path: Path) -> None:
    pyvmm("run", tmp_path / "none", "--log", tmp_path / "log").error(CANNOT_START, "none")
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("vcpus", [1, 2])
def test_a_log_on_a_full_disk(vcpus: int) -> None:
    words = ("run", GUESTS / "hello.S", "--vcpus", vcpus, "--log", "/dev/full")
    pyvmm(*words).error(CANNOT_START, "--log /dev/full", "No space left")
    outcome = pyvmm(*words, "--json")
    outcome.error(CANNOT_START, "--log /dev/full", "No space left")
    assert outcome.json["result"] == "error"
    assert outcome.json["exits"]["io"] > 0  # what happened so far


# ---- limits ----


def limit(which: int, value: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(which, (value, value))


def passes_or_says_why(outcome: Outcome) -> bool:
    """True if the run passed; else its JSON object and its one line say why not."""
    if outcome.status != 0:
        outcome.error(CANNOT_START)
        assert outcome.json["result"] == "error"
        return False
    assert outcome.json["result"] == "pass"
    return True


# Python itself needs five to start.
@pytest.mark.parametrize("files", range(5, 20))
def test_few_open_files(files: int) -> None:
    outcome = pyvmm(
        "run", GUESTS / "hello.S", "--json", before=limit(resource.RLIMIT_NOFILE, files)
    )
    if not passes_or_says_why(outcome):
        assert "ulimit -n" in outcome.stderr


def test_few_open_files_for_many_vcpus(guest: Path) -> None:
    outcome = pyvmm("run", guest, "--vcpus=28", "--json", before=limit(resource.RLIMIT_NOFILE, 20))
    outcome.error(CANNOT_START, "KVM_CREATE_VCPU", "EMFILE", "ulimit -n")


def test_little_address_space(guest: Path) -> None:
    passed = 0
    # How much the threads of 28 vCPUs need is the C library's affair, and Python's.
    for mib in (*range(24, 320, 16), 2048):
        before = limit(resource.RLIMIT_AS, mib << 20)
        outcome = pyvmm("run", guest, "--json", "--vcpus", 28, before=before)
        if outcome.status == 0 or outcome.stdout:
            passed += passes_or_says_why(outcome)
        else:  # nothing could be imported, and Python may have found no words for it
            assert outcome.status > 0, outcome
    assert passed


@pytest.mark.parametrize("size", [1 << 12, 1 << 17])
def test_small_files_only(guest: Path, size: int) -> None:
    before = limit(resource.RLIMIT_FSIZE, size)
    both_ways(guest, before=before).error(CANNOT_START, "EFBIG", "ulimit -f")


def test_an_assembler_that_a_limit_ends() -> None:
    before = limit(resource.RLIMIT_FSIZE, 64)
    outcome = pyvmm("run", GUESTS / "hello.S", before=before)
    outcome.error(CANNOT_START, "as was ended by signal 25")


# ---- output that nobody takes ----


def test_stdout_closed(guest: Path) -> None:
    for words in (["run", guest], ["run", guest, "--json"], ["doctor"]):
        outcome = pyvmm(*words, before=lambda: os.close(1))
        assert (outcome.status, outcome.stderr) == (0, "")


def test_all_streams_closed(guest: Path) -> None:
    assert pyvmm("run", guest, before=lambda: os.closerange(0, 3)).status == 0


def test_a_reader_that_leaves_does_not_change_the_verdict(guest: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for words in (["run", guest], ["run", guest, "--json"]):
        outcome = pyvmm(*words, before=lambda: void(os.dup2(writer, 1)))
        assert (outcome.status, outcome.stderr) == (0, "")
    os.close(writer)


def void(_: object) -> None:
    """preexec_fn wants no result."""


def test_stdout_on_a_full_disk(guest: Path) -> None:
    with open("/dev/full", "w") as full:
        outcome = pyvmm("run", guest, before=lambda: void(os.dup2(full.fileno(), 1)))
    outcome.error(CANNOT_START, "stdout", "No space left")


def test_the_lab_on_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "pyvmm").mkdir()
    (tmp_path / "pyvmm" / "kernel.log").write_bytes(bytes(1 << 20))
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    commands = (
        ("lab", "cut", "-k", "MR6", "--into", tmp_path / "jobs"),
        ("lab", "list"),
        ("lab", "kernel-log"),
    )
    with open("/dev/full", "w") as full:
        for words in commands:
            outcome = pyvmm(
                *words, before=lambda: void(os.dup2(full.fileno(), 1)), environment=environment
            )
            outcome.error(CANNOT_START, "stdout: No space left")


# ---- nothing left behind ----


def test_no_temporary_files(tmp_path: Path) -> None:
    environment = {"TMPDIR": str(tmp_path)}
    bad = tmp_path / "bad.S"
    bad.write_text("frobnicate\n")
    pyvmm("run", bad, environment=environment).error(CANNOT_START, "frobnicate")
    assert pyvmm("run", GUESTS / "hello.S", environment=environment).status == 0
    assert list(tmp_path.iterdir()) == [bad]
