"""Instructions that push several words at once, onto pages of either state and across both."""

from __future__ import annotations

import os
import random
import struct

import pytest
from snippets import PAGE, PRIVATE, SHARED, guest

from pyvmm import Image, Machine, PageState
from pyvmm.kvm.exits import MemoryErrorExit

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


# ---- a byte 0x60 that is no PUSHA ----


@pytest.mark.parametrize(
    "instruction",
    [
        "pushw $0x60",
        "pushw $0x6000",
        "pushl $0x60000000",
        "movw %di, 0x60(%bp)",
        "movw %di, %ss:0x6000",
        "addr32 movw %di, %ss:0x60(%ebp)",
        "movw $0x6000, (%bp)",
        "pushw %cs:0x60(%bx)",
    ],
)
def test_what_only_looks_like_pusha_pushes_one_word(instruction: str) -> None:
    """Its word is that which PUSHA would have pushed last, and its last byte PUSHA's."""
    view = PRIVATE
    value = 0x60000000 if "pushl" in instruction else 0x6000 if "0x6000" in instruction else 0x60
    displacement = 0 if "(%bp)" in instruction and "0x60(" not in instruction else 0x60
    is_push = instruction.startswith("push")
    size = 4 if instruction.startswith("pushl") else 2
    top = 0x6000 + size
    text = f"""
        movw ${view >> 4}, %ax
        movw %ax, %ss
        movw ${top - (0 if is_push else size)}, %sp
        movl ${top - size - displacement}, %ebp
        movw $data - 0x60, %bx
        movl ${value}, %edi
        movl $0x11111111, %esi
        {instruction}
        xorl %eax, %eax
        outl %eax, $0xf4
data:   .word {value}
"""
    with Machine(guest(text), backend="emulated") as machine:
        report = machine.run(20)
        assert report.passed, report.reason
        file = machine.memory.regions[0].backing.private_file
        found = os.pread(file.fileno(), 64, top - size)
    expected = value.to_bytes(size, "little").ljust(64, b"\0")
    assert found == expected, found.hex()
    assert report.conversions.to_private == 1


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("instruction", ["pushaw", "pushal"])
def test_pusha_at_the_start_of_its_segment(instruction: str, start: int) -> None:
    size = INSTRUCTIONS[instruction]
    text = f"""
        movw $0x2000, %ax
        movw %ax, %es
        movw $code, %si
        movw ${start}, %di
        movw $16, %cx
        rep movsb
        movw ${PRIVATE >> 4}, %ax
        movw %ax, %ss
        movw $0x800, %sp
        movl $0x77777777, %ecx
        ljmp $0x2000, ${start}
code:   {instruction}
        xorl %eax, %eax
        outl %eax, $0xf4
"""
    with Machine(guest(text), backend="emulated") as machine:
        assert machine.run(20).passed
        file = machine.memory.regions[0].backing.private_file
        assert os.pread(file.fileno(), size, 0x800 - 2 * size) == b"\x77" * size


# ---- policies ----


def straddling() -> Image:
    text = f"""
        movw ${PRIVATE >> 4}, %ax
        movw %ax, %ss
        movw ${PAGE + 8}, %sp
        movl $0x77777777, %ecx
        pushaw
        xorl %eax, %eax
        outl %eax, $0xf4
"""
    return guest(text)


@pytest.mark.parametrize("approved", [0, 1, 2])
def test_a_policy_is_asked_for_each_page(approved: int) -> None:
    asked: list[int] = []

    def policy(exit: MemoryErrorExit, vcpu: int) -> bool:
        asked.append(exit.gpa)
        return len(asked) <= approved

    with Machine(straddling(), backend="emulated", policy=policy) as machine:
        report = machine.run(20)
        file = machine.memory.regions[0].backing.private_file
        found = os.pread(file.fileno(), 16, PAGE - 8)
    assert asked == [PRIVATE, PRIVATE + PAGE][: approved + 1]
    assert report.conversions.to_private == approved
    assert report.conversion_latency.count == approved
    assert report.spurious_exits == 0
    assert report.passed == (approved == 2)
    if approved == 2:
        assert found[12:14] == b"\x77\x77"  # CX
    else:
        assert "denied" in report.reason


def test_a_policy_may_convert_by_itself() -> None:
    def policy(exit: MemoryErrorExit, vcpu: int) -> bool:
        machine.memory.convert(exit.gpa, exit.size, exit.wanted)
        return True

    with Machine(straddling(), backend="emulated", policy=policy) as machine:
        report = machine.run(20)
        file = machine.memory.regions[0].backing.private_file
        found = os.pread(file.fileno(), 16, PAGE - 8)
    assert report.passed
    assert found[12:14] == b"\x77\x77"
    assert (report.conversions.implicit, report.conversions.explicit) == (0, 2)


# ---- another vCPU ----

BESIDE = """
        .set ROUNDS, 200
        movw $0xc000, %bx
        movw %bx, %fs
        movw $0x4000, %bx
        movw %bx, %gs
        testw %ax, %ax
        jnz second
        movw $ROUNDS, %si
round:  movb %fs:0, %al                 # the page is shared
        movb $1, go
1:      cmpb $1, ready
        jne 1b
        movw %sp, save
        movw $0x4000, %ax
        movw %ax, %ss
        movw $0x810, %sp
        movl $0x77777777, %ecx
        pushaw
        xorw %ax, %ax
        movw %ax, %ss
        movw save, %sp
        movb $0, go
2:      cmpb $0, ready
        jne 2b
        movb %fs:0, %al                 # nobody else is at work: shared,
        cmpl $0, %gs:0x80a              # and private again: it reads zero
        je 3f
        incl bad
3:      decw %si
        jnz round
        movb $2, go
        movl bad, %eax
        outl %eax, $0xf4
second: cmpb $2, go
        je 5f
        cmpb $1, go
        jne second
        movb $1, ready
4:      movb %fs:0, %al
        cmpb $1, go
        je 4b
        movb $0, ready
        jmp second
5:      xorl %eax, %eax
        outl %eax, $0xf4
go:     .byte 0
ready:  .byte 0
save:   .word 0
bad:    .long 0
"""


def test_words_do_not_come_into_a_page_that_was_taken_away() -> None:
    with Machine(guest(BESIDE), backend="emulated", vcpus=2) as machine:
        report = machine.run(60)
    assert report.passed, report.reason
