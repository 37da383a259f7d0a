"""Frames of exceptions and interrupts that are lost with their page, and come again, once."""

from __future__ import annotations

import pytest
from snippets import PRIVATE, guest

from pyvmm import Machine, RunReport
from pyvmm.kvm.exits import MemoryErrorExit

STACK = f"movw ${PRIVATE >> 4}, %ax\n movw %ax, %ss\n movw $0x800, %sp\n"
EXIT = "xorl %eax, %eax\n outl %eax, $0xf4\n"

UNDEFINED = f"""
        movw $handler, 6 * 4
        {STACK}
        ud2
handler: {EXIT}
"""

# The PIC from vector 0x20 on with the timer's line alone, and the timer at 75 Hz or faster.
TIMER = """
        movw $timer, 0x20 * 4
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
"""


def run(text: str, **options: object) -> RunReport:
    with Machine(guest(text), backend="emulated", **options) as machine:  # type: ignore[arg-type]
        return machine.run(20)


@pytest.fixture(scope="module", autouse=True)
def frames_are_delivered() -> None:
    """Skip where exceptions are pushed by hardware, which the VMM never sees."""
    if not run(UNDEFINED).passed:
        pytest.skip("this KVM delivers no exception whose stack is absent")


def test_of_a_page_that_the_policy_converts_itself() -> None:
    def policy(exit: MemoryErrorExit, vcpu: int) -> bool:
        machine.memory.convert(exit.gpa, exit.size, exit.wanted)
        return True

    with Machine(guest(UNDEFINED), backend="emulated", policy=policy) as machine:
        assert machine.run(20).passed
        assert machine.memory.conversions().explicit == 1


def test_an_exception_in_a_handler_does_not_repeat_its_interrupt() -> None:
    text = f"""
        movw $undefined, 6 * 4
        {TIMER}
        sti
1:      jmp 1b
timer:  incw %cs:count
        cmpw $1, %cs:count
        jne twice                       # there was no end of interrupt
        {STACK}
        sti
        nop
        ud2
undefined:
        sti
        movw $1000, %cx
2:      loop 2b
        {EXIT}
twice:  movl $5, %eax
        outl %eax, $0xf4
count:  .word 0
"""
    report = run(text, irqchip=True)
    assert report.passed, report.reason


@pytest.mark.parametrize("prefixes", ["", ".byte 0x3e, 0x67, 0x66, 0x64\n"])
def test_an_interrupt_of_a_repeated_string_instruction_comes(prefixes: str) -> None:
    text = f"""
        {TIMER}
        movw $0x2000, %ax
        movw %ax, %es
        {STACK}
        sti
1:      movl $0xffff, %ecx
        xorl %edi, %edi
        cld
        {prefixes} rep stosb
        jmp 1b
timer:  {EXIT}
"""
    report = run(text, irqchip=True)
    assert report.passed, report.reason
    assert report.exits["shutdown"] == 1


@pytest.mark.parametrize("stack", [0x1000, PRIVATE >> 4])
def test_no_trap_of_single_steps_is_lost(stack: int) -> None:
    text = f"""
        movw $trap, 1 * 4
        movw $0x1000, %ax
        movw %ax, %ss
        movw $0x800, %sp
        pushw $0x102
        movw ${stack:#x}, %bx
        popfw                           # single steps from the next instruction on
        movw %bx, %ss
        nop
after:  nop
        nop
        nop
        movl %cs:count, %eax
        movw $0x614, %dx
        outl %eax, %dx
        xorl %eax, %eax
        movw %cs:first, %ax
        subw $after - 1, %ax
        outl %eax, %dx
        {EXIT}
trap:   incw %cs:count
        pushw %bp
        movw %sp, %bp
        cmpw $1, %cs:count
        jne 1f
        pushw 2(%bp)
        popw %cs:first
1:      cmpw $3, %cs:count
        jb 2f
        andw $~0x100, 6(%bp)
2:      popw %bp
        iret
count:  .long 0
first:  .word 0
"""
    report = run(text)
    assert report.passed, report.reason
    assert report.measures == (3, 0)
