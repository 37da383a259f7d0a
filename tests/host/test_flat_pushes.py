"""Stacks in a region, in protected and long mode, on `emulated`: what is pushed arrives."""

from __future__ import annotations

import pytest

from pyvmm import Machine, Result, assemble
from pyvmm.report import RunReport

PRIVATE, SHARED, PAGE = 0x40000, 0xC0000, 0x1000
PASS = "xorl %eax, %eax\noutl %eax, $0xf4\n"
FAIL = "9: movb $9, %al\noutb %al, $0xf4\n"
UNKNOWN = "cannot be known on `emulated`"


def run(text: str, mode: str, deadline_s: float = 20) -> RunReport:
    with Machine(assemble(text, mode=mode), backend="emulated") as machine:
        return machine.run(deadline_s)


def stack(mode: str, top: int) -> str:
    return f"movq ${top:#x}, %rsp\n" if mode == "long" else f"movl ${top:#x}, %esp\n"


# The top of an empty page, and places where what is pushed lies across two.
TOPS = (PRIVATE + PAGE, PRIVATE + PAGE + 4, PRIVATE + PAGE + 16, PRIVATE + 2 * PAGE + 24)


@pytest.mark.parametrize("top", TOPS, ids=hex)
def test_pusha_of_protected_mode(top: int) -> None:
    load = "".join(
        f"movl ${number:#x}, %{name}\n"
        for number, name in enumerate(("eax", "ecx", "edx", "ebx", "ebp", "esi", "edi"), 0x11)
    )
    check = "".join(
        f"cmpl ${number:#x}, %{name}\njne 9f\n"
        for number, name in enumerate(("eax", "ecx", "edx", "ebx", "ebp", "esi", "edi"), 0x11)
    )
    clear = "".join(f"xorl %{name}, %{name}\n" for name in ("eax", "ecx", "edx", "ebx", "ebp"))
    text = f"{load}{stack('protected', top)}pushal\n{clear}popal\n{check}{PASS}{FAIL}"
    report = run(text, "protected")
    assert report.passed, report.reason


def test_a_store_that_looks_like_a_pusha() -> None:
    """The code ends in 0x60, and EDI goes to where PUSHA would put it: zeros stay."""
    text = f"""
        movl $0x1234, %edi
        {stack("protected", PRIVATE + PAGE - 32)}
        leal -0x60(%esp), %eax
        movl %edi, 0x60(%eax)
        cmpl $0x1234, (%esp)
        jne 9f
        cmpl $0, 4(%esp)
        jne 9f
        cmpl $0, 28(%esp)
        jne 9f
        {PASS}{FAIL}
    """
    assert run(text, "protected").passed


# What writes one word at the stack pointer, whatever that word may look like.
PUSHES = {
    "long": (
        "pushq $0x1234\npopq %rax\ncmpq $0x1234, %rax\n",
        "movq $0xdeadbeefdeadbeef, %rax\npushq %rax\npopq %rbx\ncmpq %rax, %rbx\n",
        "call 1f\ncmpl $0, %edx\njmp 2f\n1: movl $0, %edx\nret\n2:\n",
        "leaq 1f(%rip), %r9\nmovl $0, %edx\ncall *%r9\ncmpl $0, %edx\njmp 2f\n1: ret\n2:\n",
        "movq $7, -8(%rsp)\nsubq $8, %rsp\npopq %rax\ncmpq $7, %rax\n",
        "pushfq\npopq %rax\ntestb $2, %al\nsetz %al\ncmpb $0, %al\n",
        # The word is the address behind a far call that has not been done.
        "leaq 1f(%rip), %rax\njmp 1f\nrex.w lcall *(%rbx)\n1: pushq %rax\npopq %rcx\n"
        "cmpq %rcx, %rax\n",
        "movq $5, %rdi\nsubq $16, %rsp\nmovq %rdi, (%rsp)\ncmpq $5, (%rsp)\n",
    ),
    "protected": (
        "pushl $0x1234\npopl %eax\ncmpl $0x1234, %eax\n",
        "movl $0xdeadbeef, %eax\npushl %eax\npopl %ebx\ncmpl %eax, %ebx\n",
        "pushw $0x1234\npopw %ax\ncmpw $0x1234, %ax\n",
        "call 1f\ncmpl $0, %edx\njmp 2f\n1: movl $0, %edx\nret\n2:\n",
        "enter $16, $0\nleave\ncmpl %eax, %eax\n",
        "pushl %ds\npopl %eax\ncmpw $0x10, %ax\n",
        "leal 1f, %eax\njmp 1f\nlcall $8, $1f\n.byte 0x90\n1: pushl %eax\npopl %ecx\n"
        "cmpl %ecx, %eax\n",
    ),
}


