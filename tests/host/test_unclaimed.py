"""Ports and addresses that nobody has are in the report, by number and count."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyvmm_command import pyvmm
from snippets import EXIT_0, guest

from pyvmm import Machine
from pyvmm.native import lib
from pyvmm.unclaimed import Unclaimed

# What a guest written for another VMM does: poll COM1 until it can send, then send.
SERIAL = """
        .code16
        cld
        movw $text, %si
next:   movw $0x3fd, %dx
wait:   inb %dx, %al
        testb $0x20, %al
        jz wait
        lodsb
        testb %al, %al
        jz done
        movw $0x3f8, %dx
        outb %al, %dx
        jmp next
done:   xorl %eax, %eax
        outl %eax, $0xf4
text:   .asciz "hello from COM1\\n"
"""


def test_a_serial_port_is_named_with_what_stands_in_for_it(tmp_path: Path) -> None:
    path = tmp_path / "serial.S"
    path.write_text(SERIAL)
    text = pyvmm("run", path).stdout
    assert "unclaimed: port 0x3fd 17 times (COM1: there is no UART; the console is port" in text
    assert "unclaimed: port 0x3f8 16 times (COM1: there is no UART; the console is port" in text
    report = pyvmm("run", path, "--json").json
    hint = "COM1: there is no UART; the console is port 0xe9; --platform bare has COM1"
    assert report["unclaimed"] == [
        {"port": 0x3FD, "count": 17, "hint": hint},
        {"port": 0x3F8, "count": 16, "hint": hint},
    ]


def test_all_ports_and_then_one_often() -> None:
    """The one is named first; those without a place are in the sum."""
    text = f"""
        xorw %dx, %dx
1:      cmpw $0xf4, %dx
        je 2f
        inb %dx, %al
2:      incw %dx
        jnz 1b
        movw $0x3f8, %dx
        movw $1000, %cx
3:      outb %al, %dx
        loop 3b
        {EXIT_0}
    """
    with Machine(guest(text)) as machine:
        report = machine.run(60)
    assert report.passed
    assert report.unclaimed_ports == 0xFFFF + 1000
    assert report.unclaimed[0] == Unclaimed(0x3F8, None, 1001)
    assert len(report.unclaimed) == 16 and all(each.count == 1 for each in report.unclaimed[1:])


def test_more_addresses_than_there_is_room_for() -> None:
    text = f"""
        movw $0x8000, %ax
        movw %ax, %es
        xorw %di, %di
1:      movb %es:(%di), %al
        movb %al, %es:(%di)
        addw $16, %di
        jnz 1b
        {EXIT_0}
    """
    with Machine(guest(text)) as machine:
        report = machine.run(60)
    assert report.passed and report.unclaimed_mmio == 2 * 4096
    assert report.unclaimed == tuple(
        Unclaimed(None, 0x80000 + 16 * number, 2) for number in range(lib.UNCLAIMED_GPAS)
    )


@pytest.mark.parametrize("vcpus", [1, 4])
def test_vcpus_count_together(vcpus: int) -> None:
    text = f"""
        movw $0x8000, %ax
        movw %ax, %es
        movw $500, %cx
1:      outb %al, $0x80
        movb %al, %es:4
        movb %al, %es:8
        loop 1b
        {EXIT_0}
    """
    with Machine(guest(text), vcpus=vcpus) as machine:
        report = machine.run(60)
    assert report.passed
    assert report.unclaimed[0] == Unclaimed(0x80, None, 500 * vcpus)
    assert set(report.unclaimed[1:]) == {
        Unclaimed(None, 0x80004, 500 * vcpus),
        Unclaimed(None, 0x80008, 500 * vcpus),
    }


def test_a_port_of_the_protocol_in_another_width() -> None:
    text = f"outw %ax, $0xe9\n inb $0xf4, %al\n movw $0x604, %dx\n outb %al, %dx\n {EXIT_0}"
    with Machine(guest(text)) as machine:
        report = machine.run(20)
    hints = {each.port: each.hint for each in report.unclaimed}
    assert set(hints) == {0xE9, 0xF4, 0x604} and all(hints.values())


@pytest.mark.parametrize(
    ("platform", "hints"),
    [
        ("bare", {0x21: "--irqchip", 0x71: "multiboot", 0x3D4: "VGA", 0xCF8: "PCI", 0x2F8: ""}),
        ("multiboot", {0x3D4: "VGA", 0xCF8: "PCI", 0x2F8: ""}),
    ],
)
def test_what_a_guest_of_another_platform_misses(
    platform: str, hints: dict[int, str], tmp_path: Path
) -> None:
    """A PIC that is not there, say, is worth a word; COM1 is there, and so is no word."""
    header = ".align 4\n .long 0x1badb002, 0, -0x1badb002\n"
    ports = [0x21, 0x71, 0x3D4, 0xCF8, 0x2F8, 0x3FD]
    code = "".join(f"movw ${port:#x}, %dx\n inb %dx, %al\n" for port in ports)
    path = tmp_path / "guest.S"
    path.write_text(f" jmp 1f\n{header}1: {code} cli\n hlt\n")
    words = ("--mode", "protected") if platform == "bare" else ("--hlt", "pass")
    found = pyvmm("run", path, "--platform", platform, *words, "--json", "--deadline", 10)
    assert found.status == 0, found
    seen = {each["port"]: each.get("hint", "") for each in found.json["unclaimed"]}
    assert set(seen) == set(hints)
    for port, word in hints.items():
        assert word in seen[port] and bool(word) == bool(seen[port])


def test_a_screen_that_is_not_there() -> None:
    text = f"movw $0xb800, %ax\n movw %ax, %es\n movw %ax, %es:0\n {EXIT_0}"
    with Machine(guest(text)) as machine:
        (only,) = machine.run(20).unclaimed
    assert only.gpa == 0xB8000 and "no screen" in only.hint


def test_what_is_claimed_is_not_in_it() -> None:
    class Latch:
        def read(self, address: int, size: int) -> int:
            return 0

        def write(self, address: int, size: int, value: int) -> None:
            pass

    with Machine(guest(f"outb %al, $0x80\n {EXIT_0}")) as machine:
        machine.bus.add_ports(range(0x80, 0x81), Latch())
        assert machine.run(20).unclaimed == ()
    with Machine(guest(f"outb %al, $0x80\n {EXIT_0}")) as machine:
        assert len(list(machine.exits(20))) == 1
        assert machine.report().unclaimed == ()
