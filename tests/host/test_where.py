"""Every end of a run names its place: CS:IP, source line, registers, in text and in JSON."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pyvmm_command import pyvmm
from snippets import PRIVATE, SHARED, guest

from pyvmm import Machine, Policy, Result, RunReport, UnsupportedError
from pyvmm.native import lib

START = 0x7C00


def run(text: str, deadline: float = 20, **options: Any) -> RunReport:
    with Machine(guest(text), **options) as machine:
        return machine.run(deadline)


def stopped_at(report: RunReport, ip: int, line: int) -> dict[str, int]:
    """The registers of a report whose place is this one."""
    assert report.where is not None
    registers = report.where.registers
    assert (registers["cs"], registers["eip"]) == (0, ip), report
    # The first line of the text is .code16.
    assert report.where.source.rpartition(":")[2] == str(line + 1), report.where.source
    return registers


# ---- exceptions and interrupts that nothing handles ----


@pytest.mark.parametrize("vector", [*range(0x80), 0x80, 0xA5, 0xFF])
def test_every_vector(vector: int) -> None:
    """Some KVMs never get past INT 0x80 and above in real mode: then the deadline names it."""
    report = run(f"nop\nint ${vector:#x}\n", deadline=20 if vector < 0x80 else 0.3)
    where = report.where
    assert where is not None and where.registers["eip"] == START + 1, report
    assert report.result is not Result.PASS
    if report.result is Result.DEADLINE and vector >= 0x80:
        assert f"INT {vector:#x}, which some KVMs never get past" in report.reason
        return
    assert report.exit_code == 0x100 + vector and where.vector == vector
    name = "INT3" if vector == 3 and "INT3" in report.reason else f"INT {vector:#x}"
    assert f"{name} at 7c01 (guest.S:3): " in report.reason or "(" in report.reason
    assert f"nothing handles vector {vector:#x}" in report.reason


def test_int_0x10_wants_a_bios(tmp_path: Path) -> None:
    path = tmp_path / "x.S"
    path.write_text(".code16\nmovw $0x0e41, %ax\nint $0x10\nhlt\n")
    text = pyvmm("run", path)
    assert text.status == 1
    assert "vCPU 0: INT 0x10 at 7c03 (x.S:3): there is no BIOS" in text.stdout
    assert "eax=00000e41" in text.stdout
    report = pyvmm("run", path, "--json").json
    assert "INT 0x10 at 7c03 (x.S:3): there is no BIOS" in report["reason"]
    assert report["exit_code"] == 0x110
    where = report["where"]
    assert (where["vector"], where["source"], where["code"][:5]) == (0x10, "x.S:3", "cd 10")
    assert where["registers"]["eip"] == 0x7C03 and where["registers"]["eax"] == 0x0E41


def test_int_0x21_wants_a_dos() -> None:
    report = run('movb $9, %ah\nmovw $text, %dx\nint $0x21\ntext: .ascii "hello$"\n')
    assert re.search(
        r"INT 0x21 at 7c05 \(.*:4\): nothing handles vector 0x21, there is no DOS", report.reason
    )
    registers = stopped_at(report, START + 5, 3)
    assert registers["eax"] == 0x900 and registers["esp"] == START


def test_an_exception_in_a_subroutine() -> None:
    report = run("movw $3, %cx\nagain: call work\nloop again\nhlt\nwork: ud2\nret\n")
    assert "invalid opcode (#UD) at CS:IP 0000:7c09" in report.reason
    assert "nothing handles vector 6" in report.reason
    registers = stopped_at(report, START + 9, 5)
    assert registers["ecx"] == 3 and registers["esp"] == START - 2
    assert report.where is not None and report.where.code.startswith(b"\x0f\x0b")
    assert report.exit_code == 0x106


def test_all_registers_are_those_of_the_moment() -> None:
    names = ("eax", "ebx", "ecx", "edx", "esi", "edi", "ebp")
    values = {name: 0x1234_5601 + number for number, name in enumerate(names)}
    loads = "\n".join(f"movl ${value:#x}, %{name}" for name, value in values.items())
    for end in ("ud2", "int $0x60", "xorw %cx, %cx\ndivw %cx"):
        report = run(f"movw $0x1000, %ax\nmovw %ax, %ds\n{loads}\nsti\n{end}")
        assert report.where is not None
        registers = report.where.registers
        expected = dict(values)
        if "div" in end:
            expected["ecx"] &= 0xFFFF0000
        assert {name: registers[name] for name in names} == expected
        assert registers["ds"] == 0x1000 and registers["eflags"] & 0x200
        assert registers["esp"] == START


def test_a_place_in_another_segment() -> None:
    text = "ljmp $0x7c0, $(far - 0x7c00)\nfar: nop\nint $0x33"
    assert "INT 0x33 at 07c0:0006" in run(text).reason
    text = "ljmp $0x7c0, $(far - 0x7c00)\nfar: nop\nud2"
    assert "at CS:IP 07c0:0006" in run(text).reason


def test_a_stack_that_wraps() -> None:
    assert "INT 0x60 at 7c03" in run("movw $2, %sp\nint $0x60\n").reason


def test_a_stack_in_private_memory() -> None:
    """Of which the host can know all, or a part, or nothing."""
    report = run(f"movw ${PRIVATE >> 4}, %ax\nmovw %ax, %ss\nmovw $0x800, %sp\nint $0x60\n")
    if report.backend == "emulated":
        assert "may be a far call or INT" in report.reason
        assert "its last word, 0x7c0a to GPA 0x407fa" in report.reason
    else:
        assert "vector 0x60: its frame on the stack cannot be read" in report.reason


def test_a_frame_where_no_memory_is() -> None:
    report = run("movw $0x8000, %ax\nmovw %ax, %ss\nint $0x60\n", deadline=1)
    assert report.result is not Result.PASS
    if report.exit_code == 0x160:
        assert "vector 0x60: its frame on the stack cannot be read" in report.reason
        assert report.where is not None and report.where.registers == {}


def test_a_guest_that_has_set_its_own_vector() -> None:
    assert run("movw $mine, 0x21*4\nint $0x21\nmine: xorl %eax, %eax\noutl %eax, $0xf4").passed


def test_each_vcpu_for_itself() -> None:
    text = """
        cmpb $2, %al
        je 1f
        hlt