@pytest.mark.parametrize("top", [PRIVATE + PAGE, PRIVATE + 2 * PAGE + 8], ids=hex)
@pytest.mark.parametrize(("mode", "push"), [(mode, p) for mode in PUSHES for p in PUSHES[mode]])
def test_one_word(mode: str, push: str, top: int) -> None:
    report = run(f"{stack(mode, top)}{push}jne 9f\n{PASS}{FAIL}", mode)
    assert report.passed, report.reason


FAR = {
    "long": (
        "leaq 3f(%rip), %rdx\nrex.w lcall *(%rdx)\n",
        "leaq 3f-0x40(%rip), %r10\nmovl $8, %r11d\nrex.w lcall *(%r10,%r11,8)\n",
        "rex.w lcall *3f(%rip)\n",
        "lcall *4f(%rip)\n",
    ),
    "protected": (
        "lcall $8, $1f\n",
        "lcall *4f\n",
        "movl $4f - 0x100, %eax\nmovl $0x40, %ebx\nlcall *(%eax,%ebx,4)\n",
    ),
}


@pytest.mark.parametrize(("mode", "call"), [(mode, call) for mode in FAR for call in FAR[mode]])
def test_a_far_call_is_not_guessed(mode: str, call: str) -> None:
    """CS is lost where its page was absent, and not where the page was there."""
    back = "rex.w lret" if mode == "long" and "lcall *4f" not in call else "lret"
    wide = ".quad 1b\n.word 8\n" if mode == "long" else ""
    text = f"{call}{PASS}1: {back}\n.balign 8\n3: {wide}\n4: .long 1b\n.word 8\n"
    report = run(stack(mode, PRIVATE + PAGE) + text, mode)
    assert report.result is Result.FAIL and UNKNOWN in report.reason, report.reason
    assert run(f"movb $0, {PRIVATE:#x}\n{stack(mode, PRIVATE + PAGE)}{text}", mode).passed


@pytest.mark.parametrize("mode", ["protected", "long"])
def test_an_exceptions_frame(mode: str) -> None:
    """It is pushed again once its page is there; the stub's report reads it."""
    report = run(f"{stack(mode, PRIVATE + PAGE)}xorl %ecx, %ecx\ndivl %ecx\n", mode, 3)
    if report.result is Result.DEADLINE:
        pytest.skip("this KVM delivers no exception whose stack is absent")
    assert report.exit_code == 0x100 and "divide error (#DE) at" in report.reason
    assert report.where is not None
    assert report.where.registers["rsp" if mode == "long" else "esp"] == PRIVATE + PAGE


def test_a_stack_at_another_linear_address() -> None:
    """Linear 1 GiB up is mapped to 0 up: what is pushed is looked for through the tables."""
    far = "rex.w lcall *3f(%rip)\n"
    pushes = "pushq $0x55\npopq %rax\ncmpq $0x55, %rax\n"
    tables = """
        movq %cr3, %rbx
        movq (%rbx), %rbx
        andq $~0xfff, %rbx
        movq (%rbx), %rax           # the first GiB's directory
        movq %rax, 8(%rbx)          # is the second's, too
        movq %cr3, %rax
        movq %rax, %cr3
    """
    top = stack("long", (1 << 30) + PRIVATE + PAGE)
    assert run(f"{tables}{top}{pushes}jne 9f\n{PASS}{FAIL}", "long").passed
    end = f"{PASS}1: rex.w lret\n.balign 8\n3: .quad 1b\n.word 8\n"
    report = run(f"{tables}{top}{far}{end}", "long")
    assert UNKNOWN in report.reason, report.reason


WIDE = (
    "movaps %xmm0, (%rsp)\nmovaps (%rsp), %xmm1\ncmpq $0, 8(%rsp)\n",
    "xorl %eax, %eax\nxorl %edx, %edx\nmovl $7, %ebx\nmovl $8, %ecx\nlock cmpxchg16b (%rsp)\n"
    "cmpq $7, (%rsp)\njne 9f\ncmpq $8, 8(%rsp)\n",
    "movq %rsp, %rdi\nmovl $2, %ecx\nmovl $3, %eax\nrep stosq\ncmpq $3, 8(%rsp)\n",
    "movl $5, %eax\nlock xaddq %rax, (%rsp)\ncmpq $5, (%rsp)\n",
)


@pytest.mark.parametrize("access", WIDE)
def test_wide_stores_at_the_stack_pointer(access: str) -> None:
    report = run(f"{stack('long', PRIVATE + PAGE - 32)}{access}jne 9f\n{PASS}{FAIL}", "long")
    if "suberror 1" in report.reason:
        pytest.skip(f"this KVM's emulator cannot do it: {report.reason}")
    assert report.passed, report.reason
