"""Small guests that several tests run."""

from __future__ import annotations

from functools import cache

from pyvmm import Image, assemble

PRIVATE, SHARED = 0x40000, 0xC0000
PAGE = 0x1000
PAGES = 64

EXIT_0 = "movl $0, %eax\n outl %eax, $0xf4\n"


@cache
def guest(text: str) -> Image:
    """Assembled real-mode code."""
    return assemble(f".code16\n{text}\n")


def passing() -> Image:
    return guest(EXIT_0)


def spin() -> Image:
    """Never leaves the kernel."""
    return guest("1: jmp 1b")


def out_loop(port: int = 0x10) -> Image:
    """An exit after every other instruction, for ever."""
    return guest(f"movw ${port}, %dx\n1: outb %al, %dx\n jmp 1b")


def touches(*gpas: int, then: str = EXIT_0) -> Image:
    """Reads a byte at each GPA, in order."""
    lines = []
    for gpa in gpas:
        lines.append(f"movw ${gpa >> 4 & 0xF000:#x}, %ax\n movw %ax, %es")
        lines.append(f"movb %es:{gpa & 0xFFFF:#x}, %al")
    return guest("\n".join(lines) + "\n" + then)


def stores(values: dict[int, int], then: str = EXIT_0) -> Image:
    """Writes a byte to each GPA, in order."""
    lines = []
    for gpa, value in values.items():
        lines.append(f"movw ${gpa >> 4 & 0xF000:#x}, %ax\n movw %ax, %es")
        lines.append(f"movb ${value}, %es:{gpa & 0xFFFF:#x}")
    return guest("\n".join(lines) + "\n" + then)
