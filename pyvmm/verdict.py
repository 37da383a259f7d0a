"""What the end of a vCPU means, and what the ends of all of them make of a run."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import NamedTuple

from pyvmm.devices.end_of_run import EndOfRun
from pyvmm.diagnosis import (
    describe_cause,
    describe_deadline,
    describe_exit,
    describe_missing_paging,
    describe_run_failure,
    read_assert,
)
from pyvmm.errors import ClosedError, KvmError, PyvmmError
from pyvmm.guest.image import Image
from pyvmm.loop.vcpu_loop import VcpuLoop
from pyvmm.memory.guest_memory import GuestMemory
from pyvmm.native import ffi, lib
from pyvmm.page_states import PageState
from pyvmm.printable import printable
from pyvmm.report import Result, Where
from pyvmm.where import (
    cause_of_vector,
    is_halted_for_good,
    waits_to_be_started,
    where_it_stands,
    with_source,
)

# KVM_RUN failed for want of something that the host has too little of.
_HOST_ERRORS = (errno.EAGAIN, errno.ENOMEM)


class VcpuEnd(NamedTuple):
    """Why a vCPU stopped. ``reason`` is empty when that was no failure."""

    vcpu: int
    result: Result | None
    exit_code: int | None = None
    reason: str = ""
    where: Where | None = None

    @property
    def ends_the_run(self) -> bool:
        """Whether the other vCPUs have to stop, too."""
        return self.result is not None or bool(self.exit_code)


class Judge(NamedTuple):
    """Says what the stops of a machine's vCPUs mean, by its memory and its guest."""

    memory: GuestMemory
    image: Image
    has_irqchip: bool
    hlt_passes: bool = False
    sees_hlt_in_kernel: bool = False

    def is_halted(self, loop: VcpuLoop) -> bool:
        """Whether a vCPU that has no exit to show has come to its end in HLT all the same."""
        return self.sees_hlt_in_kernel and is_halted_for_good(loop)

    def stopped(self, loop: VcpuLoop, index: int, stop: int, denied_by: str) -> VcpuEnd:
        """The end of vCPU ``index``, whose ``loop`` returned ``stop``.

        ``denied_by`` says who denied a conversion, if one was.
        """
        raw, who = loop.raw, f"vCPU {index}"
        if stop == lib.STOP_BUSY:  # and so are the vCPU's registers
            reason = f"{who}: another thread is in its run loop"
            return VcpuEnd(index, Result.ERROR, None, reason)
        lib.loop_finish_record(raw)  # the time that judging takes is not the exit's
        if stop == lib.STOP_GUEST_EXIT and raw.guest.by_stub:
            code = raw.guest.exit_code
            cause = cause_of_vector(loop, index, self.image, self.memory, code - 0x100)
            reason = f"{who}: {describe_cause(cause, self.has_irqchip)}"
            reason += describe_missing_paging(cause.where)
            if raw.protocol.is_foreign:  # such a guest knows of no such codes
                return VcpuEnd(index, Result.FAIL, None, reason, cause.where)
            return VcpuEnd(index, None, code, reason, cause.where)
        if stop == lib.STOP_GUEST_EXIT and not raw.guest.exit_code:
            return VcpuEnd(index, None, 0)
        # A HLT may be no failure: then nobody asks for its line.
        image = None if stop == lib.STOP_HLT else self.image
        where = where_it_stands(loop, index, image, self.memory, stop)
        if stop == lib.STOP_GUEST_EXIT:
            code = raw.guest.exit_code
            reason = f"{who} wrote exit code {code} ({code:#x}) at {where.place}"
            return VcpuEnd(index, None, code, reason, where)
        if stop == lib.STOP_ASSERT:
            gpa, is_wide = raw.guest.assert_gpa, raw.protocol.is_wide
            told = read_assert(self.memory, gpa, self.image, where.place, is_wide)
            reason = f"{who}: {told}"
            return VcpuEnd(index, None, 1, reason, where)
        if stop == lib.STOP_HLT:
            return VcpuEnd(index, None, where=where)
        if stop == lib.STOP_KICK:
            return VcpuEnd(index, Result.INTERRUPTED, None, "the run was kicked", where)
        if stop == lib.STOP_DEADLINE and waits_to_be_started(loop):
            return VcpuEnd(index, None)  # others were to do it
        if stop == lib.STOP_DEADLINE:
            reason = f"{who} {describe_deadline(where)}"
            return VcpuEnd(index, Result.DEADLINE, None, reason, where)
        # What the host could not do is no failure of the guest. A page that somebody keeps in
        # use is neither: that run has begun, and did not pass.
        host_failed = (
            stop == lib.STOP_CONVERSION_FAILED and raw.memory_exit.error != -errno.EAGAIN
        ) or (stop == lib.STOP_RUN_FAILED and raw.error in _HOST_ERRORS)
        result = Result.ERROR if host_failed else Result.FAIL
        reason = _failure(loop, index, stop, denied_by, where)
        return VcpuEnd(index, result, None, reason, where)

    def ended_by_device(self, loop: VcpuLoop, index: int, end: EndOfRun) -> VcpuEnd:
        """The end of vCPU ``index``, which wrote to a device that ends the run by it."""
        lib.loop_finish_record(loop.raw)
        if end.passed:
            return VcpuEnd(index, Result.PASS, end.code)
        where = where_it_stands(loop, index, self.image, self.memory, lib.STOP_GUEST_EXIT)
        reason = printable(f"vCPU {index} {end.reason} at {where.place}")
        return VcpuEnd(index, Result.FAIL, end.code, reason, where)

    def raised(self, loop: VcpuLoop, index: int, error: Exception) -> VcpuEnd:
        """The end of a vCPU whose device, policy or log has raised."""
        # The notes say where it was raised.
        words = [f"vCPU {index}", *getattr(error, "__notes__", ())]
        if not isinstance(error, PyvmmError):
            words.append(type(error).__name__)
        reason = printable(": ".join([*words, *filter(None, [str(error)])]))
        try:
            lib.loop_finish_record(loop.raw)
            where = where_it_stands(loop, index, self.image, self.memory)
        except ClosedError:
            where = None
        return VcpuEnd(index, Result.ERROR, None, reason, where)


