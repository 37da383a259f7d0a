"""Hostile guests of protected and long mode: each run ends in time, and leaves nothing.

More is run by hand: PYVMM_FUZZ_GUESTS=5000 pytest tests/host/test_flat_fuzz.py
"""

from __future__ import annotations

import os
import random
import struct

import pytest
from conftest import holdings
from test_cli_fuzz import ENDED, check_report, usable_backends

from pyvmm import Machine, Result, assemble
from pyvmm.guest.flat_modes import LongMode, ProtectedMode
from pyvmm.memory.backends import BACKENDS

GUESTS = int(os.environ.get("PYVMM_FUZZ_GUESTS", "40"))
DEADLINE_S = 0.1

# A handler of every exception that goes on behind an instruction of two bytes.
SKIP = """
        movl $256, %ecx
        movl $skip, %eax
        subq $16, %rsp
        sidt (%rsp)
        movq 2(%rsp), %rdi
1:      movw %ax, (%rdi)
        movl %eax, %ebx
        shrl $16, %ebx
        movw %bx, 6(%rdi)
        addq $16, %rdi
        loop 1b
        jmp 2f
skip:   addq $8, %rsp           # an error code, as #GP has
        addq $2, (%rsp)
        iretq
2:
"""
PASS = "xorl %eax, %eax\noutl %eax, $0xf4\n"
TO_TABLES = "movq %cr3, %rbx\n"
FLUSH = "movq %cr3, %rax\nmovq %rax, %cr3\n"


def registers_of_a_model(first: int, last: int, value: str) -> str:
    """Every MSR of a range, read and written."""
    return f"""
        movl ${first:#x}, %esi
3:      movl %esi, %ecx
        {value}
        wrmsr
        movl %esi, %ecx
        rdmsr
        incl %esi
        cmpl ${last:#x}, %esi
        jb 3b
    """


HOSTILE = {
    "tables that point to themselves": (
        f"{TO_TABLES}leaq 3(%rbx), %rcx\nmovq %rcx, (%rbx)\n{FLUSH}movq 0x200000, %rax\n{PASS}"
    ),
    "directories that point to their directory": (
        f"{TO_TABLES}leaq 0x1003(%rbx), %rcx\nmovl $512, %edx\nleaq 0x1000(%rbx), %rdi\n"
        f"1: movq %rcx, (%rdi)\naddq $8, %rdi\ndecl %edx\njnz 1b\n{FLUSH}{PASS}"
    ),
    "tables where nothing is": f"movq $0x3000000, %rax\nmovq %rax, %cr3\n{PASS}",
    "tables in the region": f"movq $0x40000, %rax\nmovq %rax, %cr3\n{PASS}",
    "tables beyond every address": f"movq $0xffffffffff000, %rax\nmovq %rax, %cr3\n{PASS}",
    "reserved bits in a table": (
        f"{TO_TABLES}movq $-1, 0x2008(%rbx)\n{FLUSH}movq 0x200000, %rax\n{PASS}"
    ),
    "an IDT in the region": f"lidt 1f\nud2\n1: .word 0xfff\n.quad 0x40000\n{PASS}",
    "an IDT of nothing": "lidt 1f\nud2\n1: .quad 0, 0\n",
    "a stack where nothing is": "movq $0x200000000, %rsp\npushq %rax\n",
    "a stack in both views": (
        f"movq $0x40ff8, %rsp\n1: pushq %rax\nmovq %rsp, %rax\nxorq $0x80000, %rax\n"
        f"movq $1, (%rax)\npopq %rax\nincl %ecx\ncmpl $64, %ecx\njb 1b\n{PASS}"
    ),
    "no paging any more": "movq %cr0, %rax\nbtrl $31, %eax\nmovq %rax, %cr0\nhlt\n",
    "real mode from here": "movq $0, %rax\nmovq %rax, %cr0\nhlt\n",
    "every port": (
        "xorl %edx, %edx\n1: cmpl $0xf4, %edx\nje 2f\ncmpl $0x610, %edx\nje 2f\n"
        "cmpl $0x60c, %edx\nje 2f\noutb %al, %dx\nincl %eax\n2: incl %edx\n"
        f"cmpl $0x10000, %edx\njb 1b\n{PASS}"
    ),
    "an interrupt flag and no controller": "sti\nhlt\n",
    "a doorbell for the world": (
        "movl $0xffffffff, %eax\n" + "".join(
            f"movl ${port:#x}, %edx\noutl %eax, %dx\n" for port in (0x61C, 0x620, 0x600, 0x604)
        ) + f"movl $0x608, %edx\nmovl $2, %eax\noutl %eax, %dx\n{PASS}"
    ),
    "MSRs of Intel": SKIP + registers_of_a_model(0, 0x800, "movl $-1, %eax\nmovl $-1, %edx") + PASS,
    "MSRs of AMD": SKIP
    + registers_of_a_model(0xC0000083, 0xC0000200, "xorl %eax, %eax\nxorl %edx, %edx")
    + PASS,
    "MSRs of KVM": SKIP
    + registers_of_a_model(0x4B564D00, 0x4B564D10, "movl $0x40001, %eax\nxorl %edx, %edx")
    + PASS,
    "MSRs of 64-bit mode": SKIP + registers_of_a_model(0xC0000080, 0xC0000090, "movl $-1, %eax"),
}  # fmt: skip
# With KVM's interrupt controllers: what a write to the LAPIC's command register does.
SENDS = {"INIT": 0x44500, "INIT to all": 0x84500, "NMI": 0x44400, "SMI": 0x44200, "SIPI": 0x44608}


