"""The guests that are measured: each a loop of one instruction, and what runs it."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache

from pyvmm.errors import KvmError, PyvmmError
from pyvmm.guest.assembler import assemble
from pyvmm.guest.image import Image
from pyvmm.machine import Machine
from pyvmm.native import lib

PORT_IN_C = lib.PORT_DOORBELL_GPA  # C keeps the value
RESULT_IN_C = lib.PORT_DOORBELL_RESULT
PORT_IN_PYTHON = 0x700
PORT_IN_KERNEL = 0x710
NOTHING_GPA = 0x80000
COALESCED_GPA = 0x90000
UNKNOWN_MSR = 0x4321
VECTOR = 0x20
# How often the guest does what KVM answers itself before it exits; the ring has 170 entries.
INSIDE = 100


@cache
def guest(code: str) -> Image:
    return assemble(f".code16\n{code}\n")


@cache
def long_guest(code: str) -> Image:
    return assemble(f"{code}\n", mode="long")


def forever(instruction: str, before: str = "") -> str:
    return f"{before}\nagain: {instruction}\n jmp again"


def inside(instruction: str, before: str = "") -> str:
    """INSIDE times the instruction, then an exit to Python, for ever."""
    return f"""{before}
        again: movw ${INSIDE}, %si
        1: {instruction}
        decw %si
        jnz 1b
        outl %eax, $0xe0
        jmp again"""


def port(number: int) -> str:
    return f"movw ${number:#x}, %dx"


def long_port(number: int) -> str:
    return f"movl ${number:#x}, %edx"


def segment(gpa: int) -> str:
    return f"movw ${gpa >> 4:#x}, %ax\n movw %ax, %es"


def opened(stack: ExitStack, machine: Machine) -> Machine:
    """A machine that is closed with ``stack``, its ticks before it: a tick that comes while
    the next machine is made would interrupt that."""
    stack.enter_context(machine)
    for loop in machine.loops:
        stack.callback(loop.disarm)
    return machine


def check(result: int) -> None:
    if result < 0:
        raise KvmError("bare loop", -result)


def unexpected(stop: int) -> PyvmmError:
    return PyvmmError("bench", f"the loop came back with stop code {stop}")
