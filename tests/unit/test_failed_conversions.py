"""What is said of conversions that the kernel refused, and what they make of a run."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest
from test_diagnosis import NO_MEMORY, MadeUpVcpu

from pyvmm.diagnosis import describe_run_failure
from pyvmm.errors import KvmError
from pyvmm.guest.image import Image
from pyvmm.memory.guest_memory import GuestMemory, Region
from pyvmm.native import ffi, lib
from pyvmm.report import Result
from pyvmm.verdict import Judge

PAGE = 0x1000
PRIVATE, SHARED, SIZE = 0x40000, 0xC0000, 8 * PAGE


@pytest.mark.parametrize(
    ("number", "result"),
    [
        (errno.EAGAIN, Result.FAIL),
        (errno.ENOMEM, Result.ERROR),
        (errno.EMFILE, Result.ERROR),
        (errno.EPERM, Result.ERROR),
    ],
)
def test_a_run_that_a_refused_conversion_ends(number: int, result: Result) -> None:
    raw = ffi.new("struct vcpu_loop *")
    raw.memory_exit.error = -number
    raw.memory_exit.access.gpa = 0x41000
    vcpu = MadeUpVcpu(lib.KVM_EXIT_MEMORY_FAULT)
    loop: Any = SimpleNamespace(raw=raw, vcpu=vcpu, last_exits=lambda count: [])
    judge = Judge(NO_MEMORY, Image("guest", ()), False)
    end = judge.stopped(loop, 0, lib.STOP_CONVERSION_FAILED, "the policy")
    assert end.result is result
    assert errno.errorcode[number] in end.reason and "GPA 0x41000" in end.reason
    assert ("a pipe" in end.reason) == (number == errno.EAGAIN)


def in_use(page: int, gpa: int, pages: int, times: int = 1) -> str:
    memory = object.__new__(GuestMemory)
    memory._raw = ffi.new("struct memory *")
    memory._raw.regions[0].busy, memory._raw.regions[0].busy_page = times, page
    backing: Any = None
    memory.regions = [Region(PRIVATE, SHARED, SIZE, backing, memory, 0)]
    return memory._page_in_use(gpa, pages)


@pytest.mark.parametrize("view", [PRIVATE, SHARED])
def test_the_page_in_use_is_one_of_those_that_were_asked_for(view: int) -> None:
    assert in_use(5, view + 5 * PAGE, 1) == ", the page at GPA 0x45000 is in use"
    assert in_use(5, view, 8) == ", the page at GPA 0x45000 is in use"
    # Another thread's, or nonsense: no page that was not asked for is named.
    for page in (0, 4, 6, 8, (1 << 52) - 1):
        assert in_use(page, view + 5 * PAGE, 1) == ""
    assert in_use(0, view, 8, times=0) == ""


@pytest.mark.parametrize("call", ["convert", "conversion"])
def test_memslots_that_are_used_up_are_no_memory(call: str) -> None:
    error = KvmError(call, errno.ENOSPC, "GPA 0x40000")
    assert "memslots" in error.remedy and "the memory behind it" in error.remedy


def test_a_file_that_cannot_be_mapped_says_which_can() -> None:
    assert "GUEST_MEMFD_FLAG_MMAP" in KvmError("mmap", errno.ENODEV, "4096 bytes").remedy


def test_a_poisoned_page_is_no_file_that_is_gone() -> None:
    vcpu: Any = MadeUpVcpu(lib.KVM_EXIT_MEMORY_FAULT)
    text = describe_run_failure(lib.EHWPOISON, vcpu, "CS:IP 0000:7c00")
    assert "poisoned" in text and "is a memslot's file gone" not in text
    assert "is a memslot's file gone" in describe_run_failure(errno.EFAULT, vcpu, "CS:IP 0")
