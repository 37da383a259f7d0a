"""Instructions that push several words at once, onto pages of either state and across both."""

from __future__ import annotations

import os
import random
import struct

import pytest
from snippets import PAGE, PRIVATE, SHARED, guest

from pyvmm import Machine, PageState

CS = 0x7C0  # not 0, so that a lost word is seen
REGISTERS = {
    "eax": 0xA1A2A3A4,
    "ecx": 0xC1C2C3C4,
    "edx": 0xD1D2D3D4,
    "ebx": 0xB1B2B3B4,
    "ebp": 0xE1E2E3E4,
    "esi": 0x51525354,
    "edi": 0x61626364,
}
FLAGS = 0x0A93  # overflow, interrupts on, sign, adjust, carry
OLD = 0xEE  # what was in the pages

# With the size of the words that each pushes.
INSTRUCTIONS = {
    "pushaw": 2,
    "pushal": 4,
    "pushw %di": 2,
    "pushl %edi": 4,
    "call behind": 2,
    "int $0x40": 2,
    "int3": 2,
    "lcall $0, $behind": 2,
    "lcall $0x7c0, $behind - 0x7c00": 2,
    "lcalll $0, $behind": 4,
}

GUEST = """
        ljmp $0x7c0, $start - 0x7c00
start:  movw $behind - 0x7c00, 0x40 * 4
        movw $0x7c0, 0x40 * 4 + 2
        movw $behind - 0x7c00, 3 * 4
        movw $0x7c0, 3 * 4 + 2
        {registers}
        pushw ${flags}
        popfw
        outb %al, $0x10
        lssw stack, %sp
        {instruction}
return: nop
behind: movl $return - 0x7c00, %eax
        movw $0x614, %dx
        outl %eax, %dx
        xorl %eax, %eax
        outl %eax, $0xf4
stack:  .word {top}, {segment}
"""


def pushed(instruction: str, top: int, ip: int) -> list[int]:
    """What the instruction leaves on the stack, lowest address first."""
    size = INSTRUCTIONS[instruction]
    name, *_ = instruction.split()
    if name.startswith("pusha"):
        order = ("edi", "esi", "ebp", None, "ebx", "edx", "ecx", "eax")
        words = [REGISTERS[each] if each else top for each in order]
    elif name.startswith("push"):
        words = [REGISTERS["edi"]]
    elif name == "call":
        words = [ip]
    elif name.startswith("lcall"):
        words = [ip, CS]
    else:
        words = [ip, CS, FLAGS]
    return [word & (1 << 8 * size) - 1 for word in words]


def run(instruction: str, top: int, view: int, present: tuple[bool, bool]) -> None:
    """``present``: the two pages around ``top`` are in the view's state beforehand."""
    mine = PageState.PRIVATE if view == PRIVATE else PageState.SHARED
    other = PageState.SHARED if mine is PageState.PRIVATE else PageState.PRIVATE
    text = GUEST.format(
        registers="\n".join(f"movl ${value}, %{name}" for name, value in REGISTERS.items()),
        flags=FLAGS,
        instruction=instruction,
        top=top,
        segment=view >> 4,
    )
    with Machine(guest(text), backend="emulated") as machine:
        memory, backing = machine.memory, machine.memory.regions[0].backing
        file = backing.private_file if mine is PageState.PRIVATE else backing.shared_file
        for page, there in enumerate(present):
            memory.convert(PRIVATE + page * PAGE, PAGE, mine if there else other)
            if there:
                os.pwrite(file.fileno(), bytes([OLD]) * PAGE, page * PAGE)
        explicit = memory.conversions().explicit
        report = machine.run(20)
        assert report.passed, report.reason
        words = pushed(instruction, top, report.measures[0])
        size = INSTRUCTIONS[instruction]
        frame = struct.pack(f"<{len(words)}{'H' if size == 2 else 'I'}", *words)
        first = top - len(frame)
        touched = {page for page in (0, 1) if first < (page + 1) * PAGE and top > page * PAGE}
        for page, there in enumerate(present):
            if page not in touched:
                continue
            expected = bytearray([OLD if there else 0] * PAGE)
            for at, byte in enumerate(frame, first - page * PAGE):
                if 0 <= at < PAGE:
                    expected[at] = byte
            found = os.pread(file.fileno(), PAGE, page * PAGE)
            assert found == expected, (page, found[:32].hex(), found[-32:].hex())
        converted = sum(not present[page] for page in touched)
        assert report.conversions.implicit == converted
        assert report.conversions.explicit == explicit


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_pushes(instruction: str, rng: random.Random) -> None:
    size = INSTRUCTIONS[instruction]
    tops = [0x800, 0x801, *(PAGE + at * size for at in range(9))]
    for top in tops:
        states = [(False, False), (True, False), (False, True), (True, True)]
        for present in rng.sample(states, 2) if top != PAGE + size else states:
            run(instruction, top, rng.choice((PRIVATE, SHARED)), present)
