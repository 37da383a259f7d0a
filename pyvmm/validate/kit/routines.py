"""What the cases' guests do: a few instructions each, in 64-bit mode, ended by HLT.

The bytes are there ready-made, because the assembler may not be where the cases run; a
test assembles the source beside them and compares.

Registers: rdi where, rax the value, rsi the stride in bytes, rcx how often, r8 a mask
(-1: each word's value is rax plus its own address; 0: it is rax).
"""

from __future__ import annotations

from typing import NamedTuple


class Routine(NamedTuple):
    source: str
    code: bytes


def _routine(source: str, code: str) -> Routine:
    return Routine(source, bytes.fromhex(code))


# One access of 1, 2, 4 or 8 bytes.
READ = {
    1: _routine("movzbl (%rdi), %eax; hlt", "0fb607f4"),
    2: _routine("movzwl (%rdi), %eax; hlt", "0fb707f4"),
    4: _routine("mov (%rdi), %eax; hlt", "8b07f4"),
    8: _routine("mov (%rdi), %rax; hlt", "488b07f4"),
}
WRITE = {
    1: _routine("mov %al, (%rdi); hlt", "8807f4"),
    2: _routine("mov %ax, (%rdi); hlt", "668907f4"),
    4: _routine("mov %eax, (%rdi); hlt", "8907f4"),
    8: _routine("mov %rax, (%rdi); hlt", "488907f4"),
}

# The same for a vCPU with a LAPIC, whose HLT is no exit: a port ends it.
READ_OUT = _routine("mov (%rdi), %rax; out %al, $0x80; hlt", "488b07e680f4")

# A locked addition of rax; what was there before is in rax.
ADD = {
    1: _routine("lock xadd %al, (%rdi); hlt", "f00fc007f4"),
    2: _routine("lock xadd %ax, (%rdi); hlt", "66f00fc107f4"),
    4: _routine("lock xadd %eax, (%rdi); hlt", "f00fc107f4"),
    8: _routine("lock xadd %rax, (%rdi); hlt", "f0480fc107f4"),
}
# Copy rcx words from rsi to rdi.
COPY = _routine("rep movsq; hlt", "f348a5f4")

