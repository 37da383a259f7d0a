"""Devices in Python, and what is there when nobody claims a port or an address."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import Any

import pytest
from snippets import EXIT_0, PAGE, guest, passing

from pyvmm import ConfigurationError, Machine, PageState, Result
from pyvmm.devices import in_kernel
from pyvmm.guest.boot import START
from pyvmm.kvm.cpuid import physical_address_bits
from pyvmm.native import lib


class Recorder:
    """Reads the low bytes of 0x1122334455667788, and remembers every access."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int, int]] = []

    def read(self, address: int, size: int) -> int:
        self.seen.append(("read", address, size, 0))
        return 0x1122334455667788 & (1 << 8 * size) - 1

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


class Asking(Recorder):
    """Remembers which vCPU called, and changes a register of it that the access has not."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine
        self.callers: list[int] = []

    def read(self, address: int, size: int) -> int:
        vcpu = self.machine.calling_vcpu()
        self.callers.append(vcpu.index)
        regs = vcpu.get_regs()
        regs.rbx = 0x1234 + regs.rcx
        vcpu.set_regs(regs)
        return vcpu.index


def test_a_device_knows_which_vcpu_calls() -> None:
    # vCPU 0 waits until the other one, by whose index its own answer differs, has been there.
    image = guest(
        "movw $0x2F8, %dx\n movw $5, %cx\n inb %dx, %al\n cmpw $0x1239, %bx\n jne 9f\n"
        "testb %al, %al\n jnz 8f\n 1: cmpb $1, 0x600\n jne 1b\n"
        f"{EXIT_0} 8: movb $1, 0x600\n hlt\n{FAIL}"
    )
    with Machine(image, vcpus=2) as machine:
        device = Asking(machine)
        machine.bus.add_ports(range(0x2F8, 0x2F9), device)
        report = machine.run(20)
        with pytest.raises(ConfigurationError, match="runs no vCPU"):
            machine.calling_vcpu()
    assert report.passed, report.reason
    assert sorted(device.callers) == [0, 1]


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


class Answering(Recorder):
    """Answers every read with one thing."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def read(self, address: int, size: int) -> Any:
        return self.answer


READ_PORT = "inw $0x10, %ax\n"
READ_GPA = "movw $0x8000, %ax\n movw %ax, %es\n movl %es:4, %eax\n"


def with_device(machine: Machine, device: Any) -> None:
    machine.bus.add_ports(range(0x10, 0x12), device)
    machine.bus.add_mmio(range(0x80000, 0x80010), device)


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (None, "None"),
        (0x1_0000_0000, "0x100000000"),
        (-1, "-0x1"),
        (1.0, "1.0"),
        ("x\n", "'x\\n'"),
        (b"\1", "b'\\x01'"),
        (1 << 100_000, "0x1000"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else "",
)
@pytest.mark.parametrize(
    ("code", "place", "most"),
    [(READ_PORT, "port 0x10, read of 2 bytes", "0xffff"),
     (READ_GPA, "GPA 0x80004, read of 4 bytes", "0xffffffff")],
    ids=["port", "mmio"],
)  # fmt: skip
@pytest.mark.parametrize("way", ["run", "exits"])
def test_an_answer_that_does_not_fit_names_the_device_and_its_place(
    way: str, code: str, place: str, most: str, answer: Any, shown: str
) -> None:
    with Machine(guest(code + EXIT_0)) as machine:
        with_device(machine, Answering(answer))
        with pytest.raises(ConfigurationError) as caught:
            machine.run(20) if way == "run" else list(machine.exits(20))
        report = machine.report()
    assert caught.value.thing == f"device Answering at {place}"
    assert caught.value.cause.startswith(f"it answered {shown}")
    assert caught.value.remedy == f"give a number from 0 to {most}"
    assert len(str(caught.value)) < 200
    assert report.result is Result.ERROR
    assert report.reason == f"vCPU 0: {caught.value}"
    assert report.where is not None and report.where.registers["eip"] >= START


@pytest.mark.parametrize("answer", [True, PageState.PRIVATE, 0xFFFF], ids=str)
def test_any_integer_that_fits_is_an_answer(answer: int) -> None:
    image = guest(f"{READ_PORT} cmpw ${int(answer)}, %ax\n jne 9f\n{EXIT_0}{FAIL}")
    with Machine(image) as machine:
        with_device(machine, Answering(answer))
        assert machine.run(20).passed


