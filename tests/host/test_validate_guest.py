"""A guest of a case that does not come back: how long it has, and what is said."""

from __future__ import annotations

import pytest

from pyvmm.kvm.mapping import PAGE_SIZE, Mapping
from pyvmm.kvm.system import Kvm
from pyvmm.native import lib
from pyvmm.validate.kit import guest, routines
from pyvmm.validate.kit.check import CheckFailed
from pyvmm.validate.kit.guest import Cpu, GuestVm
from pyvmm.validate.kit.watch import Watch

EVER = (1 << 63) - 1


def looks_at(name: str, monkeypatch: pytest.MonkeyPatch, **registers: int) -> int:
    """How often a routine that never ends is looked at behind its deadline of one second."""
    looks = 0
    registers_of = Cpu._general_registers

    def look(cpu: Cpu) -> bytes:
        nonlocal looks
        looks += 1
        return registers_of(cpu)

    monkeypatch.setattr(guest, "_STANDS_S", 0.05)
    monkeypatch.setattr(Cpu, "_general_registers", look)
    with Kvm() as kvm:
        vm = GuestVm(kvm, lib.KVM_X86_DEFAULT_VM, 1)
        try:
            vm.cpu.prepare(getattr(routines, name), rdi=0x9000, **registers)
            with pytest.raises(CheckFailed, match="vCPU 0 got no exit within 1 s"):
                vm.cpu.enter(1.0)
        finally:
            vm.close()
    return looks


def test_a_guest_that_gets_on_has_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    # It writes to one word again and again, and counts down.
    assert looks_at("FILL", monkeypatch, rcx=EVER) > 2


def test_a_guest_that_stands_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    # It reads one word again and again.
    assert looks_at("WATCH", monkeypatch, rsi=0xA000) == 2


@pytest.mark.parametrize("when", ["in time", "late"])
def test_an_exit_that_comes_when_nobody_waits_any_more_is_none(when: str) -> None:
    gpa = 1 << 30
    with Kvm() as kvm, Mapping(PAGE_SIZE) as memory:
        vm = GuestVm(kvm, lib.KVM_X86_DEFAULT_VM, 1)
        try:
            slot = vm.new_slot()
            vm.vm.set_user_memory_region(slot, gpa, PAGE_SIZE, memory.address)
            with Watch(vm.cpu, gpa, stop_at_exit=True) as watch:
                if when == "late":
                    watch.join(0.1)
                vm.vm.set_user_memory_region(slot, gpa, 0, memory.address)
                watch.join(30)
            if when == "late":
                assert watch.outcome is None
            else:
                assert watch.outcome and watch.outcome.reason == lib.KVM_EXIT_MMIO
        finally:
            vm.close()