# Write a word every rsi bytes.
FILL = _routine(
    "1: mov %rdi, %rbx; and %r8, %rbx; add %rax, %rbx; mov %rbx, (%rdi); add %rsi, %rdi;"
    "dec %rcx; jnz 1b; hlt",
    "4889fb4c21c34801c348891f4801f748ffc975ecf4",
)
# Compare such words. Ends at the first that differs: at rdi, seen in rdx, expected in rbx;
# rcx is 0 when all were equal.
SCAN = _routine(
    "1: mov %rdi, %rbx; and %r8, %rbx; add %rax, %rbx; mov (%rdi), %rdx; cmp %rbx, %rdx;"
    "jne 2f; add %rsi, %rdi; dec %rcx; jnz 1b; 2: hlt",
    "4889fb4c21c34801c3488b174839da75084801f748ffc975e7f4",
)
# Report a word for ever, without an exit: to the mailbox at rsi, which holds the word, the
# number of rounds, and a byte that ends it.
WATCH = _routine(
    "1: mov (%rdi), %rax; mov %rax, (%rsi); incq 8(%rsi); cmpb $0, 16(%rsi); je 1b; hlt",
    "488b0748890648ff4608807e100074f0f4",
)
# The same, and add one to the word in each round.
COUNT = _routine(
    "1: incq (%rdi); mov (%rdi), %rax; mov %rax, (%rsi); incq 8(%rsi); cmpb $0, 16(%rsi);"
    "je 1b; hlt",
    "48ff07488b0748890648ff4608807e100074edf4",
)
# What follows up to the hypercalls means the same in 32-bit code, as reads and writes of at most
# four bytes do.
WATCH_32 = _routine(
    "1: mov (%rdi), %eax; mov %eax, (%rsi); incl 8(%rsi); cmpb $0, 16(%rsi); je 1b; hlt",
    "8b078906ff4608807e100074f3f4",
)
# Change an entry of a page table at rdi and use the page at rsi that it maps: by a write or a
# locked addition of eax, or an exchange of eax for ebx. The TLB is flushed by page, or by CR3.
REMAP = {
    "write": _routine("mov %eax, (%rdi); invlpg (%rsi); mov (%rsi), %eax; hlt", "89070f013e8b06f4"),
    "write, CR3": _routine(
        "mov %eax, (%rdi); mov %rbx, %cr3; mov (%rsi), %eax; hlt", "89070f22db8b06f4"
    ),
    "add": _routine(
        "lock xadd %eax, (%rdi); invlpg (%rsi); mov (%rsi), %eax; hlt", "f00fc1070f013e8b06f4"
    ),
    "exchange": _routine(
        "lock cmpxchg %ebx, (%rdi); invlpg (%rsi); mov (%rsi), %eax; hlt", "f00fb11f0f013e8b06f4"
    ),
}
# Hypercalls, by the instruction of either vendor.
VMMCALL = _routine("vmmcall; hlt", "0f01d9f4")
VMCALL = _routine("vmcall; hlt", "0f01c1f4")
# The same for a caller that may not halt: a port ends it.
VMMCALL_OUT = _routine("vmmcall; out %al, $0x80; hlt", "0f01d9e680f4")
VMCALL_OUT = _routine("vmcall; out %al, $0x80; hlt", "0f01c1e680f4")
# String I/O: a byte from rsi to port dx, and from port dx to rdi. KVM emulates both.
OUTSB = _routine("outsb; hlt", "6ef4")
INSB = _routine("insb; hlt", "6cf4")
# Load a segment register with a selector from rdi.
LOAD_SEGMENT = _routine("mov (%rdi), %ds; hlt", "8e1ff4")
# Write to rdi, or copy a byte from rsi to it, again and again until the byte at rbx is not 0.
WRITE_FOREVER = _routine("1: mov %eax, (%rdi); cmpb $0, (%rbx); je 1b; hlt", "8907803b0074f9f4")
COPY_FOREVER = _routine(
    "1: movsb; dec %rdi; dec %rsi; cmpb $0, (%rbx); je 1b; hlt", "a448ffcf48ffce803b0074f4f4"
)
# Port I/O and MSRs: what is read ends in rax, and for an MSR in rdx too.
OUTL = _routine("out %eax, (%dx); hlt", "eff4")
INL = _routine("in (%dx), %eax; hlt", "edf4")
RDMSR = _routine("rdmsr; hlt", "0f32f4")
WRMSR = _routine("wrmsr; hlt", "0f30f4")
# An exception.
DIVIDE = _routine("xor %ecx, %ecx; div %ecx; hlt", "31c9f7f1f4")
HALT = _routine("hlt", "f4")

ALL: tuple[Routine, ...] = (
    *READ.values(),
    *WRITE.values(),
    READ_OUT,
    *ADD.values(),
    COPY,
    FILL,
    SCAN,
    WATCH,
    COUNT,
    WATCH_32,
    *REMAP.values(),
    VMMCALL,
    VMCALL,
    VMMCALL_OUT,
    VMCALL_OUT,
    OUTSB,
    INSB,
    LOAD_SEGMENT,
    WRITE_FOREVER,
    COPY_FOREVER,
    OUTL,
    INL,
    RDMSR,
    WRMSR,
    DIVIDE,
    HALT,
)


def layout(start: int) -> tuple[bytes, dict[Routine, int]]:
    """All routines in one piece of code for GPA ``start``, and where each begins."""
    code, entries = b"", {}
    for routine in ALL:
        entries[routine] = start + len(code)
        code += routine.code.ljust(-(-len(routine.code) // 16) * 16, b"\xf4")
    return code, entries
