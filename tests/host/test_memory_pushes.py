"""Instructions that push several words at once, onto pages of either state and across both."""

from __future__ import annotations

import os
import random
import struct

import pytest
from snippets import PAGE, PRIVATE, SHARED, guest

from pyvmm import Image, Machine, PageState, Result
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
start:  {vectors}
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

VECTORS = """
        movw $behind - 0x7c00, 0x40 * 4
        movw $0x7c0, 0x40 * 4 + 2
        movw $behind - 0x7c00, 3 * 4
        movw $0x7c0, 3 * 4 + 2
"""
UNKNOWN = "and not of the CS and FLAGS above it, which cannot be known on `emulated`"


def is_known(instruction: str, top: int, count: int, present: tuple[bool, bool]) -> bool:
    """Whether the exit tells of the only word of CS, IP and FLAGS that went to an absent page."""
    if not instruction.startswith(("int", "lcall")):
        return True
    size = INSTRUCTIONS[instruction]
    words = [top - size * at for at in range(1, count + 1)]
    return sum(not present[word // PAGE] for word in words) <= 1


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
        vectors=VECTORS if instruction.startswith("int") else "",
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
        count = len(pushed(instruction, top, 0))
        if not is_known(instruction, top, count, present):
            assert report.result is Result.FAIL
            assert UNKNOWN in report.reason
            assert report.where is not None and report.where.line is not None
            return
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


# ---- one word, by whatever instruction; or more than can be known ----

ONE = """
        movw ${segment}, %ax
        movw %ax, %ss
        movw %ax, %gs
        movw $0x0800, %sp
        movl $0x12345678, %ecx
        movl $target, %ebx
        movl $pointer, %esi
        movl $0x07f0, %ebp
        movl $0x07fe, %edi
        {instruction}
return: hlt
        .byte 0xcc, 0xf4
target: xorl %eax, %eax
        outl %eax, $0xf4
pointer: .word target, 0
far:    .word target, 0
wide:   .long target
        .word 0
word:   .word 0x5a5a, 0x7b7b
"""
STORES = {
    "call target": None,
    "calll target": None,
    "call *%bx": None,
    "calll *%ebx": None,
    "call *(%si)": None,
    "call *pointer": None,
    "calll *wide": None,
    "addr32 call *(%esi)": None,
    "addr32 call *(,%esi)": None,
    "call *%cs:pointer": None,
    "pushw %cx": 0x5678,
    "pushl %ecx": 0x12345678,
    "pushw %sp": 0x800,
    "pushl %esp": 0x800,
    "pushw $0x1234": 0x1234,
    "pushw $-2": 0xFFFE,
    "pushl $0x12345678": 0x12345678,
    "pushl $-2": 0xFFFFFFFE,
    "pushw word": 0x5A5A,
    "pushl word": 0x7B7B5A5A,
    "pushw %cs:word": 0x5A5A,
    "addr32 pushl word(,%eax)": None,
    "pushw %ss": None,
    "pushw %gs": None,
    "pushw %cs": 0,
    "pushfw": None,
    "pushfl": None,
    "enter $0, $0": 0x7F0,
    "enter $4, $0": 0x7F0,
    "subw $2, %sp; movw %cx, 14(%bp)": 0x5678,
    "subw $2, %sp; movw $0x4321, 14(%bp)": 0x4321,
    "subw $2, %sp; movw %cx, %ss:(%di)": 0x5678,
    "subw $2, %sp; movw %cx, %gs:0x7fe": 0x5678,
    "subw $2, %sp; movw $0x4321, %gs:0x7fe": 0x4321,
    "subw $2, %sp; movw %ax, %gs:0x7fe": None,
    "subw $2, %sp; addr32 movw %cx, (%esp)": 0x5678,
    "subw $2, %sp; addr32 movw %cx, 14(%ebp)": 0x5678,
    "subw $2, %sp; addr32 movw $0x4321, (%esp)": 0x4321,
    "subw $2, %sp; addr32 movw %cx, %ss:-0x7f0(%edi,%ebp)": None,
    "subw $4, %sp; addr32 movl %ecx, (%esp)": 0x12345678,
    "subw $4, %sp; addr32 movl $0x12345678, (%esp)": 0x12345678,
    "subw $2, %sp; addw %cx, 14(%bp)": 0x5678,
    "subw $2, %sp; orw $0x77, 14(%bp)": 0x77,
    "subw $2, %sp; incw 14(%bp)": 1,
    "subw $2, %sp; notw 14(%bp)": 0xFFFF,
    "subw $2, %sp; movw %ss, 14(%bp)": None,
    "subw $2, %sp; xchgw %cx, 14(%bp)": 0x5678,
    "subw $2, %sp; btsw $3, 14(%bp)": 8,
    "subw $2, %sp; movw %ss, %dx; movw %dx, %es; stosw": None,
    "subw $2, %sp; movw %ss, %dx; movw %dx, %es; movw $1, %cx; rep stosw": None,
    "subw $2, %sp; movw %ss, %dx; movw %dx, %es; movw $word, %si; movsw": 0x5A5A,
    "subw $2, %sp; movw %ss, %dx; movw %dx, %es; movw $2, %cx; cld; rep stosw": None,
    "subw $2, %sp; movw $word, %si; pushw (%si); popw 14(%bp)": 0x5A5A,
}
MORE = [
    "lcall $0, $target",
    "lcalll $0, $target",
    "lcall *far",
    "lcalll *wide",
    "int $0x40",
    "int3",
    "movb $0x7f, %al; addb $1, %al; into",
]


@pytest.mark.parametrize("instruction", STORES)
def test_an_instruction_that_writes_one_word_goes_on(instruction: str) -> None:
    """The handlers lead elsewhere; behind a call the vCPU goes on at its target."""
    text = ONE.format(segment=PRIVATE >> 4, instruction=instruction)
    if "call" not in instruction:
        text = text.replace("return: hlt", "return: jmp target")
    with Machine(guest(text), backend="emulated") as machine:
        report = machine.run(20)
        assert report.passed, report.reason
        file = machine.memory.regions[0].backing.private_file
        found = os.pread(file.fileno(), 0x10, 0x7F8)
    expected = STORES[instruction]
    if expected is not None:
        assert expected in (
            int.from_bytes(found[at : at + size], "little") for at in (4, 6) for size in (2, 4)
        ), found.hex()
    assert found[8:] == bytes(8) or "rep" in instruction, found.hex()


@pytest.mark.parametrize("instruction", ["pushl %ecx", "pushl $0x12345678", "calll target"])
def test_a_word_across_two_pages_comes_in_two_exits(instruction: str) -> None:
    text = ONE.format(segment=PRIVATE >> 4, instruction=instruction)
    text = text.replace("movw $0x0800, %sp", f"movw ${PAGE + 2}, %sp")
    if "call" not in instruction:
        text = text.replace("return: hlt", "return: jmp target")
    with Machine(guest(text), backend="emulated") as machine:
        report = machine.run(20)
        assert report.passed, report.reason
        file = machine.memory.regions[0].backing.private_file
        found = os.pread(file.fileno(), 4, PAGE - 2)
    assert report.conversions.to_private == 2
    if "call" in instruction:
        assert found[2:] == bytes(2)
    else:
        assert found == (0x12345678).to_bytes(4, "little")


@pytest.mark.parametrize("instruction", MORE)
@pytest.mark.parametrize("copies", [1, 2])
def test_a_run_ends_where_more_words_were_pushed(instruction: str, copies: int) -> None:
    vectors = "\n".join(f"movw $target, {vector} * 4" for vector in (3, 4, 0x40))
    text = ONE.format(segment=PRIVATE >> 4, instruction=instruction)
    text = text.replace("movw $0x0800, %sp", f"movw $0x0800, %sp\n{vectors}")
    text += f"\n.skip 16\n{instruction}\n" * (copies - 1)
    with Machine(guest(text), backend="emulated") as machine:
        report = machine.run(20)
    assert report.result is Result.FAIL
    assert report.exit_code is None
    assert UNKNOWN in report.reason
    assert "to GPA 0x407f" in report.reason
    assert "{standard input}:" in report.reason


@pytest.mark.parametrize("instruction", ["call *%bx", "lcall $0, $target", "int $0x40"])
def test_a_call_from_code_in_the_region(instruction: str) -> None:
    text = f"""
        movw ${PRIVATE >> 4}, %ax
        movw %ax, %es
        movw %ax, %ss
        movw $0x800, %sp
        movw $target, 0x40 * 4
        movw $code, %si
        movw $0x1000, %di
        movw $16, %cx
        cld
        rep movsb
        movw $0x1100, %bx
        movw $back, %si
        movw $0x1100, %di
        movw $16, %cx
        rep movsb
        movw $0x1100, %bx
        ljmp ${PRIVATE >> 4}, $0x1000
        .byte 0xf4
target: xorl %eax, %eax
        outl %eax, $0xf4
code:   {instruction}
        .byte 0xf4
        .skip 16
back:   ljmp $0, $target
        .skip 16
"""
    with Machine(guest(text), backend="emulated") as machine:
        report = machine.run(20)
    if instruction.startswith("call"):
        assert report.passed, report.reason
    else:
        assert UNKNOWN in report.reason


def test_the_frame_that_a_far_call_and_int_might_have_left_alike() -> None:
    """IP is in plain RAM, CS is told; whether FLAGS were pushed above it is not."""
    vectors = "movw $target, 0x40 * 4"
    text = ONE.format(segment=(PRIVATE - 0x1000) >> 4, instruction="lcall $0, $target")
    text = text.replace("movw $0x0800, %sp", f"movw $0x1002, %sp\n{vectors}")
    with Machine(guest(text), backend="emulated") as machine:
        report = machine.run(20)
    assert UNKNOWN in report.reason
    with Machine(guest(text.replace(vectors, "")), backend="emulated") as machine:
        assert machine.run(20).passed


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