@pytest.mark.parametrize(
    ("code", "place"),
    [
        ("inw $0x10, %ax\n", "port 0x10, read of 2 bytes"),
        ("outb %al, $0x11\n", "port 0x11, write of 1 byte"),
        (READ_GPA, "GPA 0x80004, read of 4 bytes"),
        ("movw $0x8000, %ax\n movw %ax, %es\n movb %al, %es:1\n", "GPA 0x80001, write of 1 byte"),
    ],
)
@pytest.mark.parametrize("way", ["run", "exits"])
def test_what_a_device_raises_comes_out_with_its_place(way: str, code: str, place: str) -> None:
    class Broken:
        def read(self, address: int, size: int) -> int:
            raise KeyError("lost\nfor ever")

        def write(self, address: int, size: int, value: int) -> None:
            self.read(address, size)

    with Machine(guest(code + EXIT_0)) as machine:
        with_device(machine, Broken())
        with pytest.raises(KeyError) as caught:
            machine.run(20) if way == "run" else list(machine.exits(20))
        report = machine.report()
    assert caught.value.__notes__ == [f"device Broken at {place}"]
    assert report.result is Result.ERROR
    assert report.reason.startswith(f"vCPU 0: device Broken at {place}: KeyError: ")
    assert report.reason.isprintable()


# ---- what is refused when it is added ----


@pytest.mark.parametrize(
    "ports",
    [range(0xE9, 0xEA), range(0xE0, 0xEA), range(0xF4, 0xF5), range(0x600, 0x601),
     range(0x61B, 0x61C), range(0x605, 0x700, 8), range(0x10000)],
    ids=str,
)  # fmt: skip
def test_the_protocols_ports_are_no_devices(ports: range) -> None:
    with Machine(guest("movb $'x', %al\n outb %al, $0xE9\n" + EXIT_0)) as machine:
        with pytest.raises(ConfigurationError, match="the guest protocol has it; use another port"):
            machine.bus.add_ports(ports, Recorder())
        machine.bus.add_ports(range(0xEA, 0xF4), Recorder())
        machine.bus.add_ports(range(0x5FF, 0x600), Recorder())
        machine.bus.add_ports(range(0x61C, 0x620), Recorder())
        assert machine.run(20).console == "x"


@pytest.mark.parametrize(
    ("addresses", "what"),
    [
        (range(0x1000, 0x2000), "RAM"),
        (range(0x3FFFF, 0x40000), "RAM"),
        (range(0x40000, 0x41000), "private view"),
        (range(0xFFFFF, 0x100001), "shared view"),
        (range(0x80000, 0x110000), "shared view"),
        (range(0xFFFBD800, 0xFFFBD801), "KVM's page table and TSS"),
        (range(0xFFFBC000, 0xFFFBC004), "KVM's page table"),
    ],
    ids=lambda value: value if isinstance(value, str) else hex(value.start),
)
def test_no_device_where_memory_is(addresses: range, what: str) -> None:
    with Machine(passing()) as machine:
        with pytest.raises(
            ConfigurationError, match=f"device Recorder .* it overlaps {what}.*; move"
        ):
            machine.bus.add_mmio(addresses, Recorder())
        assert machine.run(20).passed


def test_no_memory_where_a_device_is() -> None:
    with Machine(passing()) as machine:
        machine.bus.add_mmio(range(0x200010, 0x200020), Recorder())
        for add in (machine.memory.add_ram, machine.memory.add_region):
            with pytest.raises(ConfigurationError, match="overlaps device Recorder 0x200010"):
                add(0x200000, PAGE)
        machine.memory.add_ram(0x201000, PAGE)


def test_a_region_of_one_view_leaves_the_other_one_to_devices() -> None:
    device = Recorder()
    code = "movw $0xC000, %ax\n movw %ax, %es\n movb %al, %es:0\n"
    with Machine(guest(code + EXIT_0), views=1) as machine:
        machine.bus.add_mmio(range(0xC0000, 0xC0010), device)
        assert machine.run(20).passed
    assert device.seen == [("write", 0xC0000, 1, 0)]