1:      int $0x44
    """
    report = run(text, vcpus=4)
    assert report.where is not None and report.where.vcpu == 2
    assert "vCPU 2: INT 0x44 at 7c05" in report.reason


def test_a_code_like_a_stubs_is_no_exception() -> None:
    report = run("movw $0x106, %ax\noutw %ax, $0xf4")
    assert report.exit_code == 0x106
    assert "wrote exit code 262 (0x106) at CS:IP 0000:7c03" in report.reason
    assert report.where is not None and report.where.vector is None


@pytest.mark.parametrize("out", ["outb %al, $0xe6", "outw %ax, $0xe6", "outb %al, $0xe7"])
def test_the_stubs_ports_are_nobodys_for_the_guest(out: str) -> None:
    report = run(f"{out}\n{out}\nxorl %eax, %eax\noutl %eax, $0xf4")
    assert report.passed and report.unclaimed_ports == 2


def test_stubs_that_the_guest_has_overwritten() -> None:
    """What is there then runs; here it is the guest's own code, for vector 0x60."""
    report = run("movl $0xf4e7c031, 0x4ff+0x60\nmovw $0xfeeb, 0x503+0x60\nint $0x60", deadline=2)
    assert report.passed, report


def test_an_irq_that_nothing_handles() -> None:
    text = """
        movb $0x11, %al
        outb %al, $0x20
        movb $0x20, %al
        outb %al, $0x21
        movb $4, %al
        outb %al, $0x21
        movb $1, %al
        outb %al, $0x21
        movb $0xfe, %al
        outb %al, $0x21
        movb $0x34, %al
        outb %al, $0x43
        movb $0, %al
        outb %al, $0x40
        movb $0x40, %al
        outb %al, $0x40
        sti
1:      jmp 1b
    """
    report = run(text, irqchip=True)
    assert re.search(
        r"interrupt before CS:IP 0000:7c21 .*: nothing handles vector 0x20", report.reason
    ), report
    assert report.exit_code == 0x120


def test_ram_is_zero_but_for_vectors_and_stubs() -> None:
    with Machine(guest("hlt")) as machine:
        low = machine.memory.read(0, START)
    assert not any(low[0x400:0x4FF]) and not any(low[0x600:])
    assert all(low[4 * vector + 2 : 4 * vector + 4] == b"\0\0" for vector in range(256))


# ---- other ends ----


def test_a_code_of_the_guests() -> None:
    for out, size in (("outb %al, $0xf4", 2), ("outl %eax, $0xf4", 2), ("outb %al, %dx", 3)):
        report = run(f"movw $7, %ax\n{'movw $0xf4, %dx' if size == 3 else 'nop'}\n{out}\nnop\n")
        stopped_at(report, START + 3 + (3 if size == 3 else 1), 3)
        assert "exit code 7 (0x7) at CS:IP 0000:7c0" in report.reason


def test_hlt_without_a_code() -> None:
    report = run("nop\nhlt\n")
    assert report.result is Result.FAIL and report.exit_code is None
    stopped_at(report, START + 1, 2)
    assert "ended in HLT, the last at CS:IP 0000:7c01 (" in report.reason


def test_the_deadline() -> None:
    report = run("nop\n1: jmp 1b\n", deadline=0.2)
    assert report.result is Result.DEADLINE
    stopped_at(report, START + 1, 2)
    assert "still ran at the deadline, at CS:IP 0000:7c01 (" in report.reason


@pytest.mark.parametrize("interrupts", ["cli", "sti"])
def test_the_deadline_of_a_vcpu_that_waits_in_hlt(interrupts: str) -> None:
    report = run(f"{interrupts}\nhlt\nnop\n", deadline=0.3, irqchip=True)
    assert report.result is Result.DEADLINE
    stopped_at(report, START + 1, 2)
    assert "still waited in HLT at the deadline, at CS:IP 0000:7c01 (" in report.reason