def _failure(loop: VcpuLoop, index: int, stop: int, denied_by: str, where: Where) -> str:
    raw, place = loop.raw, where.place
    who = f"vCPU {index}"
    access = raw.memory_exit.access
    verb = "fetched" if access.is_fetch else "wrote" if access.is_write else "touched"
    wanted = PageState(raw.memory_exit.wanted).name.lower()
    if stop == lib.STOP_MEMORY_ERROR:
        return f"{who} at {place} {verb} GPA {access.gpa:#x} as {wanted} and {denied_by} denied it"
    if stop == lib.STOP_CONVERSION_FAILED:
        error = KvmError("conversion", -raw.memory_exit.error, f"GPA {access.gpa:#x}")
        return f"{who} at {place}: {error}"
    if stop == lib.STOP_EMULATED_ACCESS:
        return (
            f"{who} at {place}: KVM's emulator tried to reach private memory at GPA "
            f"{access.gpa:#x} (KVM_EXIT_MMIO inside a region); use no string I/O or MMIO "
            "instruction there"
        )
    if stop == lib.STOP_UNKNOWN_WRITE:
        mmio = raw.run.mmio
        word = int.from_bytes(ffi.buffer(mmio.data, mmio.len), "little")
        return (
            f"{who} came to {place} by what may be a far call or INT: KVM_EXIT_MMIO tells of its "
            f"last word, {word:#x} to GPA {mmio.phys_addr:#x}, and not of the CS and FLAGS above "
            "it, which cannot be known on `emulated`; keep stacks out of the region, or use a "
            "kernel with private memory"
        )
    if stop == lib.STOP_GUARD:
        return (
            f"{who} at {place}: {lib.GUARD_LIMIT} memory exits in a row by one instruction, the "
            f"last for GPA {access.gpa:#x} as {wanted}; it needs a page in both states at once, "
            "or the kernel does not see the conversion"
        )
    if stop == lib.STOP_RUN_FAILED and raw.error == errno.EAGAIN:
        # KVM_RUN's own EAGAIN never comes here; this is the deadline's timer.
        remedy = "raise the limit of pending signals (ulimit -i)"
        return str(KvmError("timer_create", raw.error, who, remedy))
    if stop == lib.STOP_RUN_FAILED:
        return describe_run_failure(raw.error, loop.vcpu, place)
    return f"{who}: {describe_exit(loop.vcpu, place, where.mode)}{describe_missing_paging(where)}"


def verdict(
    ends: Sequence[VcpuEnd], vcpus: int, judge: Judge
) -> tuple[Result, int | None, str, Where | None]:
    """Result, exit code, reason and place of a run of so many vCPUs, by the ends until now."""
    codes = [end.exit_code for end in ends if end.exit_code is not None]
    code = next((code for code in codes if code), codes[0] if codes else None)
    for end in ends:
        if end.result is not None:
            return end.result, code, end.reason, end.where
        if end.exit_code:
            return Result.FAIL, end.exit_code, end.reason, end.where
    if len(ends) < vcpus:
        return Result.INTERRUPTED, code, "the run was interrupted", None
    if code is None and judge.hlt_passes:
        return Result.PASS, None, "", None
    if code is None:
        where = with_source(ends[-1].where, judge.image)
        last = "" if where is None else f", the last at {where.place}"
        reason = f"every vCPU ended in HLT{last}, and none wrote an exit code"
        return Result.FAIL, None, reason, where
    return Result.PASS, code, "", None
