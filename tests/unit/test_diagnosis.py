"""Words for exits that end a run, from a vCPU that is made up."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from pyvmm.diagnosis import describe_exit, describe_run_failure
from pyvmm.errors import KvmError
from pyvmm.guest.image import Image
from pyvmm.kvm.exits import exit_decoder
from pyvmm.kvm.mapping import PAGE_SIZE
from pyvmm.native import ffi, lib
from pyvmm.report import Where
from pyvmm.where import where_it_stands

PLACE = "CS:IP 0000:7c00 (x.S:3)"


class MadeUpVcpu:
    """Answers as a vCPU that stopped at ``cs``:``rip`` with this exit."""

    def __init__(self, reason: int, cs: int = 0, rip: int = 0x7C00) -> None:
        self._memory = ffi.new("char[]", 2 * PAGE_SIZE)
        self.kvm_run: Any = ffi.cast("struct kvm_run *", self._memory)
        self.kvm_run.exit_reason = reason
        self.exit = exit_decoder(self.kvm_run)
        self._cs, self._rip = cs, rip
        self.name = "vCPU 0"

    def get_regs(self) -> Any:
        return ffi.new("struct kvm_regs *", {"rip": self._rip})

    def get_sregs(self) -> Any:
        sregs = ffi.new("struct kvm_sregs *")
        sregs.cs.selector, sregs.cs.base = self._cs, self._cs << 4
        return sregs


def no_memory() -> Any:
    memory = ffi.new("struct memory *")
    lib.memory_init(memory, -1, b"emulated", lib.POLICY_CONVERT)
    return SimpleNamespace(raw=memory)


NO_MEMORY = no_memory()


def described(vcpu: Any) -> str:
    text = describe_exit(vcpu, PLACE)
    assert text.isprintable()
    return text


@pytest.mark.parametrize("reason", [63, 64, 99, 0xFFFFFFFF])
def test_an_exit_that_nobody_knows(reason: int) -> None:
    text = described(MadeUpVcpu(reason))
    assert f"exit reason {reason}, which pyvmm does not know" in text and "0000:7c00" in text


@pytest.mark.parametrize("reason", range(45))
def test_every_reason_has_words(reason: int) -> None:
    assert described(MadeUpVcpu(reason))


def test_shutdown_says_where() -> None:
    text = described(MadeUpVcpu(lib.KVM_EXIT_SHUTDOWN))
    assert text == f"triple fault (KVM_EXIT_SHUTDOWN) at {PLACE}"


def test_a_vcpu_that_kvm_has_reset_has_no_place() -> None:
    loop: Any = SimpleNamespace(
        vcpu=MadeUpVcpu(lib.KVM_EXIT_SHUTDOWN, 0xF000, 0xFFF0), last_exits=lambda count: []
    )
    assert where_it_stands(loop, 1, None, NO_MEMORY) == Where(1)
    assert Where(1).place == "an unknown place"


def test_internal_error_shows_the_bytes() -> None:
    vcpu = MadeUpVcpu(lib.KVM_EXIT_INTERNAL_ERROR)
    emulation = vcpu.kvm_run.internal
    emulation.suberror = 1
    code = bytes.fromhex("f30fb8c0").ljust(15, b"\0")
    # Flags, then a byte of length and 15 of instruction: <linux/kvm.h>, emulation_failure.
    emulation.ndata = 3
    emulation.data[0] = 1
    emulation.data[1] = 4 | int.from_bytes(code[:7], "little") << 8
    emulation.data[2] = int.from_bytes(code[7:15], "little")
    text = described(vcpu)
    assert "suberror 1 (the emulator cannot do an instruction)" in text
    assert "f3 0f b8 c0" in text
    pytest.importorskip("capstone")
    assert "popcnt ax, ax" in text


def test_a_vcpu_that_cannot_be_asked_has_no_registers() -> None:
    class Mute(MadeUpVcpu):
        def get_regs(self) -> Any:
            raise KvmError("KVM_GET_REGS", 5)

    vcpu: Any = Mute(lib.KVM_EXIT_SHUTDOWN)
    loop: Any = SimpleNamespace(vcpu=vcpu, last_exits=lambda count: [])
    assert where_it_stands(loop, 2, Image("guest", ()), NO_MEMORY) == Where(2)
    assert list(Where(2).lines()) == []


def test_a_memory_fault_says_who_wanted_what() -> None:
    vcpu = MadeUpVcpu(lib.KVM_EXIT_MEMORY_FAULT)
    fault = ffi.cast("struct pyvmm_memory_fault *", ffi.addressof(vcpu.kvm_run, "hw"))
    fault.gpa, fault.size, fault.flags = 0x100000, 0x1000, lib.KVM_MEMORY_EXIT_FLAG_PRIVATE
    text = describe_run_failure(errno.EFAULT, vcpu, PLACE)  # type: ignore[arg-type]
    assert PLACE in text and "EFAULT" in text
    assert "KVM_EXIT_MEMORY_FAULT: GPA 0x100000, private access, size 0x1000" in text


def test_a_failure_without_an_address_says_what_is_known() -> None:
    vcpu = MadeUpVcpu(lib.KVM_EXIT_UNKNOWN)
    text = describe_run_failure(errno.EFAULT, vcpu, PLACE)  # type: ignore[arg-type]
    assert PLACE in text and "EFAULT" in text and "exit_reason unknown" in text
    assert "names no GPA" in text
    text = describe_run_failure(errno.EBADF, vcpu, PLACE)  # type: ignore[arg-type]
    assert "names no GPA" not in text