def run_one(guest: str | bytes, mode: str, deadline_s: float = 1.0, **options: object) -> Result:
    image = assemble(guest, mode=mode) if isinstance(guest, str) else guest
    platform = LongMode() if mode == "long" else ProtectedMode()
    with Machine(image, platform=platform, **options) as machine:  # type: ignore[arg-type]
        report = machine.run(deadline_s)
    assert report.result in ENDED, report.reason
    check_report(report)
    return report.result


@pytest.mark.usefixtures("no_leak")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_guest_of_long_mode(name: str) -> None:
    for vcpus in (1, 2):
        run_one(HOSTILE[name], "long", vcpus=vcpus)


@pytest.mark.usefixtures("no_leak")
@pytest.mark.parametrize("name", SENDS)
def test_interrupts_that_a_vcpu_sends_itself(name: str) -> None:
    send = f"movl $0xfee00300, %ebx\nmovl ${SENDS[name]:#x}, (%ebx)\nnop\nhlt\n"
    for mode in ("protected", "long"):
        run_one(send, mode, 0.3, irqchip=True, vcpus=2)


_VALUES = (0, 1, 0x1000, 0x36000, 0x3F000, 0x40000, 0x7FFF8, 0xBFFFF, 0xC0FFC, 0x100000, 0xFFFFFC,
           0xFEE00300, 0xFFFFFFFF)  # fmt: skip
_WIDE = (*_VALUES, 1 << 32, 0x1_003F_FFF8, 0x1_4000_0FFC, 0x1_FFFF_FFFC, 1 << 47, (1 << 64) - 4)
_PORTS = (0xE9, 0xF4, 0x600, 0x604, 0x608, 0x60C, 0x610, 0x614, 0x618, 0x61C, 0x620, 0x624, 0x3F8)
_ACCESSES = tuple(
    bytes.fromhex(each)
    for each in [
        "8907",
        "8b07",
        "8807",
        "8a07",
        "f3ab",
        "f3a4",
        "ff37",
        "8f07",
        "f0ff07",
        "8707",
        "0fc70f",
        "ff1f",
        "ff17",
        "0f2907",
        "0f011f",
        "0f0117",
        "0f0107",
        "dd37",
    ]
)
_SYSTEM = tuple(
    bytes.fromhex(each)
    for each in [
        "0f22c0",
        "0f22d8",
        "0f22e0",
        "0f30",
        "0f32",
        "0fa2",
        "cf",
        "48cf",
        "fb",
        "8ed8",
        "8ed0",
        "0f00d8",
        "60",
        "61",
        "cc",
        "cd80",
        "0f05",
        "0f34",
        "0f01c1",
        "f4",
    ]
)


def _load(rng: random.Random, register: int, mode: str) -> bytes:
    value = rng.choice(_WIDE) if rng.random() < 0.8 else rng.getrandbits(64)
    if mode == "long":
        return struct.pack("<BBQ", 0x48, 0xB8 + register, value)
    return struct.pack("<BI", 0xB8 + register, value & 0xFFFFFFFF)


def _piece(rng: random.Random, mode: str) -> bytes:
    kind = rng.randrange(12)
    rex = b"\x48" if mode == "long" and rng.random() < 0.5 else b""
    if kind < 3:
        port = rng.choice(_PORTS) if rng.random() < 0.8 else rng.getrandbits(16)
        out = rng.choice((b"\xee", b"\xef", b"\x66\xef", b"\xec", b"\xed"))
        return _load(rng, 0, mode) + struct.pack("<BI", 0xBA, port) + out
    if kind < 8:  # by RDI, with a count that ends
        count = struct.pack("<BI", 0xB9, rng.choice((0, 1, 3, 2000)))
        return _load(rng, 7, mode) + count + rex + rng.choice(_ACCESSES)
    if kind < 9:
        return _load(rng, 4, mode) + rng.choice((b"\x50", b"\x58", b"\xe8\0\0\0\0", b"\x9c"))
    if kind < 11:
        return _load(rng, 0, mode) + rng.choice(_SYSTEM)
    return rng.randbytes(rng.randrange(1, 8))


def test_random_guests(rng: random.Random) -> None:
    run_one(b"\xf4", "long")  # what is made once per process is no leak
    run_one(b"\xf4", "protected")
    before = holdings()
    for index in range(GUESTS):
        mode = rng.choice(("protected", "long", "long"))
        pieces = b"".join(_piece(rng, mode) for _ in range(rng.randrange(3, 60)))
        guest = pieces if index % 4 else rng.randbytes(rng.randrange(1, 600))
        backend = rng.choice(usable_backends())
        try:
            run_one(
                guest,
                mode,
                DEADLINE_S,
                backend=backend,
                vcpus=rng.choice((1, 1, 2, 3)),
                views=rng.choice(BACKENDS[backend].views),
                irqchip=rng.random() < 0.3,
            )
        except BaseException:
            print(f"guest {index}, {mode}: {guest.hex()}")
            raise
    assert holdings() == before
