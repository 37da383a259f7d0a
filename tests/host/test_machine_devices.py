"""Devices in Python, and what is there when nobody claims a port or an address."""

from __future__ import annotations

import pytest
from snippets import EXIT_0, guest, passing

from pyvmm import ConfigurationError, Machine
from pyvmm.native import lib


class Recorder:
    """Reads the low bytes of 0x1122334455667788, and remembers every access."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int, int]] = []

    def read(self, address: int, size: int) -> int:
        self.seen.append(("read", address, size, 0))
        return 0x1122334455667788

    def write(self, address: int, size: int, value: int) -> None:
        self.seen.append(("write", address, size, value))


FAIL = "9: movb $1, %al\n outb %al, $0xf4\n"


def test_a_port_device_sees_every_width() -> None:
    device = Recorder()
    image = guest(
        "movw $0x2F8, %dx\n movl $0xAABBCCDD, %eax\n"
        "outb %al, %dx\n outw %ax, %dx\n outl %eax, %dx\n"
        "inb %dx, %al\n cmpb $0x88, %al\n jne 9f\n inw %dx, %ax\n cmpw $0x7788, %ax\n jne 9f\n"
        f"inl %dx, %eax\n cmpl $0x55667788, %eax\n jne 9f\n{EXIT_0}{FAIL}"
    )
    with Machine(image) as machine:
        machine.bus.add_ports(range(0x2F8, 0x300), device)
        report = machine.run(20)
    assert report.passed, report.reason
    assert device.seen == [
        ("write", 0x2F8, 1, 0xDD),
        ("write", 0x2F8, 2, 0xCCDD),
        ("write", 0x2F8, 4, 0xAABBCCDD),
        ("read", 0x2F8, 1, 0),
        ("read", 0x2F8, 2, 0),
        ("read", 0x2F8, 4, 0),
    ]
    assert report.unclaimed_ports == 0


def test_string_io_reaches_a_device_element_by_element() -> None:
    device = Recorder()
    image = guest(
        "movw $0x2F8, %dx\n movw $text, %si\n movw $5, %cx\n cld\n rep outsb\n"
        f"movw $buffer, %di\n movw $2, %cx\n rep insw\n"
        f"cmpl $0x77887788, buffer\n jne 9f\n {EXIT_0}{FAIL}"
        'text: .ascii "hello"\nbuffer: .long 0'
    )
    with Machine(image) as machine:
        machine.bus.add_ports(range(0x2F8, 0x2F9), device)
        assert machine.run(20).passed
    assert bytes(value for kind, _, _, value in device.seen if kind == "write") == b"hello"
    assert len(device.seen) == 7


def test_an_mmio_device_sees_every_width() -> None:
    device = Recorder()
    image = guest(
        "movw $0x8000, %ax\n movw %ax, %es\n"
        "movb $1, %es:0\n movw $0x202, %es:2\n movl $0x3030303, %es:4\n"
        f"movl %es:8, %eax\n cmpl $0x55667788, %eax\n jne 9f\n"
        f"movb %es:0xF, %al\n cmpb $0xFF, %es:0x10\n jne 9f\n{EXIT_0}{FAIL}"
    )
    with Machine(image) as machine:
        machine.bus.add_mmio(range(0x80000, 0x80010), device)
        report = machine.run(20)
    assert report.passed, report.reason
    assert device.seen == [
        ("write", 0x80000, 1, 1),
        ("write", 0x80002, 2, 0x202),
        ("write", 0x80004, 4, 0x3030303),
        ("read", 0x80008, 4, 0),
        ("read", 0x8000F, 1, 0),
    ]
    assert report.unclaimed_mmio == 1


def test_negative_and_huge_values_are_cut_to_the_width() -> None:
    class Odd(Recorder):
        def read(self, address: int, size: int) -> int:
            return -1 if address == 0x10 else 1 << 100 | 7

    image = guest(
        "inw $0x10, %ax\n cmpw $0xFFFF, %ax\n jne 9f\n"
        f"inl $0x11, %eax\n cmpl $7, %eax\n jne 9f\n{EXIT_0}{FAIL}"
    )
    with Machine(image) as machine:
        machine.bus.add_ports(range(0x10, 0x12), Odd())
        assert machine.run(20).passed


def test_the_protocols_ports_stay_with_c() -> None:
    device = Recorder()
    with Machine(guest("movb $'x', %al\n outb %al, $0xE9\n outw %ax, $0xE9\n" + EXIT_0)) as machine:
        machine.bus.add_ports(range(0xE9, 0xF5), device)
        assert machine.run(20).console == "x"
    # With another width it is any other port.
    assert [(kind, port, size) for kind, port, size, _ in device.seen] == [("write", 0xE9, 2)]


def test_a_refused_device_claims_nothing() -> None:
    with Machine(guest("inb $0x20, %al\n outb %al, $0xf4")) as machine:
        machine.bus.add_ports(range(0x30, 0x31), Recorder())
        with pytest.raises(ConfigurationError):
            machine.bus.add_ports(range(0x20, 0x40), Recorder())
        report = machine.run(20)
        assert report.exit_code == 0xFF
        assert report.unclaimed_ports == 1


@pytest.mark.parametrize(
    "ports", [range(-1, 1), range(0xFFFF, 0x10001), range(0x10, 0x20)], ids=str
)
def test_ports_that_cannot_be_are_refused(ports: range) -> None:
    with Machine(passing()) as machine:
        machine.bus.add_ports(range(0x10, 0x11), Recorder())
        with pytest.raises(ConfigurationError):
            machine.bus.add_ports(ports, Recorder())


@pytest.mark.parametrize(
    "addresses",
    [
        range(0x80000, 0x80000),
        range(0x81000, 0x80000),
        range(-16, 16),
        range(1 << 64),
        range(1 << 64, (1 << 64) + 16),
        range(0x80000, 0x80010, 2),
        range(0x8000F, 0x80020),
    ],
    ids=str,
)
def test_addresses_that_cannot_be_are_refused(addresses: range) -> None:
    with Machine(passing()) as machine:
        machine.bus.add_mmio(range(0x80000, 0x80010), Recorder())
        with pytest.raises(ConfigurationError):
            machine.bus.add_mmio(addresses, Recorder())
        assert machine.run(20).passed


def test_a_window_of_more_than_half_of_all_addresses() -> None:
    device = Recorder()
    with Machine(
        guest("movw $0x8000, %ax\n movw %ax, %es\n movb %al, %es:0\n" + EXIT_0)
    ) as machine:
        machine.bus.add_mmio(range(16, 1 << 64), device)
        assert machine.run(20).passed
    assert [(kind, address, size) for kind, address, size, _ in device.seen] == [
        ("write", 0x80000, 1)
    ]


def test_as_many_windows_as_there_may_be() -> None:
    with Machine(passing()) as machine:
        for number in range(lib.PYTHON_WINDOWS):
            machine.bus.add_mmio(range(0x80000 + 16 * number, 0x80008 + 16 * number), Recorder())
        with pytest.raises(ConfigurationError, match="64"):
            machine.bus.add_mmio(range(0x90000, 0x90010), Recorder())


# ---- what nobody claims ----


def test_what_nobody_claims_reads_all_ones_and_is_counted() -> None:
    image = guest(
        "inb $0x20, %al\n cmpb $0xFF, %al\n jne 9f\n"
        "inw $0x21, %ax\n cmpw $0xFFFF, %ax\n jne 9f\n"
        "inl $0x22, %eax\n cmpl $0xFFFFFFFF, %eax\n jne 9f\n outl %eax, $0x22\n"
        "movw $0xB000, %ax\n movw %ax, %es\n movl $5, %es:0\n"
        "movl %es:0, %eax\n cmpl $0xFFFFFFFF, %eax\n jne 9f\n"
        "movb %es:1, %al\n cmpb $0xFF, %al\n jne 9f\n"
        f"{EXIT_0}{FAIL}"
    )
    with Machine(image) as machine:
        report = machine.run(20)
    assert report.passed, report.reason
    assert (report.unclaimed_ports, report.unclaimed_mmio) == (4, 3)


def test_an_in_from_an_out_port_is_any_other_port() -> None:
    image = guest(
        "inb $0xE9, %al\n cmpb $0xFF, %al\n jne 9f\n inl $0xF4, %eax\n incl %eax\n jnz 9f\n"
        "movw $0x608, %dx\n inl %dx, %eax\n incl %eax\n jnz 9f\n"
        f"movw $0x60C, %dx\n outl %eax, %dx\n inw %dx, %ax\n incw %ax\n jnz 9f\n{EXIT_0}{FAIL}"
    )
    with Machine(image) as machine:
        report = machine.run(20)
    assert report.passed, report.reason
    assert report.unclaimed_ports == 5


def test_the_console_keeps_what_fits() -> None:
    """A string that crosses the limit: the first 1 MiB is kept, the rest counted."""
    rounds, length, before = 2, 300, lib.CONSOLE_SIZE - 400
    image = guest(
        f"movw ${rounds}, %bx\n1: movw $0xE9, %dx\n movw $0x1000, %ax\n movw %ax, %ds\n"
        f"xorw %si, %si\n movw ${length}, %cx\n cld\n rep outsb\n decw %bx\n jnz 1b\n{EXIT_0}"
    )
    with Machine(image) as machine:
        machine.memory.write(0x10000, b"x" * length)
        machine._protocol.console_written = before  # a megabyte takes a slow KVM half a minute
        report = machine.run(60)
        assert machine.console() == bytes(before) + b"x" * 400
    assert report.passed
    assert len(report.console) == lib.CONSOLE_SIZE
    assert report.console_dropped == 200


def test_the_console_takes_any_byte() -> None:
    image = guest(f"xorw %ax, %ax\n1: outb %al, $0xE9\n incb %al\n jnz 1b\n{EXIT_0}")
    with Machine(image) as machine:
        report = machine.run(20)
        assert machine.console() == bytes(range(256))
    assert report.console.startswith("\0\1")


def test_measures_keep_what_fits() -> None:
    image = guest(
        f"movw $0x614, %dx\n xorl %eax, %eax\n1: outl %eax, %dx\n incl %eax\n"
        f"cmpl $5000, %eax\n jne 1b\n{EXIT_0}"
    )
    with Machine(image) as machine:
        report = machine.run(60)
    assert report.measures == tuple(range(lib.MEASURES_SIZE))
    assert report.measures_dropped == 5000 - lib.MEASURES_SIZE
