"""What is said of conversions that the kernel refused, and what they make of a run."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest
from test_diagnosis import NO_MEMORY, MadeUpVcpu

from pyvmm.guest.image import Image
from pyvmm.native import ffi, lib
from pyvmm.report import Result
from pyvmm.verdict import Judge


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