def test_what_the_kernel_answers_is_no_devices() -> None:
    """Each such port is read by a guest first: the kernel has it."""
    ports = [port for _, taken in in_kernel.PORTS for port in taken]
    reads = "".join(f"movw ${port:#x}, %dx\n inb %dx, %al\n" for port in ports)
    with Machine(guest(reads + EXIT_0), irqchip=True) as machine:
        for name, taken in in_kernel.PORTS:
            with pytest.raises(ConfigurationError, match=f"{name} has it"):
                machine.bus.add_ports(taken, Recorder())
        for name, gpa, size in in_kernel.WINDOWS:
            with pytest.raises(ConfigurationError, match=f"overlaps {name}"):
                machine.bus.add_mmio(range(gpa + size - 1, gpa + size), Recorder())
        report = machine.run(20)
    assert report.passed and report.unclaimed_ports == 0
    device = Recorder()
    with Machine(guest(reads + EXIT_0)) as machine:
        machine.bus.add_ports(range(0x20, 0x62), device)
        machine.bus.add_ports(range(0xA0, 0xA2), device)
        machine.bus.add_ports(range(0x4D0, 0x4D2), device)
        machine.bus.add_mmio(range(0xFEE00000, 0xFEE01000), device)
        assert machine.run(20).passed
    assert [port for _, port, _, _ in device.seen] == ports


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (Recorder, "device Recorder: it is a class; give an object: Recorder()"),
        (None, "device NoneType: it has no read(address, size)"),
        (lambda address: 0, "device function: it has no read(address, size)"),
        (io.StringIO(), ""),
        (SimpleNamespace(read=print), "it has no write(address, size, value)"),
        (SimpleNamespace(read=print, write=5), "it has no write(address, size, value)"),
    ],
    ids=["class", "None", "function", "file", "no write", "write is a number"],
)
def test_what_is_no_device(thing: Any, words: str) -> None:
    with Machine(passing()) as machine:
        for add, where in (
            (machine.bus.add_ports, range(0x10, 0x11)),
            (machine.bus.add_mmio, range(0x80000, 0x80010)),
        ):
            if not words:  # a file has both methods; only a call can show what they are
                add(where, thing)
                continue
            with pytest.raises(ConfigurationError, match=re.escape(words)):
                add(where, thing)
        machine.run(20)


def test_a_refused_device_claims_nothing() -> None:
    with Machine(guest("inb $0x20, %al\n outb %al, $0xf4")) as machine:
        machine.bus.add_ports(range(0x30, 0x31), Recorder())
        with pytest.raises(ConfigurationError):
            machine.bus.add_ports(range(0x20, 0x40), Recorder())
        report = machine.run(20)
        assert report.exit_code == 0xFF
        assert report.unclaimed_ports == 1


@pytest.mark.parametrize(
    "ports",
    [range(-1, 1), range(0xFFFF, 0x10001), range(0x10, 0x20), range(0), range(9, 8), 0x60, [0x60],
     None, range(1 << 70)],
    ids=str,
)  # fmt: skip
def test_ports_that_cannot_be_are_refused(ports: Any) -> None:
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
        range(0x100000, 1 << 64),
        range(1 << 52, (1 << 52) + 16),
        0x80020,
        None,
    ],
    ids=str,
)
def test_addresses_that_cannot_be_are_refused(addresses: Any) -> None:
    with Machine(passing()) as machine:
        machine.bus.add_mmio(range(0x80000, 0x80010), Recorder())
        with pytest.raises(ConfigurationError):
            machine.bus.add_mmio(addresses, Recorder())
        assert machine.run(20).passed


def test_a_window_up_to_the_last_address_that_a_guest_has() -> None:
    with Machine(passing()) as machine:
        bits = physical_address_bits(machine.vcpus[0].get_cpuid2())
        machine.bus.add_mmio(range(1 << 32, 1 << bits), Recorder())
        with pytest.raises(ConfigurationError, match=f"guest addresses have {bits} bits here"):
            machine.bus.add_mmio(range(1 << bits, (1 << bits) + 1), Recorder())
        assert machine.run(20).passed


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