@pytest.mark.parametrize("gpa", [0x80000, 0xFFFFFFF0])
def test_an_assert_whose_record_cannot_be_read(gpa: int) -> None:
    report = run(f"movl ${gpa:#x}, %eax\nmovw $0x610, %dx\noutl %eax, %dx\nnop\n")
    stopped_at(report, START + 9, 3)
    assert "assert failed at CS:IP 0000:7c09 (" in report.reason
    assert f"; its record at GPA {gpa:#x} cannot be read" in report.reason


def test_a_policy_that_denies() -> None:
    """KVM's emulator leaves IP behind an instruction whose write it hands on."""
    es = f"movw ${PRIVATE >> 4}, %ax\nmovw %ax, %es\n"
    for access in ("movb $1, %es:0", "incb %es:0", "movb %es:0, %al"):
        report = run(f"{es}{access}\nnop\n", policy=Policy.DENY)
        assert report.where is not None
        size = report.where.registers["eip"] - START - 5
        assert (size > 0) == report.where.is_behind
        stopped_at(report, START + 5 + size, 3)
        before = "the instruction before " if report.where.is_behind else ""
        assert f"vCPU 0 at {before}CS:IP 0000:7c0" in report.reason
    report = run(f"{es}xorw %di, %di\nmovw $4, %cx\nrep stosb\n", policy=Policy.DENY)
    stopped_at(report, START + 10, 5)


def test_an_instruction_that_the_emulator_cannot_do() -> None:
    report = run("nop\nrdrand %eax\nhlt\n")
    if "INTERNAL_ERROR" not in report.reason:
        pytest.skip("this KVM does it, or gives #UD")
    stopped_at(report, START + 1, 2)
    assert "at CS:IP 0000:7c01 (" in report.reason


def test_such_an_instruction_after_a_conversion_is_not_repeated() -> None:
    """It would be for a conversion by another vCPU, while this one was in the guest."""
    ring = "".join(
        f"movw ${port:#x}, %dx\n movl ${value}, %eax\n outl %eax, %dx\n"
        for port, value in ((0x600, PRIVATE), (0x604, 1), (0x608, 2))
    )
    report = run(f"{ring} fld1\n hlt\n", backend="emulated")
    assert report.conversions.explicit == 1
    # A CPU that runs real mode by itself can do it.
    assert report.exits.get("internal_error", 0) == ("INTERNAL_ERROR" in report.reason)


def test_an_assert(tmp_path: Path) -> None:
    path = tmp_path / "x.S"
    path.write_text('.include "pyvmm.inc"\nguest "x.S"\nmovb $1, %al\nassert_eqb %al, $2\n')
    report = pyvmm("run", path, "--json").json
    assert "x.S:4: assert failed" in report["reason"]
    assert report["exit_code"] == 1 and report["where"]["registers"]["cs"] == 0


def test_a_kick() -> None:
    with Machine(guest("1: jmp 1b")) as machine:
        machine.on_tick = machine.kick
        report = machine.run(20)
    assert report.result is Result.INTERRUPTED
    stopped_at(report, START, 1)


def test_text_names_the_place_that_json_has(tmp_path: Path) -> None:
    path = tmp_path / "x.S"
    for end in ("ud2", "int $0x31", "hlt", "movb $3, %al\noutb %al, $0xf4", f"ljmp $0, ${SHARED}"):
        path.write_text(f".code16\nnop\n{end}\n") if "ljmp" not in end else path.write_text(
            ".code16\nnop\nljmp $0x8000, $0\n"
        )
        where = pyvmm("run", path, "--json", "--deadline", 5).json["where"]
        text = pyvmm("run", path, "--deadline", 5).stdout
        place = f"CS:IP {where['registers']['cs']:04x}:{where['registers']['eip']:04x}"
        place += f" ({where['source']})" if where["source"] else ""
        assert f"vCPU 0 at {place}" in text
        for name in ("eax", "esp", "eflags"):
            assert f"{name}={where['registers'][name]:08x}" in text


def test_a_memory_fault_outside_every_region() -> None:
    """A page of RAM made private by the test: KVM_RUN fails and names it."""
    gpa = 0x20000
    text = f"movw ${gpa >> 4}, %ax\nmovw %ax, %es\nmovb %es:8, %al\nhlt\n"
    try:
        machine = Machine(guest(text), backend="guest_memfd")
    except UnsupportedError as error:
        pytest.skip(str(error))
    with machine:
        machine.vm.set_memory_attributes(gpa, 0x1000, lib.KVM_MEMORY_ATTRIBUTE_PRIVATE)
        report = machine.run(20)
    assert report.result is Result.FAIL
    stopped_at(report, START + 5, 3)
    fault = f"KVM_EXIT_MEMORY_FAULT: GPA {gpa:#x}, private access, size 0x1000"
    assert fault in report.reason and "at CS:IP 0000:7c05 (" in report.reason
